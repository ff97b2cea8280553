"""The file of each org's month: asked for when the month is over, and again where late events changed it."""

from datetime import date, datetime
from zoneinfo import ZoneInfo

import structlog
from django.db import IntegrityError
from django.utils import timezone

from orgs.limits import MONTH_CHANGES_AFTER, MONTH_CLOSES_AFTER
from orgs.models import Org
from usage import freshness
from usage.models import Freshness
from usage.series import Figures, Question, Unanswerable, points, total, zone_of
from usage.windows import DAY, Window, first_of_month, local_day, month

from . import jobs
from .datasets import as_text
from .datasets.usage import COLUMNS
from .models import SCHEDULE, ExportJob, State

logger = structlog.get_logger(__name__)


def ask_for_months(now: datetime | None = None) -> int:
    """Ask for the files that are due; how many these are. Orgs that never had a call have none."""
    now = now or timezone.now()
    complete = freshness.complete_up_to(now)
    asked = 0
    for org in Org.objects.filter(pk__in=Freshness.objects.values("org_id")).iterator():
        try:
            asked += sum(_ask_if_due(org, first, now, complete) for first in _months(org, now))
        except Exception:  # one org holds up nobody else's
            logger.exception("month_not_asked_for", org_id=str(org.pk))
    return asked


def _months(org: Org, now: datetime) -> list[date]:
    """The last month, and those before whose file is still there."""
    last = first_of_month(first_of_month(local_day(now, zone_of(org))) - DAY)
    kept = ExportJob.objects.filter(org=org, month__lt=last, status=State.SUCCEEDED, expires_at__gt=now)
    return sorted({last, *kept.values_list("month", flat=True)})  # type: ignore[arg-type]


def _ask_if_due(org: Org, first: date, now: datetime, complete: datetime) -> bool:
    latest = ExportJob.objects.filter(org=org, month=first).order_by("-version", "-created_at").first()
    zone = zone_of(org)
    window = month(first, zone)
    if min(now - MONTH_CLOSES_AFTER, complete) < window.end:
        return False
    if latest is None:
        was_there = org.created_at < window.end or bool(_figures(org, window, zone).invocations)
        return was_there and _ask(org, first, window, zone, 1)
    is_old = (latest.completed_at or now) <= now - MONTH_CHANGES_AFTER
    if latest.status == State.FAILED:
        return is_old and _ask(org, first, window, zone, latest.version)
    is_changed = is_old and _told(_figures(org, window, zone)) != latest.totals
    return is_changed and _ask(org, first, window, zone, latest.version + 1)


def _figures(org: Org, window: Window, zone: ZoneInfo) -> Figures:
    return total(points(Question(org.pk, window, zone=zone)))


def _told(figures: Figures) -> dict[str, str]:
    return as_text({column.name: getattr(figures, column.name) for column in COLUMNS if column.is_summed})


def _ask(org: Org, first: date, window: Window, zone: ZoneInfo, version: int) -> bool:
    wanted = jobs.Wanted(org=org, window=window, zone=zone.key, month=first, version=version)
    try:
        jobs.ask(wanted, SCHEDULE)
    except Unanswerable as error:
        logger.error("month_not_asked_for", org_id=str(org.pk), month=str(first), error=f"{error.field} {error}")
        return False
    except IntegrityError:  # another run has asked
        return False
    return True
