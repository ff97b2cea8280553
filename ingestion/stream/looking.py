"""Where a stream begins and ends, asked over a connection of its own: behind nothing that is on its way to the reader.

The broker's own count of messages is of no use: it begins at zero when the broker does.
"""

import contextlib
import time
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

from .connecting import Connection, offset_of

LOOK_TIMEOUT = 5.0  # seconds for the first message of a look
MAX_CHUNK = 10_000  # messages; more than the broker writes in one go
_PAUSE = 0.02  # seconds


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of the end of a stream: all that came in before `at` stands before the offset `end`."""

    at: datetime
    end: int


class Lookout:
    """Looks at one stream. Every method raises `BROKER_ERRORS`, no later than the connection's time-outs."""

    def __init__(self, url: str, stream: str) -> None:
        self.stream = stream
        self._connection = Connection(url, has_heartbeats=False)  # each look is one

    def __enter__(self) -> "Lookout":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.drop()

    def begin(self) -> int | None:
        """The offset of the first message; None of a stream that is empty, or does not answer."""
        found = self._look("first", 1)
        return found[0] if found else None

    def end(self) -> int | None:
        """The offset behind the last message; None of a stream that is empty, or does not answer."""
        found = self._look("last", MAX_CHUNK)
        return found[-1] + 1 if found else None

    def _look(self, where: str, prefetch: int) -> list[int]:
        """Offsets of the first or the last messages, without their being consumed; all of the last chunk at `prefetch`."""
        found: list[int] = []

        def take(message: Any) -> None:
            found.append(offset_of(message))

        with contextlib.closing(self._connection.channel()) as channel:
            channel.basic_qos(0, prefetch, False)
            tag = channel.basic_consume(self.stream, callback=take, arguments={"x-stream-offset": where})
            deadline = time.monotonic() + LOOK_TIMEOUT
            while len(found) < prefetch and time.monotonic() < deadline:
                is_first = not found
                self._connection.read(_PAUSE)
                if found and is_first:  # the rest of the chunk follows at once; what comes later is no part of the look
                    deadline = time.monotonic() + 2 * _PAUSE
            channel.basic_cancel(tag)
        return found

    def interrupt(self) -> None:
        """Whoever waits in a look, on another thread, waits no longer."""
        self._connection.interrupt()

    def drop(self) -> None:
        self._connection.drop()


def begin_of(url: str, stream: str) -> int:
    """Where a stream that has messages begins now. Raises `BROKER_ERRORS`, also where it does not answer."""
    with Lookout(url, stream) as lookout:
        return _begin(lookout)


def bounds_of(url: str, stream: str) -> tuple[int, int]:
    """The offsets of the first message and behind the last, of a stream that has messages. Raises `BROKER_ERRORS`."""
    with Lookout(url, stream) as lookout:
        begin = _begin(lookout)
        return begin, lookout.end() or begin + 1


def _begin(lookout: Lookout) -> int:
    begin = lookout.begin()
    if begin is None:
        raise ConnectionError(f"{lookout.stream} does not say where it begins; it had messages before")
    return begin
