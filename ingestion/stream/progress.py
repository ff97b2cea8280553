"""What is told of a reader: rates, backlog, and up to when everything was read."""

import time
from collections import deque

from .looking import Look
from .position import Position

NOTE_INTERVAL = 1.0  # seconds between notes of how reading goes


class Progress:
    """Notes of one reader, in its position's row.

    The broker does not say when a message came in, and its silence does not say that there is none. So the end of the
    stream is looked at: a reader that has got as far as it reached at some moment has read all that came before it.
    """

    def __init__(self, position: Position) -> None:
        self._position = position
        self._noted = time.monotonic()
        self._messages = self._events = 0
        self._looks: deque[Look] = deque(maxlen=10_000)  # those that reading has not got as far as
        self._last: Look | None = None

    def committed(self, messages: int, events: int) -> None:
        self._messages += messages
        self._events += events

    def note(self, look: Look | None, *, now: bool = False) -> None:
        """Write it down, at most every `NOTE_INTERVAL`, with the last look at the end of the stream."""
        elapsed = time.monotonic() - self._noted
        if elapsed < NOTE_INTERVAL and not now:
            return
        state: dict[str, object] = {
            "messages_per_second": self._messages / elapsed,
            "events_per_second": self._events / elapsed,
        }
        if look is not None:
            state["backlog"] = max(0, look.end - self._position.next_offset)
            if look is not self._last:
                self._looks.append(look)
                self._last = look
        while self._looks and self._looks[0].end <= self._position.next_offset:
            state["caught_up_at"] = self._looks.popleft().at
        self._position.note(**state)
        self._noted, self._messages, self._events = time.monotonic(), 0, 0
