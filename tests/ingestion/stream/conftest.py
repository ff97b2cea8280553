"""A stream of its own for each test, on the RabbitMQ that answers, and readers of it."""

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import amqp
import pytest
from django.conf import LazySettings
from kombu import Connection

from ingestion.models import StreamReader
from ingestion.schema import UsageEvent
from ingestion.stream.connecting import declare
from ingestion.stream.publishing import Publisher
from ingestion.stream.reader import Reader
from ingestion.stream.sharing import Share

from ...factories import as_json
from ...processes import connected, eventually

RABBITMQ = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")

Publish = Callable[..., None]
Reading = Callable[[], AbstractContextManager[Reader]]


@pytest.fixture(scope="session")
def broker() -> Iterator[Connection]:
    with connected(RABBITMQ) as connection:
        yield connection


@pytest.fixture
def delete(broker: Connection) -> Callable[[str], None]:
    """Delete a stream, if it is there."""

    def delete(stream: str) -> None:
        with suppress(amqp.exceptions.NotFound), broker.channel() as channel:
            channel.queue_delete(stream)

    return delete


@pytest.fixture
def stream(broker: Connection, settings: LazySettings, delete: Callable[[str], None]) -> Iterator[str]:
    """The name of an empty stream that the settings mean. Batches close quickly."""
    settings.RABBITMQ_URL = RABBITMQ
    settings.RABBITMQ_STREAM = f"test.{uuid.uuid4().hex}"
    settings.INGESTION_BATCH_TIMEOUT = 0.1
    settings.RABBITMQ_STREAM_MAX_BYTES = 10**8
    declare(RABBITMQ, settings.RABBITMQ_STREAM)
    yield settings.RABBITMQ_STREAM
    delete(settings.RABBITMQ_STREAM)


@pytest.fixture
def publish(stream: str) -> Publish:
    """Put bodies, events or lists of events on the stream, each in one message."""

    def publish(*bodies: bytes | UsageEvent | list[UsageEvent], to: str = stream) -> None:
        with Publisher() as publisher:
            for body in bodies:
                publisher.publish(to, encoded(body))

    return publish


def encoded(body: bytes | UsageEvent | list[UsageEvent]) -> bytes:
    if isinstance(body, bytes):
        return body
    return json.dumps([*map(as_json, body)] if isinstance(body, list) else as_json(body)).encode()


@pytest.fixture
def reading(stream: str) -> Reading:
    """A reader of the stream that runs for as long as the block does."""

    @contextmanager
    def reading() -> Iterator[Reader]:
        reader = Reader(stream, Share(stream, [stream]))
        reader.start()
        try:
            yield reader
        finally:
            reader.stop()
            reader.join(30)
            assert not reader.is_alive()

    return reading


@pytest.fixture
def read_all(stream: str, reading: Reading) -> Callable[[int], None]:
    """Read until the message of an offset is committed."""

    def read_all(last: int) -> None:
        with reading():
            eventually(lambda: committed(stream) >= last, 30, f"message {last} is read; {committed(stream)} is")

    return read_all


def committed(stream: str) -> int:
    """The offset up to which a stream was read; -1 before the first."""
    rows: Iterable[int | None] = StreamReader.objects.filter(pk=stream).values_list("committed_offset", flat=True)
    return next((offset for offset in rows if offset is not None), -1)
