"""How far a stream was read, and by whom: one row a stream, moved in the transaction that stores what was read.

A session's advisory lock lets one reader at a time work; it goes when its connection does. The row is the fence: each batch
locks it and looks whether it is still as this reader left it. Whoever finds another's mark ends, and nothing of its
batch is stored.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from django.db import connection, transaction
from django.utils import timezone

from ingestion.locks import Lock, hold_for_session
from ingestion.models import StreamGap, StreamReader

logger = structlog.get_logger(__name__)


class Superseded(Exception):
    """Another reader has taken over this stream."""


@dataclass
class Position:
    """This reader's place in a stream. `offset` is the last that was committed; None before the first."""

    stream: str
    offset: int | None
    reader: uuid.UUID = field(default_factory=uuid.uuid4)

    @property
    def next_offset(self) -> int:
        return 0 if self.offset is None else self.offset + 1

    @contextmanager
    def moving_to(self, offset: int | None) -> Iterator[None]:
        """A transaction that ends with the position at this offset. Raises `Superseded`."""
        with transaction.atomic():
            row = StreamReader.objects.select_for_update().get(pk=self.stream)
            if row.reader != self.reader or row.committed_offset != self.offset:
                raise Superseded(self.stream)
            yield
            row.committed_offset = offset
            row.committed_at = timezone.now()
            row.save(update_fields=("committed_offset", "committed_at"))
        self.offset = offset

    def begin(self, first: int, end: int) -> None:
        """Compare with what the stream holds now, from `first` to before `end`; what is missing is recorded as a gap.

        For a position behind some message: of a stream that nobody read yet, nothing is missing.
        Retention may have taken messages before they were read. A stream that ends before this position is another one of
        the same name, or lost its end with its broker: it is read from its beginning, and what is known is a duplicate.
        """
        if first <= self.next_offset <= end:
            return
        missing = self.next_offset
        last_missing = first - 1 if missing < first else None
        with self.moving_to(first - 1 if first else None):
            StreamGap.objects.create(stream=self.stream, first_missing=missing, last_missing=last_missing)
        logger.error("stream_gap", stream=self.stream, first_offset=missing, last_offset=last_missing)

    def note(self, **state: object) -> None:
        """Say how reading goes: for people, and for the freshness of all figures."""
        StreamReader.objects.filter(pk=self.stream, reader=self.reader).update(seen_at=timezone.now(), **state)


def take_over(stream: str) -> Position | None:
    """This process's place in a stream, where no other process reads it."""
    if not hold_for_session(Lock.STREAM, stream):
        return None
    with transaction.atomic():
        now = timezone.now()
        row, _ = StreamReader.objects.select_for_update().get_or_create(pk=stream, defaults={"caught_up_at": now})
        position = Position(stream, row.committed_offset)
        row.reader, row.taken_at, row.seen_at = position.reader, now, now
        row.save(update_fields=("reader", "taken_at", "seen_at"))
    return position


def let_go() -> None:
    """End the session, and with it the lock."""
    connection.close()


def read_up_to() -> datetime | None:
    """The moment up to which all that came in on any stream was read; None where no stream was ever read."""
    rows = StreamReader.objects.order_by("caught_up_at").values_list("caught_up_at", flat=True)
    return rows.first()
