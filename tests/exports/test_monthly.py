"""The file of each month: there on the first, in the org's zone, and anew where late events changed it."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.conf import LazySettings

from exports import jobs, making, monthly, upkeep
from exports.models import ExportJob, State
from ingestion import storage
from orgs.models import Org
from usage.models import ZoneInForce
from usage.rollups import roll_up
from usage.windows import DAY, UTC_ZONE, midnight

from ..factories import ingest, make_event, make_org

pytestmark = pytest.mark.django_db(transaction=True)

NEW_YORK = ZoneInfo("America/New_York")
FIRST = datetime(2026, 11, 1, 4, tzinfo=UTC)  # when November begins there
OCTOBER = date(2026, 10, 1)


@pytest.fixture
def clock(transactional_db: None) -> Iterator[time_machine.Traveller]:
    with time_machine.travel(FIRST + timedelta(hours=1), tick=False) as traveller:
        storage.forget()
        before = {part.start for part in storage.parts()}
        yield traveller
        for part in storage.parts():  # of days that no other test expects
            if part.start not in before:
                storage.drop(part, lambda: True)


@pytest.fixture
def org(folder: Path, clock: time_machine.Traveller) -> Org:
    """In New York, with a call on the last evening of October and one on the first morning of November there."""
    org = make_org(time_zone="America/New_York")
    Org.objects.update(created_at=FIRST - 60 * DAY)
    counted(org, FIRST - timedelta(minutes=1), FIRST + timedelta(minutes=1))
    return org


def counted(org: Org, *moments: datetime) -> None:
    ingest([make_event(org, occurred_at=at, cost_estimate_cents=Decimal("1.5000")) for at in moments])
    roll_up()


def make_all() -> None:
    for job in ExportJob.objects.filter(status=State.PENDING):
        making.attempt(str(job.pk))


def told() -> list[tuple[str, int, str, str]]:
    return [
        (job.key.rpartition("/")[2], job.version, job.status, job.totals.get("cost_cents", ""))
        for job in ExportJob.objects.order_by("created_at", "version")
    ]


def test_the_file_of_last_month_is_there_an_hour_after_it_ended_in_the_orgs_zone(
    org: Org, folder: Path, clock: time_machine.Traveller
) -> None:
    clock.move_to(FIRST + timedelta(minutes=59))
    assert monthly.ask_for_months() == 0
    clock.move_to(FIRST + timedelta(hours=1))
    assert monthly.ask_for_months() == 1
    make_all()
    assert told() == [("202610.csv", 1, "succeeded", "1.5000")]
    job = ExportJob.objects.get()
    assert (job.initiated_by, job.month) == ("schedule", OCTOBER)
    assert (job.start_at, job.end_at) == (midnight(OCTOBER, NEW_YORK), FIRST)
    assert (folder / f"analytics/exports/{org.pk}/202610.csv").exists()
    manifest = json.loads((folder / f"analytics/exports/{org.pk}/202610.csv.manifest.json").read_bytes())
    assert "changes" not in manifest


def test_asked_again_and_again_it_is_made_once(org: Org, clock: time_machine.Traveller) -> None:
    for hours in range(1, 60, 7):
        clock.move_to(FIRST + timedelta(hours=hours))
        monthly.ask_for_months()
        make_all()
    assert [name for name, *_ in told()] == ["202610.csv"]


def test_it_waits_until_all_that_was_sent_is_counted(org: Org, clock: time_machine.Traveller) -> None:
    clock.move_to(FIRST - timedelta(minutes=1))
    ingest([make_event(org, occurred_at=FIRST - timedelta(hours=2), cost_estimate_cents=Decimal("2.0000"))])
    clock.move_to(FIRST + timedelta(hours=2))
    assert monthly.ask_for_months() == 0
    roll_up()
    assert monthly.ask_for_months() == 1
    make_all()
    assert told() == [("202610.csv", 1, "succeeded", "3.5000")]


def test_late_events_make_a_second_version_that_says_what_changed(
    org: Org, folder: Path, clock: time_machine.Traveller
) -> None:
    monthly.ask_for_months()
    make_all()
    first = ExportJob.objects.get()
    clock.move_to(FIRST + timedelta(hours=5))
    counted(org, FIRST - 3 * DAY)
    assert monthly.ask_for_months() == 0, "late events come in crowds"
    clock.move_to(FIRST + timedelta(hours=26))
    assert monthly.ask_for_months() == 1
    make_all()
    assert told() == [("202610.csv", 1, "succeeded", "1.5000"), ("202610.v2.csv", 2, "succeeded", "3.0000")]
    manifest = json.loads((folder / f"analytics/exports/{org.pk}/202610.v2.csv.manifest.json").read_bytes())
    assert manifest["replaces"] == {"file": "202610.csv", "checksum": first.checksum}
    assert manifest["changes"]["cost_cents"] == {"before": "1.5000", "after": "3.0000"}
    assert manifest["changes"]["invocations"] == {"before": "1", "after": "2"}
    assert "errors" not in manifest["changes"]
    assert (folder / first.key).exists(), "what was sent to somebody stays"


def test_a_call_of_another_month_changes_nothing(org: Org, clock: time_machine.Traveller) -> None:
    monthly.ask_for_months()
    make_all()
    clock.move_to(FIRST + timedelta(hours=30))
    counted(org, FIRST + timedelta(hours=1))
    assert monthly.ask_for_months() == 0


def test_one_that_failed_is_tried_again_the_next_day_as_the_same_version(
    org: Org, clock: time_machine.Traveller
) -> None:
    monthly.ask_for_months()
    jobs.cancel(ExportJob.objects.get(), "user:staff@example.com")
    clock.move_to(FIRST + timedelta(hours=10))
    assert monthly.ask_for_months() == 0
    clock.move_to(FIRST + timedelta(hours=26))
    assert monthly.ask_for_months() == 1
    make_all()
    assert [(name, status) for name, _, status, _ in told()] == [("202610.csv", "failed"), ("202610.csv", "succeeded")]


def test_staff_may_run_one_that_failed_again_as_what_it_was(org: Org) -> None:
    monthly.ask_for_months()
    jobs.cancel(ExportJob.objects.get(), "user:staff@example.com")
    again = jobs.again(ExportJob.objects.get(), "user:staff@example.com")
    assert (again.month, again.key.endswith("/202610.csv")) == (OCTOBER, True)
    make_all()
    copy = jobs.again(ExportJob.objects.get(status=State.SUCCEEDED), "user:staff@example.com")
    assert (copy.month, copy.key.endswith(f"/{copy.pk}.csv")) == (None, True)


def test_one_that_failed_all_the_month_long_is_made_once_it_can_be(org: Org, clock: time_machine.Traveller) -> None:
    monthly.ask_for_months()
    jobs.cancel(ExportJob.objects.get(), "user:staff@example.com")
    clock.move_to(datetime(2026, 12, 1, 7, tzinfo=UTC))
    assert monthly.ask_for_months() == 2
    make_all()
    assert [name for name, _, status, _ in told() if status == "succeeded"] == ["202610.csv", "202611.csv"]


def test_months_in_which_nothing_ran_are_made_up_for(org: Org, clock: time_machine.Traveller) -> None:
    monthly.ask_for_months()
    make_all()
    clock.move_to(datetime(2027, 2, 2, tzinfo=UTC))
    assert monthly.ask_for_months() == 3
    make_all()
    assert [name for name, *_ in told()] == ["202610.csv", "202611.csv", "202612.csv", "202701.csv"]


def test_a_month_that_is_no_longer_kept_holds_up_no_other(
    org: Org, clock: time_machine.Traveller, settings: LazySettings
) -> None:
    settings.EXPORT_RETENTION_DAYS = 3 * 365
    settings.DAILY_RETENTION_MONTHS = 3
    monthly.ask_for_months()
    make_all()
    clock.move_to(datetime(2027, 3, 2, 6, tzinfo=UTC))
    monthly.ask_for_months()
    assert ExportJob.objects.filter(month=date(2027, 2, 1)).exists()


def test_one_that_failed_and_was_made_since_is_not_made_as_that_again(org: Org, clock: time_machine.Traveller) -> None:
    monthly.ask_for_months()
    failed = ExportJob.objects.get()
    jobs.cancel(failed, "user:staff@example.com")
    failed.refresh_from_db()
    clock.move_to(FIRST + timedelta(hours=26))
    monthly.ask_for_months()
    assert jobs.again(failed, "user:staff@example.com") == ExportJob.objects.get(status=State.PENDING)


def test_an_org_that_changes_its_zone_keeps_the_months_that_are_closed(org: Org, clock: time_machine.Traveller) -> None:
    monthly.ask_for_months()
    make_all()
    ZoneInForce.objects.filter(org=org).update(time_zone="UTC")
    clock.move_to(FIRST + timedelta(hours=30))
    assert monthly.ask_for_months() == 0


def test_an_org_that_was_not_there_yet_or_never_called_has_none(folder: Path, clock: time_machine.Traveller) -> None:
    silent, new = make_org("Silent"), make_org("New", time_zone="UTC")
    Org.objects.filter(pk=silent.pk).update(created_at=FIRST - 90 * DAY)
    clock.move_to(datetime(2026, 11, 20, tzinfo=UTC))
    counted(new, datetime(2026, 11, 19, tzinfo=UTC))
    Org.objects.filter(pk=new.pk).update(created_at=datetime(2026, 11, 10, tzinfo=UTC))
    assert monthly.ask_for_months() == 0
    counted(new, datetime(2026, 10, 19, tzinfo=UTC))
    assert monthly.ask_for_months() == 1, "calls of before it was registered are in that month all the same"


def test_a_month_without_calls_is_a_file_that_says_so(org: Org, clock: time_machine.Traveller) -> None:
    clock.move_to(datetime(2026, 12, 5, tzinfo=UTC))
    counted(org, datetime(2026, 12, 3, tzinfo=UTC))
    clock.move_to(datetime(2027, 1, 2, tzinfo=UTC))
    monthly.ask_for_months()
    clock.move_to(datetime(2027, 2, 2, tzinfo=UTC))
    assert monthly.ask_for_months() == 1
    make_all()
    january = ExportJob.objects.get(month=date(2027, 1, 1))
    assert (january.status, january.row_count, january.totals["cost_cents"]) == (State.SUCCEEDED, 0, "0.0000")


def test_a_file_of_a_month_expires_like_any_other_and_is_not_made_again(
    org: Org, clock: time_machine.Traveller
) -> None:
    monthly.ask_for_months()
    make_all()
    clock.move_to(FIRST + 91 * DAY)
    upkeep.expire()
    monthly.ask_for_months()
    assert ExportJob.objects.filter(month=OCTOBER).count() == 1
    assert ExportJob.objects.get(month=OCTOBER).status == State.EXPIRED


def test_one_orgs_failure_holds_up_nobody_else(
    org: Org, clock: time_machine.Traveller, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_org("Berlin", time_zone="Europe/Berlin")
    Org.objects.filter(pk=other.pk).update(created_at=FIRST - 60 * DAY)
    counted(other, FIRST - 2 * DAY)
    Org.objects.filter(pk=org.pk).update(time_zone="UTC")
    # A zone in force that no database knows: what a figure of this org can't be had with.
    ZoneInForce.objects.filter(org=org).update(time_zone="Mars/Olympus")
    assert monthly.ask_for_months() == 1
    assert ExportJob.objects.get().org == other


def test_the_zone_that_counts_is_the_one_that_days_are_kept_in(org: Org, clock: time_machine.Traveller) -> None:
    monthly.ask_for_months()
    job = ExportJob.objects.get()
    assert ZoneInfo(job.time_zone) == NEW_YORK
    assert job.start_at != midnight(OCTOBER, UTC_ZONE)
