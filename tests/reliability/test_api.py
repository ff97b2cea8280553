"""The reliability endpoint: error rates, counts per status, and percentiles within 1 % of the exact ones."""

import math
import random
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from orgs.models import Org, Scope
from usage.rollups import adopt_zones, roll_up
from usage.windows import DAY

from ..factories import MODEL, NOON, OTHER_MODEL, ROLE_QUERIES, at, ingest, make_event, make_key, make_org

pytestmark = pytest.mark.django_db

Ask = Callable[..., Any]
LONGEST = 86_400_000  # ms; the largest latency an event can have


@pytest.fixture
def org() -> Org:
    return make_org()


@pytest.fixture
def ask(api: APIClient, org: Org) -> Ask:
    """Ask for the reliability of the org on the day of `NOON`, where nothing else is said."""
    token = make_key(org, Scope.RELIABILITY_READ)

    def get(**query: Any) -> Any:
        asked = {"start": at(0).isoformat(), "end": (at(0) + DAY).isoformat()} | query
        return api.get(f"/analytics/v1/orgs/{org.pk}/reliability", asked, headers={"X-API-Key": token})

    return get


def series(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.content
    points: list[dict[str, Any]] = answer.json()["series"]
    return points


def nearest_rank(values: list[int], fraction: float) -> int:
    """The ⌈p·n⌉-th smallest."""
    return sorted(values)[math.ceil(round(fraction * len(values), 9)) - 1]


def test_the_answer_is_that_of_the_contract(ask: Ask, org: Org) -> None:
    ingest(
        [
            make_event(org, occurred_at=at(9, 10), latency_ms=1),
            make_event(org, occurred_at=at(9, 20), latency_ms=2, status="error", error_code="overloaded"),
            make_event(org, occurred_at=at(9, 30), latency_ms=3, status="timeout"),
            make_event(org, occurred_at=at(9, 40), latency_ms=0, status="throttled"),
            make_event(org, occurred_at=at(9, 50), latency_ms=4),
            make_event(org, occurred_at=at(9), model_id=OTHER_MODEL, latency_ms=0),
            make_event(org, occurred_at=at(8), model_id=OTHER_MODEL, latency_ms=7, status="error"),
        ]
    )
    roll_up()
    day = f"{NOON:%Y-%m-%d}"
    assert ask(granularity="hour").json() == {
        "orgId": str(org.pk),
        "granularity": "hour",
        "series": [
            {
                "bucketStart": f"{day}T08:00:00Z",
                "modelId": str(OTHER_MODEL),
                "errorRate": 1.0,
                "invocations": 1,
                "statuses": {"success": 0, "error": 1, "timeout": 0, "throttled": 0},
                "latencyMs": {"p50": 7.0, "p95": 7.0, "p99": 7.0},
            },
            {
                "bucketStart": f"{day}T09:00:00Z",
                "modelId": str(MODEL),
                "errorRate": 0.6,
                "invocations": 5,
                "statuses": {"success": 2, "error": 1, "timeout": 1, "throttled": 1},
                "latencyMs": {"p50": 2.0, "p95": 4.0, "p99": 4.0},
            },
            {
                "bucketStart": f"{day}T09:00:00Z",
                "modelId": str(OTHER_MODEL),
                "errorRate": 0.0,
                "invocations": 1,
                "statuses": {"success": 1, "error": 0, "timeout": 0, "throttled": 0},
                "latencyMs": {"p50": 0.0, "p95": 0.0, "p99": 0.0},
            },
        ],
    }


def test_an_org_without_data_has_an_empty_series(ask: Ask, org: Org) -> None:
    assert ask().json() == {"orgId": str(org.pk), "granularity": "day", "series": []}


def test_a_model_can_be_asked_for_alone(ask: Ask, org: Org) -> None:
    ingest([make_event(org), make_event(org, model_id=OTHER_MODEL, status="error")])
    roll_up()
    (point,) = series(ask(modelId=str(OTHER_MODEL)))
    assert (point["modelId"], point["errorRate"]) == (str(OTHER_MODEL), 1.0)
    assert series(ask(modelId=str(uuid.uuid4()))) == []


_random = random.Random(7)
LATENCIES = {
    "one": [1234],
    "two": [10, 1000],
    "alike": [250] * 40,
    "up to a hundred": list(range(1, 101)),
    "zeros": [0] * 60 + [5000] * 40,
    "the largest": [LONGEST] * 3 + [LONGEST - 1],
    "a long tail": [round(math.exp(_random.gauss(6, 1.5))) for _ in range(700)],
    "all magnitudes": [round(10 ** _random.uniform(0, 7.9)) for _ in range(700)],
}


@pytest.mark.parametrize("latencies", LATENCIES.values(), ids=LATENCIES.keys())
@pytest.mark.parametrize("grain", ["hour", "day"])
def test_percentiles_are_within_one_percent_of_the_exact_ones(
    ask: Ask, org: Org, latencies: list[int], grain: str
) -> None:
    """By the hour from one histogram; by the day from those of hours, of fragments and of batches added up."""
    events = [
        make_event(org, occurred_at=at(9) + timedelta(minutes=n % 50 if grain == "hour" else n % 600), latency_ms=ms)
        for n, ms in enumerate(latencies)
    ]
    for part in (events[0::2], events[1::2]):
        if part:
            ingest(part)
            roll_up()
    window = {"start": at(9), "end": at(10)} if grain == "hour" else {"start": at(8, 30), "end": at(19, 30)}
    (point,) = series(ask(granularity=grain, **{name: moment.isoformat() for name, moment in window.items()}))
    assert point["invocations"] == len(latencies)
    for name, fraction in {"p50": 0.50, "p95": 0.95, "p99": 0.99}.items():
        assert point["latencyMs"][name] == pytest.approx(nearest_rank(latencies, fraction), rel=0.01)


def test_a_range_counts_only_its_part_of_a_bucket(ask: Ask, org: Org) -> None:
    ingest(
        [
            make_event(org, occurred_at=at(9, 15), status="error", latency_ms=9000),
            make_event(org, occurred_at=at(9, 45), latency_ms=5),
            make_event(org, occurred_at=at(10, 30), latency_ms=6, status="timeout"),
            make_event(org, occurred_at=at(11), latency_ms=9000),
        ]
    )
    roll_up()
    (point,) = series(ask(start=at(9, 30).isoformat(), end=at(11).isoformat()))
    assert (point["bucketStart"], point["errorRate"]) == (f"{NOON:%Y-%m-%d}T00:00:00Z", 0.5)
    assert point["statuses"] == {"success": 1, "error": 0, "timeout": 1, "throttled": 0}
    assert point["latencyMs"] == {"p50": 5.0, "p95": 6.0, "p99": 6.0}


def test_days_can_be_those_of_the_org(api: APIClient) -> None:
    org = make_org(time_zone="Asia/Kolkata")
    adopt_zones()
    ingest([make_event(org, occurred_at=at(18, 29)), make_event(org, occurred_at=at(18, 30), status="error")])
    roll_up()
    query = {"start": at(0).isoformat(), "end": (at(0) + DAY).isoformat(), "timeZone": "org"}
    answer = api.get(f"/analytics/v1/orgs/{org.pk}/reliability", query, headers={"X-API-Key": make_key(org)})
    assert [(point["bucketStart"], point["errorRate"]) for point in series(answer)] == [
        (f"{NOON - DAY:%Y-%m-%d}T18:30:00Z", 0.0),
        (f"{NOON:%Y-%m-%d}T18:30:00Z", 1.0),
    ]


@pytest.mark.parametrize("name", ["p50", "p95", "p99"])
def test_the_percentile_to_highlight_is_told_back(ask: Ask, org: Org, name: str) -> None:
    ingest([make_event(org)])
    roll_up()
    answer = ask(percentile=name)
    assert answer.json()["percentile"] == name
    assert set(series(answer)[0]["latencyMs"]) == {"p50", "p95", "p99"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("p90", "must be p50, p95 or p99"),
        ("P50", "must be p50, p95 or p99"),
        ("50", "must be p50, p95 or p99"),
        ("p50\0", "must be p50, p95 or p99"),
        (["p50", "p99"], "is given more than once"),
    ],
)
def test_another_percentile_is_refused(ask: Ask, given: Any, message: str) -> None:
    answer = ask(percentile=given)
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert answer.json()["errors"] == [{"field": "percentile", "message": message}]


def test_a_key_to_read_usage_does_not_read_reliability(api: APIClient, org: Org) -> None:
    query = {"start": at(0).isoformat(), "end": (at(0) + DAY).isoformat()}
    path = f"/analytics/v1/orgs/{org.pk}/reliability"
    token = make_key(org, Scope.USAGE_READ, Scope.EVENTS_WRITE, Scope.EXPORTS_READ)
    assert api.get(path, query, headers={"X-API-Key": token}).status_code == 403


def test_the_database_is_asked_a_fixed_number_of_times(
    ask: Ask, org: Org, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    ingest([make_event(org, occurred_at=at(hour, 30)) for hour in range(24)])
    roll_up()
    query = {"start": at(1, 15).isoformat(), "end": at(22, 45).isoformat(), "granularity": "hour"}
    ask()  # notes the key's use
    with django_assert_num_queries(ROLE_QUERIES + 4):  # the key, the org, since when there are minutes, the figures
        assert len(series(ask(**query))) == 22
