"""What is told of a reader: rates, backlog, and up to when everything was read."""

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from django.utils import timezone

from .position import Position

NOTE_INTERVAL = 1.0  # seconds between notes of how reading goes
LOOK_AFTER = timedelta(seconds=2)  # without having caught up, until the end of the stream is looked at


class Progress:
    """Notes of one reader, in its position's row.

    The broker does not say when a message came in. So while there is always more to read, the end of the stream is looked at
    now and then: a reader that has got as far as the stream reached at some moment has read all that came before it.
    """

    def __init__(self, position: Position) -> None:
        self._position = position
        self._noted = time.monotonic()
        self._messages = self._events = 0
        self._ends: deque[tuple[datetime, int]] = deque(maxlen=10_000)
        self._caught_up_at: datetime | None = None
        self._asked_at: datetime | None = None

    def committed(self, messages: int, events: int) -> None:
        self._messages += messages
        self._events += events

    def idle(self) -> None:
        """Nothing waits: all that came in was read."""
        self._caught_up_at = timezone.now()
        self._ends.clear()

    def note(self, look: Callable[[], int | None], *, now: bool = False) -> None:
        """Write it down, at most every `NOTE_INTERVAL`."""
        elapsed = time.monotonic() - self._noted
        if elapsed < NOTE_INTERVAL and not now:
            return
        backlog = None
        if self._caught_up_at is None or timezone.now() - self._caught_up_at > LOOK_AFTER:
            asked_at, self._asked_at = self._asked_at, timezone.now()
            end = look()  # the answer to what was asked at `asked_at`
            if end is not None and asked_at is not None:
                self._ends.append((asked_at, end))
                backlog = max(0, end - self._position.next_offset)
        else:
            self._asked_at, backlog = None, 0
        while self._ends and self._ends[0][1] <= self._position.next_offset:
            self._caught_up_at = self._ends.popleft()[0]
        state: dict[str, object] = {
            "messages_per_second": self._messages / elapsed,
            "events_per_second": self._events / elapsed,
        }
        if backlog is not None:
            state["backlog"] = backlog
        if self._caught_up_at is not None:
            state["caught_up_at"] = self._caught_up_at
        self._position.note(**state)
        self._noted, self._messages, self._events = time.monotonic(), 0, 0
