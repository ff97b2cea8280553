"""A broker that hangs, or is killed, and comes back."""

import os
import signal
from collections.abc import Iterator

import pytest
from django.conf import LazySettings
from django.utils import timezone

from analytics_site.rig import RABBITMQ, Broker, scratch_broker
from ingestion.models import StreamReader, UsageEvent
from ingestion.stream import connecting, feed
from ingestion.stream.connecting import BROKER_ERRORS, declare
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
    monkeypatch.setattr(connecting, "HEARTBEAT", 2)
    settings.INGESTION_BATCH_TIMEOUT = 0.1
    with scratch_broker() as broker:
        settings.RABBITMQ_URL = broker.url
        declare(broker.url, "s")
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
            eventually(lambda: StreamReader.objects.get().last_error, 30, "the silence is noticed")
            noticed = StreamReader.objects.get().last_error_at
        finally:
            os.killpg(own.running.pid, signal.SIGCONT)
        publish()
        eventually(lambda: stored() == 2, 60, "it reads on")
        own.kill()
        own.start()
        eventually(lambda: StreamReader.objects.get().last_error_at > noticed, 30, "the loss is noticed")
        eventually(lambda: has_stream(own), 30, "the broker has its stream again")
        publish()
        eventually(lambda: stored() == 3, 60, "it reads on")
    finally:
        reader.stop()
        reader.join(30)
    assert not reader.is_alive()


def test_a_broker_that_freezes_during_a_look_is_never_called_read_and_holds_no_reader(
    own: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_INTERVAL", "QUIET_LOOK_INTERVAL"):
        monkeypatch.setattr(feed, name, 0.0)  # a look follows the other
    reader = Reader("s", Share("s", ["s"]))
    reader.start()
    try:
        publish()
        eventually(lambda: stored() == 1, 30, "it reads")
        eventually(lambda: StreamReader.objects.get().backlog == 0, 5, "it says so")
        assert own.running is not None
        os.killpg(own.running.pid, signal.SIGSTOP)
        frozen_at = timezone.now()
        eventually(lambda: StreamReader.objects.get().last_error, 30, "the silence is noticed")
        assert StreamReader.objects.get().caught_up_at <= frozen_at
    finally:
        reader.stop()
        reader.join(2 * connecting.TIMEOUT + 2)
        assert own.running is not None
        os.killpg(own.running.pid, signal.SIGCONT)
    assert not reader.is_alive(), "it ends while the broker is frozen"


def has_stream(broker: Broker) -> bool:
    try:
        declare(broker.url, "s")
    except BROKER_ERRORS:
        return False
    return True
