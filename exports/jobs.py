"""The wishes of those who want a file: asking for one, calling it off, asking again.

A job is a row that says it all; its task is only a word to a worker that it is there. `upkeep` says that word again where it
was lost.
"""

import hashlib
import uuid
from collections.abc import Collection
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import date

import msgspec
import structlog
from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError as BrokerError
from psycopg.errors import LockNotAvailable

from ingestion.locks import Lock, take_named
from ingestion.models import Status
from orgs.limits import (
    EXPORT_CANCEL_WAIT,
    EXPORT_SENT_AGAIN_AFTER,
    IDEMPOTENCY_KEY_KEPT,
    MAX_EXPORT_MODELS,
    MAX_OPEN_EXPORTS,
    SAME_EXPORT_WITHIN,
)
from orgs.models import Org
from usage.series import Unanswerable
from usage.windows import UTC_ZONE, Window

from .contents import dataset_of
from .datasets.usage import Grain
from .models import OPEN, ExportBucket, ExportJob, Kind, State
from .writers import Format

logger = structlog.get_logger(__name__)

ROOT = "analytics/exports"


class TooManyOpen(Exception):
    """An org has as many jobs as it may have at once; the text says it to whoever asks."""

    def __init__(self) -> None:
        super().__init__(
            f"This organisation has {MAX_OPEN_EXPORTS} exports that are not finished, as many as it may have at once."
            " Wait for one, or cancel it."
        )


class KeyReused(Exception):
    """An idempotency key names a job that asked for something else."""


@dataclass(frozen=True)
class Wanted:
    """What somebody wants. `org` of None: of the platform, about all orgs. `zone` of "": each org's own.

    `bucket` of None: wherever this installation puts files.
    """

    org: Org | None
    window: Window
    dataset: Kind = Kind.USAGE
    format: Format = Format.CSV
    grain: Grain = Grain.DAILY
    zone: str = UTC_ZONE.key
    model_ids: frozenset[uuid.UUID] | None = None
    call_status: Status | None = None
    row_limit: int | None = None
    bucket: str | None = None
    month: date | None = None
    version: int = 1

    def job(self, by: str) -> ExportJob:
        """The job that it would be, not stored."""
        pk = uuid.uuid4()
        name = f"{pk}"
        if self.month is not None:
            name = f"{self.month:%Y%m}" + (f".v{self.version}" if self.version > 1 else "")
        return ExportJob(
            pk=pk,
            org=self.org,
            dataset=self.dataset,
            format=self.format,
            start_at=self.window.start,
            end_at=self.window.end,
            granularity=self.grain if self.dataset == Kind.USAGE else "",
            time_zone=self.zone,
            model_ids=None if self.model_ids is None else sorted(self.model_ids),
            call_status="" if self.call_status is None else self.call_status.label,
            row_limit=self.row_limit,
            bucket=settings.S3_BUCKET if self.bucket is None else self.bucket,
            key=f"{ROOT}/{self.org.pk if self.org else 'platform'}/{name}.{self.format}",
            month=self.month,
            version=self.version,
            initiated_by=by,
            fingerprint=self._fingerprint(by),
        )

    def _fingerprint(self, by: str) -> str:
        """Equal where the same person wants the same."""
        models = None if self.model_ids is None else sorted(map(str, self.model_ids))
        said = [by, repr(replace(self, org=None, model_ids=None)), models]
        return hashlib.sha256(msgspec.json.encode(said)).hexdigest()


def ask(wanted: Wanted, by: str, idempotency_key: str = "", *, is_anew: bool = False) -> ExportJob:
    """The job of a wish: a new one, or the one that the same wish made a moment ago; where it is wished anew, one that is open.

    Raises `Unanswerable`, naming what to change; `TooManyOpen`; `KeyReused`.
    """
    _check(wanted)
    job = wanted.job(by)
    job.idempotency_key = idempotency_key
    dataset_of(job).rows.close()  # refuses what can't be had
    with transaction.atomic(), connection.cursor() as cursor:
        take_named(cursor, Lock.EXPORT, str(job.org_id))  # of two at once, the second sees the first
        same = _same(job, OPEN if is_anew else (*OPEN, State.SUCCEEDED))
        if same is not None:
            return same
        is_limited = wanted.org is not None and wanted.month is None
        opened = ExportJob.objects.filter(org=wanted.org, status__in=OPEN, month=None)
        if is_limited and opened.count() >= MAX_OPEN_EXPORTS:  # by export_jobs_open
            raise TooManyOpen
        job.next_send_at = timezone.now() + EXPORT_SENT_AGAIN_AFTER
        job.save(force_insert=True)
        transaction.on_commit(lambda: send(job))
    return job


def _check(wanted: Wanted) -> None:
    if wanted.format.missing:
        raise Unanswerable("format", f"can't be had here: {wanted.format.missing}")
    if wanted.model_ids is not None and len(wanted.model_ids) > MAX_EXPORT_MODELS:
        raise Unanswerable("models", f"names more than {MAX_EXPORT_MODELS:,} models: leave it out to have them all")
    if wanted.bucket is not None and not is_listed(wanted.org, wanted.bucket):
        raise Unanswerable(
            "delivery.bucket", "is not on this organisation's list: the platform's staff put a bucket there"
        )


def is_listed(org: Org | None, bucket: str) -> bool:
    """Whether staff have put a bucket on an org's list."""
    return ExportBucket.objects.filter(org=org, bucket=bucket).exists()


def _same(job: ExportJob, states: Collection[State]) -> ExportJob | None:
    """Uses export_jobs_by_org, and of a month one_export_a_month_and_version."""
    now = timezone.now()
    if job.month is not None:
        of_month = ExportJob.objects.filter(org=job.org, month=job.month, version=job.version)
        return of_month.exclude(status=State.FAILED).first()
    mine = ExportJob.objects.filter(org=job.org, initiated_by=job.initiated_by)
    if job.idempotency_key:
        known = mine.filter(idempotency_key=job.idempotency_key, created_at__gt=now - IDEMPOTENCY_KEY_KEPT).first()
        if known is not None and known.fingerprint != job.fingerprint:
            raise KeyReused
        return known
    recent = mine.filter(fingerprint=job.fingerprint, created_at__gt=now - SAME_EXPORT_WITHIN)
    return recent.filter(status__in=states).first()


def send(job: ExportJob) -> None:
    """Tell a worker. Where the broker is away, `upkeep` tells one later."""
    from .tasks import run

    try:
        # In a context of its own: the span of a message that did not get away is never ended, and would go on as a parent.
        copy_context().run(lambda: run.apply_async((str(job.pk),), retry=False))
    except (BrokerError, OSError) as error:
        logger.warning("export_not_sent", job_id=str(job.pk), org_id=str(job.org_id or ""), error=error)


def owner_of(key: str) -> str:
    """The id of the org whose file a key names; "platform" for one about all orgs."""
    return key.removeprefix(f"{ROOT}/").partition("/")[0]


def cancel(job: ExportJob, by: str) -> bool:
    """Call a job off. One that runs ends at its next sign of life; one that is over stays what it is: False."""
    this = ExportJob.objects.filter(pk=job.pk)
    over = {"status": State.FAILED, "completed_at": timezone.now(), "cancelled_by": by, "error": cancelled(by)}
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            wait = f"{EXPORT_CANCEL_WAIT.total_seconds():.0f}s"
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [wait])
            if this.filter(status=State.PENDING).update(**over):
                return True
            return bool(this.filter(status=State.RUNNING).update(cancelled_by=by))
    except OperationalError as error:
        if isinstance(error.__cause__, LockNotAvailable):  # it is being finished
            return False
        raise


def cancelled(by: str) -> str:
    return f"Cancelled by {by.partition(':')[2] or by}."


def again(job: ExportJob, by: str) -> ExportJob:
    """The same file once more, as a job of its own. Raises what `ask` raises.

    A month's file that failed is made as that; one that is there stays, and the new one is beside it.
    """
    failed = job.status == State.FAILED
    wanted = Wanted(
        org=job.org,
        window=Window(job.start_at, job.end_at),
        dataset=Kind(job.dataset),
        format=job.file_format,
        grain=Grain(job.granularity or Grain.DAILY),
        zone=job.time_zone,
        model_ids=None if job.model_ids is None else frozenset(job.model_ids),
        call_status=Status.called(job.call_status),
        row_limit=job.row_limit,
        bucket=job.bucket if is_listed(job.org, job.bucket) else None,
        month=job.month if failed else None,
        version=job.version if failed else 1,
    )
    return ask(wanted, by, is_anew=True)
