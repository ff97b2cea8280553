"""How far back raw events are kept, and so how far back they are complete."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Q

from .models import Ledger


def raw_horizon(now: datetime) -> datetime:
    """The earliest time that an event may bear. The UTC day that it lies in is still kept whole."""
    return now - timedelta(days=settings.RAW_RETENTION_DAYS)


def complete_since(now: datetime) -> datetime:
    """The earliest time from which on raw events are whole: later than `raw_horizon` where retention was shorter before."""
    dropped = Ledger.objects.values_list("dropped_before", flat=True).first()
    return raw_horizon(now) if dropped is None else max(raw_horizon(now), dropped)


def note_dropped(before: datetime) -> None:
    """Remember that raw events before this moment are gone, or go now. Said before they do."""
    Ledger.objects.filter(Q(dropped_before=None) | Q(dropped_before__lt=before)).update(dropped_before=before)
