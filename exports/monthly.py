"""The file of each org's month: asked for when the month is over, and again where late events changed it."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import structlog
from django.conf import settings
from django.db.models import Max
from django.utils import timezone

from orgs.limits import MONTH_CHANGES_AFTER, MONTH_CLOSES_AFTER
from orgs.models import Org
from usage import freshness
from usage.models import Freshness
from usage.retention import daily_horizon
from usage.series import Figures, Question, Unanswerable, zone_of
from usage.windows import Window, local_day, midnight, month, next_month, previous_month

from . import jobs
from .datasets import as_text
from .datasets.usage import COLUMNS, added, read
from .models import SCHEDULE, ExportJob, State

logger = structlog.get_logger(__name__)


def ask_for_months(now: datetime | None = None) -> int:
    """Ask for the files that are due; how many these are. Orgs that never had a call have none."""
    now = now or timezone.now()
    complete = freshness.complete_up_to(now)
    asked = 0
    for org in Org.objects.filter(pk__in=Freshness.objects.values("org_id")).iterator():
        try:
            zone = zone_of(org)
            for first in _months(org, zone, now):
                asked += _ask_if_due(org, zone, first, now, complete)
        except Exception:  # one org holds up nobody else's
            logger.exception("months_not_asked_for", org_id=str(org.pk))
    return asked


def latest_of(org: Org, first: date) -> ExportJob | None:
    """The newest version of a month's file."""
    return ExportJob.objects.filter(org=org, month=first).order_by("-version", "-created_at").first()


def _months(org: Org, zone: ZoneInfo, now: datetime) -> list[date]:
    """The last month, those since the newest that has a file, and those whose file can still change. Uses export_jobs_by_org."""
    last = previous_month(local_day(now, zone))
    since = now - timedelta(days=settings.EXPORT_RETENTION_DAYS)
    known = ExportJob.objects.filter(org=org, month__isnull=False)
    lately = known.filter(created_at__gt=since).values_list("month", flat=True)
    found = {last} | {first for first in lately if first is not None}
    newest = known.aggregate(newest=Max("month"))["newest"] or last
    while newest < last:
        newest = next_month(newest)
        found.add(newest)
    return sorted(first for first in found if midnight(first, zone) >= daily_horizon(now, zone))


def _ask_if_due(org: Org, zone: ZoneInfo, first: date, now: datetime, complete: datetime) -> bool:
    latest = latest_of(org, first)
    window = month(first, zone)
    if min(now - MONTH_CLOSES_AFTER, complete) < window.end:
        return False
    if latest is None:
        was_there = org.created_at < window.end or bool(_figures(org, window, zone).invocations)
        return was_there and _ask(org, first, window, zone, 1)
    if latest.time_zone != zone.key or (latest.completed_at or now) > now - MONTH_CHANGES_AFTER:
        return False  # what was closed in another zone stays closed
    if latest.status == State.FAILED:
        return _ask(org, first, window, zone, latest.version)
    figures = _figures(org, window, zone)
    told = as_text({column.name: getattr(figures, column.name) for column in COLUMNS if column.is_summed})
    return told != latest.totals and _ask(org, first, window, zone, latest.version + 1)


def _figures(org: Org, window: Window, zone: ZoneInfo) -> Figures:
    return added(read(Question(org.pk, window, zone=zone)))


def _ask(org: Org, first: date, window: Window, zone: ZoneInfo, version: int) -> bool:
    wanted = jobs.Wanted(org=org, window=window, zone=zone.key, month=first, version=version)
    try:
        return jobs.ask(wanted, SCHEDULE).status == State.PENDING
    except Unanswerable as error:
        logger.error("month_not_asked_for", org_id=str(org.pk), month=str(first), error=f"{error.field} {error}")
        return False
