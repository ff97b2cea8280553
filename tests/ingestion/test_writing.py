"""The write path: batches, identity, conflicts, late events."""

import json
import uuid
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion import dedupe, storage
from ingestion.models import Batch, Conflict, Door, Status, UsageEvent
from ingestion.schema import Invalid, read_message
from ingestion.schema import UsageEvent as Event
from ingestion.writing import Delivery, store
from orgs.models import ModelPrice

from ..factories import NOON, as_json, ingest, make_event, make_model, make_org

pytestmark = pytest.mark.django_db


def test_every_field_is_stored_as_it_came() -> None:
    event = make_event(
        actor_id=uuid.uuid4(),
        client_id="web ✓",
        status="throttled",
        error_code="429",
        cached_input_tokens=3,
        cache_creation_input_tokens=4,
        cost_estimate_cents=Decimal("12345678.1234"),
        metadata={"tier": "gold", "quote": '"'},
    )
    batch = ingest([event])
    row = UsageEvent.objects.get()
    for name in Event.__struct_fields__:
        if name != "status":
            assert getattr(row, name) == getattr(event, name), name
    assert row.status == Status.THROTTLED
    assert row.batch_id == batch.pk
    assert row.received_at == batch.started_at


def test_the_batch_tells_what_became_of_it() -> None:
    org, known = make_org(), make_event()
    ingest([known])
    late = make_event(org, occurred_at=NOON - timedelta(days=30))
    batch = store(Delivery(Door.TRACE, [make_event(org), late, known], rejected=2))
    assert (batch.received, batch.accepted, batch.duplicates, batch.rejected) == (5, 2, 1, 2)
    assert batch.org_ids == sorted([org.pk, known.org_id])
    assert (batch.first_occurred_at, batch.last_occurred_at) == (late.occurred_at, NOON)
    assert batch.is_late
    assert batch.rolled_up_at is None
    assert batch.started_at <= batch.completed_at


def test_of_two_in_one_batch_the_first_counts_and_the_other_is_a_conflict() -> None:
    first = make_event(latency_ms=1)
    second = make_event(first.org_id, event_id=first.event_id, latency_ms=2)
    batch = ingest([first, second, first])
    assert (batch.accepted, batch.duplicates, batch.conflicts) == (1, 2, 1)
    assert UsageEvent.objects.get().latency_ms == 1
    assert Conflict.objects.get().payload["latency_ms"] == 2


def test_a_resend_with_another_time_is_dropped_and_listed() -> None:
    first = make_event()
    ingest([first])
    moved = make_event(first.org_id, event_id=first.event_id, occurred_at=NOON + timedelta(hours=1))
    batch = ingest([moved])
    assert (batch.accepted, batch.duplicates, batch.conflicts) == (0, 1, 1)
    assert Conflict.objects.get().first_occurred_at == NOON


def test_a_claim_lasts_one_rotation_and_the_event_itself_longer() -> None:
    first = make_event()
    ingest([first])
    moved = make_event(first.org_id, event_id=first.event_id, occurred_at=NOON + timedelta(hours=1))
    assert dedupe.rotate(force=True)
    assert ingest([moved]).accepted == 0
    assert dedupe.rotate(force=True)
    again = make_event(first.org_id, event_id=first.event_id, latency_ms=7)
    batch = ingest([first, again])
    assert (batch.accepted, batch.duplicates, batch.conflicts) == (0, 2, 1), "the stored event is still known"
    assert UsageEvent.objects.get().latency_ms == first.latency_ms


def test_the_ledger_is_not_rotated_before_its_time() -> None:
    assert not dedupe.rotate()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE ingestion_ledger SET rotated_at = %s", [timezone.now() - dedupe.window()])
    assert dedupe.rotate()
    assert not dedupe.rotate()


def test_the_same_id_in_two_orgs_is_two_events() -> None:
    event_id = uuid.uuid4()
    assert ingest([make_event(event_id=event_id), make_event(event_id=event_id)]).accepted == 2


def test_an_event_without_a_cost_is_priced_at_the_price_that_held() -> None:
    model = make_model()
    prices = {"cached_input_tokens": 10, "cache_creation_input_tokens": 125, "output_tokens": 500}
    ModelPrice.objects.create(model=model, effective_from=NOON - timedelta(days=9), input_tokens=100, **prices)
    ModelPrice.objects.create(model=model, effective_from=NOON + timedelta(seconds=1), input_tokens=900, **prices)
    tokens = {
        "input_tokens": 1000,
        "output_tokens": 200,
        "cached_input_tokens": 300,
        "cache_creation_input_tokens": 100,
    }
    ingest([make_event(cost_estimate_cents=None, **tokens)])
    # (600 × 100 + 300 × 10 + 100 × 125 + 200 × 500) / 1,000,000 cents
    assert UsageEvent.objects.get().cost_estimate_cents == Decimal("0.1755")


def test_an_event_that_nobody_can_price_has_no_cost() -> None:
    ingest([make_event(cost_estimate_cents=None)])
    assert UsageEvent.objects.get().cost_estimate_cents is None


@pytest.mark.engine("PostgreSQL")
@pytest.mark.django_db(transaction=True)
def test_a_partition_that_vanished_is_made_again() -> None:
    ingest([make_event()])
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE usage_events_p{NOON:%Y%m%d}")
    batch = ingest([make_event()])
    assert (batch.accepted, batch.retries) == (1, 1)


@pytest.mark.engine("PostgreSQL")
def test_partitions_stand_ready_for_the_days_to_come() -> None:
    from ingestion.tasks import prepare_storage

    prepare_storage()
    today = storage.day_of(timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relname ~ '^usage_events_p[0-9]+$'")
        names = {name for (name,) in cursor.fetchall()}
    assert {f"usage_events_p{today + timedelta(days=n):%Y%m%d}" for n in range(4)} <= names


def test_a_batch_of_rejects_alone_is_a_batch() -> None:
    batch = store(Delivery(Door.HTTP, [], rejected=2))
    assert Batch.objects.get() == batch
    assert (batch.received, batch.accepted, batch.first_occurred_at) == (2, 0, None)


@given(st.lists(st.one_of(st.decimals(0, 10**9, places=4), st.integers(0, 10**9)), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_costs_are_stored_to_the_last_ten_thousandth(costs: list[Decimal | int]) -> None:
    batch = ingest([make_event(cost_estimate_cents=cost) for cost in costs])
    stored = UsageEvent.objects.filter(batch_id=batch.pk).values_list("cost_estimate_cents", flat=True)
    assert sorted(stored) == sorted(costs)


@pytest.mark.parametrize("cost", ["0.00001", "1000000000.0001", "-0.0001", "1e-400", "1e400", "NaN"])
def test_costs_that_do_not_fit_are_refused(cost: str) -> None:
    event = make_event(cost_estimate_cents=None)
    document = json.dumps(as_json(event)).replace('"costEstimateCents": null', f'"costEstimateCents": {cost}')
    (read,) = read_message(document.encode(), timezone.now())
    assert isinstance(read, Invalid)
    assert Batch.objects.count() == 0
