"""Clients and error codes of an hour: all by name while it is open, the most calling ones and the rest once it is over."""

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from threading import Barrier, Thread
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from orgs.limits import MAX_CLIENTS_AN_HOUR, MAX_ERROR_CODES_AN_HOUR
from orgs.models import Org, Scope
from usage.aggregation import CLIENTS, OUTCOMES
from usage.closing import REMADE_AT_MOST_EVERY, close_hours
from usage.models import REST, ClientUsage, GroupsKept, OpenHour, OutcomeUsage
from usage.rollups import rebuild, roll_up
from usage.verification import verify
from usage.windows import DAY, HOUR, Window, floor_hour

from ..factories import MODEL, NOON, OTHER_MODEL, at, ingest, make_event, make_key, make_org

pytestmark = pytest.mark.django_db


@pytest.fixture
def two_names() -> Iterator[None]:
    """An hour keeps two clients and two error codes."""
    for crowd in (CLIENTS.crowd, OUTCOMES.crowd):
        object.__setattr__(crowd, "keeps", 2)
    yield
    object.__setattr__(CLIENTS.crowd, "keeps", MAX_CLIENTS_AN_HOUR)
    object.__setattr__(OUTCOMES.crowd, "keeps", MAX_ERROR_CODES_AN_HOUR)


def calls(org: Org, client: str | None, count: int = 1, **fields: Any) -> None:
    ingest([make_event(org, client_id=client, **fields) for _ in range(count)])


def clients(org: Org) -> dict[tuple[datetime, str], int]:
    found: dict[tuple[datetime, str], int] = {}
    for start, client, count in ClientUsage.objects.filter(org_id=org.pk).values_list(
        "bucket_start", "client_id", "invocations"
    ):
        found[start, client] = found.get((start, client), 0) + count
    return found


def series(org: Org, group: str, endpoint: str = "usage", **query: str) -> list[dict[str, Any]]:
    asked = {"start": at(0).isoformat(), "end": (at(0) + DAY).isoformat(), "groupBy": group} | query
    response = APIClient().get(
        f"/analytics/v1/orgs/{org.pk}/{endpoint}", asked, headers={"X-API-Key": make_key(org, Scope.ADMIN)}
    )
    assert response.status_code == 200, response.content
    found: list[dict[str, Any]] = response.json()["series"]
    return found


@pytest.mark.usefixtures("two_names")
def test_an_hour_that_is_over_names_those_with_the_most_calls_and_then_by_name() -> None:
    org = make_org()
    for client, count in (("d", 1), ("b", 2), ("a", 3), (None, 1), ("c", 2)):
        calls(org, client, count)
    calls(org, "d", 4, model_id=OTHER_MODEL)
    roll_up()
    assert clients(org) == {(NOON, "d"): 5, (NOON, "b"): 2, (NOON, "a"): 3, (NOON, ""): 1, (NOON, "c"): 2}
    assert close_hours(timedelta()) == 1
    assert clients(org) == {(NOON, "d"): 5, (NOON, "a"): 3, (NOON, REST): 5}
    rest = ClientUsage.objects.get(org_id=org.pk, client_id=REST)
    assert (rest.model_id, rest.input_tokens, rest.latency_counts) == (MODEL, 50, [5])
    assert verify() == []
    assert close_hours(timedelta()) == 0


@pytest.mark.usefixtures("two_names")
def test_those_that_cost_most_keep_their_names_too() -> None:
    org = make_org()
    for client, count, cents in (("a", 3, 1), ("b", 2, 1), ("c", 2, 1), ("dear", 1, 900), ("free", 1, 0)):
        calls(org, client, count, cost_estimate_cents=Decimal(cents))
    roll_up()
    close_hours(timedelta())
    assert clients(org) == {(NOON, "a"): 3, (NOON, "b"): 2, (NOON, "dear"): 1, (NOON, REST): 3}
    assert [(point["clientId"], point["invocations"]) for point in series(org, "client")] == [
        ("a", 3), ("b", 2), ("dear", 1), (None, 3),
    ]  # fmt: skip
    assert verify() == []


@pytest.mark.usefixtures("two_names")
def test_a_figure_that_is_wrong_is_found_in_an_hour_that_waits_to_be_made_again() -> None:
    org = make_org()
    for client in "aabbccd":
        calls(org, client)
    roll_up()
    close_hours(timedelta())
    calls(org, "d")
    roll_up()
    assert verify() == []
    ClientUsage.objects.filter(org_id=org.pk, client_id="a").update(invocations=77)
    assert "invocations is 83, the events say 8" in str(verify()[0])


def test_an_hour_is_made_again_every_five_minutes_at_most() -> None:
    org = make_org()
    calls(org, "a")
    roll_up()
    assert close_hours() == 0
    with time_machine.travel(timezone.now() + REMADE_AT_MOST_EVERY):
        assert close_hours() == 1


def test_groups_are_not_told_from_before_they_were_kept() -> None:
    """Where they came with an upgrade, until the days before have been rebuilt."""
    org = make_org()
    calls(org, "a")
    roll_up()
    ClientUsage.objects.all().delete()
    GroupsKept.objects.create(since=at(0) + 2 * DAY)
    assert verify() == []
    query = {"start": at(0).isoformat(), "end": (at(0) + DAY).isoformat(), "groupBy": "client"}
    address, key = f"/analytics/v1/orgs/{org.pk}/usage", make_key(org)
    refused = APIClient().get(address, query, headers={"X-API-Key": key})
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["message"].startswith("lies before clientId was kept: the earliest is ")
    rebuild(Window(at(0), at(0) + 2 * DAY))
    assert [point["invocations"] for point in series(org, "client")] == [1]
    assert verify() == []


@pytest.mark.usefixtures("two_names")
def test_an_hour_that_is_not_over_keeps_every_name_and_its_answer_folds() -> None:
    org = make_org()
    with time_machine.travel(NOON + timedelta(minutes=50)):
        for client, count in (("d", 1), ("b", 2), ("a", 3), ("c", 2)):
            calls(org, client, count)
        roll_up()
        assert close_hours(timedelta()) == 0
        assert len(clients(org)) == 4
        assert [(point["clientId"], point["isRest"], point["invocations"]) for point in series(org, "client")] == [
            ("a", False, 3),
            ("b", False, 2),
            (None, True, 3),
        ]


@pytest.mark.usefixtures("two_names")
def test_late_events_have_a_folded_hour_made_again_as_if_they_had_been_in_time() -> None:
    late, whole = make_org(), make_org("Globex")
    names = ["a"] * 3 + ["b"] * 2 + ["c"] * 2
    for org in (late, whole):
        for name in names:
            calls(org, name, status="error", error_code=f"code {name}")
    roll_up()
    close_hours(timedelta())
    assert (NOON, "c") not in clients(late)
    for _ in range(2):
        calls(late, "c", status="error", error_code="code c")
        calls(whole, "c", status="error", error_code="code c")
    roll_up()
    assert sum(clients(late).values()) == 9, "totals are exact at once"
    assert verify() == []
    close_hours(timedelta())
    assert clients(late) == clients(whole) == {(NOON, "c"): 4, (NOON, "a"): 3, (NOON, REST): 2}
    codes = OutcomeUsage.objects.filter(org_id=late.pk).values_list("error_code", "invocations")
    assert dict(codes) == {"code c": 4, "code a": 3, REST: 2}


@pytest.mark.usefixtures("two_names")
def test_successes_are_never_among_the_rest() -> None:
    org = make_org()
    calls(org, None)
    for code in "xyyzzz":
        calls(org, None, status="error", error_code=code)
    calls(org, None, status="timeout")
    roll_up()
    close_hours(timedelta())
    found = OutcomeUsage.objects.filter(org_id=org.pk).values_list("status", "error_code", "invocations")
    assert sorted(found) == [(0, "", 1), (1, "y", 2), (1, "z", 3), (1, REST, 1), (2, REST, 1)]
    assert [
        (point["errorCode"], point["isRest"], point["statuses"]["timeout"])
        for point in series(org, "errorCode", "reliability")
    ] == [("y", False, 0), ("z", False, 0), (None, True, 1)]
    assert [(point["status"], point["invocations"]) for point in series(org, "status", "reliability")] == [
        ("success", 1), ("error", 6), ("timeout", 1),
    ]  # fmt: skip


def test_a_hundred_thousand_clients_in_an_hour_hurt_nobody() -> None:
    """They are one row the hour after; meanwhile the answer is as small as any other."""
    org = make_org()
    start = floor_hour(timezone.now()) - 2 * HOUR
    window = {"start": start.isoformat(), "end": (start + HOUR).isoformat(), "granularity": "hour"}
    for first in range(0, 100_000, 10_000):
        ingest(
            [
                make_event(org, client_id=f"client-{n}", occurred_at=start + n * timedelta(milliseconds=30))
                for n in range(first, first + 10_000)
            ]
        )
    calls(org, "busy", 3, occurred_at=start)
    roll_up()
    for rows in (100_001, MAX_CLIENTS_AN_HOUR + 1):
        assert ClientUsage.objects.filter(org_id=org.pk).count() == rows
        points = series(org, "client", **window)
        assert len(points) == MAX_CLIENTS_AN_HOUR + 1
        assert sum(point["invocations"] for point in points) == 100_003
        assert [point["invocations"] for point in points if point["clientId"] == "busy"] == [3]
        close_hours(timedelta())
    assert verify() == []


def test_what_is_told_by_the_hour_is_refused_where_hours_are_gone_whatever_the_grain() -> None:
    org = make_org()
    start = timezone.now() - timedelta(days=100)
    for endpoint, group, name in (
        ("usage", "client", "clientId"),
        ("reliability", "errorCode", "errorCode"),
        ("reliability", "status", "status"),
    ):
        response = APIClient().get(
            f"/analytics/v1/orgs/{org.pk}/{endpoint}",
            {"start": start.isoformat(), "end": timezone.now().isoformat(), "groupBy": group},
            headers={"X-API-Key": make_key(org)},
        )
        assert response.status_code == 400
        (error,) = response.json()["errors"]
        assert error["field"] == "start"
        assert f"and {name} is kept by the hour: the earliest is" in error["message"]


@pytest.mark.parametrize(
    ("endpoint", "group", "told"),
    [
        ("usage", "status", "must be model or client"),
        ("reliability", "user", "must be model, client, status or errorCode"),
    ],
)
def test_groups_that_there_are_not(endpoint: str, group: str, told: str) -> None:
    org = make_org()
    response = APIClient().get(
        f"/analytics/v1/orgs/{org.pk}/{endpoint}",
        {"start": at(0).isoformat(), "end": at(1).isoformat(), "groupBy": group},
        headers={"X-API-Key": make_key(org)},
    )
    assert response.status_code == 400
    assert response.json()["errors"] == [{"field": "groupBy", "message": told}]


def test_a_model_filters_groups_too() -> None:
    org = make_org()
    calls(org, "a", 2)
    calls(org, "a", 3, model_id=OTHER_MODEL)
    roll_up()
    assert [p["invocations"] for p in series(org, "client", modelId=str(MODEL))] == [2]
    assert [p["invocations"] for p in series(org, "client")] == [5]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("two_names")
def test_two_that_close_at_once_fold_once() -> None:
    org = make_org()
    for client in "aabbccd":
        calls(org, client)
    roll_up()
    barrier = Barrier(2)

    def work() -> None:
        barrier.wait()
        close_hours(timedelta())
        connection.close()

    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clients(org) == {(NOON, "a"): 2, (NOON, "b"): 2, (NOON, REST): 3}
    assert not OpenHour.objects.exists()
    assert verify() == []


def test_an_hour_in_which_the_days_of_an_org_begin_is_kept_in_two() -> None:
    org = make_org(time_zone="Asia/Kolkata")
    roll_up()
    calls(org, "a", 1, occurred_at=at(18, 29), event_id=uuid.uuid4())
    calls(org, "a", 2, occurred_at=at(18, 30))
    roll_up()
    assert clients(org) == {(at(18), "a"): 1, (at(18, 30), "a"): 2}
    assert [p["invocations"] for p in series(org, "client", granularity="hour")] == [3]
    whole = {"start": (at(18, 30) - DAY).isoformat(), "end": (at(18, 30) + DAY).isoformat(), "timeZone": "org"}
    assert [(p["bucketStart"], p["invocations"]) for p in series(org, "client", **whole)] == [
        (f"{at(18, 30) - DAY:%Y-%m-%dT%H:%M:%SZ}", 1),
        (f"{at(18, 30):%Y-%m-%dT%H:%M:%SZ}", 2),
    ]
    Org.objects.filter(pk=org.pk).update(time_zone="UTC")
    roll_up()
    assert clients(org) == {(at(18), "a"): 3}
    assert verify() == []
