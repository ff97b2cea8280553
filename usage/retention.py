"""How long figures are kept, and so how far back they can be asked for."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from .windows import local_day, midnight

HOURLY_KEPT_DAYS = 90
DAILY_KEPT_MONTHS = 25  # two years and the month that is under way
LONGEST = timedelta(days=800)  # of a range: more than the 25 months that are kept; bounds the days that are planned


def hourly_horizon(now: datetime) -> datetime:
    """The earliest hour that can be asked for: the start of a UTC day."""
    return (now - timedelta(days=HOURLY_KEPT_DAYS)).replace(hour=0, minute=0, second=0, microsecond=0)


def daily_horizon(now: datetime, zone: ZoneInfo) -> datetime:
    """The earliest day that can be asked for: the start of a month in a zone."""
    today = local_day(now, zone)
    months = today.year * 12 + today.month - 1 - DAILY_KEPT_MONTHS
    return midnight(today.replace(year=months // 12, month=months % 12 + 1, day=1), zone)
