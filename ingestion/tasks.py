"""Scheduled work on raw events."""

from datetime import timedelta

from celery import shared_task
from django.utils import timezone

from . import dedupe, storage


@shared_task
def prepare_storage() -> None:
    """Make the partitions of the days to come."""
    today = storage.day_of(timezone.now())
    storage.ensure_days(today + timedelta(days=ahead) for ahead in range(storage.DAYS_AHEAD + 1))


@shared_task
def rotate_ledger() -> None:
    """Begin a new table of claims where the current one is old enough."""
    dedupe.rotate()
