"""Scheduled work on incidents."""

from celery import shared_task
from django.utils import timezone

from orgs.limits import WATCH_AT_ONCE
from usage.retention import daily_horizon
from usage.windows import UTC_ZONE

from . import watching
from .models import Incident


@shared_task
def watch() -> None:
    """Look for incidents in the last hours."""
    watching.watch(at_once=WATCH_AT_ONCE)


@shared_task
def forget_incidents() -> None:
    """Incidents are kept as long as days are."""
    Incident.objects.filter(ended_at__lt=daily_horizon(timezone.now(), UTC_ZONE)).delete()
