"""Scheduled work on the rollups."""

from datetime import timedelta

import structlog
from celery import shared_task
from django.utils import timezone

from . import rollups, verification
from .windows import Window

logger = structlog.get_logger(__name__)

VERIFIED_DAILY = timedelta(days=2)  # how far back the nightly verification looks


@shared_task
def roll_up() -> None:
    """Add what came in since the last run."""
    rollups.roll_up()


@shared_task
def verify() -> None:
    """Compare the latest days with the raw events, and say it loudly where they differ."""
    now = timezone.now()
    for finding in verification.verify(Window(now - VERIFIED_DAILY, now), grace=timedelta(minutes=1)):
        logger.error("drift", subject=finding.subject, detail=finding.detail)
