"""Messages of a stream from an offset on, over AMQP 0-9-1.

The connection lives on a thread of its own, so that a commit that takes long never keeps heartbeats from being sent.
Credit is what holds memory: the broker sends so many messages beyond the last that was acknowledged, and where these are
large, the thread stops reading at `MAX_BUFFERED_BYTES`.
"""

import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import amqp
from kombu.connection import Connection

HEARTBEAT = 10  # seconds; a broker that says nothing for twice this is taken for gone
CONNECT_TIMEOUT = 5  # seconds
MAX_PREFETCH = 65_535  # messages; what the protocol can say
MAX_BUFFERED_BYTES = 64 * 1024 * 1024
FIRST_LOOK_TIMEOUT = 5.0  # seconds for the first message before reading; a stream that has none by then is empty
LOOK_TIMEOUT = 1.0  # seconds for the same while reading; it looks again anyway
MAX_CHUNK = 10_000  # messages; more than the broker writes in one go
_PAUSE = 0.02  # seconds between looks, where there is nothing to do

BROKER_ERRORS = (amqp.exceptions.AMQPError, OSError)


def connect(url: str) -> Any:
    """A connection with heartbeats, which whoever has it must send. Raises `BROKER_ERRORS`."""
    connection = Connection(url, heartbeat=HEARTBEAT, connect_timeout=CONNECT_TIMEOUT)
    connection.connect()
    return connection


@dataclass(frozen=True, slots=True)
class Message:
    """One message: where it stands in the stream, and its bytes. `tag` acknowledges it and all before it."""

    offset: int
    body: bytes
    tag: int


class Feed:
    """A subscription. `get` and `ack` are called by one thread, the reader's."""

    def __init__(self, url: str, stream: str, consumer: str, max_bytes: int) -> None:
        """Connect, and declare the stream with this size limit where it does not exist. Raises `BROKER_ERRORS`."""
        self.stream, self.consumer = stream, consumer
        self._connection = connect(url)
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._buffered = 0  # bytes; a reader that lags a little does no harm
        self._done: Message | None = None
        self._error: Exception | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked = threading.Event()
        self._end: int | None = None
        self._first_wanted = threading.Event()
        self._firsts: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        try:
            self._declare(max_bytes)
        except BaseException:
            self.close()
            raise

    def _declare(self, max_bytes: int) -> None:
        # Passively first: an operator's own arguments stay, where another declaration would be an error.
        with contextlib.closing(self._channel()) as channel, contextlib.suppress(amqp.exceptions.NotFound):
            channel.queue_declare(self.stream, passive=True)
            return
        with contextlib.closing(self._channel()) as channel:
            arguments = {"x-queue-type": "stream", "x-max-length-bytes": max_bytes}
            channel.queue_declare(self.stream, durable=True, auto_delete=False, arguments=arguments)

    def _channel(self) -> Any:
        channel = self._connection.channel()
        channel.auto_decode = False  # bodies are bytes, whatever encoding a producer claims
        return channel

    def bounds(self) -> tuple[int, int]:
        """The offset of the first message and the one behind the last, as they are now. Called before `start`."""
        first = self._look("first", 1, FIRST_LOOK_TIMEOUT)
        if not first:
            return 0, 0
        last = self._look("last", MAX_CHUNK, FIRST_LOOK_TIMEOUT)
        return first[0], last[-1] + 1 if last else first[0] + 1

    def _look(self, where: str, prefetch: int, timeout: float = LOOK_TIMEOUT) -> list[int]:
        """Offsets of the first or the last messages, without their being consumed; all of the last chunk at `prefetch`.

        The broker's own count of messages is of no use: it begins at zero when the broker does.
        """
        found: list[int] = []
        with contextlib.closing(self._channel()) as channel:
            channel.basic_qos(0, prefetch, False)
            tag = channel.basic_consume(
                self.stream,
                callback=lambda message: found.append(_offset(message)),
                arguments={"x-stream-offset": where},
            )
            deadline = time.monotonic() + timeout
            while len(found) < prefetch and time.monotonic() < deadline:
                is_first = not found
                with contextlib.suppress(TimeoutError):
                    self._connection.drain_events(timeout=_PAUSE)
                if found and is_first:  # the rest of the chunk follows at once; what comes later is no part of the look
                    deadline = time.monotonic() + 2 * _PAUSE
            channel.basic_cancel(tag)
        return found

    def start(self, offset: int, prefetch: int) -> None:
        """Begin to read at an offset, or at the first after it, with credit for so many messages."""
        channel = self._channel()
        channel.basic_qos(0, min(prefetch, MAX_PREFETCH), False)
        channel.basic_consume(
            self.stream,
            consumer_tag=self.consumer,
            callback=self._receive,
            arguments={"x-stream-offset": offset},
        )
        self._thread = threading.Thread(target=self._run, args=(channel,), name=f"feed {self.stream}", daemon=True)
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

    def end(self) -> int | None:
        """The offset behind the last message, as last looked at; looks again."""
        self._asked.set()
        return self._end

    def first_offset(self) -> int:
        """The offset of the first message that the stream has now; waits for the answer. Raises `BROKER_ERRORS`."""
        self._first_wanted.set()
        try:
            found = self._firsts.get(timeout=2 * FIRST_LOOK_TIMEOUT)
        except queue.Empty:
            found = []
        if not found:
            raise ConnectionError(f"where {self.stream} begins is not known") from self._error
        return found[0]

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(*BROKER_ERRORS):
            # No farewell: its answer comes behind all that the broker has sent already, however much, or never.
            self._connection.collect()

    # ── On the thread ────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, message: Any) -> None:
        body = message.body if isinstance(message.body, bytes) else bytes(message.body or "", "utf-8")
        self._buffered += len(body)
        self._messages.put(Message(_offset(message), body, message.delivery_tag))

    def _run(self, channel: Any) -> None:
        acknowledged, ticked = 0, time.monotonic()
        try:
            while not self._closing.is_set():
                if (done := self._done) is not None and done.tag > acknowledged:
                    channel.basic_ack(done.tag, multiple=True)
                    acknowledged = done.tag
                if self._first_wanted.is_set():
                    self._first_wanted.clear()
                    self._firsts.put(self._look("first", 1, FIRST_LOOK_TIMEOUT))
                if self._buffered > MAX_BUFFERED_BYTES:
                    # What is not read can't be known to be alive: only our own sign of life is sent.
                    self._connection.connection.send_heartbeat()
                    time.sleep(_PAUSE)
                    continue
                if self._asked.is_set():
                    self._asked.clear()
                    if last := self._look("last", MAX_CHUNK):
                        self._end = last[-1] + 1
                with contextlib.suppress(TimeoutError):
                    self._connection.drain_events(timeout=_PAUSE)
                if time.monotonic() - ticked > HEARTBEAT / 4:
                    ticked = time.monotonic()
                    self._connection.heartbeat_check(rate=4)
        except Exception as error:  # handed over to the reader, whatever it is
            self._error = error


def _offset(message: Any) -> int:
    return int(message.headers["x-stream-offset"])
