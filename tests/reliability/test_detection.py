"""Windows that left their normal: where they are, and what is none."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliability.detection import THRESHOLD, Excursion, Measure, excursions, maximal_segments
from reliability.management.commands.scenarios import SCENARIOS, run
from reliability.normal import Normal, Sample

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
FAST, SLOW = 300, 400  # buckets: about 400 ms, and 3 s


@dataclass
class Always:
    """The same normal at any moment."""

    normal: Normal

    def at(self, moment: datetime) -> Normal:
        return self.normal


def minute(number: int, calls: int = 20, failures: int = 0, slow: int = 0, length: timedelta = MINUTE) -> Sample:
    counts = [(bucket, count) for bucket, count in ((FAST, calls - slow), (SLOW, slow)) if count]
    return Sample(NOON + number * length, calls, failures, ([b for b, _ in counts], [c for _, c in counts]))


def failing(*failures: int, calls: int = 20) -> list[Sample]:
    return [minute(number, calls, bad) for number, bad in enumerate(failures)]


def found(samples: Sequence[Sample], length: timedelta = MINUTE) -> list[Excursion]:
    return excursions(samples, Always(Normal(error_rate=0.01, p95_ms=500.0, slow_share=0.01)), length)


def places(windows: Sequence[Excursion], length: timedelta = MINUTE) -> list[tuple[int, int]]:
    return [((each.start - NOON) // length, (each.end - NOON) // length) for each in windows]


def by_definition(scores: Sequence[float], first: int, last: int) -> list[tuple[int, int]]:
    """The best-scoring stretch, the shortest of equals, and then what is left of it on either side."""
    best = max(
        ((sum(scores[a:b]), a - b, -a) for a in range(first, last) for b in range(a + 1, last + 1)), default=(0, 0, 0)
    )
    if best[0] <= 0:
        return []
    start = -best[2]
    end = start - best[1]
    return [*by_definition(scores, first, start), (start, end), *by_definition(scores, end, last)]


@given(st.lists(st.integers(-9, 9).map(lambda score: score * 1000), max_size=14), st.randoms(use_true_random=False))
def test_segments_are_those_of_the_definition(scores: list[int], rng: random.Random) -> None:
    distinct = [score + rng.randrange(-400, 400) for score in scores]
    segments = maximal_segments(distinct)
    assert [(first, last) for first, last, _ in segments] == by_definition(distinct, 0, len(distinct))
    assert [score for *_, score in segments] == [sum(distinct[first:last]) for first, last, _ in segments]


def test_the_example_of_the_paper() -> None:
    scores = [4, -5, 3, -3, 1, 2, -2, 2, -2, 1, 5]
    assert maximal_segments(scores) == [(0, 1, 4), (2, 3, 3), (4, 11, 7)]


@pytest.mark.parametrize("samples", [[], [minute(0)], [minute(0, 0)], [Sample(NOON, 3, 3, ([FAST], [3]))]])
def test_nothing_is_found_in_next_to_nothing(samples: list[Sample]) -> None:
    assert found(samples) == []


def test_an_error_spike_has_its_own_minutes() -> None:
    (window,) = found(failing(*[0] * 30, *[6] * 15, *[0] * 30))
    assert places([window]) == [(30, 45)]
    assert (window.measure, window.invocations, window.failures) == (Measure.ERROR_RATE, 300, 90)
    assert (window.observed, window.normal) == (0.3, pytest.approx(0.01))
    assert window.score > THRESHOLD


def test_single_failures_nearby_do_not_widen_it() -> None:
    (window,) = found(failing(0, 0, 1, *[0] * 3, *[6] * 15, 0, 0, 1, *[0] * 30, 1))
    assert places([window]) == [(6, 21)]


def test_a_mild_rise_needs_more_time() -> None:
    assert found(failing(*[0] * 30, *[2] * 5, *[0] * 30)) == []
    assert places(found(failing(*[0] * 30, *[2] * 30, *[0] * 30))) == [(30, 60)]


def test_what_is_mild_behind_what_is_severe_belongs_to_it() -> None:
    assert places(found(failing(*[0] * 30, *[20] * 5, *[2] * 30, *[0] * 30))) == [(30, 65)]


def test_windows_nearer_than_five_minutes_are_one() -> None:
    assert places(found(failing(*[20] * 5, *[0] * 4, *[20] * 5))) == [(0, 14)]
    assert places(found(failing(*[20] * 5, *[0] * 5, *[20] * 5))) == [(0, 5), (10, 15)]


def test_two_long_outages_are_two() -> None:
    assert places(found(failing(*[20] * 60, *[0] * 60, *[20] * 60))) == [(0, 60), (120, 180)]


def test_everything_fails() -> None:
    (window,) = found(failing(*[20] * 60))
    assert places([window]) == [(0, 60)]
    assert window.observed == 1.0


def test_one_bucket_is_enough_when_it_is_bad_enough() -> None:
    assert places(found(failing(0, 12, 0))) == [(1, 2)]


def test_the_normal_of_a_subject_that_always_fails_is_no_incident() -> None:
    assert excursions(failing(*[20] * 60), Always(Normal(1.0, None, 0.01)), MINUTE) == []


def test_few_calls_are_no_incident() -> None:
    assert found([minute(0, 3, 3)]) == []
    assert found([minute(number, 1, 1) for number in range(7)]) == []


def test_a_quiet_subject_is_down_when_call_after_call_fails() -> None:
    samples = [minute(number, 1, int(120 <= number < 180)) for number in range(0, 300, 3)]
    assert places(found(samples)) == [(120, 178)]


def test_a_long_silence_ends_a_window() -> None:
    assert places(found([*failing(*[20] * 5), *(minute(120 + number, 20, 20) for number in range(5))])) == [
        (0, 5),
        (120, 125),
    ]


def test_slow_calls_move_the_p95() -> None:
    samples = [minute(number, slow=8 if 30 <= number < 50 else 0) for number in range(80)]
    (window,) = found(samples)
    assert (window.measure, places([window])) == (Measure.P95, [(30, 50)])
    assert window.observed == pytest.approx(2_950, rel=0.02)
    assert window.normal == pytest.approx(500)


def test_slow_calls_that_leave_the_p95_alone_are_no_excursion() -> None:
    assert found([minute(number, 25, slow=1) for number in range(1_000)]) == []


def test_without_a_normal_latency_there_is_nothing_to_leave() -> None:
    samples = [minute(number, slow=20) for number in range(60)]
    assert excursions(samples, Always(Normal(0.01, None, 0.01)), MINUTE) == []


def test_hours_work_as_minutes_do() -> None:
    samples = [minute(number, 100, 30 if 5 <= number < 7 else 1, length=HOUR) for number in range(24)]
    assert places(found(samples, HOUR), HOUR) == [(5, 7)]


def test_a_month_of_minutes_is_a_matter_of_a_moment() -> None:
    rng = random.Random(3)
    samples = [minute(number, 20, rng.random() < 0.2, rng.random() < 0.2) for number in range(43_200)]
    began = time.process_time()
    assert found(samples) == []
    assert time.process_time() - began < 2  # 0.3 on an idle machine


@pytest.mark.parametrize("name", [name for name in SCENARIOS if "month" not in name])
def test_scenarios(name: str) -> None:
    outcome = run(name, 2_002)
    assert outcome.false == 0
    assert outcome.found is not False
    assert outcome.cause_first is not False
