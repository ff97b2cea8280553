"""A broker that hangs, or is killed, and comes back."""

import os
import signal
from collections.abc import Iterator

import pytest
from django.conf import LazySettings

from analytics_site.rig import RABBITMQ, Broker, scratch_broker
from ingestion.models import StreamReader, UsageEvent
from ingestion.stream import feed as feeds
from ingestion.stream.feed import Feed
from ingestion.stream.publishing import Publisher
from ingestion.stream.reader import Reader
from ingestion.stream.sharing import Share

from ...factories import make_event
from ...processes import eventually
from .conftest import encoded

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def own(settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A broker that may be harmed, with a stream "s"."""
    if not RABBITMQ.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{RABBITMQ} is missing")
        pytest.skip("no RabbitMQ to start; on Debian: apt-get install rabbitmq-server")
    monkeypatch.setattr(feeds, "HEARTBEAT", 2)
    settings.INGESTION_BATCH_TIMEOUT = 0.1
    with scratch_broker() as broker:
        settings.RABBITMQ_URL = broker.url
        Feed(broker.url, "s", "", 10**8).close()
        yield broker


def publish() -> None:
    with Publisher() as publisher:
        publisher.publish("s", encoded(make_event()))


def stored() -> int:
    return UsageEvent.objects.count()


def test_a_reader_outlives_a_broker_that_hangs_and_one_that_is_killed(own: Broker) -> None:
    reader = Reader("s", Share("s", ["s"]))
    reader.start()
    try:
        publish()
        eventually(lambda: stored() == 1, 30, "it reads")
        assert own.running is not None
        os.killpg(own.running.pid, signal.SIGSTOP)
        try:
            eventually(lambda: "heartbeats" in StreamReader.objects.get().last_error, 30, "the silence is noticed")
        finally:
            os.killpg(own.running.pid, signal.SIGCONT)
        publish()
        eventually(lambda: stored() == 2, 60, "it reads on")
        own.kill()
        own.start()
        eventually(lambda: "heartbeats" not in StreamReader.objects.get().last_error, 30, "the loss is noticed")
        eventually(lambda: has_stream(own), 30, "the broker has its stream again")
        publish()
        eventually(lambda: stored() == 3, 60, "it reads on")
    finally:
        reader.stop()
        reader.join(30)
    assert not reader.is_alive()


def has_stream(broker: Broker) -> bool:
    try:
        Feed(broker.url, "s", "", 10**8).close()
    except feeds.BROKER_ERRORS:
        return False
    return True
