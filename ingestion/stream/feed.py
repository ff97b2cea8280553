"""Messages of a stream from an offset on, over AMQP 0-9-1.

The connection lives on a thread of its own, so that a commit that takes long never keeps heartbeats from being sent.
Credit is what holds memory: the broker sends so many messages beyond the last that was acknowledged, and where these are
large, the thread stops reading at `MAX_BUFFERED_BYTES`.
"""

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

from django.utils import timezone

from . import connecting
from .connecting import Connection, offset_of, traceparent_of
from .looking import Look, Lookout, begin_of

MAX_PREFETCH = 65_535  # messages; what the protocol can say
MAX_BUFFERED_BYTES = 64 * 1024 * 1024
LOOK_INTERVAL = 1.0  # seconds between looks at the end of the stream
QUIET_LOOK_INTERVAL = 4.0  # seconds more, while nothing comes
LOOK_SHARE = 0.05  # of the time at most: a look takes in the last chunk, which may be large
_PAUSE = 0.02  # seconds; how long an acknowledgement may wait for the thread


@dataclass(frozen=True, slots=True)
class Message:
    """One message: where it stands in the stream, and its bytes. `tag` acknowledges it and all before it."""

    offset: int
    body: bytes
    tag: int
    traceparent: str = ""  # of its producer, as far as a header says


class Feed:
    """A subscription. `get` and `ack` are called by one thread, the reader's."""

    def __init__(self, url: str, stream: str, consumer: str) -> None:
        """Connect. Raises `BROKER_ERRORS`."""
        self.looked: Look | None = None  # the last look at the end of the stream
        self._url, self._stream, self._consumer = url, stream, consumer
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._buffered = 0  # bytes; a reader that lags a little does no harm
        self._received_at = 0.0  # by the monotonic clock
        self._done: Message | None = None
        self._error: Exception | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._lookout = Lookout(url, stream)
        try:
            self._connection = Connection(url)
        except BaseException:
            self._lookout.drop()
            raise

    def start(self, offset: int, prefetch: int) -> None:
        """Begin to read at an offset, or at the first after it, with credit for so many messages."""
        channel = self._connection.channel()
        channel.basic_qos(0, min(prefetch, MAX_PREFETCH), False)
        channel.basic_consume(
            self._stream,
            consumer_tag=self._consumer,
            callback=self._receive,
            arguments={"x-stream-offset": offset},
        )
        name = f"feed {self._stream}"
        self._thread = threading.Thread(target=self._run, args=(channel, offset), name=name, daemon=True)
        self._thread.start()

    def get(self, timeout: float) -> Message | None:
        """The next message, or None where there is none for so many seconds. Raises `BROKER_ERRORS` once it has ended."""
        try:
            message = self._messages.get(timeout=timeout) if timeout > 0 else self._messages.get_nowait()
        except queue.Empty:
            if self._error is not None:
                raise self._error from None
            return None
        self._buffered -= len(message.body)
        return message

    def ack(self, message: Message) -> None:
        """Give back the credit of this message and all before it: they are committed."""
        self._done = message

    def begin(self) -> int:
        """The offset of the first message that the stream has now. Raises `BROKER_ERRORS`."""
        return begin_of(self._url, self._stream)

    def close(self) -> None:
        self._closing.set()
        for connection in (self._connection, self._lookout):
            connection.interrupt()
        if self._thread is not None:
            self._thread.join()
        for connection in (self._connection, self._lookout):
            connection.drop()

    # ── On the thread ────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, message: Any) -> None:
        body = message.body if isinstance(message.body, bytes) else bytes(message.body or "", "utf-8")
        self._buffered += len(body)
        self._messages.put(Message(offset_of(message), body, message.delivery_tag, traceparent_of(message)))
        self._received_at = time.monotonic()

    def _run(self, channel: Any, offset: int) -> None:
        acknowledged, ticked, looked_at, next_look_at = 0, time.monotonic(), 0.0, 0.0
        try:
            while not self._closing.is_set():
                if (done := self._done) is not None and done.tag > acknowledged:
                    channel.basic_ack(done.tag, multiple=True)
                    acknowledged = done.tag
                is_quiet = self._received_at < looked_at
                if time.monotonic() > next_look_at + (QUIET_LOOK_INTERVAL if is_quiet else 0):
                    looked_at = time.monotonic()
                    is_empty = offset == 0 and not self._received_at
                    self._look(is_empty)
                    now = time.monotonic()
                    # At an empty stream a look waits its whole time for nothing, and that is no load.
                    rest = 0.0 if is_empty else (now - looked_at) * (1 / LOOK_SHARE - 1)
                    next_look_at = max(looked_at + LOOK_INTERVAL, now + rest)
                if self._buffered > MAX_BUFFERED_BYTES:
                    self._connection.say_alive()
                    time.sleep(_PAUSE)
                    continue
                self._connection.read(_PAUSE)
                if time.monotonic() - ticked > connecting.HEARTBEAT / 4:
                    ticked = time.monotonic()
                    self._connection.keep_alive()
        except Exception as error:  # handed over to the reader, whatever it is
            self._error = error

    def _look(self, is_empty: bool) -> None:
        """A stream that does not answer is an empty one only where nothing ever came from it."""
        at, end = timezone.now(), self._lookout.end()
        if end is not None or is_empty:
            self.looked = Look(at, end or 0)
