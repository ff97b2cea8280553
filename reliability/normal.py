"""What is normal for a subject: an org's models all together, or one of them.

Judged by the same hour of the days before and the hours beside it, without the worst of these days: yesterday's incident
is not today's normal. What little traffic says little about is drawn towards what more of it says (pseudo-counts, the
posterior mean of a beta-binomial; Gelman et al.: "Bayesian Data Analysis", 3rd edition, chapter 5): the hour's error rate
towards that of all hours, that towards the org's, that towards a common one.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from statistics import median_low
from typing import Protocol

from usage.histogram import GAMMA, Histogram, merge, percentiles, representative

LOOKBACK = timedelta(days=7)
# Failures of an org nobody has seen before, of all calls.
DEFAULT_ERROR_RATE = 0.01
# Below, three times normal would be a handful of calls even in a busy org.
MIN_ERROR_RATE = 0.005
# Calls that what is drawn towards is worth. A rate p that varies by c·p from case to case has a beta prior worth about
# 1/(p·c²) calls. At 1 % errors, hours of a subject vary by half of it: 400. Subjects and orgs vary by all of it: 100.
HOUR_CALLS = 400
SUBJECT_CALLS = 100
# How much the error rate varies from hour to hour, standard deviation over mean, as long as nobody knows; and how sure
# that is: as sure as what one hour of five failures says.
VARIATION, VARIATION_FAILURES = 0.5, 5
# An hour this many standard deviations above its normal is still a usual one.
USUAL = 3
# A 95th percentile needs five calls beyond it.
MIN_LATENCY_CALLS = 100
# One of fewer days can't be called the worst: the other may be as bad.
MIN_DAYS = 3
# A call is slow when it takes this many times the normal p95.
SLOWER = 1.5
MIN_SLOW_SHARE = 0.01

P95 = 0.95


@dataclass(frozen=True, slots=True)
class Sample:
    """What was counted in one bucket of time, an hour or a minute; `histogram` is that of the latencies in ms."""

    start: datetime
    invocations: int
    failures: int
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class Normal:
    """What is expected of a call: `slow_share` of them take longer than SLOWER × `p95_ms`. Without p95, nothing is known.

    `usual_errors` is the error rate that an hour may have by its usual variation; 0 for no more than `error_rate`.
    """

    error_rate: float
    p95_ms: float | None
    slow_share: float
    usual_errors: float = 0.0


class Normality(Protocol):
    """Whatever knows what is normal at a moment, by the hour of the day."""

    def at(self, moment: datetime) -> Normal: ...


class Normals:
    """What is normal for a subject, learnt from its hourly samples of LOOKBACK; moments are aware UTC.

    `parent` is the org's, for one model of it.
    """

    def __init__(self, samples: Iterable[Sample], parent: "Normals | None" = None) -> None:
        self._samples = list(samples)
        self._hours: dict[int, Normal] = {}
        days = _days(self._samples, 12)
        towards = DEFAULT_ERROR_RATE if parent is None else parent.error_rate
        self.error_rate: float = _error_rate(days, towards, SUBJECT_CALLS)
        self._latency = _latency(days)
        self._variation: float | None = None

    def at(self, moment: datetime) -> Normal:
        hour = moment.hour
        if hour not in self._hours:
            self._hours[hour] = self._of_hour(hour)
        return self._hours[hour]

    def _of_hour(self, hour: int) -> Normal:
        p95_ms, slow_share = _latency(self._near(hour)) or self._latency or (None, MIN_SLOW_SHARE)
        error_rate = self._error_rate(hour)
        if self._variation is None:
            self._variation = self._between_hours()
        return Normal(error_rate, p95_ms, slow_share, error_rate * (1 + USUAL * self._variation))

    def _near(self, hour: int) -> list[list[Sample]]:
        hours = ((hour - 1) % 24, hour, (hour + 1) % 24)
        return _days([sample for sample in self._samples if sample.start.hour in hours], hour)

    def _error_rate(self, hour: int) -> float:
        return max(MIN_ERROR_RATE, _error_rate(self._near(hour), self.error_rate, HOUR_CALLS))

    def _between_hours(self) -> float:
        """How much hours vary about their normal, beyond the chance of counts, relative to it (by moments, without the
        worst day)."""
        rates = {hour: self._error_rate(hour) for hour in {sample.start.hour for sample in self._samples}}
        days = [
            [(sample.failures, rates[sample.start.hour] * sample.invocations) for sample in day]
            for day in _days(self._samples, 12)
        ]
        sums = [
            (sum((failures - mean) ** 2 - mean for failures, mean in day), sum(mean**2 for _, mean in day))
            for day in days
        ]
        if len(sums) >= MIN_DAYS:
            sums.remove(max(sums))
        worth = VARIATION_FAILURES**2
        beyond = sum(excess for excess, _ in sums) + worth * VARIATION**2
        return math.sqrt(max(0.0, beyond / (sum(square for _, square in sums) + worth)))


def first_slow(ms: float) -> int:
    """The lowest bucket of a histogram that is above `ms` (> 0), as `percentiles` would say it."""
    bucket = math.ceil(math.log(ms, GAMMA))
    return bucket if representative(bucket) > ms else bucket + 1


def count_from(histogram: Histogram, bucket: int) -> int:
    """How many values are in this bucket and those above."""
    buckets, counts = histogram
    return sum(counts[bisect_left(buckets, bucket) :])


def p95_of(histogram: Histogram) -> float | None:
    return percentiles(histogram, [P95])[0]


def _days(samples: Iterable[Sample], hour: int) -> list[list[Sample]]:
    """The samples by days that have `hour` in their middle, so that 23, 0 and 1 o'clock stay together."""
    days: dict[date, list[Sample]] = {}
    for sample in samples:
        days.setdefault((sample.start - timedelta(hours=hour - 12)).date(), []).append(sample)
    return list(days.values())


def _error_rate(days: Sequence[Sequence[Sample]], towards: float, worth: int) -> float:
    counts = [(sum(sample.failures for sample in day), sum(sample.invocations for sample in day)) for day in days]
    failures, invocations = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if len(counts) >= MIN_DAYS and invocations:
        rate = failures / invocations
        worst = max(counts, key=lambda count: count[0] - rate * count[1])
        failures, invocations = failures - worst[0], invocations - worst[1]
    return (failures + worth * towards) / (invocations + worth)


def _latency(days: Sequence[Sequence[Sample]]) -> tuple[float, float] | None:
    """The p95 in ms, and the share of slow calls; None where too few calls say so.

    The share is two standard deviations of its count above the one that was seen: to be a little blind is better than to
    take for slow what is usual.
    """
    histograms = [merge(sample.histogram for sample in day) for day in days]
    p95s = [p95_ms for each in histograms if (p95_ms := p95_of(each))]
    if len(p95s) >= MIN_DAYS:
        # By the middle one of the days' p95s: the pooled p95 may be that of the worst day.
        slow = first_slow(median_low(p95s))
        excesses = [count_from(each, slow) - (1 - P95) * sum(each[1]) for each in histograms]
        del histograms[excesses.index(max(excesses))]
    pooled = merge(histograms)
    calls = sum(pooled[1])
    if calls < MIN_LATENCY_CALLS or not (p95_ms := p95_of(pooled)):
        return None
    slow_calls = count_from(pooled, first_slow(SLOWER * p95_ms))
    return p95_ms, max(MIN_SLOW_SHARE, (slow_calls + 2 * math.sqrt(slow_calls + 1)) / calls)
