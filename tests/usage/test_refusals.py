"""What the series endpoints refuse: each time a 400 that names the field, and the nearest question that has an answer."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from orgs.models import Org
from usage import series
from usage.retention import daily_horizon, hourly_horizon, longest
from usage.rollups import adopt_zones, roll_up
from usage.windows import DAY, UTC_ZONE

from ..factories import NOON, at, ingest, make_event, make_key, make_org

pytestmark = pytest.mark.django_db

Ask = Callable[..., Any]
START, END = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def z(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


@pytest.fixture
def org() -> Org:
    return make_org()


@pytest.fixture(params=["usage", "reliability"])
def endpoint(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(api: APIClient, endpoint: str) -> Ask:
    """Ask for a series of an org; for the day of `NOON` where nothing else is said."""

    def get(org: Org, **query: Any) -> Any:
        asked = {"start": at(0), "end": at(0) + DAY} | query
        asked = {name: z(value) if isinstance(value, datetime) else value for name, value in asked.items()}
        return api.get(f"/analytics/v1/orgs/{org.pk}/{endpoint}", asked, headers={"X-API-Key": make_key(org)})

    return get


def points(answer: Any) -> int:
    assert answer.status_code == 200, answer.content
    return len(answer.json()["series"])


def refusal(answer: Any) -> dict[str, str]:
    assert answer.status_code == 400, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert (body["type"], body["title"]) == ("urn:analytics:problem:bad-request", "Bad Request")
    (error,) = body["errors"]
    assert body["detail"] == f"{error['field']} {error['message']}"
    return error  # type: ignore[no-any-return]


RFC_3339 = "must be an RFC 3339 date-time with an offset, such as 2026-01-31T00:00:00Z"


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"start": ""}, "start", "is required"),
        ({"start": []}, "start", "is required"),
        ({"end": []}, "end", "is required"),
        ({"start": END, "end": START}, "end", "must be after start"),
        ({"start": START, "end": START}, "end", "must be after start"),
        ({"start": "2026-01-01T00:00:00"}, "start", "must have an offset, such as Z"),
        ({"start": "2026-01-01"}, "start", RFC_3339),
        ({"start": "yesterday"}, "start", RFC_3339),
        ({"start": "1767225600"}, "start", RFC_3339),
        ({"start": "2026-02-30T00:00:00Z"}, "start", RFC_3339),
        ({"start": "2026-01-01T00:00:00 05:30"}, "start", RFC_3339),  # a plus sign that was not escaped
        ({"start": "2026-01-01T00:00:00Z\0"}, "start", RFC_3339),
        ({"end": "10000-01-01T00:00:00Z"}, "end", RFC_3339),
        ({"start": [START, START]}, "start", "is given more than once"),
        ({"end": [END, END]}, "end", "is given more than once"),
        ({"granularity": "week"}, "granularity", "must be hour or day"),
        ({"granularity": "day\0"}, "granularity", "must be hour or day"),
        ({"granularity": ["day", "day"]}, "granularity", "is given more than once"),
        ({"modelId": "gpt"}, "modelId", "must be a UUID"),
        ({"modelId": ""}, "modelId", "must be a UUID"),
        ({"modelId": "\0"}, "modelId", "must be a UUID"),
        ({"modelId": ["", ""]}, "modelId", "is given more than once"),
        ({"modelID": "gpt"}, "modelID", "is not known here"),
        ({"timeZone": "Europe/Berlin"}, "timeZone", "must be UTC or org"),
        ({"start": "0001-01-01T00:00:00+14:00"}, "start", "lies outside of the years 1 to 9999 in UTC"),
        ({"end": "9999-12-31T23:59:59-14:00"}, "end", "lies outside of the years 1 to 9999 in UTC"),
        ({"end": "9999-12-31T23:59:59Z"}, "end", "lies too far ahead"),
        ({"end": "9999-12-31T23:59:59+14:00"}, "end", "lies too far ahead"),
        ({"start": "9999-12-31T22:00:00Z", "granularity": "hour", "end": END}, "start", "lies too far ahead"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(
    ask: Ask, org: Org, changes: dict[str, Any], field: str, message: str
) -> None:
    query: dict[str, Any] = {"start": START, "end": END} | changes
    assert refusal(ask(org, **query)) == {"field": field, "message": message}


def test_every_parameter_that_is_wrong_is_named(ask: Ask, org: Org) -> None:
    answer = ask(org, start=[], end="soon", granularity="week", modelId="x", timeZone="Mars")
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [
        "start",
        "end",
        "granularity",
        "modelId",
        "timeZone",
    ]


@pytest.mark.parametrize("zone", ["UTC", "org"])
@pytest.mark.parametrize("start", ["1976-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00-14:00"])
def test_a_start_long_ago_is_refused_with_the_earliest(ask: Ask, zone: str, start: str) -> None:
    org = make_org(time_zone="America/New_York")
    adopt_zones()
    error = refusal(ask(org, start=start, timeZone=zone))
    assert error["field"] == "start"
    assert error["message"].startswith("lies before the days that are kept: the earliest is 20")


@pytest.mark.parametrize("grain", ["hour", "day"])
@pytest.mark.parametrize("zone", ["UTC", "org"])
def test_a_range_of_years_is_refused(ask: Ask, org: Org, grain: str, zone: str) -> None:
    query: dict[str, Any] = {"granularity": grain, "timeZone": zone}
    message = f"lies more than {longest().days} days after start: ask for a shorter range"
    for end in (NOON + 50 * 366 * DAY, datetime(9000, 12, 31, tzinfo=UTC)):
        assert refusal(ask(org, end=end, **query)) == {"field": "end", "message": message}
    assert points(ask(org, end=at(0) + longest(), **query)) == 0


def test_all_that_is_kept_can_be_asked_for_at_once(ask: Ask, org: Org) -> None:
    assert points(ask(org, start=daily_horizon(timezone.now(), UTC_ZONE), end=timezone.now() + DAY)) == 0


def test_more_points_than_an_answer_holds_are_refused(ask: Ask, org: Org, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_SERIES_POINTS", 3)
    ingest([make_event(org, occurred_at=at(hour)) for hour in range(3)])
    roll_up()
    assert points(ask(org, granularity="hour")) == 3
    ingest([make_event(org, occurred_at=at(3))])
    roll_up()
    error = refusal(ask(org, granularity="hour"))
    assert error["field"] == "start"
    assert "more than 3 points" in error["message"]
    assert "shorter range, granularity=day or one modelId" in error["message"]
    assert points(ask(org)) == 1


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_what_retention_has_taken_is_refused_with_the_nearest_bound(ask: Ask, zone: str) -> None:
    org = make_org(time_zone=zone)
    adopt_zones()
    hours, days = hourly_horizon(timezone.now()), daily_horizon(timezone.now(), UTC_ZONE)
    just = timedelta(microseconds=1)

    assert points(ask(org, start=hours, granularity="hour")) == 0
    error = refusal(ask(org, start=hours - just, granularity="hour"))
    assert error == {"field": "start", "message": f"lies before the hours that are kept: the earliest is {z(hours)}"}

    assert points(ask(org, start=days)) == 0
    error = refusal(ask(org, start=days - just))
    assert error == {"field": "start", "message": f"lies before the days that are kept: the earliest is {z(days)}"}

    for name in ("start", "end"):
        query: dict[str, Any] = {"start": hours - 9 * DAY, "end": hours - 2 * DAY}
        assert points(ask(org, **query)) == 0
        error = refusal(ask(org, **query | {name: query[name] + timedelta(hours=1)}))
        bounds = f"{z(query[name])} and {z(query[name] + DAY)}"
        assert error == {
            "field": name,
            "message": f"cuts a day whose hours are no longer kept: the nearest bounds are {bounds}",
        }


def test_a_day_of_the_org_that_begins_before_the_hours_that_are_kept_can_not_be_cut(ask: Ask) -> None:
    org = make_org(time_zone="Asia/Kolkata")
    adopt_zones()
    hours = hourly_horizon(timezone.now())
    begins = hours - timedelta(hours=5, minutes=30)
    query = {"start": begins, "timeZone": "org"}
    assert points(ask(org, **query, end=begins + DAY)) == 0
    assert refusal(ask(org, **query, end=hours + timedelta(hours=1)))["field"] == "end"
