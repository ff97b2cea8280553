"""The one way an event is stored: a batch, in one transaction.

Claim each identity, write what is new by binary COPY, list the resends that say something else, note it all in one row
of the ledger of batches. A batch is there whole, with its quarantined messages, or not at all; a repeat adds nothing.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest

import psycopg.errors
import structlog
from django.db import IntegrityError, OperationalError, ProgrammingError, connection
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from orgs.registry import add_stubs
from orgs.tenancy import DatabaseRole, acting_as

from . import conflicts, dedupe, metrics, spans, storage
from .models import Batch, Door, Ledger, QuarantinedMessage
from .pricing import PriceBook
from .rows import Identity, copy_events, days_of, identity, orgs_of, span_of
from .schema import Invalid, UsageEvent, expired, reason_of

logger = structlog.get_logger(__name__)

MAX_ATTEMPTS = 5  # of a transaction that lost a race or a deadlock, or found a partition gone
LATE_AFTER = timedelta(hours=1)  # an event older than this belongs to an hour that people already looked at


@dataclass(frozen=True)
class StreamSpan:
    """Where in a stream a delivery was read: offsets, both included, and how many messages."""

    stream: str
    first_offset: int
    last_offset: int
    messages: int


@dataclass(frozen=True)
class Delivery:
    """What came through a door in one go."""

    door: Door
    events: Sequence[UsageEvent]
    quarantined: Sequence[Invalid] = ()
    rejected: int = 0
    # Whether unknown orgs and models that events name get a stub in the registry.
    registers: bool = False
    span: StreamSpan | None = None
    quarantined_offsets: Sequence[int] = ()  # of the quarantined ones, where they come from a stream

    @property
    def received(self) -> int:
        return len(self.events) + len(self.quarantined) + self.rejected


def store(delivery: Delivery) -> Batch:
    """Write a delivery as one batch and return its row, committed unless the caller holds a transaction open.

    Raises `django.db.OperationalError` where the database is away; nothing is stored then, and a repeat is safe.
    """
    with spans.span("store batch", door=str(delivery.door), received=delivery.received) as span:
        batch = _store(delivery, span.traceparent)
        span.set(batch_id=batch.pk, orgs=len(batch.org_ids), retries=batch.retries)
        span.set(**{outcome: getattr(batch, outcome) for outcome in metrics.OUTCOMES})
    return batch


def _store(delivery: Delivery, traceparent: str | None) -> Batch:
    started_at = timezone.now()
    identities = list(map(identity, delivery.events))
    days = days_of(identities)
    for attempt in range(MAX_ATTEMPTS):
        try:
            storage.ensure_days(days)
            with acting_as(DatabaseRole.TASKS), connection.cursor() as cursor:
                batch = _write(cursor, delivery, identities, started_at, attempt, traceparent)
        except (OperationalError, IntegrityError, ProgrammingError) as error:
            if attempt + 1 == MAX_ATTEMPTS or not isinstance(error.__cause__, _REPEATABLE):
                raise
            storage.forget()
            logger.warning("batch_repeated", attempt=attempt, error=error.__cause__)
            time.sleep(random.uniform(0, 0.05 * 2**attempt))
        else:
            logger.info(
                "batch_stored",
                batch_id=batch.pk,
                door=batch.door,
                orgs=len(batch.org_ids),
                received=batch.received,
                accepted=batch.accepted,
                duplicates=batch.duplicates,
                conflicts=batch.conflicts,
                rejected=batch.rejected,
                quarantined=batch.quarantined,
            )
            metrics.note_batch(batch, delivery.quarantined)
            return batch
    raise AssertionError("unreachable")


# A lost race for an identity; a lost deadlock; a partition that was dropped since this process last looked; a table that was
# moved to another engine since then.
_REPEATABLE = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.CheckViolation,
    psycopg.errors.WrongObjectType,
)


def _write(
    cursor: CursorWrapper,
    delivery: Delivery,
    identities: Sequence[Identity],
    started_at: datetime,
    retries: int,
    traceparent: str | None,
) -> Batch:
    items = list(zip(identities, delivery.events, strict=True))
    quarantined = list(delivery.quarantined)
    # A repeat leaves nobody to lose a race against.
    ledger = dedupe.hold(cursor, alone=retries > 0) if items else None
    if ledger is not None and ledger.dropped_before is not None:
        quarantined += [expired(event) for _, event in items if event.occurred_at < ledger.dropped_before]
        items = [item for item in items if item[1].occurred_at >= ledger.dropped_before]
        identities = [identity for identity, _ in items]
    first, last = span_of(identities)
    batch = Batch(
        door=delivery.door,
        received=delivery.received,
        rejected=delivery.rejected,
        quarantined=len(quarantined),
        org_ids=orgs_of(identities),
        first_occurred_at=first,
        last_occurred_at=last,
        is_late=first is not None and first < started_at - LATE_AFTER,
        retries=retries,
        started_at=started_at,
        completed_at=started_at,
        traceparent=traceparent,
    )
    if span := delivery.span:
        batch.stream, batch.messages_read = span.stream, span.messages
        batch.first_offset, batch.last_offset = span.first_offset, span.last_offset
    batch.save(force_insert=True)
    if ledger is not None and items:
        if delivery.registers:
            add_stubs(batch.org_ids, {event.model_id for _, event in items})
        prices = PriceBook(event.model_id for _, event in items if event.cost_estimate_cents is None)
        _insert(cursor, batch, ledger, items, prices)
    QuarantinedMessage.objects.bulk_create(
        QuarantinedMessage(
            batch=batch,
            reason=reason_of(message.faults),
            detail="\n".join(map(str, message.faults)),
            payload=message.payload,
            stream_offset=offset,
            received_at=started_at,
        )
        for message, offset in zip_longest(quarantined, delivery.quarantined_offsets)
    )
    batch.completed_at = timezone.now()
    batch.save(force_update=True)
    return batch


def _insert(
    cursor: CursorWrapper,
    batch: Batch,
    ledger: Ledger,
    events: Sequence[tuple[Identity, UsageEvent]],
    prices: PriceBook,
) -> None:
    """Store the events that nobody stored before; of several with one identity the first counts."""
    firsts: dict[bytes, tuple[Identity, UsageEvent]] = {}
    resent = [item for item in events if firsts.setdefault(item[0][0], item) is not item]
    new = [firsts[key] for key in sorted(firsts)]
    taken = dedupe.claim(cursor, ledger, [identity for identity, _ in new])
    if taken:
        resent += [new[position] for position in taken]
        new = [item for position, item in enumerate(new) if position not in taken]
    copy_events(cursor, "usage_events", batch, new, prices)
    batch.accepted, batch.duplicates = len(new), len(resent)
    if resent:
        batch.conflicts = conflicts.note(cursor, batch, ledger, resent, prices)
