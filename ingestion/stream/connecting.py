"""Connections to the broker on which nothing waits without a limit: a broker may freeze, and say no more."""

import contextlib
import socket
from typing import Any

import amqp
from django.conf import settings
from kombu.connection import Connection as Url

from ingestion.spans import TRACEPARENT_LENGTH

HEARTBEAT = 10  # seconds; a broker that says nothing for twice this is taken for gone
TIMEOUT = 5  # seconds to connect, and for each answer that is waited for

BROKER_ERRORS = (amqp.exceptions.AMQPError, OSError)


class Connection:
    """A connection, used by one thread; `interrupt` is for another. Every method raises `BROKER_ERRORS`."""

    def __init__(self, url: str, *, has_heartbeats: bool = True, timeout: float = TIMEOUT) -> None:
        """Whoever wants heartbeats calls `keep_alive` often; the time-out is of each answer, in seconds."""
        heartbeat = HEARTBEAT if has_heartbeats else 0
        client = Url(url, heartbeat=heartbeat, connect_timeout=TIMEOUT)
        self._connection: Any = client.transport.establish_connection()  # once: trying again is the caller's
        # Of the socket: the client itself would wait for an answer for ever, and so for the rest of a frame.
        self._socket: socket.socket = self._connection.transport.sock
        self._socket.settimeout(timeout)

    def channel(self) -> Any:
        channel = self._connection.channel()
        channel.auto_decode = False  # bodies are bytes, whatever encoding a producer claims
        return channel

    def read(self, timeout: float) -> None:
        """Take in what comes next, if it comes within so many seconds."""
        with contextlib.suppress(TimeoutError):
            self._connection.drain_events(timeout=timeout)

    def keep_alive(self) -> None:
        """To be called a few times per heartbeat; notices a broker that is silent."""
        self._connection.heartbeat_tick(rate=4)

    def say_alive(self) -> None:
        """Our own sign of life, where nothing is read, and a silent broker so can't be told from a busy one."""
        self._connection.send_heartbeat()

    def interrupt(self) -> None:
        """Whatever waits on this connection fails at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """With a farewell."""
        self._connection.close()

    def drop(self) -> None:
        """Without a farewell: its answer comes behind all that the broker has sent already, however much, or never."""
        with contextlib.suppress(*BROKER_ERRORS):
            self._connection.collect()


def declare(url: str, stream: str) -> bool:
    """Make a stream, of the size that the settings allow, where there is none; returns whether it did. Raises `BROKER_ERRORS`."""
    with contextlib.closing(Connection(url)) as connection:
        # Passively first: an operator's own arguments stay, where another declaration would be an error.
        with contextlib.closing(connection.channel()) as channel, contextlib.suppress(amqp.exceptions.NotFound):
            channel.queue_declare(stream, passive=True)
            return False
        with contextlib.closing(connection.channel()) as channel:
            arguments = {"x-queue-type": "stream", "x-max-length-bytes": settings.RABBITMQ_STREAM_MAX_BYTES}
            channel.queue_declare(stream, durable=True, auto_delete=False, arguments=arguments)
            return True


def offset_of(message: Any) -> int:
    return int(message.headers["x-stream-offset"])


def traceparent_of(message: Any) -> str:
    """Of whoever published it; empty where it doesn't say, in these many characters."""
    given = message.headers.get("traceparent")
    return given if isinstance(given, str) and len(given) == TRACEPARENT_LENGTH else ""
