"""What is normal, from the days before."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliability.normal import (
    DEFAULT_ERROR_RATE,
    MIN_ERROR_RATE,
    MIN_SLOW_SHARE,
    Normal,
    Normals,
    Sample,
    count_from,
    first_slow,
)
from usage.histogram import percentiles, representative

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
NEXT_MONDAY = MONDAY + timedelta(days=7)
FAST, SLOW = 300, 400


def hour(day: int, of_day: int, calls: int = 1_000, failures: int = 20, bucket: int = FAST) -> Sample:
    return Sample(MONDAY + timedelta(days=day, hours=of_day), calls, failures, ([bucket], [calls]))


def week(hours: Iterable[int] = range(24), failures: int = 20, calls: int = 1_000) -> list[Sample]:
    return [hour(day, of_day, calls, failures) for day in range(7) for of_day in hours]


def at(samples: list[Sample], of_day: int = 12, parent: Normals | None = None) -> Normal:
    return Normals(samples, parent).at(NEXT_MONDAY + timedelta(hours=of_day, minutes=34))


def test_nobody_has_been_seen_before() -> None:
    assert at([]) == Normal(DEFAULT_ERROR_RATE, None, MIN_SLOW_SHARE, pytest.approx(0.025))


def test_zero_traffic_says_nothing() -> None:
    assert at([Sample(MONDAY, 0, 0, ([], []))]) == at([])


def test_much_traffic_says_it_itself() -> None:
    assert at(week(failures=20)).error_rate == pytest.approx(0.02, rel=0.01)


def test_little_traffic_is_drawn_towards_the_common_rate() -> None:
    assert at([hour(0, 12, calls=3, failures=3)]).error_rate < 0.05


def test_a_model_is_drawn_towards_its_org() -> None:
    org = Normals(week(failures=40))
    assert at([], parent=org).error_rate == pytest.approx(0.04, rel=0.01)
    assert at(week(failures=20), parent=org).error_rate == pytest.approx(0.02, rel=0.02)


def test_who_never_fails_may_still_fail_a_little() -> None:
    assert at(week(failures=0)).error_rate == MIN_ERROR_RATE


def test_an_hour_has_its_own_normal_with_the_hours_beside_it() -> None:
    nightly = [
        hour(day, of_day, failures=60 if of_day in (23, 0, 1) else 10) for day in range(7) for of_day in range(24)
    ]
    normals = Normals(nightly)
    rates = [normals.at(NEXT_MONDAY + timedelta(hours=of_day)).error_rate for of_day in (0, 2, 12)]
    assert rates == pytest.approx([0.06, (0.06 + 0.01 + 0.01) / 3, 0.01], rel=0.05)


def test_yesterdays_incident_is_not_todays_normal() -> None:
    samples = week(failures=20)
    incident = [hour(6, of_day, failures=900, bucket=SLOW) for of_day in (11, 12, 13)]
    spoiled = [sample for sample in samples if sample.start not in {each.start for each in incident}] + incident
    usual, after = at(samples), at(spoiled)
    assert after.error_rate == pytest.approx(usual.error_rate, rel=0.02)
    assert (after.p95_ms, after.slow_share) == (usual.p95_ms, usual.slow_share)


def test_of_two_days_none_is_the_worst() -> None:
    samples = [hour(5, 12, failures=0), hour(6, 12, failures=100)]
    assert at(samples).error_rate > 0.03


def test_hours_that_vary_have_more_that_is_usual() -> None:
    steady = at(week(failures=20))
    varied = at([hour(day, of_day, failures=10 if day % 2 else 30) for day in range(7) for of_day in range(24)])
    assert steady.usual_errors == pytest.approx(0.02, rel=0.01)
    assert varied.usual_errors == pytest.approx(0.02 * (1 + 3 * 0.45), rel=0.15)
    assert at([]).usual_errors == pytest.approx(0.025)


def test_the_p95_is_that_of_the_hour_where_it_has_calls_enough() -> None:
    samples = [
        hour(day, of_day, bucket=SLOW if of_day in (11, 12, 13) else FAST) for day in range(7) for of_day in range(24)
    ]
    assert at(samples, 12).p95_ms == representative(SLOW)
    assert at(samples, 3).p95_ms == representative(FAST)
    few = [sample for sample in samples if sample.start.hour not in (2, 3, 4)] + [hour(0, 3, 99, 0, FAST)]
    assert at(few, 3).p95_ms == representative(SLOW)  # more than 5 % of all calls are


def test_too_few_calls_have_no_p95() -> None:
    assert at([hour(0, 12, calls=99)]).p95_ms is None
    assert at([hour(0, 12, calls=100)]).p95_ms == representative(FAST)


def test_calls_of_no_time_at_all_have_no_normal_latency() -> None:
    assert at([hour(0, 12, bucket=-1)]).p95_ms is None


def test_the_slow_share_has_a_margin_for_few_calls() -> None:
    samples = [Sample(MONDAY + timedelta(hours=12), 1_000, 0, ([FAST, SLOW], [980, 20]))]
    assert at(samples).slow_share == pytest.approx(0.02 + 2 * 21**0.5 / 1_000)


@given(st.floats(1, 1e7))
def test_slow_begins_where_percentiles_are_above(ms: float) -> None:
    bucket = first_slow(ms)
    assert representative(bucket) > ms >= representative(bucket - 1)


@given(st.lists(st.integers(0, 500), min_size=1, unique=True), st.integers(0, 500))
def test_counts_from_a_bucket_on(buckets: list[int], bucket: int) -> None:
    histogram = (sorted(buckets), [2] * len(buckets))
    assert count_from(histogram, bucket) == 2 * sum(each >= bucket for each in buckets)
    assert percentiles(histogram, [1.0]) == [representative(max(buckets))]
