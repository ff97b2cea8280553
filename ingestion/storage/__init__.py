"""The one package that knows how raw events are laid out: by UTC day of `occurred_at`, on one of two engines.

`plain` is native partitioning, `timescale` a hypertable; what the table was made as counts, not what the server could do. Nothing
else names a partition, a chunk or an index of `usage_events`.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from enum import StrEnum

from django.db import connection
from django.db.backends.utils import CursorWrapper

from ingestion.partitioning import Partition

from . import timescale
from .engine import TABLE, Engine
from .plain import Plain
from .timescale import Timescale

DAYS_AHEAD = 3  # partitions that stand ready: an event may lie 5 minutes ahead, a task may miss a day or two

_PLAIN, _TIMESCALE = Plain(), Timescale()


def day_of(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


def engine() -> Engine:
    """What the table is. Asked each time, as it may be moved while this process lives."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT relkind = 'p' FROM pg_class WHERE oid = %s::regclass", [TABLE])
        (is_partitioned,) = cursor.fetchone()
    return _PLAIN if is_partitioned else _TIMESCALE


def forget() -> None:
    """Drop what this process believes about partitions."""
    _PLAIN.forget()


class Change(StrEnum):
    """What became of the extension since the table was made."""

    APPEARED = "This server has TimescaleDB, but usage_events is a plain table."
    VANISHED = "usage_events is a hypertable of TimescaleDB, which this server does not load."


def change() -> Change | None:
    """Whether the extension came or went."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [TABLE])
        if not cursor.fetchone()[0]:
            return None
        is_available = timescale.is_available(cursor)
    if (engine() is _TIMESCALE) == is_available:
        return None
    return Change.APPEARED if is_available else Change.VANISHED


def create(columns: str) -> None:
    """Make the table, on TimescaleDB where the server has it. For the migrations; `columns` is the list of a CREATE TABLE."""
    with connection.cursor() as cursor:
        (_TIMESCALE if timescale.is_available(cursor) else _PLAIN).create(cursor, columns)
    forget()


def destroy() -> None:
    """The table and all it holds. For the migrations."""
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {TABLE}")
    forget()


def ensure_days(days: Iterable[date]) -> None:
    """Make room for these days where there is none. Every batch asks: what is known of a plain table costs no query."""
    wanted = set(days)
    if not _PLAIN.knows(wanted):
        engine().ensure_days(wanted)


def summarise(cursor: CursorWrapper, first: datetime, last: datetime) -> None:
    """Tell the BRIN index on `batch_id` about pages written since it was last told, in the days of this span.

    BRIN reads every page that it has no summary of: without this, a look-up of the newest batches would read the whole
    partition. The cost follows the new pages.
    """
    engine().summarise(cursor, day_of(first), day_of(last))


def parts() -> list[Partition]:
    """What the table consists of, by time, and what each part takes on disk."""
    return engine().parts()


def settle(part: Partition) -> int:
    """Bring a part that no longer changes into its cheapest form; returns the bytes that frees. Not inside a transaction."""
    return engine().settle(part)


def drop(part: Partition, may_go: Callable[[], bool] = lambda: True) -> int:
    """Remove a part and all it holds, where `may_go` still says so once nobody writes to it; returns the bytes that frees.

    Not inside a transaction.
    """
    return engine().drop(part, may_go)
