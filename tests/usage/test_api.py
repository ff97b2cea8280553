"""The usage endpoint: the shape of the contract, and totals of exactly the asked range."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from orgs.models import Org, Scope
from usage.rollups import adopt_zones, roll_up
from usage.windows import DAY

from ..factories import MODEL, NOON, OTHER_MODEL, ROLE_QUERIES, at, ingest, make_event, make_key, make_org

pytestmark = pytest.mark.django_db

Ask = Callable[..., Any]
ZERO = {
    "invocations": 0,
    "inputTokens": 0,
    "outputTokens": 0,
    "costEstimateCents": 0,
    "costEstimate": "0.0000",
    "unpricedInvocations": 0,
}


def z(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


@pytest.fixture
def org() -> Org:
    return make_org()


@pytest.fixture
def ask(api: APIClient) -> Ask:
    """Ask for the usage of an org; for the day of `NOON` where nothing else is said."""

    def get(org: Org, **query: Any) -> Any:
        asked = {"start": at(0), "end": at(0) + DAY} | query
        asked = {name: z(value) if isinstance(value, datetime) else value for name, value in asked.items()}
        return api.get(
            f"/analytics/v1/orgs/{org.pk}/usage",
            {name: value for name, value in asked.items() if value is not None},
            headers={"X-API-Key": make_key(org, Scope.USAGE_READ)},
        )

    return get


def counted(org: Org, *moments: datetime, **fields: Any) -> None:
    ingest([make_event(org, occurred_at=moment, **fields) for moment in moments])
    roll_up()


def invocations(answer: Any) -> int:
    assert answer.status_code == 200, answer.content
    body = answer.json()
    total: int = body["totals"]["invocations"]
    assert total == sum(point["invocations"] for point in body["series"])
    return total


def buckets(answer: Any) -> dict[str, int]:
    return {point["bucketStart"]: point["invocations"] for point in answer.json()["series"]}


# ── The shape ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_answer_is_that_of_the_contract(ask: Ask, org: Org) -> None:
    ingest(
        [
            make_event(org, occurred_at=at(10), model_id=OTHER_MODEL, cost_estimate_cents=None),
            make_event(org, occurred_at=at(10, 59), cost_estimate_cents=Decimal("1.2500")),
            make_event(org, occurred_at=at(9), cost_estimate_cents=Decimal("0.2501")),
        ]
    )
    roll_up()
    body = ask(org, granularity="hour").json()
    last_rollup = body["freshness"].pop("lastRollupAt")
    assert timezone.now() - datetime.fromisoformat(last_rollup) < timedelta(minutes=1)
    assert last_rollup.endswith("Z")
    one = {"invocations": 1, "inputTokens": 10, "outputTokens": 5, "unpricedInvocations": 0}
    assert body == {
        "orgId": str(org.pk),
        "granularity": "hour",
        "series": [
            {
                "bucketStart": z(at(9)),
                "modelId": str(MODEL),
                **one,
                "costEstimateCents": 0,
                "costEstimate": "0.2501",
            },
            {
                "bucketStart": z(at(10)),
                "modelId": str(MODEL),
                **one,
                "costEstimateCents": 1,
                "costEstimate": "1.2500",
            },
            {
                "bucketStart": z(at(10)),
                "modelId": str(OTHER_MODEL),
                **one,
                "costEstimateCents": 0,
                "costEstimate": "0.0000",
                "unpricedInvocations": 1,
            },
        ],
        "totals": {
            "invocations": 3,
            "inputTokens": 30,
            "outputTokens": 15,
            "costEstimateCents": 2,
            "costEstimate": "1.5001",
            "unpricedInvocations": 1,
        },
        "freshness": {"modelId": None, "lastEventAt": z(at(10, 59)), "lagSeconds": 0, "status": "fresh"},
    }


def test_days_are_the_default(ask: Ask, org: Org) -> None:
    counted(org, at(9), at(10))
    answer = ask(org)
    assert answer.json()["granularity"] == "day"
    assert buckets(answer) == {z(at(0)): 2}


def test_an_org_without_data_is_empty_and_never_fresh(ask: Ask, org: Org) -> None:
    assert ask(org).json() == {
        "orgId": str(org.pk),
        "granularity": "day",
        "series": [],
        "totals": ZERO,
        "freshness": {
            "modelId": None,
            "lastEventAt": None,
            "lastRollupAt": None,
            "lagSeconds": None,
            "status": "delayed",
        },
    }


@pytest.mark.parametrize(
    ("costs", "exact", "rounded"),
    [
        (["0.5"], "0.5000", 0),
        (["1.5"], "1.5000", 2),
        (["2.5"], "2.5000", 2),
        (["2.5", "0.0001"], "2.5001", 3),
        (["0.4", "0.4", "0.4"], "1.2000", 1),
        (["0.0001"], "0.0001", 0),
        (["1000000000", "1000000000", "0.0001"], "2000000000.0001", 2_000_000_000),
    ],
)
def test_costs_are_summed_exactly_and_rounded_once_half_even(
    ask: Ask, org: Org, costs: list[str], exact: str, rounded: int
) -> None:
    ingest([make_event(org, cost_estimate_cents=Decimal(cost)) for cost in costs])
    roll_up()
    totals = ask(org).json()["totals"]
    assert (totals["costEstimate"], totals["costEstimateCents"]) == (exact, rounded)
    assert isinstance(totals["costEstimateCents"], int)


def test_an_unknown_cost_is_an_invocation_without_cost(ask: Ask, org: Org) -> None:
    counted(org, at(9), at(10), cost_estimate_cents=None)
    counted(org, at(11))
    totals = ask(org).json()["totals"]
    assert (totals["invocations"], totals["unpricedInvocations"], totals["costEstimate"]) == (3, 2, "0.2500")


def test_a_model_can_be_asked_for_alone(ask: Ask, org: Org) -> None:
    counted(org, at(9), at(10))
    counted(org, at(11), model_id=OTHER_MODEL)
    answer = ask(org, modelId=str(OTHER_MODEL).upper())
    assert invocations(answer) == 1
    assert answer.json()["freshness"]["modelId"] == str(OTHER_MODEL)
    assert answer.json()["freshness"]["lastEventAt"] == z(at(11))
    stranger = ask(org, modelId=uuid.uuid4()).json()
    assert (stranger["series"], stranger["totals"]) == ([], ZERO)
    assert (stranger["freshness"]["status"], stranger["freshness"]["lagSeconds"]) == ("delayed", None)


# ── The range ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_is_not_included(ask: Ask, org: Org) -> None:
    counted(org, at(9), at(10))
    just = timedelta(microseconds=1)
    for grain in ("hour", "day"):
        assert invocations(ask(org, start=at(9), end=at(10), granularity=grain)) == 1
        assert invocations(ask(org, start=at(9), end=at(10) + just, granularity=grain)) == 2
        assert invocations(ask(org, start=at(9) + just, end=at(10), granularity=grain)) == 0


@pytest.mark.parametrize("grain", ["hour", "day"])
@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0, 72 * 60),
        (7, 53),  # within an hour
        (50, 70),
        (9 * 60 + 1, 33 * 60 + 59),
        (24 * 60 - 1, 48 * 60 + 1),
        (25 * 60 + 30, 25 * 60 + 31),
        (24 * 60, 48 * 60),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_totals_are_those_of_exactly_the_asked_range(ask: Ask, zone: str, grain: str, first: int, last: int) -> None:
    org = make_org(time_zone=zone)
    adopt_zones()
    moments = [at(0) + timedelta(minutes=7 * n) for n in range(72 * 60 // 7 + 1)]
    counted(org, *moments)
    start, end = at(0) + timedelta(minutes=first), at(0) + timedelta(minutes=last)
    answer = ask(org, start=start, end=end, granularity=grain, timeZone="org")
    assert invocations(answer) == sum(start <= moment < end for moment in moments)


def test_a_bucket_that_the_range_cuts_keeps_its_start(ask: Ask, org: Org) -> None:
    counted(org, at(9, 15), at(9, 45), at(10, 15))
    query = {"start": at(9, 30), "end": at(10, 30)}
    assert buckets(ask(org, **query)) == {z(at(0)): 2}
    assert buckets(ask(org, **query, granularity="hour")) == {z(at(9)): 1, z(at(10)): 1}


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York"])
def test_days_are_those_of_utc_or_of_the_org(ask: Ask, zone: str) -> None:
    org = make_org(time_zone=zone)
    adopt_zones()
    midnight = NOON.astimezone(ZoneInfo(zone)).replace(hour=0, minute=0)
    counted(org, midnight - timedelta(minutes=1), midnight, midnight + timedelta(minutes=1))
    query = {"start": at(0) - DAY, "end": at(0) + 2 * DAY}
    assert buckets(ask(org, **query, timeZone="org")) == {z(midnight - DAY): 1, z(midnight): 2}
    utc_day = midnight.astimezone(UTC).replace(hour=0, minute=0)
    assert buckets(ask(org, **query)) == buckets(ask(org, **query, timeZone="UTC")) == {z(utc_day): 3}


def test_a_day_of_the_change_to_winter_time_has_25_hours(ask: Ask) -> None:
    zone = ZoneInfo("America/New_York")
    changed = next(
        day
        for n in range(2, 380)
        if (day := datetime.now(zone).replace(hour=0, minute=0, second=0, microsecond=0) - n * DAY).dst()
        and not (day + DAY).dst()
    )
    start, end = changed.astimezone(UTC), (changed + DAY).astimezone(UTC)
    assert end - start == timedelta(hours=25)
    org = make_org(time_zone=zone.key)
    adopt_zones()
    counted(org, *(start + timedelta(hours=n) for n in range(-1, 26)))
    assert buckets(ask(org, start=start, end=end, timeZone="org")) == {z(start): 25}


def test_events_that_are_not_rolled_up_are_in_no_figure(ask: Ask, org: Org) -> None:
    counted(org, at(9, 10))
    ingest([make_event(org, occurred_at=at(9, 20))])
    assert invocations(ask(org)) == 1
    assert invocations(ask(org, start=at(9, 5), end=at(9, 55))) == 1


# ── How much work it is ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_database_is_asked_a_fixed_number_of_times(
    ask: Ask, api: APIClient, org: Org, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    counted(org, *(at(hour, 30) for hour in range(24)))
    headers = {"X-API-Key": make_key(org, Scope.USAGE_READ)}
    path = f"/analytics/v1/orgs/{org.pk}/usage"
    query = {"start": z(at(1, 15)), "end": z(at(22, 45)), "granularity": "hour"}
    api.get(path, query, headers=headers)  # notes the key's use, fills the cache of the freshness
    # The key, the org, since when there are minutes, the figures, the batches that wait, the streams.
    with django_assert_num_queries(ROLE_QUERIES + 6):
        assert invocations(api.get(path, query, headers=headers)) == 22
