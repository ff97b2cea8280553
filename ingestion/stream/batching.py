"""Messages of a feed become batches: each is stored with the stream's new position, and then gives its credit back."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from django.conf import settings
from django.utils import timezone

from ingestion import spans
from ingestion.models import Door
from ingestion.schema import Invalid, UsageEvent, read_message
from ingestion.spans import MAX_LINKS
from ingestion.writing import Delivery, StreamSpan, store

from .feed import Feed, Message
from .position import Position
from .progress import NOTE_INTERVAL, Progress

MAX_BATCH_BYTES = 32 * 1024 * 1024  # of messages; bounds a batch of large ones, as poison may be


@dataclass
class OpenBatch:
    """Messages that are read and not yet stored."""

    first_offset: int = 0
    last: Message | None = None
    messages: int = 0
    size: int = 0  # bytes
    events: list[UsageEvent] = field(default_factory=list)
    quarantined: list[Invalid] = field(default_factory=list)
    quarantined_offsets: list[int] = field(default_factory=list)
    deadline: float = 0.0
    # Of the spans in which the messages were published; a producer may send many within one.
    traceparents: dict[str, None] = field(default_factory=dict)

    def add(self, message: Message, now: datetime) -> None:
        if self.last is None:
            self.first_offset = message.offset
            self.deadline = time.monotonic() + settings.INGESTION_BATCH_TIMEOUT
        self.last = message
        self.messages += 1
        self.size += len(message.body)
        if message.traceparent and len(self.traceparents) < MAX_LINKS:
            self.traceparents[message.traceparent] = None
        for item in read_message(message.body, now):
            if isinstance(item, Invalid):
                self.quarantined.append(item)
                self.quarantined_offsets.append(message.offset)
            else:
                self.events.append(item)

    @property
    def is_full(self) -> bool:
        items = len(self.events) + len(self.quarantined)
        return items >= settings.INGESTION_BATCH_SIZE or self.size >= MAX_BATCH_BYTES

    @property
    def is_due(self) -> bool:
        return self.last is not None and (self.is_full or self.deadline <= time.monotonic())


def commit(batch: OpenBatch, position: Position) -> Message:
    """Store a batch and move the position, both or neither; returns the last message, which can be acknowledged now."""
    assert batch.last is not None
    where = {"stream": position.stream, "first_offset": batch.first_offset, "last_offset": batch.last.offset}
    with (
        structlog.contextvars.bound_contextvars(**where),
        spans.span("read stream", batch.traceparents, is_root=True, stream=position.stream, messages=batch.messages),
        position.moving_to(batch.last.offset),
    ):
        store(
            Delivery(
                Door.STREAM,
                batch.events,
                quarantined=batch.quarantined,
                quarantined_offsets=batch.quarantined_offsets,
                registers=True,
                span=StreamSpan(position.stream, batch.first_offset, batch.last.offset, batch.messages),
            )
        )
    return batch.last


class Batching:
    """Reads a feed from a position on, until it is told to stop. A batch closes when it is full or its time is up."""

    def __init__(self, feed: Feed, position: Position) -> None:
        self.feed, self.position = feed, position
        self.progress = Progress(position)
        self.batch = OpenBatch()
        # The offset that should come next; None where nothing of this stream was ever read.
        self._expected = None if position.offset is None else position.next_offset

    def run(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            # Never so long that being told to stop, or a note, waits for a slow batch.
            left = self.batch.deadline - time.monotonic() if self.batch.messages else NOTE_INTERVAL
            message = self.feed.get(min(left, NOTE_INTERVAL / 2))
            if message is not None:
                self._take(message)
            if self.batch.is_due:
                self._commit()
            self.progress.note(self.feed.looked)
        self._commit()
        self.progress.note(self.feed.looked, now=True)

    def _take(self, message: Message) -> None:
        if message.offset < self.position.next_offset:
            return  # the broker begins with the chunk that holds what was asked for
        expected = self._expected
        if expected is not None and message.offset > expected and self.feed.begin() > expected:
            # Retention overtook us while we read. Other jumps are the broker's own entries in its log.
            self._commit()
            self.position.begin(message.offset, message.offset + 1)
        self.batch.add(message, timezone.now())
        self._expected = message.offset + 1

    def _commit(self) -> None:
        if self.batch.messages:
            self.feed.ack(commit(self.batch, self.position))
            self.progress.committed(self.batch.messages, len(self.batch.events))
            self.batch = OpenBatch()
