"""`verify` finds what is wrong, names it, and exits 1."""

from collections.abc import Callable
from decimal import Decimal
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import F

from ingestion.models import Batch
from usage.models import DailyUsage, HourlyUsage
from usage.rollups import roll_up

from ..factories import at, ingest, make_event, make_org

pytestmark = pytest.mark.django_db


def run_verify(*arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("verify", "--grace", "0", *arguments, stdout=out)
    except SystemExit as stop:
        return int(stop.code or 0), out.getvalue()
    return 0, out.getvalue()


@pytest.fixture
def batch() -> Batch:
    org = make_org(time_zone="Asia/Kolkata")
    batch = ingest([make_event(org, occurred_at=at(hour)) for hour in range(6)])
    roll_up()
    return batch


def test_rollups_that_agree_are_no_drift(batch: Batch) -> None:
    assert run_verify() == (0, "no drift: the rollups equal the events\n")


def test_nothing_at_all_is_no_drift() -> None:
    assert run_verify()[0] == 0


@pytest.mark.parametrize("model", [HourlyUsage, DailyUsage])
def test_a_cent_that_was_changed_is_found(batch: Batch, model: type[HourlyUsage] | type[DailyUsage]) -> None:
    row = model.objects.first()
    assert row is not None
    model.objects.filter(pk=row.pk).update(cost_cents=F("cost_cents") + Decimal("0.0001"))
    status, said = run_verify()
    assert status == 1
    assert f"cost_cents is {row.cost_cents + Decimal('0.0001')}, the events say {row.cost_cents}" in said
    assert str(batch.org_ids[0]) in said


def test_a_histogram_that_was_changed_is_found(batch: Batch) -> None:
    HourlyUsage.objects.filter(bucket_start=at(3)).update(latency_counts=[2])
    assert "latency_counts is [2], the events say [1]" in run_verify()[1]


def test_an_event_that_was_deleted_is_found_and_its_batch_named(batch: Batch) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM usage_events WHERE occurred_at = %s", [at(3)])
    status, said = run_verify()
    assert status == 1
    assert f"batch {batch.pk} ({batch.public_id}): accepted 6 events, 5 are stored" in said
    assert "invocations is 1, the events say missing" in said


def test_rows_that_were_deleted_or_invented_are_found(batch: Batch) -> None:
    HourlyUsage.objects.filter(bucket_start=at(3)).delete()
    HourlyUsage.objects.filter(bucket_start=at(4)).update(bucket_start=at(20))
    said = run_verify()[1]
    assert said.count("invocations is missing, the events say 1") == 2
    assert said.count("invocations is 1, the events say missing") == 1


def test_a_batch_left_unrolled_is_named() -> None:
    left = ingest([make_event()])
    status, said = run_verify()
    assert status == 1
    assert f"batch {left.pk} ({left.public_id}): 1 events accepted" in said


@pytest.mark.parametrize("wrong", [lambda: Batch.objects.update(rolled_up_at=None)])
def test_a_batch_rolled_up_but_not_marked_is_found(batch: Batch, wrong: Callable[[], int]) -> None:
    wrong()
    status, said = run_verify()
    assert status == 1
    assert f"batch {batch.pk}" in said
    assert "the events say missing" in said


def test_a_window_is_looked_at_alone(batch: Batch) -> None:
    HourlyUsage.objects.filter(bucket_start=at(3)).update(invocations=2)
    day = at(0).date()
    assert run_verify("--start", "2026-01-01", "--end", "2026-01-08")[0] == 0
    assert run_verify("--start", f"{day}", "--end", f"{day}T12:00")[0] == 1
