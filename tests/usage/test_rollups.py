"""The single writer: what it adds, and that it can be run twice, killed, and run by two."""

import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from ingestion.models import Batch
from usage import rollups
from usage.models import DailyUsage, Freshness, HourlyUsage, ZoneInForce
from usage.rollups import adopt_zones, rebuild, roll_up
from usage.verification import verify
from usage.windows import DAY, Window

from ..factories import MODEL, NOON, OTHER_MODEL, at, ingest, make_event, make_org
from ..ingestion.test_concurrency import together

pytestmark = pytest.mark.django_db


def contents() -> dict[str, list[Any]]:
    """All rollup rows, whole."""
    return {model.__name__: sorted(model.objects.values_list(), key=repr) for model in (HourlyUsage, DailyUsage)}


def test_events_become_hourly_and_daily_rows() -> None:
    org = make_org()
    ingest(
        [
            make_event(org, occurred_at=at(9, 59), cost_estimate_cents=Decimal("0.1001")),
            make_event(org, occurred_at=at(10, 0), latency_ms=0, status="error"),
            make_event(org, occurred_at=at(10, 59), latency_ms=5, status="timeout", cost_estimate_cents=None),
            make_event(org, occurred_at=at(10, 30), latency_ms=5, cached_input_tokens=4, cache_creation_input_tokens=3),
            make_event(org, occurred_at=at(10, 30), model_id=OTHER_MODEL, status="throttled"),
        ]
    )
    assert roll_up() == rollups.Run(1, 5)
    hour = HourlyUsage.objects.get(org_id=org.pk, bucket_start=at(10), model_id=MODEL)
    assert (hour.invocations, hour.errors, hour.timeouts, hour.throttled) == (3, 1, 1, 0)
    assert (hour.input_tokens, hour.output_tokens) == (30, 15)
    assert (hour.cached_input_tokens, hour.cache_creation_input_tokens) == (4, 3)
    assert (hour.cost_cents, hour.unpriced_invocations) == (Decimal("0.5000"), 1)
    assert sum(hour.latency_counts) == 3
    assert hour.latency_buckets[0] == -1
    day = DailyUsage.objects.get(org_id=org.pk, model_id=MODEL)
    assert (day.time_zone, day.day, day.invocations, day.cost_cents) == ("UTC", NOON.date(), 4, Decimal("0.6001"))
    assert HourlyUsage.objects.count() == 3
    assert verify() == []


def test_running_again_adds_nothing() -> None:
    ingest([make_event()])
    roll_up()
    before = contents()
    assert roll_up() == rollups.Run(0, 0)
    assert contents() == before


def test_adding_in_parts_is_adding_at_once() -> None:
    org = make_org(time_zone="Asia/Kathmandu")
    events = [
        make_event(
            org, occurred_at=NOON + timedelta(minutes=7 * n), latency_ms=n * n, model_id=(MODEL, OTHER_MODEL)[n % 2]
        )
        for n in range(200)
    ]
    for start in range(0, 200, 40):
        ingest(events[start : start + 40])
        roll_up()
    in_parts = contents()
    rebuild(Window(NOON - DAY, NOON + 3 * DAY))
    assert contents() == in_parts
    assert len(in_parts["DailyUsage"]) > 4
    assert verify() == []


def test_late_events_land_in_their_bucket() -> None:
    org = make_org()
    ingest([make_event(org)])
    roll_up()
    ingest([make_event(org, occurred_at=NOON - timedelta(days=30)), make_event(org)])
    roll_up()
    assert [row.invocations for row in HourlyUsage.objects.order_by("bucket_start")] == [1, 2]
    assert verify() == []


def test_a_rebuild_mends_what_was_changed_by_hand() -> None:
    org = make_org(time_zone="Europe/Berlin")
    ingest([make_event(org, occurred_at=at(hour)) for hour in range(24)])
    roll_up()
    right = contents()
    HourlyUsage.objects.filter(bucket_start=at(3)).update(cost_cents=Decimal(99))
    DailyUsage.objects.filter(time_zone="UTC").delete()
    assert len(verify()) == 2
    widened = rebuild(Window(at(11), at(12)))
    assert widened == Window(at(0), at(0) + DAY)
    assert contents() == right


def test_a_rebuild_of_one_org_leaves_the_others() -> None:
    org, other = make_org(), make_org("Globex")
    ingest([make_event(org), make_event(other)])
    roll_up()
    HourlyUsage.objects.update(invocations=7)
    rebuild(Window(at(0), at(1)), org.pk)
    rows = dict(HourlyUsage.objects.values_list("org_id", "invocations"))
    assert rows == {org.pk: 1, other.pk: 7}


def test_a_changed_zone_is_rebuilt_from_raw_events() -> None:
    org = make_org()
    ingest([make_event(org, occurred_at=at(hour, 50)) for hour in range(24)])
    roll_up()
    assert DailyUsage.objects.count() == 1
    org.time_zone = "Asia/Kolkata"
    org.save()
    adopt_zones()
    local = dict(DailyUsage.objects.filter(time_zone="Asia/Kolkata").values_list("day", "invocations"))
    # 18:20Z … 23:50Z belong to the next day: 18:50 and later.
    assert local == {NOON.date(): 18, NOON.date() + DAY: 6}
    assert verify() == []
    org.time_zone = "UTC"
    org.save()
    adopt_zones()
    assert set(DailyUsage.objects.values_list("time_zone", flat=True)) == {"UTC"}
    assert not ZoneInForce.objects.exists()


def test_one_run_takes_a_bounded_number_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "MAX_EVENTS_PER_ROLLUP", 5)
    for size in (3, 2, 1, 9, 1):
        ingest([make_event() for _ in range(size)])
    taken = []
    while (run := rollups._roll_up_some()).batches:
        taken.append(run.events)
    assert taken == [5, 1, 9, 1]


def test_sums_that_no_event_can_reach_alone_do_not_stop_the_rollup() -> None:
    org = make_org()
    largest = {"input_tokens": 2**31 - 1, "output_tokens": 2**31 - 1, "cost_estimate_cents": Decimal(10**9)}
    ingest([make_event(org, **largest) for _ in range(1000)])
    roll_up()
    with connection.cursor() as cursor:  # as if it had been so for years
        cursor.execute("UPDATE usage_hourly SET cost_cents = cost_cents * 1000000")
    ingest([make_event(org, **largest)])
    roll_up()
    assert HourlyUsage.objects.get().cost_cents == Decimal(10**12) * 10**6 + 10**9


def test_freshness_is_stored_per_org_and_model() -> None:
    org = make_org()
    ingest(
        [make_event(org, occurred_at=at(9)), make_event(org, occurred_at=at(8)), make_event(org, model_id=OTHER_MODEL)]
    )
    roll_up()
    stored = {row.model_id: row for row in Freshness.objects.filter(org_id=org.pk)}
    assert stored[MODEL].last_event_at == at(9)
    assert stored[OTHER_MODEL].last_event_at == NOON
    assert timezone.now() - stored[MODEL].last_rollup_at < timedelta(minutes=1)


@pytest.mark.django_db(transaction=True)
def test_two_writers_at_once_are_one() -> None:
    org = make_org()
    for _ in range(20):
        ingest([make_event(org) for _ in range(50)])
    runs = together(roll_up, roll_up, roll_up, lambda: rebuild(Window(at(0), at(23))))
    # Where the rebuild was first, nobody could add: the next run does.
    assert sum(run.events for run in [*runs, roll_up()] if isinstance(run, rollups.Run)) == 1000
    assert HourlyUsage.objects.get().invocations == 1000
    assert verify() == []


@pytest.mark.django_db(transaction=True)
def test_a_writer_killed_in_the_middle_leaves_nothing_half_done() -> None:
    org = make_org()
    for _ in range(5):
        ingest([make_event(org) for _ in range(200)])
    # Another process stops between its last statement and its commit, and is killed there.
    code = (
        "import django, time; django.setup()\n"
        "from usage import rollups\n"
        "rollups.MAX_EVENTS_PER_ROLLUP = 400\n"
        "update, runs = rollups.Batch.objects.filter, []\n"
        "def stop(**kw):\n"
        "    if 'pk__in' in kw:\n"
        "        runs.append(1)\n"
        "        if len(runs) == 2: print('inside', flush=True); time.sleep(60)\n"
        "    return update(**kw)\n"
        "rollups.Batch.objects.filter = stop\n"
        "rollups.roll_up()\n"
    )
    database = {**connection.get_connection_params()}
    url = f"postgresql:///{connection.settings_dict['NAME']}?" + "&".join(
        f"{k}={database[k]}" for k in ("host", "port", "user", "password") if database.get(k)
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=settings.BASE_DIR,
        env={
            **os.environ,
            "DATABASE_URL": url,
            "REDIS_URL": settings.REDIS_URL,
            "DJANGO_SETTINGS_MODULE": "analytics_site.settings",
        },
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"inside\n"
        assert roll_up() == rollups.Run(0, 0), "the other one is the writer"
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not roll_up().batches and time.monotonic() < deadline:
        time.sleep(0.1)  # the server notices that the client is gone
    assert HourlyUsage.objects.get().invocations == 1000
    assert not Batch.objects.filter(rolled_up_at=None).exists()
    assert verify() == []


def test_an_unknown_org_has_no_zone_and_needs_none() -> None:
    ingest([make_event(uuid.uuid4())])
    roll_up()
    assert verify() == []
