"""Tiny factories: the smallest thing that is right, everything else by keyword."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.utils import timezone

from ingestion.models import Batch, Door
from ingestion.schema import UsageEvent
from ingestion.writing import Delivery, store
from orgs.models import ApiKey, Membership, Org, Role, Scope, ServedModel, User

MODEL = uuid.UUID("00000000-0000-4000-8000-00000000000a")
OTHER_MODEL = uuid.UUID("00000000-0000-4000-8000-00000000000b")
# A noon far enough back that nothing is ahead of the clock and near enough that every grain is kept.
NOON = (timezone.now() - timedelta(days=7)).astimezone(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
# A view of an org acts in a role of its own: savepoint, there, back, release. Where no test holds a transaction it is one.
ROLE_QUERIES = 4


def make_org(name: str = "Acme", **fields: Any) -> Org:
    fields.setdefault("slug", f"{name.lower().replace(' ', '-')}-{uuid.uuid4().hex[:6]}")
    return Org.objects.create(name=name, **fields)


def make_model(pk: uuid.UUID = MODEL, name: str = "Cedar Large", **fields: Any) -> ServedModel:
    return ServedModel.objects.create(pk=pk, display_name=name, **fields)


def make_user(email: str = "", org: Org | None = None, role: str = Role.ORG_ADMIN, **fields: Any) -> User:
    user = User.objects.create_user(email or f"{uuid.uuid4().hex[:8]}@example.com", "correct horse", **fields)
    if org is not None:
        Membership.objects.create(org=org, user=user, role=role)
    return user


def make_key(org: Org | None, *scopes: str) -> str:
    """A key's token; of the platform where there is no org; with every scope where none is named."""
    return ApiKey.issue(org=org, name="test", scopes=list(scopes) or [Scope.ADMIN])[1]


def make_event(org: Org | uuid.UUID | None = None, **fields: Any) -> UsageEvent:
    org_id = org.pk if isinstance(org, Org) else org or uuid.uuid4()
    defaults: dict[str, Any] = {
        "event_id": uuid.uuid4(),
        "org_id": org_id,
        "model_id": MODEL,
        "occurred_at": NOON,
        "latency_ms": 100,
        "status": "success",
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_estimate_cents": Decimal("0.2500"),
    }
    return UsageEvent(**defaults | fields)


def as_json(event: UsageEvent, **fields: Any) -> dict[str, Any]:
    """An event as a client sends it."""
    cost = event.cost_estimate_cents
    document = {
        "eventId": str(event.event_id),
        "orgId": str(event.org_id),
        "modelId": str(event.model_id),
        "occurredAt": event.occurred_at.isoformat(),
        "latencyMs": event.latency_ms,
        "status": event.status,
        "inputTokens": event.input_tokens,
        "outputTokens": event.output_tokens,
        "costEstimateCents": None if cost is None else float(cost),
    }
    return document | fields


def ingest(events: Sequence[UsageEvent], door: Door = Door.HTTP) -> Batch:
    return store(Delivery(door, events, registers=True))


def at(hour: int, minute: int = 0, day: datetime = NOON) -> datetime:
    """A time on the day of `NOON`, UTC."""
    return day.replace(hour=hour, minute=minute)
