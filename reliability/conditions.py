"""The conditions that page a platform team: fixed limits, the same for every org.

Each is looked at once a minute, over the last 5 minutes (or 10), as one pooled figure; traffic must span them. What
compares with 15 minutes before must also be more than chance.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import accumulate

from usage.histogram import merge
from usage.windows import MINUTE

from .normal import P95, Sample, count_from, first_slow, p95_of

# Calls in the minutes looked at, and in those compared with.
MIN_CALLS = 20
# Minutes: how far back is compared.
EARLIER = 15
# Three times nearly nothing is nearly nothing.
MIN_FAILURES = 5
MIN_ERROR_RATE = 0.01
# Nats by which two shares are likelier than one common share: 10 is 4.5 standard deviations, 4 in a million. A month
# has 43,200 minutes to look at.
SIGNIFICANT = 10.0


class Condition(StrEnum):
    ERROR_RATE = "errorRate"
    P95 = "p95"
    P99 = "p99"
    ERROR_RATE_ROSE = "errorRateRose"
    P95_ROSE = "p95Rose"

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    Condition.ERROR_RATE: "error rate above 5 % for 5 minutes",
    Condition.P95: "p95 latency above 2 s for 10 minutes",
    Condition.P99: "p99 latency above 5 s for 5 minutes",
    Condition.ERROR_RATE_ROSE: "error rate 3 times that of 15 minutes before",
    Condition.P95_ROSE: "p95 latency 2 times that of 15 minutes before",
}


@dataclass(frozen=True, slots=True)
class Held:
    """A condition was true at the end of each of these minutes; half-open.

    So `start` is the last of the first 5 (or 10) minutes that it was true of.
    """

    condition: Condition
    start: datetime
    end: datetime


def held(samples: Sequence[Sample]) -> list[Held]:
    """Windows of all conditions, by condition and time; `samples` are minutes in the order of time, empty ones left out."""
    if not samples:
        return []
    minutes = _Minutes(samples)
    checks: dict[Condition, Callable[[int], bool]] = {
        Condition.ERROR_RATE: minutes.fails,
        Condition.P95: minutes.p95_is_slow,
        Condition.P99: minutes.p99_is_slow,
        Condition.ERROR_RATE_ROSE: minutes.errors_rose,
        Condition.P95_ROSE: minutes.p95_rose,
    }
    windows = []
    for condition, true_at in checks.items():
        for first, last in _stretches(filter(true_at, range(1, minutes.count + 1))):
            start = samples[0].start + (first - 1) * MINUTE
            windows.append(Held(condition, start, start + (last - first + 1) * MINUTE))
    return windows


class _Minutes:
    """Sums over the minutes before an end; `end` counts minutes from the first sample, exclusive."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        first = samples[0].start
        places = [(sample.start - first) // MINUTE for sample in samples]
        self.count = places[-1] + 1
        self._samples: list[Sample | None] = [None] * self.count
        for place, sample in zip(places, samples, strict=True):
            self._samples[place] = sample
        self._calls = self._sums(lambda sample: sample.invocations)
        self._failures = self._sums(lambda sample: sample.failures)
        self._timed = self._sums(lambda sample: sum(sample.histogram[1]))
        above_2s, above_5s = first_slow(2_000), first_slow(5_000)
        self._above_2s = self._sums(lambda sample: count_from(sample.histogram, above_2s))
        self._above_5s = self._sums(lambda sample: count_from(sample.histogram, above_5s))
        self._p95s: dict[int, float | None] = {}

    def fails(self, end: int) -> bool:
        calls = self._calls_of(end, 5)
        return calls > 0 and self._sum(self._failures, end, 5) > 0.05 * calls

    def p95_is_slow(self, end: int) -> bool:
        return self._calls_of(end, 10) > 0 and self._above(self._above_2s, end, 10, P95)

    def p99_is_slow(self, end: int) -> bool:
        return self._calls_of(end, 5) > 0 and self._above(self._above_5s, end, 5, 0.99)

    def errors_rose(self, end: int) -> bool:
        calls, failures = self._calls_of(end, 5), self._sum(self._failures, end, 5)
        if failures < MIN_FAILURES or failures < MIN_ERROR_RATE * calls or not calls:
            return False
        calls_before, failures_before = self._calls_of(end - EARLIER, 5), self._sum(self._failures, end - EARLIER, 5)
        return (
            calls_before > 0
            and failures * calls_before >= 3 * failures_before * calls
            and evidence(failures, calls, failures_before, calls_before) >= SIGNIFICANT
        )

    def p95_rose(self, end: int) -> bool:
        """Whether it rose is tested by the calls above the earlier p95: those above twice as much are too few to tell."""
        earlier = end - EARLIER
        if not self._calls_of(end, 5) or not self._calls_of(earlier, 5):
            return False
        p95_ms, p95_before = self._p95(end), self._p95(earlier)
        if not p95_ms or not p95_before or p95_ms < 2 * p95_before:
            return False
        slow = first_slow(p95_before)
        counts = [
            sum(count_from(sample.histogram, slow) for sample in self._last(moment, 5)) for moment in (end, earlier)
        ]
        calls = [self._sum(self._timed, moment, 5) for moment in (end, earlier)]
        return evidence(counts[0], calls[0], counts[1], calls[1]) >= SIGNIFICANT

    def _sums(self, of: Callable[[Sample], int]) -> list[int]:
        return [0, *accumulate(0 if sample is None else of(sample) for sample in self._samples)]

    @staticmethod
    def _sum(sums: Sequence[int], end: int, minutes: int) -> int:
        return sums[max(end, 0)] - sums[max(end - minutes, 0)]

    def _calls_of(self, end: int, minutes: int) -> int:
        """The calls, or 0 where they are too few, or do not span the minutes but for a fifth of them."""
        if end < minutes:
            return 0
        calls = self._sum(self._calls, end, minutes)
        if calls < MIN_CALLS:
            return 0
        busy = [place for place in range(end - minutes, end) if self._samples[place]]
        return calls if busy[-1] - busy[0] + 1 >= 0.8 * minutes else 0

    def _above(self, sums: Sequence[int], end: int, minutes: int, fraction: float) -> bool:
        """Whether the percentile (nearest rank, as `usage.histogram` has it) is among the calls that `sums` counts."""
        calls = self._sum(self._timed, end, minutes)
        return calls > 0 and math.ceil(round(fraction * calls, 9)) > calls - self._sum(sums, end, minutes)

    def _last(self, end: int, minutes: int) -> list[Sample]:
        return [sample for sample in self._samples[max(end - minutes, 0) : end] if sample]

    def _p95(self, end: int) -> float | None:
        if end not in self._p95s:
            self._p95s[end] = p95_of(merge(sample.histogram for sample in self._last(end, 5)))
        return self._p95s[end]


def evidence(bad: int, calls: int, bad_before: int, calls_before: int) -> float:
    """Nats by which two binomial shares are likelier than one (half of the G statistic); 0 where the share did not rise."""
    if bad * calls_before <= bad_before * calls:
        return 0.0
    separate = _likelihood(bad, calls) + _likelihood(bad_before, calls_before)
    return separate - _likelihood(bad + bad_before, calls + calls_before)


def _likelihood(bad: int, calls: int) -> float:
    """The log-likelihood of the share that was seen."""
    return sum(count * math.log(count / calls) for count in (bad, calls - bad) if count)


def _stretches(places: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    stretches: list[tuple[int, int]] = []
    for place in places:
        if stretches and stretches[-1][1] == place - 1:
            stretches[-1] = stretches[-1][0], place
        else:
            stretches.append((place, place))
    return stretches
