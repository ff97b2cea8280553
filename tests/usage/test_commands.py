"""The commands on the rollups: what they do, what they say, and how they end."""

import uuid
from decimal import Decimal
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from ingestion.models import Batch
from orgs.models import Org
from usage.models import DailyUsage, HourlyUsage
from usage.windows import DAY

from ..factories import NOON, at, ingest, make_event, make_org

pytestmark = pytest.mark.django_db

TODAY = NOON.date()


def run(command: str, *arguments: str) -> tuple[int, str, str]:
    """The exit code and what was said, on both streams."""
    out, err = StringIO(), StringIO()
    status = 0
    try:
        call_command(command, *arguments, stdout=out, stderr=err)
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def org() -> Org:
    """Twenty-four calls, one an hour, and as many of another org; nothing is rolled up."""
    org = make_org(time_zone="Asia/Kolkata")
    ingest([make_event(org, occurred_at=at(hour, 45)) for hour in range(24)])
    ingest([make_event(make_org("Globex"), occurred_at=at(hour, 45)) for hour in range(24)])
    return org


# ── rollup ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rollup_says_what_it_added_and_a_second_one_that_nothing_was_left(org: Org) -> None:
    assert run("rollup") == (0, "2 batches, 48 events rolled up\n", "")
    assert run("rollup") == (0, "0 batches, 0 events rolled up\n", "")
    assert HourlyUsage.objects.count() == 48
    assert not Batch.objects.filter(rolled_up_at=None).exists()


def test_rollup_brings_the_days_of_a_zone_along(org: Org) -> None:
    run("rollup")
    local = dict(DailyUsage.objects.filter(time_zone="Asia/Kolkata").values_list("day", "invocations"))
    # 18:45Z is 00:15 of the next day.
    assert local == {TODAY: 18, TODAY + DAY: 6}


# ── rebuild ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rebuild_mends_whole_days_and_says_which(org: Org) -> None:
    run("rollup")
    right = list(HourlyUsage.objects.order_by("org_id", "bucket_start").values_list())
    HourlyUsage.objects.filter(bucket_start=at(3)).delete()
    HourlyUsage.objects.filter(bucket_start=at(4)).update(cost_cents=Decimal(1))
    said = f"rebuilt {TODAY} to {TODAY + DAY} (not included)\n"
    assert run("rebuild", f"{TODAY}T10:00Z", f"{TODAY}T11:00+00:00") == (0, said, "")
    assert list(HourlyUsage.objects.order_by("org_id", "bucket_start").values_list()) == right
    assert run("verify")[0] == 0


def test_a_time_without_offset_is_utc(org: Org) -> None:
    run("rollup")
    said = f"rebuilt {TODAY} to {TODAY + 2 * DAY} (not included)\n"
    assert run("rebuild", f"{TODAY}", f"{TODAY + DAY}T00:00:01")[1] == said


def test_rebuild_of_one_org_leaves_the_others(org: Org) -> None:
    run("rollup")
    HourlyUsage.objects.update(invocations=7)
    run("rebuild", f"{TODAY}", f"{TODAY + DAY}", "--org", str(org.pk))
    wrong = HourlyUsage.objects.filter(invocations=7)
    assert wrong.count() == 24
    assert not wrong.filter(org_id=org.pk).exists()


def test_rebuild_leaves_what_is_not_rolled_up_to_the_next_rollup(org: Org) -> None:
    run("rebuild", f"{TODAY}", f"{TODAY + DAY}")
    assert not HourlyUsage.objects.exists()
    assert run("rollup")[1] == "2 batches, 48 events rolled up\n"
    assert run("verify")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("2026-01-02", "2026-01-01"), "end must be after start"),
        (("2026-01-01", "2026-01-01"), "end must be after start"),
        (("2026-01-01T12:00+02:00", "2026-01-01T10:00Z"), "end must be after start"),
        (("yesterday", "2026-01-01"), "argument start: invalid moment value: 'yesterday'"),
        (("2026-01-01", "2026-02-30"), "argument end: invalid moment value: '2026-02-30'"),
        (("0001-01-01", "0001-01-02"), "argument start: invalid moment value: '0001-01-01'"),
        (("2026-01-01", "9999-12-31"), "argument end: invalid moment value: '9999-12-31'"),
        (("2026-01-01",), "the following arguments are required: end"),
        (("2026-01-01", "2026-01-02", "--org", "acme"), "argument --org: invalid UUID value: 'acme'"),
    ],
)
def test_a_wrong_window_is_told_and_changes_nothing(arguments: tuple[str, ...], said: str, org: Org) -> None:
    run("rollup")
    with pytest.raises(CommandError) as told:
        run("rebuild", *arguments)
    assert said in str(told.value)
    assert HourlyUsage.objects.count() == 48


# ── verify ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_verify_ends_with_0_where_the_rollups_are_the_events(org: Org) -> None:
    run("rollup")
    assert run("verify") == (0, "no drift: the rollups equal the events\n", "")


def test_verify_ends_with_1_and_names_the_hour_the_day_and_the_figures(org: Org) -> None:
    run("rollup")
    HourlyUsage.objects.filter(org_id=org.pk, bucket_start=at(3)).update(input_tokens=11)
    DailyUsage.objects.filter(org_id=org.pk, time_zone="UTC").update(cost_cents=Decimal("6.0001"))
    status, said, _ = run("verify")
    assert status == 1
    hour, day, last = said.splitlines()
    assert hour.startswith(f"usage_hourly org_id={org.pk} bucket_start={at(3)} model_id=")
    assert hour.endswith(": input_tokens is 11, the events say 10")
    assert day.startswith(f"usage_daily org_id={org.pk} time_zone=UTC day={TODAY} model_id=")
    assert day.endswith(": cost_cents is 6.0001, the events say 6.0000")
    assert last == "drift: 2 findings"


def test_verify_names_the_batch_that_is_not_rolled_up_once_its_grace_is_over(org: Org) -> None:
    status, said, _ = run("verify", "--grace", "0")
    assert status == 1
    for batch in Batch.objects.all():
        assert f"batch {batch.pk} ({batch.public_id}): 24 events accepted at" in said
    assert "drift: 2 findings" in said


def test_verify_of_a_window_looks_there_alone(org: Org) -> None:
    run("rollup")
    HourlyUsage.objects.filter(bucket_start=at(3)).delete()
    assert run("verify", "--start", f"{TODAY - 9 * DAY}", "--end", f"{TODAY - 2 * DAY}")[0] == 0
    assert run("verify", "--start", f"{TODAY}", "--end", f"{TODAY}T00:00:01")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--start", "2026-01-01"), "--start and --end go together"),
        (("--end", "2026-01-01"), "--start and --end go together"),
        (("--start", "2026-01-02", "--end", "2026-01-01"), "--end must be after --start"),
        (("--start", "2026-01-01", "--end", "2026-01-01"), "--end must be after --start"),
    ],
)
def test_a_wrong_window_of_verify_is_no_drift_but_a_mistake(arguments: tuple[str, ...], said: str, org: Org) -> None:
    status, out, err = run("verify", *arguments)
    assert (status, out) == (2, "")
    assert err.strip() == said


def test_verify_of_one_wrong_row_among_many_orgs_names_only_it() -> None:
    orgs = [uuid.UUID(int=n + 1) for n in range(30)]
    ingest([make_event(org) for org in orgs])
    run("rollup")
    HourlyUsage.objects.filter(org_id=orgs[17]).update(errors=1)
    status, said, _ = run("verify")
    assert status == 1
    assert said.count("org_id=") == 1
    assert f"org_id={orgs[17]}" in said
