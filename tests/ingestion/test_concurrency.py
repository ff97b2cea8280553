"""Writers at the same time, on real connections."""

import random
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection

from ingestion import dedupe
from ingestion.models import UsageEvent
from orgs.models import Org, ServedModel
from usage.rollups import roll_up
from usage.verification import verify

from ..factories import ingest, make_event, make_org

pytestmark = pytest.mark.django_db(transaction=True)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls that run at the same time, each on a connection of its own."""

    def run(call: Callable[[], Any]) -> Any:
        try:
            return call()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_two_writers_of_the_same_events_count_each_once() -> None:
    org = make_org()
    events = [make_event(org) for _ in range(10_000)]
    shuffled = random.Random(1).sample(events, len(events))
    batches = together(lambda: ingest(events), lambda: ingest(shuffled), roll_up)
    assert sum(batch.accepted for batch in batches[:2]) == 10_000
    assert sum(batch.duplicates for batch in batches[:2]) == 10_000
    assert UsageEvent.objects.count() == 10_000
    roll_up()
    assert verify() == []


def test_writers_that_overlap_and_name_the_same_unknown_orgs_and_models_do_not_deadlock() -> None:
    orgs, models = [[uuid.uuid4() for _ in range(50)] for _ in range(2)]
    draw = random.Random(2)
    events = [make_event(draw.choice(orgs), model_id=draw.choice(models)) for _ in range(2_000)]
    batches = together(*[lambda: ingest(draw.sample(events, 1_500)) for _ in range(4)])
    stored = UsageEvent.objects.count()
    assert sum(batch.accepted for batch in batches) == stored <= 2_000
    assert Org.objects.filter(is_stub=True).count() <= 50
    assert ServedModel.objects.filter(is_stub=True).count() <= 50


def test_a_rotation_waits_for_batches_and_none_is_counted_twice() -> None:
    org = make_org()
    events = [make_event(org) for _ in range(2_000)]
    batches = together(
        lambda: ingest(events), lambda: dedupe.rotate(force=True), lambda: ingest(events), lambda: ingest(events)
    )
    assert sum(batch.accepted for batch in batches if not isinstance(batch, bool)) == 2_000
