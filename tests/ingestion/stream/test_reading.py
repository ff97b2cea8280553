"""Messages of a stream become events, each handled by one committed batch, whatever is in them."""

import json
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

import psycopg
import pytest
import time_machine
from django.conf import LazySettings
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from kombu import Connection

from ingestion.locks import Lock
from ingestion.models import Batch, QuarantinedMessage, StreamGap, StreamReader, UsageEvent
from ingestion.stream import connecting
from ingestion.stream import feed as feeds
from ingestion.stream.batching import OpenBatch, commit
from ingestion.stream.connecting import declare
from ingestion.stream.feed import Feed, Message
from ingestion.stream.looking import bounds_of
from ingestion.stream.position import Superseded, let_go, take_over
from orgs.limits import MAX_CLOCK_SKEW, MAX_EVENTS_PER_MESSAGE, MAX_MESSAGE_BYTES
from orgs.models import Org

from ...factories import as_json, make_event
from ...processes import database_url, eventually
from .conftest import RABBITMQ, Publish, Reading, committed, encoded

pytestmark = pytest.mark.django_db(transaction=True)

Delete = Callable[[str], None]
ReadAll = Callable[[int], None]


def stored() -> int:
    return UsageEvent.objects.count()


def spans(stream: str) -> list[tuple[int, int, int]]:
    rows = Batch.objects.filter(stream=stream).order_by("id")
    return list(rows.values_list("first_offset", "last_offset", "messages_read"))


def test_one_event_or_an_array_is_stored_and_the_unknown_become_stubs(
    stream: str, publish: Publish, read_all: ReadAll
) -> None:
    org = uuid.uuid4()
    snake = {"event_id": str(uuid.uuid4()), "latency_ms": 5, "org_id": str(org)}
    document = {
        key: value for key, value in as_json(make_event(org)).items() if key not in ("eventId", "latencyMs", "orgId")
    }
    renamed = {"modelId": "model_id", "occurredAt": "occurred_at", "inputTokens": "input_tokens",
               "outputTokens": "output_tokens", "costEstimateCents": "cost_estimate_cents"}  # fmt: skip
    snake |= {renamed.get(key, key): value for key, value in document.items()}
    publish(make_event(org), [make_event(org), make_event(org)], json.dumps(snake).encode(), [])
    read_all(3)
    assert stored() == 4
    assert Org.objects.get().pk == org
    assert Org.objects.get().is_stub
    assert sum(messages for _, _, messages in spans(stream)) == 4
    assert not QuarantinedMessage.objects.exists()


def test_reading_goes_on_behind_the_last_committed_message(stream: str, publish: Publish, read_all: ReadAll) -> None:
    again = make_event()
    publish(*(make_event() for _ in range(5)), again)
    read_all(5)
    publish(again, *(make_event() for _ in range(5)))
    read_all(11)
    assert stored() == 11
    assert sum(Batch.objects.values_list("duplicates", flat=True)) == 1
    found = spans(stream)
    assert [first for first, _, _ in found[1:]] == [last + 1 for _, last, _ in found[:-1]], (
        "no message is in two batches"
    )
    assert (found[0][0], found[-1][1]) == (0, 11)


def test_a_batch_closes_when_it_is_full_and_when_its_time_is_up(
    stream: str, publish: Publish, reading: Reading, settings: LazySettings
) -> None:
    settings.INGESTION_BATCH_SIZE, settings.INGESTION_BATCH_TIMEOUT = 10, 3600.0
    publish(*(make_event() for _ in range(25)))
    with reading():
        eventually(lambda: committed(stream) == 19, 30, "two full batches are committed")
        assert [messages for _, _, messages in spans(stream)] == [10, 10]
        time.sleep(1)  # the others are here too, by now
    assert [messages for _, _, messages in spans(stream)] == [10, 10, 5], "the open one is committed at the end"
    settings.INGESTION_BATCH_SIZE, settings.INGESTION_BATCH_TIMEOUT = 10_000, 0.1
    publish(make_event())
    with reading():
        eventually(lambda: committed(stream) == 25, 30, "a batch of one is committed when its time is up")


POISON: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "unreadable", "is not valid JSON"),
    "not JSON": (b"{not json", "unreadable", "is not valid JSON"),
    "not UTF-8": (b'{"eventId": "\xff\xfe"}', "unreadable", "is not valid JSON"),
    "an array cut short": (b'[{"eventId": 1}', "unreadable", "is not valid JSON"),
    "a number": (b"42", "unreadable", "must be a JSON object"),
    "a wrong field": (json.dumps(as_json(make_event(), latencyMs=-1)).encode(), "latencyMs", "from 0 to"),
    "nesting": (b"[" * 200_000, "unreadable", "is not valid JSON"),
    "too large": (b'{"a": "' + b"x" * MAX_MESSAGE_BYTES + b'"}', "unreadable", "larger than 1,048,576 bytes"),
    "a bomb of elements": (b"[" + b"0," * 400_000 + b"0]", "unreadable", f"at most {MAX_EVENTS_PER_MESSAGE:,}"),
}


def test_poison_is_kept_with_offset_bytes_and_reason_and_its_neighbours_go_through(
    stream: str, publish: Publish, read_all: ReadAll
) -> None:
    bodies = [body for body, _, _ in POISON.values()]
    publish(make_event(), *(body for poison in bodies for body in (poison, make_event())))
    mixed = json.dumps([as_json(make_event()), {"eventId": "x"}, as_json(make_event())]).encode()
    publish(mixed)
    read_all(2 * len(bodies) + 1)
    assert stored() == len(bodies) + 1 + 2
    kept = {message.stream_offset: message for message in QuarantinedMessage.objects.all()}
    assert len(kept) == len(bodies) + 1
    for number, (name, (body, reason, words)) in enumerate(POISON.items()):
        message = kept[2 * number + 1]
        assert (bytes(message.payload), message.reason) == (body, reason), name
        assert words in message.detail, name
    assert bytes(kept[2 * len(bodies) + 1].payload) == b'{"eventId": "x"}'


def test_a_quarantined_message_is_replayed_from_the_admin(
    stream: str, publish: Publish, read_all: ReadAll, boss: Client
) -> None:
    soon = timezone.now() + MAX_CLOCK_SKEW + timedelta(minutes=1)
    publish(make_event(occurred_at=soon))
    read_all(0)
    message = QuarantinedMessage.objects.get()
    assert (stored(), message.reason, message.stream_offset) == (0, "occurredAt", 0)
    page = boss.get(reverse("admin:ingestion_quarantinedmessage_change", args=[message.pk]))
    assert f"{stream} 0" in page.content.decode()
    with time_machine.travel(soon, tick=False):
        boss.post(reverse("admin:ingestion_quarantinedmessage_replay"), {"ids": message.pk})
    message.refresh_from_db()
    assert (stored(), message.state) == (1, QuarantinedMessage.State.REPLAYED)


# ── What is missing ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_retention_took_is_a_gap_and_reading_goes_on(
    stream: str, publish: Publish, read_all: ReadAll, delete: Delete, broker: Connection, client: Client, boss: Client
) -> None:
    declare_small(broker, stream, delete)
    early, *events = [make_event() for _ in range(401)]
    publish(early)
    read_all(0)
    for start in range(0, 400, 20):  # a segment ends with a chunk, and the broker makes one of what it gets at once
        publish(*events[start : start + 20])
    first, end = bounds_of(RABBITMQ, stream)
    assert first > 1, "retention took nothing"
    read_all(end - 1)
    gap = StreamGap.objects.get()
    assert gap.first_missing == 1
    assert gap.last_missing is not None
    assert gap.last_missing >= first - 1, "retention may have gone on since"
    assert spans(stream)[1][0] == gap.last_missing + 1
    kept = set(UsageEvent.objects.values_list("event_id", flat=True))
    assert kept == {event.event_id for event in (early, *events[401 - len(kept) :])}, "all that the stream still held"
    assert f'analytics_stream_gaps{{stream="{stream}"}} 1.0' in client.get("/metrics").content.decode()
    assert f"{gap.last_missing:,}" in boss.get("/admin/ingestion/streamgap/").content.decode()
    publish(make_event())
    read_all(end)
    assert StreamGap.objects.count() == 1, "a gap is told once"


def test_retention_that_overtakes_a_reader_at_work_is_a_gap_too(
    stream: str,
    publish: Publish,
    reading: Reading,
    delete: Delete,
    broker: Connection,
    settings: LazySettings,
) -> None:
    settings.INGESTION_BATCH_SIZE = 5
    declare_small(broker, stream, delete)
    early, *events = [make_event() for _ in range(401)]
    publish(early)
    with reading():
        eventually(lambda: committed(stream) == 0, 30, "it reads")
        with psycopg.connect(database_url()) as other:
            other.execute("SELECT FROM ingestion_stream_readers FOR UPDATE")
            for start in range(0, 400, 20):
                publish(*events[start : start + 20])
        eventually(UsageEvent.objects.filter(event_id=events[-1].event_id).exists, 30, "it reads on")
    gaps = list(StreamGap.objects.order_by("id"))
    assert gaps, "what was lost is said"
    assert stored() < 401
    assert not StreamReader.objects.get().last_error
    starts = {first for first, _, _ in spans(stream)}
    assert all(gap.last_missing is not None and gap.last_missing + 1 in starts for gap in gaps)


def declare_small(broker: Connection, stream: str, delete: Delete) -> None:
    """Make the stream one that keeps little."""
    delete(stream)
    with broker.channel() as channel:
        limits = {"x-queue-type": "stream", "x-max-length-bytes": 20_000, "x-stream-max-segment-size-bytes": 10_000}
        channel.queue_declare(stream, durable=True, auto_delete=False, arguments=limits)


def test_a_stream_that_was_made_anew_is_read_from_its_beginning_and_said_to_be_another(
    stream: str, publish: Publish, read_all: ReadAll, reading: Reading, delete: Delete
) -> None:
    publish(*(make_event() for _ in range(5)))
    read_all(4)
    delete(stream)
    declare(RABBITMQ, stream)
    with reading():
        eventually(lambda: StreamReader.objects.get().last_error, 30, "one that does not answer may not be empty")
        assert "had messages before" in StreamReader.objects.get().last_error
        assert committed(stream) == 4
        publish(make_event(), make_event())
        eventually(lambda: stored() == 7, 30, "the new one is read")
    gap = StreamGap.objects.get()
    assert (gap.first_missing, gap.last_missing) == (5, None)
    assert committed(stream) == 1


def test_a_stream_that_the_reader_itself_made_anew_is_known_to_be_another(
    stream: str, publish: Publish, read_all: ReadAll, reading: Reading, delete: Delete
) -> None:
    publish(*(make_event() for _ in range(5)))
    read_all(4)
    delete(stream)
    with reading():
        eventually(StreamGap.objects.exists, 30, "it is said")
        publish(*(make_event() for _ in range(9)))
        eventually(lambda: stored() == 14, 30, "the new one is read")
    assert StreamGap.objects.count() == 1
    assert committed(stream) == 8


def test_a_missing_stream_is_declared_with_the_operators_limit(
    stream: str, publish: Publish, read_all: ReadAll, reading: Reading, delete: Delete, broker: Connection
) -> None:
    delete(stream)
    with reading():
        eventually(lambda: StreamReader.objects.filter(pk=stream, seen_at__isnull=False).exists(), 30, "it is taken")
    publish(make_event())
    read_all(0)
    assert stored() == 1


def test_the_state_of_reading_is_in_the_admin_and_in_the_metrics(
    stream: str, publish: Publish, reading: Reading, client: Client, boss: Client
) -> None:
    publish(make_event(), b"nonsense")
    with reading():
        eventually(lambda: committed(stream) == 1, 30, "it is read")
        eventually(lambda: StreamReader.objects.get().backlog == 0, 5, "it says so")
        page = boss.get(reverse("admin:ingestion_streamreader_changelist")).content.decode()
        assert stream in page
        assert "Being read" in page
        assert "about 2" not in page, "the message before the end is 1"
        metrics = client.get("/metrics").content.decode()
        assert f'analytics_stream_backlog_messages{{stream="{stream}"}} 0.0' in metrics
        assert f'analytics_stream_lag_seconds{{stream="{stream}"}}' in metrics
        assert "analytics_quarantine_waiting_messages 1.0" in metrics
    StreamReader.objects.update(
        seen_at=timezone.now() - timedelta(minutes=1), caught_up_at=timezone.now() - timedelta(minutes=3), backlog=41,
        last_error="ConnectionRefusedError(111)",
    )  # fmt: skip
    page = boss.get(reverse("admin:ingestion_streamreader_changelist")).content.decode()
    for words in ("Nobody reads it", "about 42", "3 min", "ConnectionRefusedError(111)"):
        assert words in page, words
    assert boss.get(reverse("admin:ingestion_streamreader_change", args=[stream])).status_code == 200


# ── One reads ────────────────────────────────────────────────────────────────────────────────────────────────────────


def batch_of(offset: int, body: bytes) -> OpenBatch:
    batch = OpenBatch()
    batch.add(Message(offset, body, 1), timezone.now())
    return batch


def test_the_first_messages_of_a_stream_that_was_empty_for_long_soon_count_as_read(
    stream: str, publish: Publish, reading: Reading
) -> None:
    def caught_up_since(moment: datetime) -> bool:
        return StreamReader.objects.filter(pk=stream, caught_up_at__gt=moment).exists()

    with reading():
        eventually(lambda: StreamReader.objects.filter(taken_at__isnull=False).exists(), 10, "it is taken")
        taken_at = StreamReader.objects.get().taken_at
        assert taken_at is not None
        eventually(lambda: caught_up_since(taken_at), 20, "a look waited for a message in vain")
        publish(make_event(uuid.uuid4()))
        sent_at = timezone.now()
        eventually(lambda: caught_up_since(sent_at), 30, "it is told that all was read")


def test_a_reader_whose_place_was_taken_stores_nothing() -> None:
    early = take_over("s")
    assert early is not None
    commit(batch_of(0, encoded(make_event())), early)
    late = take_over("s")  # the lock is this session's already; another's would have ended
    assert late is not None
    with pytest.raises(Superseded):
        commit(batch_of(1, encoded(make_event())), early)
    assert (stored(), Batch.objects.count(), committed("s")) == (1, 1, 0)
    commit(batch_of(1, encoded(make_event())), late)
    assert (stored(), Batch.objects.count(), committed("s")) == (2, 2, 1)
    let_go()


def test_a_batch_is_not_stored_twice_when_the_offset_has_moved() -> None:
    position = take_over("s")
    assert position is not None
    commit(batch_of(0, encoded(make_event())), position)
    position.offset = None  # as if the answer to the commit was lost
    with pytest.raises(Superseded):
        commit(batch_of(0, encoded(make_event())), position)
    assert stored() == 1
    let_go()


def test_who_finds_a_stream_taken_waits_and_takes_over(stream: str, publish: Publish, reading: Reading) -> None:
    publish(make_event())
    with psycopg.connect(database_url(), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [0x616E6C + Lock.STREAM, stream])
        with reading() as reader:
            reader.join(2)
            assert reader.is_alive()
            assert stored() == 0
            other.close()
            eventually(lambda: stored() == 1, 30, "it is read")


# ── What is away comes back ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_database_session_loses_nothing(stream: str, publish: Publish, reading: Reading) -> None:
    with reading():
        for number in range(5):
            publish(*(make_event() for _ in range(50)))
            eventually(lambda number=number: committed(stream) >= number * 50, 30, "reading goes on")  # type: ignore[misc]
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
                    " WHERE locktype = 'advisory' AND classid = %s AND datname = current_database()",
                    [0x616E6C + Lock.STREAM],
                )
        eventually(lambda: committed(stream) == 249, 30, "all is read")
    assert stored() == 250
    assert sum(messages for _, _, messages in spans(stream)) == 250
    assert StreamReader.objects.get().last_error


def test_a_commit_that_waits_for_long_starves_no_heartbeat(
    stream: str, publish: Publish, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker hangs up on who is silent for twice the heartbeat's time."""
    monkeypatch.setattr(connecting, "HEARTBEAT", 2)
    publish(make_event())
    with reading():
        eventually(lambda: stored() == 1, 30, "it reads")
        with psycopg.connect(database_url()) as other:
            other.execute("SELECT FROM ingestion_stream_readers FOR UPDATE")
            publish(*(make_event() for _ in range(10)))
            threading.Event().wait(7)
            assert stored() == 1
        eventually(lambda: stored() == 11, 30, "it reads on")
    assert StreamReader.objects.get().last_error == ""


def test_credit_is_given_only_for_what_is_committed(stream: str, publish: Publish) -> None:
    prefetch, count = 2_000, 4_500
    publish(*(b"%d" % number for number in range(count)))
    feed = Feed(RABBITMQ, stream, "test")
    try:
        feed.start(0, prefetch)
        threading.Event().wait(2)
        waiting = feed._messages.qsize()
        assert prefetch <= waiting < prefetch + 500, "the broker ends with the chunk it has begun"
        got: list[Message] = []
        while message := feed.get(0.5):
            got.append(message)
        assert len(got) == waiting, "nothing comes without credit"
        while message := feed.get(2):
            got.append(message)
            feed.ack(message)
        assert len(got) == waiting
        feed.ack(got[-1])
        while message := feed.get(2):
            got.append(message)
            feed.ack(message)
    finally:
        feed.close()
    assert [int(message.body) for message in got] == list(range(count))


def test_large_messages_are_buffered_up_to_the_limit(
    stream: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "MAX_BUFFERED_BYTES", 4 * 1024 * 1024)
    publish(*(b"x" * 500_000 for _ in range(60)))
    feed = Feed(RABBITMQ, stream, "test")
    try:
        feed.start(0, 10_000)
        threading.Event().wait(2)
        assert 8 <= feed._messages.qsize() <= 20, "a frame or two beyond it"
        got = 0
        while feed.get(2):
            got += 1
        assert got == 60
    finally:
        feed.close()
    feed = Feed(RABBITMQ, stream, "test")
    feed.start(0, 10_000)
    threading.Event().wait(2)
    feed.close()
    assert feed._messages.qsize() <= 20, "closing takes in nothing more"
