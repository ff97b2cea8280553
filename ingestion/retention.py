"""What is past its retention goes: raw events by whole UTC days, quarantine and the ledger of batches by rows.

Figures that are made of raw events are not touched: a day goes only once every batch with events in it is in the rollups.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial

import structlog
from django.conf import settings

from orgs import audit
from orgs.models import AuditRecord

from . import storage
from .horizon import note_dropped, raw_horizon
from .maintenance import Action, Step, delete_step
from .models import Batch, Conflict, QuarantinedMessage
from .partitioning import Partition
from .storage.engine import TABLE

logger = structlog.get_logger(__name__)

_IN_FLIGHT = timedelta(hours=1)  # an event that was read at the horizon may be stored a little later
_LEDGER_MARGIN = timedelta(days=2)  # a batch outlives its events, and what was quarantined of it


def steps(now: datetime) -> Iterator[Step]:
    """All that is to be done to raw events and what stands beside them."""
    for part in storage.parts():
        if part.end_at <= raw_horizon(now) - _IN_FLIGHT:
            if _is_waited_for(part):
                logger.error("retention_waits", subject=_told(part), reason="batches with its events are not rolled up")
            else:
                yield Step(Action.DROP, _told(part), partial(_drop, part), part.bytes)
        elif not part.is_settled and part.end_at <= now - timedelta(days=settings.SETTLE_AFTER_DAYS):
            yield Step(Action.SETTLE, _told(part), partial(storage.settle, part), part.bytes)
    kept_since = now - timedelta(days=settings.QUARANTINE_RETENTION_DAYS)
    yield from delete_step(QuarantinedMessage.objects.all(), "received_at", kept_since)
    yield from delete_step(Conflict.objects.all(), "received_at", kept_since)
    yield from _audit(now - timedelta(days=settings.AUDIT_RETENTION_DAYS))
    counted = Batch.objects.exclude(rolled_up_at=None)
    yield from delete_step(counted, "completed_at", raw_horizon(now) - _LEDGER_MARGIN)


def _audit(before: datetime) -> Iterator[Step]:
    """Audit records go by the one way that the database leaves open."""
    if count := AuditRecord.objects.filter(at__lt=before).count():

        def run() -> int:
            audit.forget(before)
            return 0  # the room is used again, and not given back

        yield Step(Action.DELETE, f"audit records before {before:%Y-%m-%d %H:%M}", run, rows=count)


def _told(part: Partition) -> str:
    return f"{TABLE} {part.start:%Y-%m-%d}"


def _drop(part: Partition) -> int:
    note_dropped(part.end_at)
    return storage.drop(part, lambda: not _is_waited_for(part))


def _is_waited_for(part: Partition) -> bool:
    """Uses batches_not_rolled_up."""
    return Batch.objects.filter(rolled_up_at=None, first_occurred_at__lt=part.end_at).exists()
