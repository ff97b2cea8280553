"""Scheduled work on the rollups, and what is kept for how long."""

from datetime import timedelta

import structlog
from celery import shared_task
from django.utils import timezone

from ingestion.maintenance import AlreadyRunning, carry_out

from . import closing, metrics, retention, rollups, verification
from .windows import Window

logger = structlog.get_logger(__name__)

VERIFIED_DAILY = timedelta(days=2)  # how far back the nightly verification looks


@shared_task
def roll_up() -> None:
    """Add what came in since the last run."""
    rollups.roll_up()


@shared_task
def close_hours() -> None:
    """Fold the clients and error codes of hours that are over."""
    closing.close_hours()


@shared_task(acks_late=False)  # it takes long, and runs again tomorrow
def verify() -> None:
    """Compare the latest days with the raw events, and say it loudly where they differ."""
    now = timezone.now()
    findings = verification.verify(Window(now - VERIFIED_DAILY, now), grace=timedelta(minutes=1))
    metrics.DRIFT.inc(len(findings))
    for finding in findings:
        logger.error("drift", subject=finding.subject, detail=finding.detail)


@shared_task(acks_late=False)  # the same
def maintain() -> None:
    """Settle the days of raw events that are over, and drop what is past its retention."""
    try:
        list(carry_out(retention.steps(timezone.now())))
    except AlreadyRunning:
        logger.info("maintenance_runs_already")
