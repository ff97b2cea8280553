"""The conditions that page, minute by minute."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliability.conditions import Condition, evidence, held
from reliability.normal import Sample
from usage.histogram import merge, percentiles

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
FAST, SECONDS_3, SECONDS_6 = 300, 401, 436  # buckets


def minute(number: int, calls: int = 20, failures: int = 0, slow: int = 0, bucket: int = SECONDS_3) -> Sample:
    counts = [(each, count) for each, count in ((FAST, calls - slow), (bucket, slow)) if count]
    return Sample(
        NOON + number * MINUTE, calls, failures, ([each for each, _ in counts], [count for _, count in counts])
    )


def windows(samples: Sequence[Sample], condition: Condition) -> list[tuple[int, int]]:
    """First minute and last (exclusive)."""
    return [
        ((each.start - NOON) // MINUTE, (each.end - NOON) // MINUTE)
        for each in held(samples)
        if each.condition is condition
    ]


def test_without_samples_nothing_is_held() -> None:
    assert held([]) == []


def test_each_has_a_text() -> None:
    assert Condition.ERROR_RATE.text == "error rate above 5 % for 5 minutes"
    assert len({condition.text for condition in Condition}) == 5


def test_healthy_traffic_pages_nobody() -> None:
    assert held([minute(number, failures=number % 5 == 0) for number in range(120)]) == []


@pytest.mark.parametrize("failures", [1, 0])
def test_five_percent_are_not_above_five_percent(failures: int) -> None:
    assert windows([minute(number, failures=failures) for number in range(30)], Condition.ERROR_RATE) == []


def test_errors_are_held_from_the_minute_that_takes_the_five_above() -> None:
    samples = [minute(number, failures=4 if 10 <= number < 20 else 0) for number in range(40)]
    # 8 of 100 with the second bad minute in, and still with two of them left.
    assert windows(samples, Condition.ERROR_RATE) == [(11, 23)]


def test_everything_fails_from_the_first_minute() -> None:
    assert windows([minute(number, failures=20) for number in range(8)], Condition.ERROR_RATE) == [(4, 8)]


def test_too_few_calls_page_nobody() -> None:
    assert held([minute(number, 1, 1, 1, SECONDS_6) for number in range(60)]) == []


def test_one_busy_minute_is_not_five() -> None:
    assert held([minute(0, 1), minute(5, 500, 500, 500, SECONDS_6), minute(60, 1)]) == []


def test_a_minute_without_calls_does_not_end_it() -> None:
    samples = [minute(number, failures=20) for number in range(20) if number != 10]
    assert windows(samples, Condition.ERROR_RATE) == [(4, 20)]


def test_the_p95_is_that_of_ten_minutes() -> None:
    samples = [minute(number, slow=4 if 20 <= number < 40 else 0) for number in range(60)]
    # 12 of 200 slow calls are above 5 %, 8 are not.
    assert windows(samples, Condition.P95) == [(22, 47)]
    assert windows(samples, Condition.P99) == []


def test_the_p99_is_that_of_five_minutes() -> None:
    samples = [minute(number, slow=2 if number == 20 else 0, bucket=SECONDS_6) for number in range(40)]
    assert windows(samples, Condition.P99) == [(20, 25)]


def test_errors_rose_against_fifteen_minutes_before() -> None:
    samples = [minute(number, failures=5 if number >= 30 else 0) for number in range(80)]
    (window,) = windows(samples, Condition.ERROR_RATE_ROSE)
    assert window == (32, 45)  # 15 failures of 100 are beyond chance; then those before are in it too


def test_a_rise_that_chance_explains_pages_nobody() -> None:
    samples = [minute(number, 4, failures=1 if 30 <= number < 35 else 0) for number in range(60)]
    assert windows(samples, Condition.ERROR_RATE_ROSE) == []


def test_the_p95_rose_against_fifteen_minutes_before() -> None:
    samples = [minute(number, slow=10 if number >= 30 else 0) for number in range(80)]
    (window,) = windows(samples, Condition.P95_ROSE)
    assert window == (31, 45)


def test_a_slow_call_or_two_of_twenty_are_no_rise() -> None:
    samples = [minute(number, 4, slow=1 if number in (30, 32) else 0) for number in range(60)]
    assert windows(samples, Condition.P95_ROSE) == []


def test_evidence_needs_a_rise() -> None:
    assert evidence(1, 100, 2, 100) == 0
    assert evidence(0, 100, 0, 100) == 0
    assert evidence(20, 20, 0, 20) == pytest.approx(40 * 0.6931, rel=0.001)


@given(
    st.lists(st.tuples(st.integers(25, 60), st.integers(0, 6)), min_size=10, max_size=25),
    st.sampled_from([(Condition.P95, 10, 0.95, 2_000, SECONDS_3), (Condition.P99, 5, 0.99, 5_000, SECONDS_6)]),
)
def test_percentiles_are_above_where_the_histogram_says_so(
    minutes: list[tuple[int, int]], rule: tuple[Condition, int, float, int, int]
) -> None:
    condition, span, fraction, limit, bucket = rule
    samples = [minute(number, calls, 0, slow, bucket) for number, (calls, slow) in enumerate(minutes)]
    expected = set()
    for end in range(span, len(samples) + 1):
        (value,) = percentiles(merge(sample.histogram for sample in samples[end - span : end]), [fraction])
        if value is not None and value > limit:
            expected.add(end - 1)
    assert {number for first, last in windows(samples, condition) for number in range(first, last)} == expected
