"""Messages onto a stream, each confirmed by the broker: what a gateway does, for traces, tests and measurements."""

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from types import TracebackType
from typing import Any

import amqp
import msgspec
from django.conf import settings

from . import connecting
from .connecting import BROKER_ERRORS, Connection
from .partitions import stream_of, streams

WINDOW = 1_000  # messages that may be on the way without a confirm
CONFIRM_TIMEOUT = 30.0  # seconds


# Stream, body, and how many events the body holds.
Batched = tuple[str, bytes, int]


class NotConfirmed(RuntimeError):
    """The broker did not take a message."""


class Publisher:
    """A connection that confirms. `confirm` returns once the broker holds all that was published."""

    def __init__(self, url: str | None = None) -> None:
        self._connection = Connection(url or settings.RABBITMQ_URL, timeout=CONFIRM_TIMEOUT)
        self._channel: Any = self._connection.channel()
        self._channel.confirm_select()
        self._sent = self._confirmed = 0
        self._channel.events["basic_ack"].add(self._acknowledged)
        self._channel.events["basic_nack"].add(self._refused)
        self._channel.events["basic_return"].add(self._returned)

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.confirm()
        finally:
            with contextlib.suppress(*BROKER_ERRORS):
                self._connection.close()

    def publish(self, stream: str, body: bytes, traceparent: str = "") -> None:
        headers = {"traceparent": traceparent} if traceparent else {}
        message = amqp.Message(body, delivery_mode=2, application_headers=headers)
        # Mandatory: a broker confirms what it drops for want of a queue, too.
        self._channel.basic_publish(message, routing_key=stream, mandatory=True)
        self._sent += 1
        if self._sent - self._confirmed >= WINDOW:
            self._wait(WINDOW // 2)

    def confirm(self) -> None:
        self._wait(0)

    def pause(self, seconds: float) -> None:
        """Sleep, and meanwhile listen to the broker and let it know that we live."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._connection.read(min(left, connecting.HEARTBEAT / 4))
            self._connection.keep_alive()

    def _wait(self, outstanding: int) -> None:
        deadline = time.monotonic() + CONFIRM_TIMEOUT
        while self._sent - self._confirmed > outstanding:
            if time.monotonic() > deadline:
                raise NotConfirmed(f"{self._sent - self._confirmed} messages are not confirmed")
            self._connection.read(1)

    def _acknowledged(self, tag: int, multiple: bool) -> None:
        self._confirmed = tag if multiple else self._confirmed + 1

    def _refused(self, tag: int, multiple: bool) -> None:
        raise NotConfirmed(f"the broker refused message {tag}")

    def _returned(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        raise NotConfirmed(f"there is no stream {routing_key}")


def grouped(events: Iterable[bytes], per_message: int) -> Iterator[Batched]:
    """Events in messages of at most so many; those of a message go to one stream."""
    iterator = iter(events)
    while chunk := list(islice(iterator, per_message)):
        keyed = sorted(
            ((_stream_of_event(event), n, event) for n, event in enumerate(chunk)), key=lambda item: item[:2]
        )
        for stream, items in groupby(keyed, key=lambda item: item[0]):
            bodies = [event for _, _, event in items]
            yield stream, bodies[0] if per_message == 1 else b"[" + b",".join(bodies) + b"]", len(bodies)


class _Owner(msgspec.Struct, rename="camel"):
    org_id: uuid.UUID


_OWNER = msgspec.json.Decoder(_Owner)


def _stream_of_event(event: bytes) -> str:
    names = streams()
    return names[0] if len(names) == 1 else stream_of(_OWNER.decode(event).org_id)


def publish_all(publisher: Publisher, messages: Iterable[Batched], rate: float) -> tuple[int, int]:
    """Publish at most `rate` events a second, 0 being as fast as it goes; returns how many messages and events."""
    started, sent, events = time.monotonic(), 0, 0
    for stream, body, count in messages:
        publisher.publish(stream, body)
        sent, events = sent + 1, events + count
        if rate:
            publisher.pause(events / rate - (time.monotonic() - started))
    publisher.confirm()
    return sent, events
