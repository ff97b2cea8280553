"""What can't be stored as an event is kept with its bytes and the reason, and gets in once the cause is mended."""

import json
from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from ingestion.models import Door, QuarantinedMessage, UsageEvent
from ingestion.quarantine import replay
from ingestion.replaying import replay as replay_messages

from ..factories import as_json, make_event

pytestmark = pytest.mark.django_db

State = QuarantinedMessage.State


def ahead(minutes: int) -> bytes:
    return json.dumps(as_json(make_event(occurred_at=timezone.now() + timedelta(minutes=minutes)))).encode()


def test_bad_messages_are_kept_with_their_bytes_and_the_neighbours_go_through() -> None:
    good = json.dumps(as_json(make_event())).encode()
    pair = json.dumps([as_json(make_event()), {"eventId": 1}]).encode()
    tally = replay_messages([good, b"\xff\x00", b"", pair, b"[1", b"null"], Door.TRACE)
    assert (tally.events, tally.accepted, tally.quarantined) == (7, 2, 5)
    kept = {bytes(message.payload): message.detail for message in QuarantinedMessage.objects.all()}
    assert kept.keys() == {b"\xff\x00", b"", b'{"eventId": 1}', b"[1", b"null"}
    assert kept[b"\xff\x00"] == "is not valid JSON"
    assert "orgId is required" in kept[b'{"eventId": 1}']


def test_the_same_messages_again_are_duplicates() -> None:
    messages = [json.dumps(as_json(make_event())).encode(), b"nonsense"]
    replay_messages(messages, Door.TRACE)
    tally = replay_messages(messages, Door.TRACE)
    assert (tally.accepted, tally.duplicates, tally.quarantined) == (0, 2, 0)


def test_a_replay_stores_what_is_right_now_and_leaves_the_rest_with_its_reason() -> None:
    replay_messages([ahead(10), ahead(60 * 24)], Door.TRACE)
    soon, later = QuarantinedMessage.objects.order_by("pk")
    assert soon.reason == later.reason == "occurredAt"
    with time_machine.travel(timezone.now() + timedelta(minutes=10), tick=False):
        batch = replay([soon.pk, later.pk])
    assert batch is not None
    assert (batch.door, batch.accepted) == (Door.QUARANTINE, 1)
    soon.refresh_from_db()
    later.refresh_from_db()
    assert (soon.state, soon.replay_batch, later.state) == (State.REPLAYED, batch, State.WAITING)


def test_a_second_replay_adds_nothing() -> None:
    replay_messages([ahead(10)], Door.TRACE)
    ids = list(QuarantinedMessage.objects.values_list("pk", flat=True))
    with time_machine.travel(timezone.now() + timedelta(minutes=10), tick=False):
        assert replay(ids) is not None
        assert replay(ids) is None
    assert UsageEvent.objects.count() == 1
