"""What `make soak` reckons with: when things are due, and what samples come to."""

import random
import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from analytics_site.soak.asking import Callers
from analytics_site.soak.figures import (
    Answer,
    Memory,
    Restart,
    Sample,
    failures,
    memories,
    percentile,
    percentiles,
    restart_of,
    slope,
)
from analytics_site.soak.logs import events_of
from analytics_site.soak.plan import EXPORT, MIX, Clock, arrivals, asks, spread
from analytics_site.soak.traffic import LATE_AT, LATE_OF, MODELS, ORGS, Traffic
from ingestion.schema import read_array, split

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_arrivals_are_those_of_the_rate_in_order_and_irregular() -> None:
    found = arrivals(50, 100, random.Random(1))
    assert len(found) == 5_000
    assert list(found) == sorted(found)
    assert 0 <= min(found) <= max(found) <= 100
    gaps = sorted(after - before for before, after in pairwise(found))
    assert gaps[len(gaps) // 2] == pytest.approx(0.02 * 0.693, rel=0.1), "the median of exponential gaps"


def test_the_same_seed_asks_the_same_with_an_export_a_minute() -> None:
    found = asks(20, 600, ORGS, random.Random(1))
    assert found == asks(20, 600, ORGS, random.Random(1))
    assert [ask.due for ask in found] == sorted(ask.due for ask in found)
    assert [ask.due for ask in found if ask.kind == EXPORT] == [30 + 60 * n for n in range(10)]
    others = [ask for ask in found if ask.kind != EXPORT]
    assert len(others) == 12_000
    for kind, share in MIX.items():
        assert sum(ask.kind == kind for ask in others) / 12_000 == pytest.approx(share / sum(MIX.values()), rel=0.1)
    assert {ask.org for ask in found} == set(range(ORGS))


def test_restarts_are_spread_with_room_before_and_after() -> None:
    assert spread(["a", "b", "c"], 400) == [(100, "a"), (200, "b"), (300, "c")]
    assert spread([], 400) == []


def test_percentiles_are_by_nearest_rank() -> None:
    values = list(range(100, 0, -1))
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 50, 95, 100]
    assert percentile([], 0.5) is None
    assert percentiles([0.14, 0.26]) == {"p50": 0.1, "p95": 0.3, "p99": 0.3, "max": 0.3}


def test_a_request_belongs_to_a_restart_that_any_moment_of_it_is_near() -> None:
    restarts = [Restart("web", 100, 105), Restart("beat", 200, 200)]
    assert restart_of(84, 84.9, restarts, 15) == ""
    assert restart_of(84, 85, restarts, 15) == "web"
    assert restart_of(120, 121, restarts, 15) == "web"
    assert restart_of(121, 130, restarts, 15) == ""
    assert restart_of(150, 190, restarts, 15) == "beat"
    close = [Restart("web", 100, 105), Restart("worker", 110, 120)]
    assert [restart_of(at, at, close) for at in (104, 107, 108, 111)] == ["web", "web", "worker", "worker"]


def test_failures_are_told_by_restart_and_reason() -> None:
    found = failures(
        [
            Answer(10, "usage by day", 0.1, "usage by day: 500"),
            Answer(100, "events", 0.1, "events: 503"),
            Answer(101, "events", 0.1, "events: 503"),
            Answer(102, "events", 0.1, ""),
        ],
        [Restart("postgresql", 100, 103)],
    )
    assert found == {"no restart": {"usage by day: 500": 1}, "postgresql": {"events: 503": 2}}


def test_a_restart_makes_no_slope_and_a_leak_does() -> None:
    steady = [(at, 100.0) for at in range(0, 1_000, 10)]
    other_level = [(at, 130.0) for at in range(1_000, 2_000, 10)]
    assert slope([steady, other_level]) == 0
    leaking = [(at, 100 + at / 3600 * 12) for at in range(0, 1_000, 10)]
    again = [(at, 50 + at / 3600 * 12) for at in range(1_000, 2_000, 10)]
    assert slope([leaking, again]) == pytest.approx(12)
    assert slope([]) is None
    assert slope([[(5, 100.0)]]) is None


def test_memory_is_looked_at_once_a_life_has_warmed_up() -> None:
    first = [Sample(at, "web", 1, 10.0 if at < 100 else 100.0) for at in range(0, 500, 10)]
    second = [Sample(at, "web", 2, 10.0 if at < 600 else 110.0) for at in range(500, 1_000, 10)]
    young = [Sample(at, "beat", 3, 10.0) for at in range(900, 990, 10)]
    assert memories([*first, *second, *young], warm_up=100) == {"web": Memory(100, 110, 110, 0)}


def test_log_lines_are_counted_by_event() -> None:
    lines = [
        '{"event": "drift", "level": "error"}',
        '{"event": "drift", "level": "error"}',
        '{"event": "stream_gap", "level": "critical"}',
        '{"event": "request_finished", "level": "warning"}',
        "Traceback (most recent call last):",
        "",
    ]
    assert events_of(lines) == {"drift": 2, "stream_gap": 1, "not JSON: Traceback (most recent call last):": 1}
    assert events_of(lines, ("warning",)) == {"request_finished": 1}


def test_every_event_is_one_that_the_service_takes_and_its_id_follows_from_its_number() -> None:
    traffic = Traffic(7)
    texts = [traffic.streamed(number, NOON) for number in range(2_000)]
    texts += traffic.history(NOON, 2)
    events, faults = split(read_array(f"[{','.join(texts)}]".encode(), NOON))
    assert faults == []
    assert len({event.event_id for event in events}) == len(events) == 2_000 + 2 * ORGS * MODELS
    assert {event.org_id for event in events} == set(traffic.orgs)
    late = [number for number, event in enumerate(events[:2_000]) if event.occurred_at < NOON]
    assert late == list(range(LATE_AT, 2_000, LATE_OF))
    assert all(NOON - timedelta(hours=2) <= event.occurred_at <= NOON for event in events[2_000:])
    assert events[0].event_id == split(read_array(f"[{Traffic(7).streamed(0, NOON)}]".encode(), NOON))[0][0].event_id


def test_the_events_of_a_request_are_of_the_org_that_sends_them(tmp_path: Path) -> None:
    traffic = Traffic(7)
    callers = Callers(1, ["key"] * ORGS, traffic, Clock(began=NOON), tmp_path / "answers")
    seen: set[uuid.UUID] = set()
    for ask in [ask for ask in asks(20, 60, ORGS, random.Random(1)) if ask.kind == "events"]:
        events, faults = split(read_array(callers._body(ask), NOON + timedelta(minutes=1)))
        assert faults == []
        assert {event.org_id for event in events} == {traffic.orgs[ask.org]}
        assert not seen & {event.event_id for event in events}
        seen |= {event.event_id for event in events}
