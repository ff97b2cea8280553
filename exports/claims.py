"""Whose a job is: no two workers make one file, and what a dead one left behind goes on.

Who claims a job gets a number, that of its attempt. Signs of life come from a thread with a connection of its own, since the
rows of a file are read within a transaction that writes nothing. Whoever gives none for `EXPORT_LEASE` is taken for dead; if
it lives after all, its number is no longer the job's, and it can neither finish the job nor put a file where another is.

Orgs take turns. So a task is a word that some job waits: whoever hears it makes the one whose turn it is.
"""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from ingestion.locks import Lock, take
from orgs.limits import EXPORT_LEASE, EXPORT_PULSE, EXPORT_RETRY_AFTER, EXPORT_SHOWN_WITHIN, MAX_EXPORT_FAILURES

from .jobs import cancelled
from .models import ExportJob, State

logger = structlog.get_logger(__name__)

STOPPED = "The process that made the file stopped."


class Superseded(Exception):
    """Another attempt has taken the job over, or it is over."""


class Cancelled(Exception):
    """Somebody called the job off."""


# Of the orgs whose jobs wait, and which have fewer running than they may, the one that was served longest ago; of its jobs the
# one that is named, else the oldest. Jobs about all orgs are those of one more org. Uses export_jobs_open and export_jobs_newest.
_IN_TURN = """
SELECT id FROM (
    SELECT id, status, not_before, created_at,
        count(*) FILTER (WHERE status = 'running') OVER same_org AS running,
        max(started_at) OVER same_org AS last_started
    FROM exports_exportjob
    WHERE status IN ('pending', 'running') OR created_at > %(now)s - interval '1 day'
    WINDOW same_org AS (PARTITION BY org_id)
) AS lately
WHERE status = 'pending' AND not_before <= %(now)s AND running < %(at_once)s
ORDER BY last_started NULLS FIRST, id = %(named)s DESC, created_at, id
LIMIT 1
"""


def in_turn(named: str | None = None) -> uuid.UUID | None:
    """The waiting job that is to be made next."""
    with connection.cursor() as cursor:
        cursor.execute(_IN_TURN, {"now": timezone.now(), "at_once": settings.ORG_EXPORT_CONCURRENCY, "named": named})
        found = cursor.fetchone()
    return found[0] if found else None


def claim(named: str) -> ExportJob | None:
    """The job that is in turn, which is the caller's then; the one that is named where its org is. None where none is.

    One claims at a time, so that each sees what those before it took.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        take(cursor, Lock.EXPORT_CLAIM)
        pk = in_turn(named)
        if pk is None:
            return None
        taken = ExportJob.objects.filter(pk=pk, status=State.PENDING).update(
            status=State.RUNNING, attempts=F("attempts") + 1, started_at=Now(), heartbeat_at=Now(), rows_written=0
        )
    return ExportJob.objects.select_related("org").get(pk=pk) if taken else None


class Pulse:
    """Signs of life, and how far a file is. Called with the number of rows; raises where the job is no longer the caller's."""

    def __init__(self, job: ExportJob) -> None:
        self.job = job
        self.rows = 0
        self._end = threading.Event()
        self._lost: type[Exception] | None = None

    def __call__(self, rows: int) -> None:
        self.rows = rows
        if self._lost is not None:
            raise self._lost

    @contextmanager
    def beating(self) -> Iterator["Pulse"]:
        thread = threading.Thread(target=self._beat, name=f"pulse of {self.job.pk}", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()

    def _beat(self) -> None:
        while self._lost is None and not self._end.wait(EXPORT_PULSE.total_seconds()):
            try:
                self._lost = self._give()
            except (DatabaseError, InterfaceError) as error:
                logger.warning(
                    "export_pulse_missed", job_id=str(self.job.pk), org_id=str(self.job.org_id or ""), error=error
                )
                connection.close()
        connection.close()

    def _give(self) -> type[Exception] | None:
        mine = _mine(self.job)
        if not mine.update(heartbeat_at=Now(), rows_written=self.rows):
            return Superseded
        return Cancelled if mine.exclude(cancelled_by="").exists() else None


def _mine(job: ExportJob) -> QuerySet[ExportJob]:
    return ExportJob.objects.filter(pk=job.pk, status=State.RUNNING, attempts=job.attempts)


@contextmanager
def finishing(job: ExportJob) -> Iterator[ExportJob]:
    """Nobody else finishes the job, takes it over or calls it off within; at the end it has succeeded.

    The connection is a new one: the last was idle for as long as the file took. Where this process vanishes within, its lock
    does so too after `EXPORT_SHOWN_WITHIN`.

    Raises `Superseded` or `Cancelled` before.
    """
    if not connection.in_atomic_block:
        connection.close()
    with transaction.atomic():
        with connection.cursor() as cursor:
            limit = f"{EXPORT_SHOWN_WITHIN.total_seconds():.0f}s"
            cursor.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, true)", [limit])
        held = _mine(job).select_for_update().first()
        if held is None:
            raise Superseded
        if held.cancelled_by:
            raise Cancelled
        yield held
        now = timezone.now()
        held.status, held.error, held.completed_at = State.SUCCEEDED, "", now
        held.rows_written = held.row_count or 0
        held.expires_at = now + timedelta(days=settings.EXPORT_RETENTION_DAYS)
        held.save()


def call_off(job: ExportJob) -> None:
    by = _mine(job).values_list("cancelled_by", flat=True).first() or ""
    _mine(job).update(status=State.FAILED, completed_at=Now(), error=cancelled(by))


def note_failure(job: ExportJob, message: str, *, is_passing: bool, is_mismatch: bool = False) -> State | None:
    """An attempt failed. Where trying again may help, the job waits for that; else, or after so many, it has failed.

    Which of the two; None where it is no longer the caller's, and nothing is noted.
    """
    if _mine(job).exclude(cancelled_by="").exists():
        call_off(job)
        return State.FAILED
    failures = job.failures + 1
    is_over = not is_passing or failures >= MAX_EXPORT_FAILURES
    now, state = timezone.now(), State.FAILED if is_over else State.PENDING
    change = {
        "status": state,
        "failures": failures,
        "failed_at": now,
        "error": message[:500],
        "is_mismatch": is_mismatch,
    }
    if is_over:
        change["completed_at"] = now
    else:
        change["next_send_at"] = change["not_before"] = now + EXPORT_RETRY_AFTER * 4 ** (failures - 1)
    return state if _mine(job).update(**change) else None


def recover() -> int:
    """Jobs whose workers are dead: they wait again, or have failed. One that is being finished just now is left alone.

    Uses export_jobs_open.
    """
    lapsed = ExportJob.objects.filter(status=State.RUNNING, heartbeat_at__lt=Now() - EXPORT_LEASE)
    with transaction.atomic():
        found = list(lapsed.select_for_update(skip_locked=True))
        for job in found:
            logger.warning("export_left_behind", job_id=str(job.pk), org_id=str(job.org_id or ""), attempt=job.attempts)
            if note_failure(job, STOPPED, is_passing=True) is State.PENDING:  # it did not fail: nothing to wait for
                ExportJob.objects.filter(pk=job.pk).update(next_send_at=Now(), not_before=Now())
    return len(found)
