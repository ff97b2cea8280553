"""Whatever comes in, in whatever order: API, page, CSV, hourly and daily rows give what plain Python adds up.

Each example is a story of deliveries, rollups, rebuilds and changed zones, told in a transaction that is rolled back.
"""

import csv
import math
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.db import connection, transaction
from django.test import Client
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from ingestion import storage
from ingestion.models import Batch
from ingestion.schema import UsageEvent
from orgs.models import Org, User
from usage import rollups
from usage.aggregation import CLIENTS, OUTCOMES
from usage.closing import close_hours
from usage.histogram import GAMMA
from usage.models import REST, ClientUsage, DailyUsage, Freshness, HourlyUsage, MinuteUsage, OutcomeUsage
from usage.retention import minutes_horizon
from usage.rollups import rebuild, roll_up
from usage.verification import verify
from usage.windows import Window

from ..factories import ingest, make_key, make_org, make_user

pytestmark = pytest.mark.django_db

# Clocks around which the zones below change theirs within the 90 days that hours are kept.
SPRING, AUTUMN = datetime(2026, 5, 10, 10, 30, tzinfo=UTC), datetime(2025, 11, 20, 22, 15, tzinfo=UTC)
ZONES = (
    "UTC",
    "Asia/Kolkata",
    "America/St_Johns",
    "Australia/Lord_Howe",  # its clocks change by half an hour
    "America/Havana",  # midnight is skipped in spring, and comes twice in autumn
    "Pacific/Kiritimati",
    "Pacific/Pago_Pago",
)
# Days on which, or about which, something happens: the oldest that has hours, changes of clocks, and the latest.
DAYS = {
    SPRING: (datetime(2026, 2, 10), datetime(2026, 3, 8), datetime(2026, 4, 5), datetime(2026, 5, 9)),
    AUTUMN: (datetime(2025, 8, 23), datetime(2025, 10, 5), datetime(2025, 11, 2), datetime(2025, 11, 19)),
}
MODELS = tuple(uuid.UUID(int=n, version=4) for n in (3, 1, 2))
STATUSES = ("success", "error", "timeout", "throttled")
MOMENT = timedelta(microseconds=1)
DAY = timedelta(days=1)


# ── Stories ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Call:
    """An event of one of the story's orgs; two of one number are two sendings of one event."""

    number: int
    org: int
    model: uuid.UUID
    moment: datetime
    latency_ms: int
    status: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: Decimal | None
    client: str | None
    code: str | None

    def event(self, orgs: Sequence[Org]) -> UsageEvent:
        return UsageEvent(
            event_id=uuid.UUID(int=self.number, version=4),
            org_id=orgs[self.org].pk,
            model_id=self.model,
            occurred_at=self.moment,
            latency_ms=self.latency_ms,
            status=self.status,  # type: ignore[arg-type]
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_input_tokens=self.cached_tokens,
            cost_estimate_cents=self.cost,
            client_id=self.client,
            error_code=self.error_code or None,
        )

    @property
    def error_code(self) -> str:
        return "" if self.status == "success" else self.code or ""


@dataclass(frozen=True)
class Step:
    """One thing that happens: calls are delivered, something is rolled up or rebuilt, an org moves to another zone."""

    kind: str
    calls: tuple[int, ...] = ()
    changed: bool = False  # the calls are sent with another time and another cost than they have
    window: Window | None = None
    org: int = 0
    zone: str = "UTC"
    limit: int = 1


@dataclass(frozen=True)
class Story:
    now: datetime
    zones: tuple[str, ...]
    calls: tuple[Call, ...]
    steps: tuple[Step, ...]
    names: int  # of clients and of error codes that an hour keeps


def moments(now: datetime, zones: Sequence[str]) -> st.SearchStrategy[datetime]:
    """Times that lie on an edge of a day of these zones, a little beside it, or anywhere near."""
    midnights = [
        (day + after).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        for day in DAYS[now]
        for zone in {"UTC": None, **dict.fromkeys(zones)}
        for after in (timedelta(), DAY)
    ]
    beside = st.sampled_from([timedelta(), -MOMENT, MOMENT, timedelta(minutes=30), timedelta(minutes=59, seconds=59)])
    near = beside | beside | st.timedeltas(timedelta(), timedelta(hours=1))
    hours = st.just(0) | st.integers(-3, 5)
    return st.builds(
        lambda edge, beside, hours: min(edge + beside + timedelta(hours=hours), now),
        st.sampled_from(midnights),
        near,
        hours,
    )


def windows(now: datetime, zones: Sequence[str], calls: Sequence[Call]) -> st.SearchStrategy[Window]:
    """Windows that begin and end anywhere: in the middle of hours and days, and at the very moment of a call."""
    edges = moments(now, zones) | st.sampled_from([call.moment for call in calls])
    short = st.builds(lambda start, length: Window(start, start + length), edges, st.timedeltas(MOMENT, 2 * DAY))
    pairs = st.tuples(edges, edges).filter(lambda pair: pair[0] != pair[1])
    return short | pairs.map(lambda pair: Window(min(pair), max(pair)))


def costs() -> st.SearchStrategy[Decimal | None]:
    return (
        st.none()
        | st.decimals(0, 10, places=4)
        | st.sampled_from([Decimal("0.5000"), Decimal("1.5000"), Decimal("0.0001"), Decimal(10**9)])
    )


@st.composite
def all_calls(draw: st.DrawFn, now: datetime, zones: Sequence[str]) -> tuple[Call, ...]:
    tokens = st.integers(0, 2_000) | st.sampled_from([0, 2**31 - 1])
    count = draw(st.integers(1, 24))
    found = []
    for number in range(count):
        inputs = draw(tokens)
        found.append(
            Call(
                number=number,
                org=draw(st.integers(0, len(zones) - 1)),
                model=draw(st.sampled_from(MODELS)),
                moment=draw(moments(now, zones)),
                latency_ms=draw(st.sampled_from([0, 1, 2, 86_400_000]) | st.integers(0, 5_000)),
                status=draw(st.sampled_from(STATUSES)),
                input_tokens=inputs,
                output_tokens=draw(tokens),
                cached_tokens=draw(st.integers(0, inputs)),
                cost=draw(costs()),
                client=draw(st.sampled_from([None, "a", "b", "c", "=d"])),
                code=draw(st.sampled_from([None, "x", "y", "z"])),
            )
        )
    return tuple(found)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    now = draw(st.sampled_from([SPRING, AUTUMN]))
    zones = tuple(draw(st.lists(st.sampled_from(ZONES), min_size=1, max_size=3)))
    calls = draw(all_calls(now, zones))
    some = st.lists(st.integers(0, len(calls) - 1), min_size=1, max_size=20).map(tuple)
    orgs = st.integers(0, len(zones) - 1)
    delivery = st.builds(Step, st.just("deliver"), calls=some, changed=st.booleans())
    steps = st.one_of(
        delivery,
        delivery,
        st.just(Step("roll_up")),
        st.just(Step("close")),
        st.builds(Step, st.just("roll_up_some"), limit=st.integers(1, 12)),
        st.builds(Step, st.just("rebuild"), window=windows(now, zones, calls)),
        st.builds(Step, st.just("move"), org=orgs, zone=st.sampled_from(ZONES)),
    )
    # Each call is delivered at some time, as it is, in some order; the rest comes in between.
    order = draw(st.permutations(range(len(calls))))
    cuts = sorted(draw(st.lists(st.integers(0, len(calls)), max_size=3)))
    bounds = [0, *cuts, len(calls)]
    parts = [Step("deliver", tuple(order[a:b])) for a, b in pairwise(bounds) if a < b]
    told = list(parts)
    for step in draw(st.lists(steps, max_size=7)):
        told.insert(draw(st.integers(0, len(told))), step)
    return Story(now, zones, calls, tuple(told), draw(st.sampled_from([1, 2, 100])))


# ── Telling them, and adding up in Python ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def _partitions() -> None:
    """The partitions that nearly all stories need, made once; what a story adds is rolled back with it."""
    days = [(day + n * DAY).date() for found in DAYS.values() for day in found for n in (-2, -1, 0, 1, 2)]
    storage.ensure_days(days)


@contextmanager
def rolled_back(now: datetime) -> Iterator[None]:
    storage.forget()
    with time_machine.travel(now, tick=False), transaction.atomic():
        yield
        transaction.set_rollback(True)


class World:
    """What a story made of the database, and what it should have."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.orgs = [make_org(f"Org {n}", time_zone=zone) for n, zone in enumerate(story.zones)]
        self.zones = ["UTC"] * len(self.orgs)  # that days are kept in
        self.stored: dict[int, Call] = {}
        self.batch_of: dict[int, int] = {}

    def take(self, step: Step) -> None:
        if step.kind == "deliver":
            self.deliver(step)
        elif step.kind == "roll_up":
            self.roll_up()
        elif step.kind == "close":
            close_hours(timedelta())
        elif step.kind == "roll_up_some":
            with patch.object(rollups, "MAX_EVENTS_PER_ROLLUP", step.limit):
                rollups._roll_up_some()
        elif step.kind == "rebuild":
            assert step.window is not None
            before = contents()
            rebuild(step.window)
            assert contents() == before
        else:
            Org.objects.filter(pk=self.orgs[step.org].pk).update(time_zone=step.zone)
            self.orgs[step.org].time_zone = step.zone

    def deliver(self, step: Step) -> None:
        calls = [self.story.calls[number] for number in step.calls]
        if step.changed:
            calls = [replace(call, moment=call.moment - timedelta(minutes=61), cost=Decimal(7)) for call in calls]
        new = {call.number: call for call in reversed(calls) if call.number not in self.stored}
        batch = ingest([call.event(self.orgs) for call in calls])
        assert (batch.accepted, batch.duplicates) == (len(new), len(calls) - len(new))
        self.stored |= new
        self.batch_of |= dict.fromkeys(new, batch.pk)

    def roll_up(self) -> None:
        roll_up()
        self.zones = [org.time_zone for org in self.orgs]

    @property
    def counted(self) -> list[Call]:
        waiting = set(Batch.objects.filter(rolled_up_at=None).values_list("pk", flat=True))
        return [call for number, call in self.stored.items() if self.batch_of[number] not in waiting]


TABLES = (HourlyUsage, DailyUsage, MinuteUsage, ClientUsage, OutcomeUsage)


def contents() -> dict[str, list[Any]]:
    """All rollup rows, whole, with the hours folded that are over."""
    close_hours(timedelta())
    return {model.__name__: sorted(model.objects.values_list(), key=repr) for model in TABLES}


@contextmanager
def crowds_of(names: int) -> Iterator[None]:
    """An hour keeps this many names of clients, and of error codes."""
    crowds = [rollup.crowd for rollup in (CLIENTS, OUTCOMES) if rollup.crowd is not None]
    before = [crowd.keeps for crowd in crowds]
    for crowd in crowds:
        object.__setattr__(crowd, "keeps", names)
    try:
        yield
    finally:
        for crowd, keeps in zip(crowds, before, strict=True):
            object.__setattr__(crowd, "keeps", keeps)


def hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def day_of(moment: datetime, zone: str) -> datetime:
    """When the day began, in a zone, that a moment lies in."""
    local = moment.astimezone(ZoneInfo(zone))
    return datetime(local.year, local.month, local.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)


Sums = tuple[int, int, int, int, int, int, Decimal, int]


def sums(calls: Sequence[Call]) -> Sums:
    return (
        len(calls),
        *(sum(call.status == status for call in calls) for status in STATUSES[1:]),
        sum(call.input_tokens for call in calls),
        sum(call.output_tokens for call in calls),
        sum((call.cost for call in calls if call.cost is not None), Decimal("0.0000")),
        sum(call.cost is None for call in calls),
    )  # type: ignore[return-value]


def grouped(calls: Sequence[Call], key: Any) -> dict[Any, list[Call]]:
    found: dict[Any, list[Call]] = {}
    for call in calls:
        found.setdefault(key(call), []).append(call)
    return found


def histogram(calls: Sequence[Call]) -> tuple[list[int], list[int]]:
    buckets = [math.ceil(math.log(call.latency_ms) / math.log(GAMMA)) if call.latency_ms else -1 for call in calls]
    ordered = sorted(set(buckets))
    return ordered, [buckets.count(bucket) for bucket in ordered]


# ── Held against each other ──────────────────────────────────────────────────────────────────────────────────────


def assert_rows_are_right(world: World) -> None:
    """The rollup tables, row by row and whole."""

    def row(calls: Sequence[Call]) -> tuple[Any, ...]:
        return (*sums(calls), sum(call.cached_tokens for call in calls), *histogram(calls))

    columns = (
        "invocations", "errors", "timeouts", "throttled", "input_tokens", "output_tokens", "cost_cents",
        "unpriced_invocations", "cached_input_tokens", "latency_buckets", "latency_counts",
    )  # fmt: skip
    org_id = {n: org.pk for n, org in enumerate(world.orgs)}
    counted = world.counted
    by_hour = grouped(counted, lambda call: (org_id[call.org], hour_of(call.moment), call.model))
    hours = {
        key[:3]: key[3:] for key in HourlyUsage.objects.values_list("org_id", "bucket_start", "model_id", *columns)
    }
    assert hours == {key: row(calls) for key, calls in by_hour.items()}

    expected: dict[Any, Any] = {}
    for zones in (["UTC"] * len(world.orgs), world.zones):
        by_day = grouped(
            counted,
            lambda call: (
                org_id[call.org],
                zones[call.org],  # noqa: B023  used at once
                call.moment.astimezone(ZoneInfo(zones[call.org])).date(),  # noqa: B023
                call.model,
            ),
        )
        expected |= {key: row(calls) for key, calls in by_day.items()}
    days = DailyUsage.objects.values_list("org_id", "time_zone", "day", "model_id", *columns)
    assert {key[:4]: key[4:] for key in days} == expected

    minutes = [call for call in counted if call.moment >= minutes_horizon(world.story.now)]
    by_minute = grouped(
        minutes, lambda call: (call.moment.replace(second=0, microsecond=0), org_id[call.org], call.model)
    )
    kept = MinuteUsage.objects.values_list("bucket_start", "org_id", "model_id", *columns)
    assert {key[:3]: key[3:] for key in kept} == {key: row(calls) for key, calls in by_minute.items()}

    close_hours(timedelta())
    by_client = grouped(
        named(world, counted, lambda call: call.client or ""),
        lambda pair: (org_id[pair[0].org], part_of(world, pair[0]), pair[0].model, pair[1]),
    )
    kept = ClientUsage.objects.values_list("org_id", "bucket_start", "model_id", "client_id", *columns)
    assert {key[:4]: key[4:] for key in kept} == {
        key: row([call for call, _ in pairs]) for key, pairs in by_client.items()
    }
    good = [(call, "") for call in counted if call.status == "success"]
    bad = named(world, [call for call in counted if call.status != "success"], lambda call: call.error_code)
    by_outcome = grouped(
        [*good, *bad],
        lambda pair: (
            org_id[pair[0].org], part_of(world, pair[0]), pair[0].model, STATUSES.index(pair[0].status), pair[1],
        ),
    )  # fmt: skip
    kept = OutcomeUsage.objects.values_list("org_id", "bucket_start", "model_id", "status", "error_code", *columns)
    assert {key[:5]: key[5:] for key in kept} == {
        key: row([call for call, _ in pairs]) for key, pairs in by_outcome.items()
    }

    by_model = grouped(counted, lambda call: (org_id[call.org], call.model))
    newest = {key: max(call.moment for call in calls) for key, calls in by_model.items()}
    assert {row[:2]: row[2] for row in Freshness.objects.values_list("org_id", "model_id", "last_event_at")} == newest


def part_of(world: World, call: Call) -> datetime:
    """The hour, or where the org's day begins within it, the part of the hour."""
    zone = world.zones[call.org]
    return hour_of(call.moment) if zone == "UTC" else max(hour_of(call.moment), day_of(call.moment, zone))


def named(world: World, calls: Sequence[Call], name_of: Any) -> list[tuple[Call, str]]:
    """Each call with the name it is counted under: once its hour is over, those with the most calls, and the rest."""
    found = []
    for (_, hour), those in grouped(calls, lambda call: (call.org, hour_of(call.moment))).items():
        counts, costs = Counter(map(name_of, those)), Counter[str]()
        for call in those:
            costs[name_of(call)] += call.cost or 0  # type: ignore[assignment]
        kept = [
            name
            for amounts in (counts, costs)
            for name in sorted(counts, key=lambda name: (-amounts[name], name))[: world.story.names]
        ]
        is_over = hour < hour_of(world.story.now - timedelta(minutes=15))
        found += [(call, name_of(call) if not is_over or name_of(call) in kept else REST) for call in those]
    return found


def as_time(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def in_json(found: Sums) -> dict[str, Any]:
    return {
        "invocations": found[0],
        "inputTokens": found[4],
        "outputTokens": found[5],
        "costEstimateCents": int(found[6].quantize(Decimal(1), ROUND_HALF_EVEN)),
        "costEstimate": f"{found[6]:.4f}",
        "unpricedInvocations": found[7],
    }


def assert_figures_agree(world: World, n: int, window: Window, model: uuid.UUID | None, user: User, key: str) -> None:
    """The API, the page and its CSV against Python, for one org and window."""
    org, zone = world.orgs[n], world.zones[n]
    asked = [
        call
        for call in world.counted
        if call.org == n and window.start <= call.moment < window.end and model in (None, call.model)
    ]
    edges = {"start": window.start.isoformat(), "end": window.end.isoformat()}
    client = Client()
    client.force_login(user)
    for granularity, days in (("hour", "UTC"), ("hour", "org"), ("day", "UTC"), ("day", "org")):

        def bucket(call: Call, granularity: str = granularity, days: str = days) -> datetime:
            return (
                hour_of(call.moment) if granularity == "hour" else day_of(call.moment, zone if days == "org" else days)
            )

        expected = {
            key: sums(calls) for key, calls in sorted(grouped(asked, lambda call: (bucket(call), call.model)).items())
        }
        query = edges | {"granularity": granularity, "timeZone": days} | ({"modelId": str(model)} if model else {})
        response = APIClient().get(f"/analytics/v1/orgs/{org.pk}/usage", query, headers={"X-API-Key": key})
        assert response.status_code == 200, response.content
        answer = response.json()
        assert answer["totals"] == in_json(sums(asked))
        assert [
            (as_time(point.pop("bucketStart")), uuid.UUID(point.pop("modelId")), point) for point in answer["series"]
        ] == [(*key, in_json(found)) for key, found in expected.items()]

        assert_groups_agree(world, n, asked, query, bucket, key)
        if days == "UTC":  # the page knows the org's zone alone
            continue
        query = edges | {"range": "custom", "granularity": granularity} | ({"model": str(model)} if model else {})
        html = client.get(f"/orgs/{org.slug}/usage/", query).content.decode()
        whole = sums(asked)
        shown = dict(re.findall(r'id="(total-[a-z-]+)"\s+data-exact="([^"]*)"', html))
        assert shown == (
            {
                "total-spend": f"{whole[6]:.4f}",
                "total-invocations": str(whole[0]),
                "total-input-tokens": str(whole[4]),
                "total-output-tokens": str(whole[5]),
            }
            if asked
            else {}
        )
        download = client.get(f"/orgs/{org.slug}/usage.csv", query)
        assert download.status_code == 200
        lines = csv.reader(b"".join(download.streaming_content).decode().splitlines())  # type: ignore[attr-defined]
        next(lines)
        assert [
            (as_time(start), uuid.UUID(of), *map(int, (*counts, inputs, outputs)), Decimal(cost), int(unpriced))
            for start, _, of, _, _, *counts, inputs, outputs, cost, _, unpriced in lines
        ] == [(*key, *found) for key, found in expected.items()]


def assert_groups_agree(
    world: World, n: int, asked: Sequence[Call], query: dict[str, str], bucket: Any, key: str
) -> None:
    """By client, status and error code: each bucket adds up, and where names are not too many each is right."""
    names: dict[str, tuple[Sequence[Call], Any]] = {
        "client": (asked, lambda call: call.client),
        "status": (asked, lambda call: call.status),
        "errorCode": ([call for call in asked if call.status != "success"], lambda call: call.error_code or None),
    }
    for group, (calls, name_of) in names.items():
        address = f"/analytics/v1/orgs/{world.orgs[n].pk}/{'usage' if group == 'client' else 'reliability'}"
        response = APIClient().get(address, query | {"groupBy": group}, headers={"X-API-Key": key})
        assert response.status_code == 200, response.content
        series = response.json()["series"]
        found = Counter({as_time(point["bucketStart"]): 0 for point in series})
        for point in series:
            found[as_time(point["bucketStart"])] += point["invocations"]
        assert found == Counter(bucket(call) for call in calls)
        field = {"client": "clientId"}.get(group, group)
        told = {(as_time(point["bucketStart"]), point[field]): point for point in series if not point.get("isRest")}
        if group != "status":
            assert max(Counter(start for start, _ in told).values(), default=0) <= 2 * world.story.names
            if world.story.names < 100:
                continue
        expected = grouped(calls, lambda call: (bucket(call), name_of(call)))  # noqa: B023  used at once
        assert set(told) == set(expected)
        for at, those in expected.items():
            if group == "client":
                assert told[at]["costEstimate"] == in_json(sums(those))["costEstimate"]
            else:
                assert told[at]["statuses"]["timeout"] == sums(those)[2]
                assert told[at]["invocations"] == len(those)


def told(story: Story, windows: Sequence[tuple[int, Window, uuid.UUID | None]], checked_after: int) -> None:
    """Tell a story; hold everything against Python in the middle of it and at its end."""
    world = World(story)
    user, key = make_user(is_staff=True), make_key(None)

    def hold() -> None:
        assert_rows_are_right(world)
        for n, window, model in windows:
            assert_figures_agree(world, n % len(world.orgs), window, model, user, key)

    for number, step in enumerate(story.steps):
        world.take(step)
        if number == checked_after:
            event(f"in the middle: {'all' if len(world.counted) == len(world.stored) else 'not all'} rolled up")
            hold()
    world.roll_up()
    assert len(world.counted) == len(world.stored) == len(story.calls)
    hold()
    assert verify() == []
    before = contents()
    rebuild(windows[0][1])
    assert contents() == before


@st.composite
def examples(draw: st.DrawFn) -> tuple[Story, list[tuple[int, Window, uuid.UUID | None]], int]:
    story = draw(stories())
    asked = st.tuples(
        st.integers(0, 2), windows(story.now, story.zones, story.calls), st.none() | st.none() | st.sampled_from(MODELS)
    )
    return story, draw(st.lists(asked, min_size=1, max_size=2)), draw(st.integers(0, len(story.steps)))


TEST = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.usefixtures("_partitions")
@settings(TEST, max_examples=25)
@given(examples())
def test_every_figure_is_what_python_adds_up(
    example: tuple[Story, list[tuple[int, Window, uuid.UUID | None]], int],
) -> None:
    story, windows, checked_after = example
    with rolled_back(story.now), crowds_of(story.names):
        told(story, windows, checked_after)


@pytest.mark.usefixtures("_partitions")
@settings(TEST, max_examples=20)
@given(st.sampled_from([SPRING, AUTUMN]), st.data())
def test_neither_order_nor_batching_matters(now: datetime, data: st.DataObject) -> None:
    zones = data.draw(st.tuples(st.sampled_from(ZONES), st.sampled_from(ZONES)), "zones")
    calls = data.draw(all_calls(now, zones), "calls")
    ids = [uuid.UUID(int=n, version=4) for n in (11, 12)]
    names = data.draw(st.sampled_from([1, 2, 100]), "names kept")

    def outcome() -> Any:
        """Everything after the calls came in some order, some twice, with rollups in between."""
        again = data.draw(st.lists(st.integers(0, len(calls) - 1), max_size=8), "sent twice")
        order = data.draw(st.permutations([*range(len(calls)), *again]), "order")
        size = data.draw(st.integers(1, len(order)), "batch size")
        with rolled_back(now), crowds_of(names):
            orgs = [make_org(f"Org {n}", pk=pk, time_zone=zones[n]) for n, pk in enumerate(ids)]
            for start in range(0, len(order), size):
                ingest([calls[number].event(orgs) for number in order[start : start + size]])
                if data.draw(st.booleans(), "rolled up"):
                    roll_up()
                if data.draw(st.booleans(), "hours closed"):
                    close_hours(timedelta())
            roll_up()
            assert verify() == []
            freshness = sorted(Freshness.objects.values_list("org_id", "model_id", "last_event_at"))
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM usage_events")
                return contents(), freshness, cursor.fetchone()

    assert outcome() == outcome()
