"""How long raw events are kept, and so how far back they are complete."""

from datetime import datetime, timedelta

from django.conf import settings


def raw_horizon(now: datetime) -> datetime:
    """The earliest time that an event may bear. The UTC day that it lies in is still kept whole."""
    return now - timedelta(days=settings.RAW_RETENTION_DAYS)
