"""Export jobs, from the wish to the file: made once, by one worker, and checked before anybody sees it."""

import errno
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import LazySettings
from django.db import connection
from django.utils import timezone

from exports import claims, jobs, making, upkeep
from exports.datasets.usage import COLUMNS, Grain
from exports.models import OPEN, ExportBucket, ExportJob, Kind, State
from exports.writers import Format
from ingestion.models import Status
from orgs.limits import EXPORT_LEASE, MAX_EXPORT_FAILURES, MAX_OPEN_EXPORTS
from orgs.models import Org
from usage.models import HourlyUsage
from usage.rollups import roll_up
from usage.series import Question, Unanswerable, points, total
from usage.windows import DAY, HOUR, Window

from ..factories import NOON, ingest, make_event, make_org
from ..processes import eventually, run
from .reading import read_back

pytestmark = pytest.mark.django_db(transaction=True)

WINDOW = Window(NOON - DAY, NOON + DAY)
ISO = "%Y-%m-%dT%H:%M:%SZ"
BY = "user:fin@example.com"


@pytest.fixture
def org(folder: Path) -> Org:
    """With three calls that are counted."""
    org = make_org()
    ingest([make_event(org, occurred_at=NOON + n * HOUR, cost_estimate_cents=Decimal("0.1234")) for n in range(3)])
    roll_up()
    return org


def asked(org: Org, **wish: Any) -> ExportJob:
    return jobs.ask(jobs.Wanted(**{"org": org, "window": WINDOW} | wish), BY)


def made(org: Org, **wish: Any) -> ExportJob:
    job = asked(org, **wish)
    making.attempt(str(job.pk))
    job.refresh_from_db()
    return job


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", list(Format))
@pytest.mark.parametrize("dataset", [Kind.USAGE, Kind.INCIDENT_EVENTS])
def test_a_wish_becomes_a_file_with_its_checksum_and_a_manifest(
    org: Org, folder: Path, dataset: Kind, kind: Format
) -> None:
    job = made(org, dataset=dataset, format=kind)
    assert (job.status, job.error, job.attempts) == (State.SUCCEEDED, "", 1)
    key = f"analytics/exports/{org.pk}/{job.pk}.{kind}"
    assert files(folder) == {key, f"{key}.manifest.json"}
    content = (folder / key).read_bytes()
    assert job.checksum == hashlib.sha256(content).hexdigest()
    assert job.byte_count == len(content)
    assert job.row_count == 3 if dataset is Kind.INCIDENT_EVENTS else 1
    manifest = json.loads((folder / f"{key}.manifest.json").read_bytes())
    assert manifest["checksum"] == {"algorithm": "SHA-256", "value": job.checksum}
    assert (manifest["rowCount"], manifest["totals"]) == (job.row_count, job.totals)
    assert manifest["timeRange"] == {"start": f"{WINDOW.start:{ISO}}", "end": f"{WINDOW.end:{ISO}}"}
    assert manifest["freshness"]["status"] == "fresh"
    assert manifest["reconciledWith"] is not None


def test_the_file_has_what_the_api_answers_to_the_last_ten_thousandth_of_a_cent(org: Org, folder: Path) -> None:
    job = made(org)
    rows = read_back(Format.CSV, (folder / job.key).read_bytes(), COLUMNS)
    names = [column.name for column in COLUMNS]
    figures = total(points(Question(org.pk, WINDOW)))
    assert sum(row[names.index("cost_cents")] for row in rows) == figures.cost_cents == Decimal("0.3702")
    assert job.totals["cost_cents"] == "0.3702"
    assert job.totals["invocations"] == "3"


def test_a_file_that_does_not_agree_with_the_rollups_is_never_seen(org: Org, folder: Path) -> None:
    HourlyUsage.objects.filter(org_id=org.pk).update(cost_cents=Decimal("99.0000"))
    job = made(org)
    assert job.status == State.FAILED
    assert "does not agree with the rollups" in job.error
    assert "cost_cents is 0.3702" in job.error
    assert files(folder) == set()


def test_calls_that_are_not_counted_yet_are_no_mismatch(org: Org) -> None:
    ingest([make_event(org, occurred_at=NOON + HOUR, input_tokens=7)])
    job = made(org, dataset=Kind.INCIDENT_EVENTS)
    assert (job.status, job.row_count, job.error) == (State.SUCCEEDED, 4, "")


def test_a_file_of_calls_that_was_cut_has_as_many_rows_as_were_asked_for(org: Org) -> None:
    job = made(org, dataset=Kind.INCIDENT_EVENTS, row_limit=2)
    assert (job.status, job.row_count) == (State.SUCCEEDED, 2)


def test_calls_of_one_status_are_held_against_their_own_figures(org: Org) -> None:
    ingest([make_event(org, occurred_at=NOON, status="error")])
    roll_up()
    job = made(org, dataset=Kind.INCIDENT_EVENTS, call_status=Status.ERROR)
    assert (job.status, job.row_count) == (State.SUCCEEDED, 1)


# ── Once ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_same_wish_within_a_minute_is_one_job(org: Org) -> None:
    first = asked(org)
    assert asked(org) == first
    assert asked(org, grain=Grain.HOURLY) != first
    assert jobs.ask(jobs.Wanted(org=org, window=WINDOW), "user:other@example.com") != first
    ExportJob.objects.filter(pk=first.pk).update(created_at=timezone.now() - timedelta(seconds=61))
    assert asked(org) != first


def test_two_at_once_get_one_job(org: Org) -> None:
    barrier = threading.Barrier(4)

    def ask(_: int) -> ExportJob:
        try:
            barrier.wait()
            return asked(org)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(ask, range(4)))) == 1
    assert ExportJob.objects.count() == 1


def test_a_wish_that_failed_may_be_had_again_at_once(org: Org) -> None:
    first = asked(org)
    assert jobs.cancel(first, BY)
    assert asked(org) != first


def test_an_idempotency_key_names_one_job_for_a_day(org: Org) -> None:
    wanted = jobs.Wanted(org=org, window=WINDOW)
    first = jobs.ask(wanted, BY, "march")
    ExportJob.objects.filter(pk=first.pk).update(created_at=timezone.now() - timedelta(hours=23))
    assert jobs.ask(wanted, BY, "march") == first
    with pytest.raises(jobs.KeyReused):
        jobs.ask(jobs.Wanted(org=org, window=WINDOW, grain=Grain.HOURLY), BY, "march")
    assert jobs.ask(wanted, "key:other", "march") != first


def test_two_workers_never_make_one_file(org: Org) -> None:
    job = asked(org)
    barrier = threading.Barrier(4)

    def claim(_: int) -> bool:
        try:
            barrier.wait()
            return claims.claim(str(job.pk)) is not None
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(claim, range(4))) == [False, False, False, True]


def test_an_org_has_so_many_open_jobs_and_another_its_own(org: Org) -> None:
    for n in range(MAX_OPEN_EXPORTS):
        asked(org, window=Window(NOON - n * HOUR, NOON + HOUR))
    with pytest.raises(jobs.TooManyOpen):
        asked(org)
    other = make_org()
    assert asked(other).org == other
    jobs.cancel(ExportJob.objects.filter(org=org, status__in=OPEN)[0], BY)
    assert asked(org).status == State.PENDING


# ── Going wrong ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_job_whose_worker_died_goes_on_and_nothing_half_done_stays(org: Org, folder: Path) -> None:
    job = asked(org)
    dead = claims.claim(str(job.pk))
    assert dead is not None
    (folder / ".made").mkdir()
    (folder / ".made" / f"{job.pk}.1.csv").write_text("half a f")
    upkeep.tend()
    job.refresh_from_db()
    assert job.status == State.RUNNING, "it may live"
    ExportJob.objects.update(heartbeat_at=timezone.now() - EXPORT_LEASE)
    upkeep.tend()
    job.refresh_from_db()
    assert (job.status, job.failures, job.error) == (State.PENDING, 1, claims.STOPPED)
    making.attempt(str(job.pk))
    job.refresh_from_db()
    assert (job.status, job.attempts, job.error) == (State.SUCCEEDED, 2, "")
    assert files(folder) == {job.key, job.manifest_key}


def test_one_who_was_taken_for_dead_can_not_finish(org: Org, folder: Path) -> None:
    job = asked(org)
    slow = claims.claim(str(job.pk))
    assert slow is not None
    ExportJob.objects.update(heartbeat_at=timezone.now() - EXPORT_LEASE)
    claims.recover()
    making.attempt(str(job.pk))
    done = ExportJob.objects.get()
    with pytest.raises(claims.Superseded), claims.finishing(slow):
        pytest.fail("it was let in")
    claims.note_failure(slow, "too late", is_passing=False)
    claims.call_off(slow)
    job.refresh_from_db()
    assert (job.status, job.checksum, job.error) == (State.SUCCEEDED, done.checksum, "")


def test_what_fails_again_and_again_has_failed(org: Org) -> None:
    job = asked(org)
    waits = []
    for _ in range(MAX_EXPORT_FAILURES):
        claimed = claims.claim(str(job.pk))
        assert claimed is not None
        claims.note_failure(claimed, "The storage did not answer.", is_passing=True)
        job.refresh_from_db()
        waits.append(round((job.next_send_at - timezone.now()).total_seconds()))
        assert claims.claim(str(job.pk)) is None, "it waits, whoever says that it is there"
        ExportJob.objects.update(not_before=timezone.now())
    assert (job.status, job.failures, job.error) == (State.FAILED, MAX_EXPORT_FAILURES, "The storage did not answer.")
    assert waits[:2] == [15, 60]
    assert claims.claim(str(job.pk)) is None


def test_a_task_that_was_lost_is_sent_again_by_one_who_tends(org: Org, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[ExportJob] = []
    monkeypatch.setattr(jobs, "send", sent.append)
    job = asked(org)
    sent.clear()
    upkeep.tend()
    assert sent == []
    ExportJob.objects.update(next_send_at=timezone.now() - timedelta(seconds=1))
    upkeep.tend()
    upkeep.tend()
    assert sent == [job]


def test_without_a_broker_a_wish_is_kept(org: Org, folder: Path) -> None:
    code = (
        "from exports import jobs; from orgs.models import Org; from usage.windows import Window; import datetime as d;"
        f"jobs.ask(jobs.Wanted(Org.objects.get(), Window(d.datetime.fromisoformat('{WINDOW.start.isoformat()}'),"
        f" d.datetime.fromisoformat('{WINDOW.end.isoformat()}'))), '{BY}')"
    )
    ended = run("manage.py", "shell", "-c", code, BROKER_URL="redis://127.0.0.1:1/0", EXPORT_FOLDER=str(folder))
    assert ended.returncode == 0, ended.stderr
    assert "export_not_sent" in ended.stderr
    assert ExportJob.objects.get().status == State.PENDING


def test_a_job_can_be_called_off_before_and_while_it_is_made(org: Org, folder: Path) -> None:
    waiting = asked(org)
    assert jobs.cancel(waiting, BY)
    waiting.refresh_from_db()
    assert (waiting.status, waiting.error) == (State.FAILED, "Cancelled by fin@example.com.")
    assert not jobs.cancel(waiting, BY)
    running = asked(org)
    claimed = claims.claim(str(running.pk))
    assert claimed is not None
    assert jobs.cancel(running, BY)
    with pytest.raises(claims.Cancelled), claims.finishing(claimed):
        pytest.fail("it was let in")
    claims.call_off(claimed)
    running.refresh_from_db()
    assert (running.status, running.error, running.failures) == (State.FAILED, "Cancelled by fin@example.com.", 0)
    assert files(folder) == set()


def test_signs_of_life_tell_how_far_it_is_and_hear_that_it_is_called_off(org: Org) -> None:
    job = claims.claim(str(asked(org).pk))
    assert job is not None
    with claims.Pulse(job).beating() as pulse:
        pulse(10_000)
        eventually(lambda: ExportJob.objects.get().rows_written == 10_000, 5, "it is told")
        jobs.cancel(job, BY)

        def is_heard() -> bool:
            try:
                pulse(20_000)
            except claims.Cancelled:
                return True
            return False

        eventually(is_heard, 5, "it is heard")


def test_a_dead_workers_job_that_was_called_off_has_failed(org: Org) -> None:
    job = asked(org)
    claims.claim(str(job.pk))
    jobs.cancel(job, BY)
    ExportJob.objects.update(heartbeat_at=timezone.now() - EXPORT_LEASE)
    upkeep.tend()
    job.refresh_from_db()
    assert (job.status, job.error) == (State.FAILED, "Cancelled by fin@example.com.")


def test_a_file_that_can_not_be_had_is_refused_when_it_is_asked_for(org: Org) -> None:
    with pytest.raises(Unanswerable, match="31 days"):
        asked(org, window=Window(NOON - 32 * DAY, NOON))
    with pytest.raises(Unanswerable, match="31 days"):
        asked(org, window=Window(NOON - 32 * DAY, NOON), dataset=Kind.INCIDENT_EVENTS)
    with pytest.raises(Unanswerable, match="this organisation's list"):
        asked(org, bucket="somebody-elses")
    ExportBucket.objects.create(org=make_org(), bucket="somebody-elses")
    with pytest.raises(Unanswerable, match="this organisation's list"):
        asked(org, bucket="somebody-elses")
    assert not ExportJob.objects.exists()


def test_a_word_that_was_said_often_is_one_attempt(org: Org, settings: LazySettings) -> None:
    settings.S3_BUCKET, settings.S3_ENDPOINT = "away", "http://127.0.0.1:1"
    settings.S3_ACCESS_KEY = settings.S3_SECRET_KEY = "x"
    job = asked(org)
    for _ in range(3):
        making.attempt(str(job.pk))
    job.refresh_from_db()
    assert (job.status, job.attempts) == (State.PENDING, 1)


def test_who_was_called_off_and_then_failed_is_not_tried_again(org: Org) -> None:
    claimed = claims.claim(str(asked(org).pk))
    assert claimed is not None
    jobs.cancel(claimed, BY)
    assert claims.note_failure(claimed, "The storage did not answer.", is_passing=True) is State.FAILED
    job = ExportJob.objects.get()
    assert (job.error, job.failures) == ("Cancelled by fin@example.com.", 0)


def test_calling_off_does_not_wait_for_who_is_finishing(org: Org) -> None:
    job = claims.claim(str(asked(org).pk))
    assert job is not None
    began, ends = threading.Event(), threading.Event()

    def finish() -> None:
        try:
            with claims.finishing(job):
                began.set()
                ends.wait(30)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        finishing = threads.submit(finish)
        began.wait(10)
        assert claims.recover() == 0, "it is at work"
        assert not jobs.cancel(job, BY)
        ends.set()
        finishing.result(10)
    assert ExportJob.objects.get().status == State.SUCCEEDED


def test_both_roads_are_roads_however_many_points_there_are(org: Org, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [uuid4() for _ in range(8)]
    ingest([make_event(org, occurred_at=NOON + n * HOUR, model_id=model) for n in (0, 1, 10, 11) for model in models])
    roll_up()
    monkeypatch.setattr("usage.series.MAX_SERIES_POINTS", 20)
    HourlyUsage.objects.filter(org_id=org.pk).update(cost_cents=Decimal("99.0000"))
    for grain in Grain:
        assert "does not agree with the rollups" in made(org, grain=grain).error


def test_a_file_that_its_limit_cut_says_so(org: Org, folder: Path) -> None:
    cut = made(org, dataset=Kind.INCIDENT_EVENTS, row_limit=2)
    whole = made(org, dataset=Kind.INCIDENT_EVENTS, row_limit=3)
    assert [job.is_truncated for job in (cut, whole)] == [True, False]
    manifests = [json.loads((folder / job.manifest_key).read_bytes()) for job in (cut, whole)]
    assert [manifest["isTruncated"] for manifest in manifests] == [True, False]
    assert all(manifest["reconciledWith"].startswith("hours") for manifest in manifests)


# ── Where it goes ────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_bucket_that_was_taken_off_the_list_gets_nothing(org: Org, folder: Path) -> None:
    listed = ExportBucket.objects.create(org=org, bucket="of-acme")
    job = asked(org, bucket="of-acme")
    listed.delete()
    making.attempt(str(job.pk))
    job.refresh_from_db()
    assert (job.status, job.error) == (State.FAILED, "The bucket “of-acme” is no longer on this organisation's list.")


@pytest.mark.parametrize(("before", "now"), [("", "new"), ("old", "new"), ("old", "")])
def test_a_file_is_made_again_where_files_go_now(org: Org, settings: LazySettings, before: str, now: str) -> None:
    settings.S3_BUCKET = before
    job = asked(org)
    jobs.cancel(job, BY)
    settings.S3_BUCKET = now
    assert jobs.again(ExportJob.objects.get(), BY).bucket == now


def test_a_folder_that_can_not_be_written_to_is_told_and_a_passing_fault_is_tried_again(org: Org, folder: Path) -> None:
    assert making._in_words(OSError(errno.EROFS, "Read-only file system")) == (
        "The file can't be written: Read-only file system.",
        False,
    )
    assert making._in_words(OSError(errno.ESTALE, "Stale file handle"))[1]


# ── Afterwards ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_file_is_deleted_when_its_time_is_over_and_its_job_stays(org: Org, folder: Path) -> None:
    job = made(org)
    assert job.expires_at is not None
    assert timedelta(days=89) < job.expires_at - timezone.now() <= timedelta(days=90)
    upkeep.expire(job.expires_at - timedelta(seconds=1))
    assert files(folder) == {job.key, job.manifest_key}
    for _ in range(2):
        upkeep.expire(job.expires_at)
    job.refresh_from_db()
    assert (job.status, job.row_count) == (State.EXPIRED, 1)
    assert files(folder) == set()


def test_a_job_is_run_again_as_a_job_of_its_own(org: Org, folder: Path) -> None:
    models = frozenset({uuid4(), make_event(org).model_id})
    first = made(org, grain=Grain.HOURLY, format=Format.PARQUET, model_ids=models)
    second = jobs.again(first, BY)
    assert second != first
    assert jobs.again(first, BY) == second, "it waits already"
    making.attempt(str(second.pk))
    second.refresh_from_db()
    same = ("fingerprint", "dataset", "format", "start_at", "end_at", "granularity", "time_zone", "model_ids", "totals")
    assert [getattr(second, name) for name in same] == [getattr(first, name) for name in same]
    assert len(files(folder)) == 4
