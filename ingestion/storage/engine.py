"""What an engine has to do for the table of raw events."""

from collections.abc import Callable, Iterable
from datetime import date
from typing import Protocol

from django.db.backends.utils import CursorWrapper

from ingestion.partitioning import Partition

TABLE = "usage_events"

# Finds the events of a batch: the rollup and the admin. Batches come in order, so a few bytes per 32 pages do.
INDEX = f"CREATE INDEX usage_events_batch ON {TABLE} USING brin (batch_id) WITH (pages_per_range = 32)"


class Engine(Protocol):
    """Days are UTC days."""

    name: str
    makes_days_ahead: bool  # whether room for a day is made before its first event

    def create(self, cursor: CursorWrapper, columns: str) -> None: ...

    def ensure_days(self, days: Iterable[date]) -> None: ...

    def summarise(self, cursor: CursorWrapper, first: date, last: date) -> None: ...

    def parts(self) -> list[Partition]: ...

    def settle(self, part: Partition) -> int: ...

    def drop(self, part: Partition, may_go: Callable[[], bool]) -> int: ...
