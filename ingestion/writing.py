"""The one way an event is stored: a batch, in one transaction.

Binary COPY into a temporary table, one statement that claims each identity and inserts what was claimed, one row in the
ledger of batches. A batch is there whole, with its quarantined messages, or not at all; a repeat of it adds nothing.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg.errors
import structlog
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.utils import timezone
from psycopg import sql

from orgs.registry import add_stubs

from . import dedupe, storage
from .models import Batch, Door, QuarantinedMessage, Status
from .pricing import PriceBook
from .schema import Invalid, UsageEvent, cost_in_ten_thousandths, metadata_bytes

logger = structlog.get_logger(__name__)

MAX_ATTEMPTS = 5  # of a transaction that lost a deadlock or found a partition gone
LATE_AFTER = timedelta(hours=1)  # an event older than this belongs to an hour that people already looked at

# Column, its type in the staging table, and the psycopg type whose wire form `_row` hands over. UUIDs travel as their
# 16 bytes, times as microseconds since 2000 and costs as integers: what PostgreSQL reads anyway, without a conversion.
_STAGED = (
    ("position", "integer", "int4"),
    ("org_id", "uuid", "bytea"),
    ("event_id", "uuid", "bytea"),
    ("occurred_at", "timestamptz", "int8"),
    ("model_id", "uuid", "bytea"),
    ("actor_id", "uuid", "bytea"),
    ("client_id", "text", "text"),
    ("latency_ms", "integer", "int4"),
    ("status", "smallint", "int2"),
    ("error_code", "text", "text"),
    ("input_tokens", "integer", "int4"),
    ("output_tokens", "integer", "int4"),
    ("cached_input_tokens", "integer", "int4"),
    ("cache_creation_input_tokens", "integer", "int4"),
    ("cost", "bigint", "int8"),
    ("metadata", "jsonb", "bytea"),
)
_WIRE_TYPES = [wire for _, _, wire in _STAGED]
_CREATE_STAGING = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS ingestion_staging ("
    + ", ".join(f"{name} {kind}" for name, kind, _ in _STAGED)
    + ") ON COMMIT DELETE ROWS"
)
_COPY_STAGING = "COPY ingestion_staging FROM STDIN (FORMAT BINARY)"
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_STATUS = {status.label: status.value for status in Status}

# What an event consists of, in `usage_events` and, under the same names, in `ingestion_staging`; the cost apart.
_CONTENT = (
    "occurred_at, model_id, actor_id, client_id, latency_ms, status, error_code, input_tokens, output_tokens,"
    " cached_input_tokens, cache_creation_input_tokens, metadata"
)

# Of several events with one identity in a batch the first counts. Both inserts go in key order, so that two batches
# with the same events wait for each other instead of deadlocking. The look-ups, here and below, are subqueries with a
# LIMIT: the planner can't turn these into joins, so each is one probe of a primary key, whatever it knows of the tables.
_STORE = """
WITH first AS MATERIALIZED (
    SELECT DISTINCT ON (org_id, event_id) * FROM ingestion_staging ORDER BY org_id, event_id, position
), claimed AS (
    INSERT INTO {current} (org_id, event_id, occurred_at)
    SELECT org_id, event_id, occurred_at FROM first
    WHERE (
        SELECT true FROM {previous} p WHERE p.org_id = first.org_id AND p.event_id = first.event_id LIMIT 1
    ) IS NULL
    ORDER BY org_id, event_id
    ON CONFLICT DO NOTHING
    RETURNING org_id, event_id
)
INSERT INTO usage_events (org_id, event_id, received_at, batch_id, cost_estimate_cents, {content})
SELECT org_id, event_id, %(received_at)s, %(batch_id)s, cost * 0.0001, {content}
FROM first JOIN claimed USING (org_id, event_id)
ORDER BY org_id, occurred_at, event_id
ON CONFLICT DO NOTHING
"""

# Staged events whose stored twin says something else. The twin is found through its claim, then by primary key. Rows
# that were stored just now are their own twins and drop out.
_NOTE_CONFLICTS = """
INSERT INTO ingestion_conflicts (batch_id, org_id, event_id, first_occurred_at, payload, received_at)
SELECT %(batch_id)s, s.org_id, s.event_id, e.occurred_at,
    to_jsonb(s) - 'position' - 'cost' || jsonb_build_object('cost_estimate_cents', s.cost * 0.0001), %(received_at)s
FROM ingestion_staging s
CROSS JOIN LATERAL (
    SELECT occurred_at FROM {current} c WHERE c.org_id = s.org_id AND c.event_id = s.event_id
    UNION ALL
    SELECT occurred_at FROM {previous} p WHERE p.org_id = s.org_id AND p.event_id = s.event_id
    LIMIT 1
) claim
CROSS JOIN LATERAL (
    SELECT * FROM usage_events u
    WHERE u.org_id = s.org_id AND u.occurred_at = claim.occurred_at AND u.event_id = s.event_id LIMIT 1
) e
WHERE (s.cost * 0.0001, {staged}) IS DISTINCT FROM (e.cost_estimate_cents, {stored})
"""


@dataclass(frozen=True)
class Delivery:
    """What came through a door in one go."""

    door: Door
    events: Sequence[UsageEvent]
    quarantined: Sequence[Invalid] = ()
    rejected: int = 0
    # Whether unknown orgs and models that events name get a stub in the registry.
    registers: bool = False

    @property
    def received(self) -> int:
        return len(self.events) + len(self.quarantined) + self.rejected


def store(delivery: Delivery) -> Batch:
    """Write a delivery as one batch and return its row, committed unless the caller holds a transaction open.

    Raises `django.db.OperationalError` where the database is away; nothing is stored then, and a repeat is safe.
    """
    started_at = timezone.now()
    rows = [*_rows(delivery.events)]
    storage_days = {storage.day_of(event.occurred_at) for event in delivery.events}
    for attempt in range(MAX_ATTEMPTS):
        try:
            storage.ensure_days(storage_days)
            with transaction.atomic(), connection.cursor() as cursor:
                batch = _write(cursor, delivery, rows, started_at, attempt)
        except (OperationalError, IntegrityError) as error:
            if attempt + 1 == MAX_ATTEMPTS or not isinstance(error.__cause__, _REPEATABLE):
                raise
            storage.forget()
            logger.warning("batch_repeated", attempt=attempt, error=str(error.__cause__))
            time.sleep(random.uniform(0, 0.05 * 2**attempt))
        else:
            logger.info(
                "batch_stored",
                batch_id=batch.pk,
                door=batch.door,
                accepted=batch.accepted,
                duplicates=batch.duplicates,
                quarantined=batch.quarantined,
            )
            return batch
    raise AssertionError("unreachable")


# A lost deadlock; a partition that was dropped, or not yet made, since this process last looked.
_REPEATABLE = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.CheckViolation)


def _write(
    cursor: CursorWrapper, delivery: Delivery, rows: Sequence[tuple[object, ...]], started_at: datetime, retries: int
) -> Batch:
    events = delivery.events
    times = [event.occurred_at for event in events]
    batch = Batch(
        door=delivery.door,
        received=delivery.received,
        rejected=delivery.rejected,
        quarantined=len(delivery.quarantined),
        org_ids=sorted({event.org_id for event in events}),
        first_occurred_at=min(times, default=None),
        last_occurred_at=max(times, default=None),
        is_late=bool(times) and min(times) < started_at - LATE_AFTER,
        retries=retries,
        started_at=started_at,
        completed_at=started_at,
    )
    batch.save(force_insert=True)
    if events:
        if delivery.registers:
            add_stubs(batch.org_ids, {event.model_id for event in events})
        _insert(cursor, batch, rows)
    QuarantinedMessage.objects.bulk_create(
        QuarantinedMessage(
            batch=batch,
            reason=message.faults[0].field or "unreadable",
            detail="\n".join(map(str, message.faults)),
            payload=message.payload,
            received_at=started_at,
        )
        for message in delivery.quarantined
    )
    batch.completed_at = timezone.now()
    batch.save(force_update=True)
    return batch


def _insert(cursor: CursorWrapper, batch: Batch, rows: Sequence[tuple[object, ...]]) -> None:
    current, previous = dedupe.claim_tables(cursor)
    cursor.execute(_CREATE_STAGING)
    cursor.execute("DELETE FROM ingestion_staging")  # empty, but where a caller's transaction holds two batches
    with cursor.copy(_COPY_STAGING) as copy:
        copy.set_types(_WIRE_TYPES)
        for row in rows:
            copy.write_row(row)
    names = {"current": sql.Identifier(current), "previous": sql.Identifier(previous)}
    parameters: dict[str, Any] = {"batch_id": batch.pk, "received_at": batch.started_at}
    cursor.execute(sql.SQL(_STORE).format(**names, content=sql.SQL(_CONTENT)), parameters)
    batch.accepted = cursor.rowcount
    batch.duplicates = len(rows) - batch.accepted
    if batch.duplicates:
        staged, stored = (_prefixed(alias) for alias in ("s", "e"))
        cursor.execute(sql.SQL(_NOTE_CONFLICTS).format(**names, staged=staged, stored=stored), parameters)
        batch.conflicts = cursor.rowcount


def _prefixed(alias: str) -> sql.SQL:
    return sql.SQL(", ".join(f"{alias}.{column.strip()}" for column in _CONTENT.split(",")))


def _rows(events: Sequence[UsageEvent]) -> list[tuple[object, ...]]:
    """Staging rows. Events without a cost are priced, where a price is known."""
    unpriced = {event.model_id for event in events if event.cost_estimate_cents is None}
    prices = PriceBook(unpriced) if unpriced else None
    return [_row(position, event, prices) for position, event in enumerate(events)]


def _row(position: int, event: UsageEvent, prices: PriceBook | None) -> tuple[object, ...]:
    since = event.occurred_at - _POSTGRES_EPOCH
    cost = event.cost_estimate_cents
    if cost is None and prices is not None:
        cost = prices.cost(event)
    return (
        position,
        event.org_id.bytes,
        event.event_id.bytes,
        (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds,
        event.model_id.bytes,
        None if event.actor_id is None else event.actor_id.bytes,
        event.client_id,
        event.latency_ms,
        _STATUS[event.status],
        event.error_code,
        event.input_tokens,
        event.output_tokens,
        event.cached_input_tokens or 0,
        event.cache_creation_input_tokens or 0,
        None if cost is None else cost_in_ten_thousandths(cost),
        None if event.metadata is None else b"\x01" + metadata_bytes(event.metadata),
    )
