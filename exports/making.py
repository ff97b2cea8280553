"""One attempt at a job: its file is written, held against the rollups, brought where it goes, and only then is it there.

The file is made on this machine's disk first. So nothing unfinished is ever where people look, and its checksum is that of
what is on the disk.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import structlog
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from ingestion import spans
from orgs.limits import EXPORT_LONGEST
from orgs.tenancy import DatabaseRole, assumed
from usage import freshness
from usage.series import Unanswerable

from . import claims, jobs
from .contents import dataset_of
from .datasets import Control, Dataset, as_text, snapshot
from .delivery import Parcel, Undeliverable, store_of
from .delivery.folder import told
from .jobs import is_listed
from .metrics import ATTEMPTS
from .models import ExportJob, State
from .writers import Unwritable, Written, write

logger = structlog.get_logger(__name__)

_LEFT_AFTER = timedelta(days=1)
# What is wrong with a disk, and stays so until somebody looks at it.
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


class Mismatch(Exception):
    """A file does not add up to what the rollups say."""


@dataclass(frozen=True)
class Made:
    """A file on this machine's disk, and what is known of it."""

    path: Path
    dataset: Dataset
    written: Written
    control: Control | None
    is_cut: bool
    checksum: str
    size: int
    completeness: dict[str, Any]
    at: datetime


_EXPECTED = (
    Unanswerable, Unwritable, Undeliverable, Mismatch, OperationalError, InterfaceError, OSError, SoftTimeLimitExceeded,
)  # fmt: skip


def attempt(job_id: str) -> None:
    """Make the file of a job, or of another whose turn it is. Whatever goes wrong is said on the job."""
    job = claims.claim(job_id)
    if job is None:
        return
    spans.annotate(job_id=str(job.pk), attempt=job.attempts)
    with structlog.contextvars.bound_contextvars(
        job_id=str(job.pk), org_id=str(job.org_id or ""), attempt=job.attempts
    ):
        _make_and_deliver(job)
        _pass_on()


def _make_and_deliver(job: ExportJob) -> None:
    try:
        with claims.Pulse(job).beating() as pulse, _workplace(job) as path:
            _deliver(job, _make(job, path, pulse))
        ATTEMPTS.labels(job.dataset, "succeeded").inc()
        logger.info("export_succeeded", dataset=job.dataset, format=job.format)
    except claims.Superseded:
        logger.warning("export_superseded")
    except claims.Cancelled:
        claims.call_off(job)
        ATTEMPTS.labels(job.dataset, "cancelled").inc()
    except _EXPECTED as error:
        message, is_passing = _in_words(error)
        _fail(job, message, is_passing=is_passing, is_mismatch=isinstance(error, Mismatch))
    except Exception as error:
        logger.exception("export_broke")
        _fail(job, f"The service failed ({type(error).__name__}); its log says more.", is_passing=True)


def _pass_on() -> None:
    """While an org had as many running as it may, words for its others were heard and went: one is said anew."""
    try:
        waiting = claims.in_turn()
        if waiting is not None:
            jobs.send(ExportJob.objects.get(pk=waiting))
    except (OperationalError, InterfaceError) as error:  # `upkeep` says it within minutes
        logger.warning("export_not_passed_on", error=error)


def _in_words(error: Exception) -> tuple[str, bool]:
    """What went wrong, for who asked, and whether it may pass."""
    match error:
        case Unanswerable():
            return f"What was asked for can't be had: {error.field} {error}.", False
        case Undeliverable():
            return str(error), error.is_passing
        case OperationalError() | InterfaceError():
            return "The database did not answer.", True
        case OSError():
            return told(error), error.errno not in _LASTING
        case SoftTimeLimitExceeded():
            minutes = EXPORT_LONGEST // timedelta(minutes=1)
            return f"It took longer than {minutes} minutes: ask for a shorter range, or for CSV.", False
        case _:
            return str(error), False


def _fail(job: ExportJob, message: str, *, is_passing: bool, is_mismatch: bool = False) -> None:
    ATTEMPTS.labels(job.dataset, "mismatch" if is_mismatch else "failed").inc()
    try:
        now = claims.note_failure(job, message, is_passing=is_passing, is_mismatch=is_mismatch)
    except (OperationalError, InterfaceError):  # its lease ends, and `upkeep` finds it
        logger.warning("export_failure_not_noted", error=message)
        return
    if now is None:
        logger.warning("export_superseded")
    else:
        logger.error("export_failed" if now is State.FAILED else "export_attempt_failed", error=message)


@contextmanager
def _workplace(job: ExportJob) -> Iterator[Path]:
    """Where a file is made; nothing stays there. Other attempts may be at work beside it, or have been killed there."""
    folder = Path(settings.EXPORT_FOLDER) / ".made"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        remove_if_old(left, timezone.now())
    try:
        yield folder / f"{job.pk}.{job.attempts}.{job.format}"
    finally:
        for left in folder.glob(f"{job.pk}.*"):
            if int(left.name.split(".")[1]) <= job.attempts:
                _remove(left)


def _remove(left: Path) -> None:
    """A file, or a folder and what is in it; what is gone meanwhile is fine."""
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def remove_if_old(left: Path, now: datetime) -> None:
    """What no attempt that lives can be working at."""
    with suppress(FileNotFoundError):  # somebody else sweeps, too
        if left.lstat().st_mtime < (now - _LEFT_AFTER).timestamp():
            _remove(left)


def _make(job: ExportJob, path: Path, pulse: claims.Pulse) -> Made:
    """Rows, control and freshness are those of one moment. While the rollups are asked, the file is read for its checksum."""
    with ThreadPoolExecutor(1) as beside, path.open("wb") as file, snapshot(), _seeing(job):
        now = timezone.now()
        dataset = dataset_of(job)
        written = write(job.file_format, dataset, file, pulse)
        file.flush()
        checksum = beside.submit(_checksum, path)
        control, is_cut = dataset.control(written.rows), dataset.is_cut(written.rows)
        completeness = _completeness(job, now)
        os.fsync(file.fileno())
    _reconcile(written, control)
    return Made(path, dataset, written, control, is_cut, checksum.result(), path.stat().st_size, completeness, now)


def _seeing(job: ExportJob) -> AbstractContextManager[None]:
    """The rows of the job's org alone, where it is of one."""
    return nullcontext() if job.org_id is None else assumed(DatabaseRole.TENANT, job.org_id)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reconcile(written: Written, control: Control | None) -> None:
    if control is None:
        return
    wrong = [
        f"{name} is {written.totals[name]}, the rollups say {expected}"
        for name, expected in control.totals.items()
        if written.totals[name] != expected
    ]
    if control.rows is not None and control.rows != written.rows:
        wrong.append(f"it has {written.rows} rows, the rollups say {control.rows}")
    if wrong:
        raise Mismatch(
            f"The file does not agree with the rollups ({control.road}), so it was thrown away: {'; '.join(wrong)}."
        )


def _completeness(job: ExportJob, now: datetime) -> dict[str, Any]:
    """How far the figures trailed what was sent when the file was made."""
    found: dict[str, Any] = {"completeUpTo": freshness.complete_up_to(now)}
    if job.org_id is not None:
        entry = freshness.overall(job.org_id)
        found |= {
            "lastEventAt": entry.last_event_at,
            "lastRollupAt": entry.last_rollup_at,
            "lagSeconds": entry.lag_seconds,
            "status": entry.status,
        }
    return found


def _deliver(job: ExportJob, made: Made) -> None:
    """File and manifest are brought there unseen; they are seen, and the job has succeeded, at once."""
    if job.bucket not in ("", settings.S3_BUCKET) and not is_listed(job.org, job.bucket):
        raise Undeliverable(f"The bucket “{job.bucket}” is no longer on this organisation's list.")
    store = store_of(job.bucket)
    tags = {"job": str(job.pk), "generated": f"{made.at:%Y-%m-%dT%H:%M:%SZ}", "org": str(job.org_id or "platform")}
    told = made.path.with_name(f"{made.path.name}.manifest.json")
    with told.open("wb") as written:
        written.write(msgspec.json.format(msgspec.json.encode(manifest(job, made)), indent=2))
        os.fsync(written.fileno())
    file = Parcel(made.path, job.key, job.file_format.media_type, job.filename, tags)
    beside = Parcel(told, job.manifest_key, "application/json", f"{job.filename}.manifest.json", tags)
    with store.staged(file) as show_file, store.staged(beside) as show_manifest, claims.finishing(job) as held:
        held.row_count, held.byte_count, held.checksum = made.written.rows, made.size, made.checksum
        held.is_truncated = made.is_cut
        held.totals = as_text(made.written.totals)
        show_manifest()
        try:
            show_file()
        except Undeliverable:
            with suppress(Undeliverable):  # a manifest alone tells of a file that is not there
                store.delete(job.manifest_key)
            raise


def manifest(job: ExportJob, made: Made) -> dict[str, Any]:
    """What stands beside a file. Numbers that are sums are text, so that nothing rounds them."""
    return {
        "file": job.key.rpartition("/")[2],
        "dataset": job.dataset,
        "format": job.format,
        "jobId": job.pk,
        "orgId": job.org_id,
        "timeRange": {"start": job.start_at, "end": job.end_at},
        "granularity": job.granularity or None,
        "timeZone": job.time_zone or None,
        "filters": {
            "models": job.model_ids,
            "status": job.call_status or None,
            "limit": job.row_limit,
        },
        "columns": [column.as_document for column in made.dataset.columns],
        "rowCount": made.written.rows,
        "isTruncated": made.is_cut,
        "byteCount": made.size,
        "totals": as_text(made.written.totals),
        "reconciledWith": made.control.road if made.control else None,
        "checksum": {"algorithm": "SHA-256", "value": made.checksum},
        "generatedAt": made.at,
        "freshness": made.completeness,
        "initiatedBy": job.initiated_by,
        **_changes(job, made),
    }


def _changes(job: ExportJob, made: Made) -> dict[str, Any]:
    """Of a month's file that comes in the place of another: which, and what is different."""
    if job.month is None or job.version == 1:
        return {}
    before = ExportJob.objects.filter(
        org=job.org_id, month=job.month, version=job.version - 1, status__in=(State.SUCCEEDED, State.EXPIRED)
    ).first()
    if before is None:
        return {}
    now = as_text(made.written.totals) | {"rows": str(made.written.rows)}
    old = before.totals | {"rows": str(before.row_count)}
    changed = {name: {"before": old.get(name), "after": value} for name, value in now.items() if old.get(name) != value}
    return {"replaces": {"file": before.key.rpartition("/")[2], "checksum": before.checksum}, "changes": changed}
