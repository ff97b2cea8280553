"""Export jobs in the admin: looked at, run again, cancelled, downloaded; and the summary of all orgs."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db.models import QuerySet
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from prometheus_client import CollectorRegistry, generate_latest

from exports import claims, jobs, making
from exports.datasets.org_summary import COLUMNS
from exports.metrics import ExportState
from exports.models import SCHEDULE, ExportBucket, ExportJob, Kind, State
from exports.writers import Format
from orgs.models import AuditRecord, Org
from usage.models import HourlyUsage
from usage.rollups import roll_up
from usage.windows import DAY, HOUR, Window

from ..factories import NOON, ingest, make_event, make_org, make_user
from .reading import read_back

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "admin:exports_exportjob_changelist"
WINDOW = Window(NOON - DAY, NOON + DAY)


@pytest.fixture
def org(folder: Path) -> Org:
    org = make_org("Acme")
    ingest([make_event(org)])
    roll_up()
    return org


def asked(org: Org, hours: int = 0) -> ExportJob:
    return jobs.ask(
        jobs.Wanted(org=org, window=Window(WINDOW.start, WINDOW.end - hours * HOUR)), "user:fin@example.com"
    )


def text(client: Client, address: str, **query: str) -> str:
    return " ".join(client.get(address, query).content.decode().split())


def act(client: Client, action: str, rows: QuerySet[ExportJob]) -> str:
    data = {"action": action, admin.helpers.ACTION_CHECKBOX_NAME: [str(row.pk) for row in rows]}
    return client.post(reverse(LIST), data, follow=True).content.decode()


def test_every_job_is_listed_with_what_it_is_and_how_far(boss: Client, org: Org) -> None:
    done = asked(org)
    making.attempt(str(done.pk))
    running = claims.claim(str(asked(org, 1).pk))
    assert running is not None
    ExportJob.objects.filter(pk=running.pk).update(rows_written=12_000)
    listed = text(boss, reverse(LIST))
    assert "12,000 so far" in listed
    assert "fin@example.com" in listed
    assert "12,000 so far" not in text(boss, reverse(LIST), status__exact="succeeded")
    assert str(done.pk) in text(boss, reverse(LIST), q=str(done.pk))
    assert "1 export job" in text(boss, reverse(LIST), q=str(done.pk))
    assert "0 export jobs" in text(boss, reverse(LIST), q="globex")


def test_a_job_says_all_and_who_had_its_file(boss: Client, org: Org) -> None:
    job = asked(org)
    making.attempt(str(job.pk))
    job.refresh_from_db()
    page = reverse("admin:exports_exportjob_change", args=[job.pk])
    shown = text(boss, page)
    assert job.checksum in shown
    assert "cost_cents: " in shown
    assert "None yet" in shown
    answer = boss.get(reverse("admin:exports_exportjob_download", args=[job.pk]))
    assert (answer.status_code, "/exports/files/" in answer["Location"]) == (302, True)
    assert "by user:boss@example.com" in text(boss, page)
    record = AuditRecord.objects.get(action="downloaded export")
    assert (record.target, record.org) == (str(job.pk), org)


def test_support_has_a_file_and_that_is_recorded(client: Client, org: Org) -> None:
    job = asked(org)
    making.attempt(str(job.pk))
    client.force_login(make_user(is_staff=True))
    assert client.get(reverse("admin:exports_exportjob_download", args=[job.pk])).status_code == 302
    assert AuditRecord.objects.get().action == "downloaded export"


def test_jobs_are_run_again_and_cancelled_and_both_are_recorded(boss: Client, org: Org) -> None:
    failed = asked(org)
    jobs.cancel(failed, "user:fin@example.com")
    pending = asked(org, 1)
    assert "1 asked for again" in act(boss, "run_again", ExportJob.objects.all())
    again = ExportJob.objects.exclude(pk__in=[failed.pk, pending.pk]).get()
    assert (again.status, again.initiated_by) == (State.PENDING, "user:boss@example.com")
    assert "2 cancelled" in act(boss, "cancel", ExportJob.objects.all())
    assert set(ExportJob.objects.values_list("status", flat=True)) == {State.FAILED}
    actions = AuditRecord.objects.order_by("pk").values_list("action", flat=True)
    assert list(actions) == ["asked for export", "cancelled export", "cancelled export"]
    assert LogEntry.objects.count() == 3


def test_staff_who_may_only_look_can_not_act(client: Client, org: Org) -> None:
    from django.contrib.auth.models import Permission

    looker = make_user(is_staff=True)
    looker.user_permissions.add(Permission.objects.get(codename="view_exportjob"))
    client.force_login(looker)
    asked(org)
    act(client, "cancel", ExportJob.objects.all())
    assert ExportJob.objects.get().status == State.PENDING


def test_the_summary_of_all_orgs_is_asked_for_and_downloaded(boss: Client, org: Org, folder: Path) -> None:
    add = reverse("admin:exports_exportjob_add")
    assert "First month" in boss.get(add).content.decode()
    month = NOON.date().replace(day=1).isoformat()
    answer = boss.post(add, {"first": month, "last": NOON.date().isoformat(), "zone": "UTC", "format": "parquet"})
    assert answer.status_code == 302, answer.content
    job = ExportJob.objects.get()
    assert (job.dataset, job.org, job.status) == (Kind.ORG_SUMMARY, None, State.PENDING)
    making.attempt(str(job.pk))
    job.refresh_from_db()
    assert (job.status, job.error) == (State.SUCCEEDED, "")
    assert job.key == f"analytics/exports/platform/{job.pk}.parquet"
    rows = read_back(Format.PARQUET, (folder / job.key).read_bytes(), COLUMNS)
    assert [row[1] for row in rows] == ["Acme"]
    assert AuditRecord.objects.filter(action="asked for export", org=None, target=str(job.pk)).count() == 1


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        ("2026-05-01", "2026-04-30", "before"),
        ("2019-01-01", "2019-02-01", "earliest"),
        ("2026-10-01", "2199-01-01", "months after"),
        ("2026-10-01", "9999-12-31", "too far ahead"),
    ],
)
def test_months_that_can_not_be_had_are_refused_in_words(
    boss: Client, org: Org, first: str, last: str, words: str
) -> None:
    answer = boss.post(
        reverse("admin:exports_exportjob_add"), {"first": first, "last": last, "zone": "", "format": "csv"}
    )
    assert words in answer.content.decode()
    assert not ExportJob.objects.exists()


def test_a_bucket_is_put_on_an_orgs_list_and_that_is_recorded(boss: Client, org: Org) -> None:
    add = reverse("admin:exports_exportbucket_add")
    assert "This is not the name of a bucket" in boss.post(add, {"org": str(org.pk), "bucket": "../x"}).content.decode()
    assert boss.post(add, {"org": str(org.pk), "bucket": "of-acme"}).status_code == 302
    bucket = ExportBucket.objects.get()
    boss.post(reverse("admin:exports_exportbucket_delete", args=[bucket.pk]), {"post": "yes"})
    assert list(AuditRecord.objects.order_by("pk").values_list("action", "org", "target")) == [
        ("bucket added", org.pk, "of-acme"),
        ("bucket removed", org.pk, "of-acme"),
    ]


# ── Metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────
def told() -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(ExportState())
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def fail(job: ExportJob, times: int = 1) -> None:
    for _ in range(times):
        ExportJob.objects.filter(pk=job.pk).update(not_before=timezone.now())
        claimed = claims.claim(str(job.pk))
        assert claimed is not None
        claims.note_failure(claimed, "The storage did not answer.", is_passing=True)


def test_twice_failing_raises_the_metric_and_a_file_lowers_it(org: Org) -> None:
    twice = 'analytics_exports_failing_twice{asked_by="people",dataset="usage"}'
    first = asked(org)
    fail(first)
    assert twice not in told()
    fail(first)
    assert told()[twice] == 1
    fail(asked(make_org()), 2)
    assert told()[twice] == 2
    ExportJob.objects.filter(pk=first.pk).update(not_before=timezone.now())
    making.attempt(str(first.pk))
    assert told()[twice] == 1
    fail(asked(org, 1))
    assert told()[twice] == 1
    fail(asked(org, 2))
    assert told()[twice] == 2, "two jobs, one after the other"


def test_a_mismatch_is_loud_at_once(org: Org) -> None:
    assert told()["analytics_export_mismatches"] == 0
    HourlyUsage.objects.update(cost_cents=Decimal("99.0000"))
    making.attempt(str(asked(org).pk))
    assert told()["analytics_export_mismatches"] == 1


def test_months_that_fail_are_told_though_others_files_are_made_in_between(org: Org) -> None:
    monthly = jobs.Wanted(org=org, window=WINDOW, month=WINDOW.start.date().replace(day=1))
    fail(jobs.ask(monthly, SCHEDULE), 2)
    making.attempt(str(asked(org).pk))
    assert told()['analytics_exports_failing_twice{asked_by="schedule",dataset="usage"}'] == 1


def test_what_somebody_called_off_is_no_failure(org: Org) -> None:
    for hours in range(3):
        jobs.cancel(asked(org, hours), "user:fin@example.com")
    assert "analytics_exports_failing_twice" not in " ".join(told())


def test_jobs_are_counted_and_the_oldest_open_one_is_told(org: Org) -> None:
    assert told()["analytics_export_oldest_open_seconds"] == 0
    making.attempt(str(asked(org).pk))
    asked(org, 1)
    ExportJob.objects.filter(status=State.PENDING).update(created_at=timezone.now() - timedelta(minutes=2))
    found = told()
    assert found['analytics_export_jobs{dataset="usage",status="succeeded"}'] == 1
    assert found['analytics_export_jobs{dataset="usage",status="pending"}'] == 1
    assert 120 <= found["analytics_export_oldest_open_seconds"] < 150
