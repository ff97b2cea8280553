"""Events as rows of `usage_events`, in the wire form of binary COPY.

UUIDs travel as their 16 bytes and times as microseconds since 2000: what PostgreSQL reads anyway, without a conversion.
"""

from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db.backends.utils import CursorWrapper

from .copying import copy_in
from .models import Batch, Status
from .pricing import PriceBook
from .schema import UsageEvent, exact_cents, metadata_bytes

# Column, and the psycopg type whose wire form is handed over. What an event consists of, the identity first.
_EVENT = {
    "org_id": "bytea",
    "event_id": "bytea",
    "occurred_at": "int8",
    "model_id": "bytea",
    "actor_id": "bytea",
    "client_id": "text",
    "latency_ms": "int4",
    "status": "int2",
    "error_code": "text",
    "input_tokens": "int4",
    "output_tokens": "int4",
    "cached_input_tokens": "int4",
    "cache_creation_input_tokens": "int4",
    "cost_estimate_cents": "numeric",
    "metadata": "bytea",
}
_STORED = {"batch_id": "int8", "received_at": "int8"} | _EVENT
# What makes two events of one identity differ.
CONTENT = tuple(_EVENT)[2:]

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_DAY = 86_400_000_000  # microseconds
_STATUS = {status.label: status.value for status in Status}

# Org and event id, 16 bytes each, in one: what sorts and hashes fast; and microseconds since 2000.
Identity = tuple[bytes, int]


def identity(event: UsageEvent) -> Identity:
    since = event.occurred_at - _POSTGRES_EPOCH
    moment = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return event.org_id.bytes + event.event_id.bytes, moment


def span_of(identities: Collection[Identity]) -> tuple[datetime, datetime] | tuple[None, None]:
    """The first and the last time; Nones where there is no event."""
    if not identities:
        return None, None
    moments = [moment for _, moment in identities]
    first, last = (_POSTGRES_EPOCH + timedelta(microseconds=moment) for moment in (min(moments), max(moments)))
    return first, last


def days_of(identities: Iterable[Identity]) -> set[date]:
    """The UTC days."""
    return {(_POSTGRES_EPOCH + timedelta(days=day)).date() for day in {moment // _DAY for _, moment in identities}}


def orgs_of(identities: Iterable[Identity]) -> list[UUID]:
    return [UUID(bytes=org_id) for org_id in sorted({key[:16] for key, _ in identities})]


def copy_events(
    cursor: CursorWrapper, table: str, batch: Batch, events: Iterable[tuple[Identity, UsageEvent]], prices: PriceBook
) -> None:
    """Write events of a batch to a table that has the columns of `usage_events`.

    Rows are made while the database takes in those before. Events without a cost are priced, where a price is known.
    """
    since = batch.started_at - _POSTGRES_EPOCH
    stored = (batch.pk, since // timedelta(microseconds=1))
    copy_in(cursor, table, _STORED, (stored + _row(identity, event, prices) for identity, event in events))


def _row(identity: Identity, event: UsageEvent, prices: PriceBook) -> tuple[Any, ...]:
    key, moment = identity
    cost = event.cost_estimate_cents
    return (
        key[:16],
        key[16:],
        moment,
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
        prices.cost(event) if cost is None else exact_cents(cost) if isinstance(cost, Decimal) else cost,
        None if event.metadata is None else b"\x01" + metadata_bytes(event.metadata),  # version 1 of jsonb's wire form
    )
