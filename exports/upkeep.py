"""What is done for jobs and files by the clock: tasks that were lost are sent again, dead workers' jobs go on, old files go.

All may run twice, be killed, or run beside itself.
"""

from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from django.conf import settings
from django.utils import timezone

from orgs.limits import EXPORT_SENT_AGAIN_AFTER

from . import claims, jobs, making
from .delivery import Undeliverable, store_of
from .models import ExportJob, State

logger = structlog.get_logger(__name__)

_LEFT_AFTER = timedelta(days=1)  # what a killed attempt left on the disk: no attempt takes that long


def tend() -> None:
    """Look after jobs that are open. Uses export_jobs_open."""
    claims.recover()
    now = timezone.now()
    for job in ExportJob.objects.filter(status=State.PENDING, next_send_at__lte=now):
        this = ExportJob.objects.filter(pk=job.pk, next_send_at=job.next_send_at)
        if this.update(next_send_at=now + EXPORT_SENT_AGAIN_AFTER):  # one who tends sends
            jobs.send(job)


def expire(now: datetime | None = None) -> None:
    """Delete the files whose time is over; their jobs stay. Uses export_jobs_ready."""
    now = now or timezone.now()
    for job in ExportJob.objects.filter(status=State.SUCCEEDED, expires_at__lte=now):
        try:
            store = store_of(job.bucket)
            store.delete(job.key)
            store.delete(job.manifest_key)
        except Undeliverable as error:  # tried again with the next run
            logger.error("export_not_deleted", job_id=str(job.pk), error=str(error))
            continue
        ExportJob.objects.filter(pk=job.pk, status=State.SUCCEEDED).update(status=State.EXPIRED)
        logger.info("export_expired", job_id=str(job.pk))
    _sweep(now)


def _sweep(now: datetime) -> None:
    """What attempts that were killed have left on this machine's disk."""
    folder = Path(settings.EXPORT_FOLDER)
    hidden = [path for path in folder.glob("**/.*") if path.is_file()]
    for left in [*(folder / ".made").glob("*"), *hidden]:
        with suppress(FileNotFoundError):  # somebody else sweeps, too
            if left.lstat().st_mtime < (now - _LEFT_AFTER).timestamp():
                making.remove(left)
