"""Raw events by day: made, settled, dropped; late events and resends; the same on both engines."""

import json
import threading
import uuid
from collections.abc import Iterator
from datetime import date, timedelta

import psycopg
import pytest
import time_machine
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from analytics_site.checks import raw_events_fit_the_server
from ingestion import retention, storage
from ingestion.locks import Lock
from ingestion.maintenance import Action, AlreadyRunning, Step, carry_out
from ingestion.models import Batch, Conflict, Door, QuarantinedMessage, UsageEvent
from ingestion.partitioning import Partition
from ingestion.schema import EXPIRED, read_message, split
from ingestion.storage.engine import TABLE
from ingestion.storage.plain import Plain
from ingestion.writing import Delivery, store
from usage.rollups import roll_up
from usage.verification import verify

from ..factories import as_json, ingest, make_event, make_key, make_org
from ..processes import database_url, eventually

pytestmark = pytest.mark.django_db(transaction=True)

NOW = timezone.now()
LONG_AGO = NOW - timedelta(days=30)


def maintain() -> list[Step]:
    return [step for step, _ in carry_out(retention.steps(timezone.now()))]


def days() -> list[date]:
    """The days that hold events."""
    return sorted({event.date() for event in UsageEvent.objects.values_list("occurred_at", flat=True)})


def part_of(day: date) -> Partition:
    return next(part for part in storage.parts() if part.start == day)


@pytest.fixture(autouse=True)
def no_days_of_others(raw_tables: None) -> None:
    """Days that other tests made, and left empty, would be settled and dropped with these."""
    for part in storage.parts():
        storage.drop(part)


def test_a_day_that_is_over_is_settled_once() -> None:
    ingest([make_event(occurred_at=LONG_AGO) for _ in range(50)] + [make_event(occurred_at=NOW)])
    roll_up()
    assert [step.action for step in maintain()] == [Action.SETTLE]
    assert part_of(LONG_AGO.date()).is_settled
    assert not part_of(NOW.date()).is_settled
    assert maintain() == []
    assert UsageEvent.objects.count() == 51
    assert verify() == []


def test_events_thirty_days_late_land_in_their_bucket_settled_or_not() -> None:
    org = make_org()
    for settles in (False, True):
        first = make_event(org, occurred_at=LONG_AGO)
        ingest([first])
        roll_up()
        if settles:
            maintain()
            assert part_of(LONG_AGO.date()).is_settled
        late = [make_event(org, occurred_at=LONG_AGO + timedelta(seconds=n)) for n in range(20)]
        before = UsageEvent.objects.count()
        batch = ingest([*late, first])
        assert (batch.accepted, batch.duplicates, batch.is_late) == (20, 1, True)
        assert UsageEvent.objects.filter(occurred_at__date=LONG_AGO.date()).count() == before + 20
        roll_up()
        assert verify() == []
    maintain()
    assert part_of(LONG_AGO.date()).is_settled, "and they are settled with the next maintenance"
    assert verify() == []


def test_a_resend_is_a_duplicate_and_a_conflict_is_listed_in_a_settled_day_too() -> None:
    event = make_event(occurred_at=LONG_AGO)
    ingest([event])
    with connection.cursor() as cursor:  # the claim is long gone
        cursor.execute("TRUNCATE ingestion_claims_0, ingestion_claims_1")
        cursor.execute("UPDATE ingestion_ledger SET previous_since = now()")
    roll_up()
    maintain()
    batch = ingest([event, make_event(event.org_id, occurred_at=LONG_AGO)])
    assert (batch.accepted, batch.duplicates) == (1, 1)
    assert UsageEvent.objects.count() == 2


def test_what_is_past_its_retention_goes_and_nothing_else(settings: LazySettings) -> None:
    settings.RAW_RETENTION_DAYS = 20
    horizon = (NOW - timedelta(days=20)).date()
    moments = [NOW - timedelta(days=back) for back in (0, 5, 19, 20, 21, 22, 40)]
    with time_machine.travel(NOW - timedelta(days=25), tick=False):
        ingest([make_event(occurred_at=moment) for moment in moments if moment < NOW - timedelta(days=20)])
    ingest([make_event(occurred_at=moment) for moment in moments if moment >= NOW - timedelta(days=20)])
    assert len(days()) == 7
    assert not [step for step in maintain() if step.action is Action.DROP], "not before the rollups have them"
    roll_up()
    planned = [str(step) for step in retention.steps(timezone.now())]
    assert len(days()) == 7, "a plan does nothing"
    past = [part.start for part in storage.parts() if part.start < horizon]  # some are empty: other tests made them
    assert {moment.date() for moment in moments if moment.date() < horizon} <= set(past)
    done = maintain()
    assert [str(step) for step in done] == planned
    assert [step.subject for step in done if step.action is Action.DROP] == [f"usage_events {day}" for day in past]
    assert all(part.start >= horizon for part in storage.parts())
    assert days() == sorted(moment.date() for moment in moments if moment.date() >= horizon)
    assert verify() == []
    assert ingest([make_event(occurred_at=moments[2])]).accepted == 1, "the days that are kept still take events"


def test_an_event_older_than_retention_is_quarantined_as_such_or_refused_by_http(
    api: APIClient, settings: LazySettings
) -> None:
    org = make_org()
    old = make_event(org, occurred_at=NOW - timedelta(days=settings.RAW_RETENTION_DAYS, minutes=1))
    api.credentials(HTTP_X_API_KEY=make_key(org))
    answer = api.post(
        f"/analytics/v1/orgs/{org.pk}/events", [as_json(old), as_json(make_event(org))], format="json"
    ).json()
    assert answer["accepted"] == 1
    (rejected,) = answer["rejected"]
    assert rejected["errors"] == [
        {"field": "occurredAt", "message": "must lie at most 400 days back: older events are not kept"}
    ]
    quarantine(json.dumps(as_json(old)).encode())
    message = QuarantinedMessage.objects.get()
    assert (message.reason, UsageEvent.objects.count()) == (EXPIRED, 1)


def test_quarantine_conflicts_and_batches_go_after_their_time(settings: LazySettings) -> None:
    settings.RAW_RETENTION_DAYS = settings.QUARANTINE_RETENTION_DAYS = 20
    event = make_event(occurred_at=NOW - timedelta(days=23))
    with time_machine.travel(NOW - timedelta(days=23), tick=False):
        ingest([event, make_event(event.org_id, event_id=event.event_id, occurred_at=event.occurred_at, latency_ms=7)])
        quarantine(b"old")
    quarantine(b"young")
    roll_up()
    assert Conflict.objects.count() == 1
    planned = [step for step in retention.steps(timezone.now()) if step.action is Action.DELETE]
    assert [step.rows for step in planned][:2] == [1, 1]
    maintain()
    assert [bytes(message.payload) for message in QuarantinedMessage.objects.all()] == [b"young"]
    assert not Conflict.objects.exists()
    assert Batch.objects.count() == 1
    assert verify() == []


def quarantine(payload: bytes) -> None:
    """Take in what a stream would have brought."""
    _, invalid = split(read_message(payload, timezone.now()))
    store(Delivery(Door.STREAM, [], quarantined=invalid))


def test_only_one_process_maintains_at_a_time() -> None:
    with psycopg.connect(database_url(), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, hashtext(''))", [0x616E6C + Lock.MAINTENANCE])
        with pytest.raises(AlreadyRunning):
            maintain()
        with pytest.raises(CommandError):
            call_command("maintain")
        other.execute("SELECT pg_advisory_unlock_all()")
        assert maintain() == []


def test_a_step_that_fails_leaves_the_others_alone() -> None:
    def fail() -> int:
        raise RuntimeError

    done = [step.subject for step, _ in carry_out([Step(Action.DROP, "a", fail), Step(Action.DROP, "b", lambda: 0)])]
    assert done == ["b"]


def test_the_command_says_what_it_would_do_and_does_it(
    capsys: pytest.CaptureFixture[str], settings: LazySettings
) -> None:
    settings.RAW_RETENTION_DAYS = 10
    with time_machine.travel(LONG_AGO, tick=False):
        ingest([make_event(occurred_at=LONG_AGO)])
    roll_up()
    call_command("maintain", "--dry-run")
    assert f"would drop usage_events {LONG_AGO:%Y-%m-%d} (" in capsys.readouterr().out
    assert UsageEvent.objects.count() == 1
    call_command("maintain")
    out = capsys.readouterr().out
    assert f"drop usage_events {LONG_AGO:%Y-%m-%d} (" in out
    assert f"raw events ({storage.engine().name}): " in out
    assert not UsageEvent.objects.exists()


def test_a_day_into_which_a_batch_came_meanwhile_is_kept() -> None:
    ingest([make_event(occurred_at=LONG_AGO)])
    assert storage.drop(part_of(LONG_AGO.date()), lambda: False) == 0
    assert UsageEvent.objects.count() == 1
    assert storage.drop(part_of(LONG_AGO.date())) > 0
    assert UsageEvent.objects.count() == 0


# ── Plain PostgreSQL ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.engine("PostgreSQL")
def test_a_drop_that_broke_off_is_taken_up_and_nobody_elses_table_is_touched(settings: LazySettings) -> None:
    settings.RAW_RETENTION_DAYS = 20
    moments = [NOW - timedelta(days=back) for back in (40, 41, 42)]
    with time_machine.travel(NOW - timedelta(days=25), tick=False):
        ingest([make_event(occurred_at=moment) for moment in moments])
    roll_up()
    detached, archived, attached = (f"usage_events_p{moment:%Y%m%d}" for moment in moments)
    with connection.cursor() as cursor:
        cursor.execute(f"COMMENT ON TABLE {detached} IS 'past its retention: to be dropped'")
        for name in (detached, archived):
            cursor.execute(f"ALTER TABLE usage_events DETACH PARTITION {name} CONCURRENTLY")
        maintain()
        cursor.execute("SELECT relname FROM pg_class WHERE relname = ANY(%s)", [[detached, archived, attached]])
        assert cursor.fetchall() == [(archived,)]
        cursor.execute(f"DROP TABLE {archived}")


@pytest.mark.engine("PostgreSQL")
def test_a_late_event_brings_a_detached_day_back() -> None:
    ingest([make_event(occurred_at=LONG_AGO)])
    with connection.cursor() as cursor:
        name = f"usage_events_p{LONG_AGO:%Y%m%d}"
        cursor.execute(f"COMMENT ON TABLE {name} IS 'past its retention: to be dropped'")
        cursor.execute(f"ALTER TABLE usage_events DETACH PARTITION {name} CONCURRENTLY")
        assert UsageEvent.objects.count() == 0
        ingest([make_event(occurred_at=LONG_AGO)])
        assert UsageEvent.objects.count() == 2


@pytest.mark.engine("PostgreSQL")
def test_what_a_settling_that_broke_off_left_behind_is_removed() -> None:
    ingest([make_event(occurred_at=LONG_AGO)])
    roll_up()
    name = f"usage_events_p{LONG_AGO:%Y%m%d}"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE INDEX {name}_pkey_ccnew ON {name} (org_id)")
        cursor.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}_pkey_ccnew'::regclass")
        maintain()
        cursor.execute("SELECT to_regclass(%s) IS NULL", [f"{name}_pkey_ccnew"])
        assert cursor.fetchone() == (True,)
    assert part_of(LONG_AGO.date()).is_settled


def test_the_table_fits_the_server() -> None:
    assert storage.change() is None
    assert raw_events_fit_the_server(None, databases=["default"]) == []


# ── TimescaleDB ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def plain_table() -> Iterator[None]:
    """A plain table on a server that has TimescaleDB: as it was before the extension came."""
    columns = f"LIKE {TABLE} INCLUDING DEFAULTS INCLUDING CONSTRAINTS, PRIMARY KEY (org_id, occurred_at, event_id)"
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {TABLE} RENAME TO former")
        cursor.execute(f"ALTER INDEX {TABLE}_pkey RENAME TO former_pkey")
        cursor.execute(f"DROP INDEX {TABLE}_batch")
        Plain().create(cursor, columns.replace(TABLE, "former", 1))
        cursor.execute("DROP TABLE former")
    storage.forget()
    return


@pytest.mark.engine("TimescaleDB")
def test_settled_days_are_in_the_columnstore() -> None:
    org = make_org()
    ingest([make_event(org, occurred_at=LONG_AGO) for _ in range(5_000)])
    roll_up()
    before = part_of(LONG_AGO.date()).bytes
    maintain()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed")
        assert cursor.fetchone() == (1,)
    assert part_of(LONG_AGO.date()).bytes < before


@pytest.mark.engine("TimescaleDB")
def test_a_plain_installation_moves_over_while_events_come_in(
    plain_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert storage.change() is storage.Change.APPEARED
    assert [found.id for found in raw_events_fit_the_server(None, databases=["default"])] == ["analytics.W003"]
    org = make_org()
    known = [make_event(org, occurred_at=NOW - timedelta(days=back)) for back in range(40)]
    ingest(known)
    roll_up()
    over = threading.Event()
    came: list[uuid.UUID] = []

    def come() -> None:
        try:
            while not over.is_set():
                event = make_event(org, occurred_at=NOW - timedelta(days=len(came) % 40))
                assert ingest([event]).accepted == 1
                came.append(event.event_id)
        finally:
            connection.close()

    thread = threading.Thread(target=come)
    thread.start()
    try:
        call_command("move_to_timescale")
    finally:
        over.set()
        thread.join()
    assert "usage_events is a hypertable now" in capsys.readouterr().out
    assert storage.change() is None
    assert storage.engine().name == "TimescaleDB"
    ids = set(UsageEvent.objects.values_list("event_id", flat=True))
    assert ids == {event.event_id for event in known} | set(came)
    assert ingest(known).duplicates == 40
    roll_up()
    assert verify() == []
    maintain()
    assert verify() == []
    with pytest.raises(CommandError):
        call_command("move_to_timescale")


@pytest.mark.engine("TimescaleDB")
def test_a_batch_that_is_being_written_while_tables_are_swapped_is_there_afterwards(plain_table: None) -> None:
    def move() -> None:
        try:
            call_command("move_to_timescale")
        finally:
            connection.close()

    ingest([make_event(occurred_at=LONG_AGO)])
    with psycopg.connect(database_url()) as writer, psycopg.connect(database_url(), autocommit=True) as observer:
        writer.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [0x616E6C, Lock.LEDGER])
        thread = threading.Thread(target=move)
        thread.start()
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        eventually(lambda: observer.execute(waits).fetchone() == (1,), 30, "the move waits for the writer")
        columns = [name for name, *_ in writer.execute("SELECT * FROM usage_events LIMIT 0").description or ()]
        with writer.cursor().copy(f"COPY usage_events ({', '.join(columns)}) FROM STDIN") as copy:
            row = dict.fromkeys(columns, "0") | {"occurred_at": LONG_AGO, "received_at": LONG_AGO, "metadata": None}
            copy.write_row(
                [uuid.uuid4() if name.endswith("_id") and name != "batch_id" else row[name] for name in columns]
            )
        writer.commit()
        thread.join(60)
    assert storage.engine().name == "TimescaleDB"
    assert UsageEvent.objects.count() == 2
