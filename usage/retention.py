"""How long figures are kept: how far back they can be asked for, made again and compared; what is past that goes."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

from django.conf import settings

from ingestion import retention
from ingestion.horizon import complete_since
from ingestion.maintenance import Action, Step
from ingestion.partitioning import Unit

from .aggregation import ROLLUPS, Kept, Rollup
from .models import GroupsKept
from .windows import DAY, UTC_ZONE, local_day, midnight

_COMPLETE_AFTER = timedelta(days=5)  # raw events must reach beyond a day of any zone, and the days beside it


def longest() -> timedelta:
    """The longest range that can be asked for: bounds the days that are planned."""
    return timedelta(days=31 * (settings.DAILY_RETENTION_MONTHS + 1))


def hourly_horizon(now: datetime) -> datetime:
    """The earliest hour that can be asked for: the start of a UTC day."""
    return midnight(local_day(now - timedelta(days=settings.HOURLY_RETENTION_DAYS), UTC_ZONE), UTC_ZONE)


def minutes_horizon(now: datetime) -> datetime:
    """The earliest minute that is kept: the start of a UTC day."""
    return midnight(local_day(now - timedelta(days=settings.MINUTE_RETENTION_DAYS), UTC_ZONE), UTC_ZONE)


def whole_minutes_since(now: datetime) -> datetime:
    """From when on every minute is there, whatever the setting was before: the start of yesterday (UTC), which the shortest
    retention leaves alone; or from when on minutes were counted at all.
    """
    yesterday = midnight(local_day(now, UTC_ZONE) - DAY, UTC_ZONE)
    return max(yesterday, groups_horizon() or yesterday)


def moments_horizon(rollup: Rollup, now: datetime) -> datetime:
    """The earliest row that a rollup of hours or minutes keeps."""
    return minutes_horizon(now) if rollup.kept is Kept.MINUTES else hourly_horizon(now)


def groups_horizon() -> datetime | None:
    """From when on figures by client, status and error code are whole, where that is later than `hourly_horizon` can be."""
    return GroupsKept.objects.values_list("since", flat=True).first()


def daily_horizon(now: datetime, zone: ZoneInfo) -> datetime:
    """The earliest day that can be asked for: the start of a month in a zone."""
    today = local_day(now, zone)
    months = today.year * 12 + today.month - 1 - settings.DAILY_RETENTION_MONTHS
    return midnight(today.replace(year=months // 12, month=months % 12 + 1, day=1), zone)


def rebuild_horizon(now: datetime) -> datetime:
    """The first UTC day whose figures can be made again from raw events, whatever the zone of their days."""
    return midnight(local_day(complete_since(now), UTC_ZONE), UTC_ZONE) + _COMPLETE_AFTER


def steps(now: datetime) -> Iterator[Step]:
    """All maintenance: of raw events, then of the rollups, whose partitions go once nobody can ask for any of their rows.

    A day late: somewhere it is still the day before.
    """
    yield from retention.steps(now)
    for rollup in {rollup.table: rollup for rollup in ROLLUPS}.values():
        table = rollup.partitions
        horizon = daily_horizon(now - DAY, UTC_ZONE) if rollup.kept is Kept.DAYS else moments_horizon(rollup, now - DAY)
        for partition in table.partitions():
            if partition.end_at <= horizon:
                subject = f"{table.table} {partition.start:{'%Y-%m' if table.unit is Unit.MONTH else '%Y-%m-%d'}}"
                yield Step(Action.DROP, subject, partial(table.drop, partition), partition.bytes)
