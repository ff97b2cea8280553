"""What is done for jobs and files by the clock: tasks that were lost are sent again, dead workers' jobs go on, old files go.

All may run twice, be killed, or run beside itself.
"""

from datetime import datetime
from pathlib import Path

import structlog
from django.conf import settings
from django.utils import timezone

from orgs.limits import EXPORT_SENT_AGAIN_AFTER

from . import claims, jobs, making
from .delivery import Undeliverable, store_of
from .models import ExportJob, State

logger = structlog.get_logger(__name__)


def tend() -> None:
    """Look after jobs that are open. Uses export_jobs_open."""
    claims.recover()
    now = timezone.now()
    for job in ExportJob.objects.filter(status=State.PENDING, next_send_at__lte=now):
        # Twice as long after each: where nobody reads the queue, it does not grow without end.
        pause = max(EXPORT_SENT_AGAIN_AFTER, now - job.created_at)
        this = ExportJob.objects.filter(pk=job.pk, next_send_at=job.next_send_at)
        if this.update(next_send_at=now + pause):  # one who tends sends
            jobs.send(job)


def expire(now: datetime | None = None) -> None:
    """Delete the files whose time is over; their jobs stay. Uses export_jobs_ready.

    A store that does not answer is left alone until the next run.
    """
    now = now or timezone.now()
    away: set[str] = set()
    for job in ExportJob.objects.filter(status=State.SUCCEEDED, expires_at__lte=now).order_by("expires_at").iterator():
        if job.bucket in away:
            continue
        try:
            store = store_of(job.bucket)
            store.delete(job.key)
            store.delete(job.manifest_key)
        except Undeliverable as error:
            logger.error("export_not_deleted", job_id=str(job.pk), org_id=str(job.org_id or ""), error=error)
            if error.is_passing:
                away.add(job.bucket)
            continue
        ExportJob.objects.filter(pk=job.pk, status=State.SUCCEEDED).update(status=State.EXPIRED)
        logger.info("export_expired", job_id=str(job.pk), org_id=str(job.org_id or ""))
    _sweep(now)


def _sweep(now: datetime) -> None:
    """What attempts that were killed have left: half made, or delivered and not shown."""
    folder = Path(settings.EXPORT_FOLDER)
    for left in [*folder.glob(".made/*"), *folder.glob(f"{jobs.ROOT}/**/.*")]:
        making.remove_if_old(left, now)
