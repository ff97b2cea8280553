"""Gauges of the last five minutes: right, and bounded in number."""

import uuid
from datetime import timedelta

import pytest
import time_machine
from django.conf import LazySettings
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from orgs.models import Org
from usage.rollups import roll_up

from ..factories import MODEL, OTHER_MODEL, ingest, make_event, make_model, make_org

pytestmark = pytest.mark.django_db

NOW = timezone.now().replace(minute=30, second=20, microsecond=0)


def gauges() -> dict[tuple[str, str, str], float]:
    """Value by name without its prefix, org and model."""
    text = Client().get("/metrics").content.decode()
    return {
        (sample.name.removeprefix("analytics_"), sample.labels["org"], sample.labels.get("model", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith(("analytics_reliability", "analytics_freshness_lag_seconds"))
    }


def calls(org: Org, minutes_ago: float, count: int = 1, **fields: object) -> None:
    moment = NOW.replace(second=0) - timedelta(minutes=minutes_ago)
    ingest([make_event(org, occurred_at=moment, **fields) for _ in range(count)])


def test_gauges_are_of_the_last_five_minutes_of_an_org_and_of_each_model() -> None:
    with time_machine.travel(NOW, tick=False):
        org = make_org(slug="acme")
        make_model()
        calls(org, 6, 50, status="error")  # too old
        calls(org, 5, 8, latency_ms=1_000)
        calls(org, 1, 2, latency_ms=4_000, status="timeout")
        calls(org, 2, 10, model_id=OTHER_MODEL)
        calls(org, -0.25, 7)  # of the minute that is under way
        roll_up()
        found = gauges()
    assert found[("reliability_calls", "acme", "")] == 20
    assert found[("reliability_error_ratio", "acme", "")] == 0.1
    assert found[("reliability_calls", "acme", str(MODEL))] == 10
    assert found[("reliability_error_ratio", "acme", str(MODEL))] == 0.2
    assert found[("reliability_latency_p95_seconds", "acme", str(MODEL))] == pytest.approx(4, rel=0.01)
    assert found[("reliability_latency_p99_seconds", "acme", str(OTHER_MODEL))] == pytest.approx(0.1, rel=0.01)
    assert found[("freshness_lag_seconds", "acme", "")] == 0


def test_lag_is_that_of_the_org() -> None:
    with time_machine.travel(NOW, tick=False) as clock:
        behind, done = make_org(slug="behind"), make_org(slug="done")
        for org in (behind, done):
            calls(org, 2)
        roll_up()
        calls(behind, 1)
        clock.move_to(NOW + timedelta(seconds=90))
        found = gauges()
    assert found[("freshness_lag_seconds", "behind", "")] == 90
    assert found[("freshness_lag_seconds", "done", "")] == 0


def test_gauges_are_bounded_in_number(settings: LazySettings) -> None:
    settings.RELIABILITY_GAUGES = 2
    with time_machine.travel(NOW, tick=False):
        for number in range(4):
            org = make_org(slug=f"org-{number}")
            for _ in range(3):
                calls(org, 1, number + 1, model_id=uuid.uuid4())
        roll_up()
        found = gauges()
        settings.RELIABILITY_GAUGES = 0
        assert gauges() == {}
    assert {org for _, org, _ in found} == {"org-2", "org-3"}
    assert len({(org, model) for _, org, model in found if model}) == 2
