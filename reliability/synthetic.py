"""Synthetic orgs: traffic of minutes with incidents put in at known places, to judge the detection by.

Calls are Poisson over a day's curve, latencies log-normal, errors 1 % with some variation from hour to hour (a gamma
variate of mean 1, so failures come together more often than independent ones). Everything follows from the seed.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate

from usage.histogram import GAMMA, Histogram, merge
from usage.windows import MINUTE

from .causes import Counts
from .normal import Sample

FIRST_DAY = datetime(2026, 1, 5, tzinfo=UTC)
CLIENTS = [f"client-{number}" for number in range(1, 11)]
CLIENT_WEIGHTS = [1 / math.sqrt(rank) for rank in range(1, 11)]
MAX_BUCKET = 700  # about 20 minutes
ERROR_RATE = 0.01
TIMEOUT_MS = 30_000


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    weight: float  # of the org's calls
    median_ms: float
    sigma: float  # of the latency's logarithm
    since: datetime = FIRST_DAY


MODELS = (Model("large", 0.5, 1_200, 0.6), Model("small", 0.3, 400, 0.5), Model("long", 0.2, 3_000, 0.7))


@dataclass(frozen=True, slots=True)
class Incident:
    """What is wrong from `start` to `end`, with one model (or all), and one client (or all)."""

    start: datetime
    end: datetime
    model: str | None = None
    client: str | None = None
    error_rate: float = ERROR_RATE
    slower: float = 1.0  # times the usual latency
    times_out: bool = False  # failures take TIMEOUT_MS


@dataclass(frozen=True, slots=True)
class Org:
    calls: float  # a minute, on average
    models: Sequence[Model] = MODELS
    variation: float = 0.3  # of the error rate from hour to hour: standard deviation over mean


@dataclass(frozen=True, slots=True)
class Counted:
    """Samples by model, and calls by client and start of the bucket."""

    samples: Mapping[str, list[Sample]]
    clients: Mapping[datetime, dict[str, Counts]] = field(default_factory=dict)

    def all(self) -> list[Sample]:
        return summed(sample for samples in self.samples.values() for sample in samples)

    def by_client(self, start: datetime, end: datetime) -> dict[str, Counts]:
        totals: dict[str, Counts] = {}
        for moment, clients in self.clients.items():
            if start <= moment < end:
                for client, counts in clients.items():
                    total = totals.get(client, Counts(0, 0))
                    totals[client] = Counts(total.invocations + counts.invocations, total.bad + counts.bad)
        return totals


def summed(samples: Iterable[Sample], length: timedelta | None = None) -> list[Sample]:
    """Samples of one start made one; with a `length`, of one bucket of it."""
    starts: dict[datetime, list[Sample]] = {}
    for sample in samples:
        start = sample.start if length is None else sample.start - (sample.start - FIRST_DAY) % length
        starts.setdefault(start, []).append(sample)
    return [
        group[0]
        if len(group) == 1 and group[0].start == start
        else Sample(
            start,
            sum(sample.invocations for sample in group),
            sum(sample.failures for sample in group),
            merge(sample.histogram for sample in group),
        )
        for start, group in sorted(starts.items())
    ]


def traffic(
    rng: random.Random, org: Org, start: datetime, end: datetime, length: timedelta, incident: Incident | None = None
) -> Counted:
    """Calls from `start` to `end` in buckets of `length`; an incident needs minutes."""
    samples: dict[str, list[Sample]] = {}
    clients: dict[datetime, dict[str, Counts]] = {}
    weights = list(accumulate(CLIENT_WEIGHTS))
    for model in org.models:
        kept = samples[model.name] = []
        usual, unusual = _Latencies(model, 1.0), _Latencies(model, incident.slower if incident else 1.0)
        error_rate = ERROR_RATE
        for moment in _moments(max(start, model.since), end, length):
            if moment.minute == 0:
                error_rate = min(1.0, ERROR_RATE * _variate(rng, org.variation))
            calls = _poisson(rng, org.calls * model.weight * _curve(moment) * (length / MINUTE))
            if not calls:
                continue
            hit = incident and incident.start <= moment < incident.end and incident.model in {None, model.name}
            if hit and incident:
                callers = rng.choices(CLIENTS, cum_weights=weights, k=calls)
                affected = [incident.client in {None, caller} for caller in callers]
                failed = [rng.random() < (incident.error_rate if bad else error_rate) for bad in affected]
                latencies = [
                    _bucket(TIMEOUT_MS)
                    if bad and fails and incident.times_out
                    else (unusual if bad else usual).draw(rng, 1)[0]
                    for bad, fails in zip(affected, failed, strict=True)
                ]
                failures = sum(failed)
                failing = [caller for caller, fails in zip(callers, failed, strict=True) if fails]
            else:
                callers = rng.choices(CLIENTS, cum_weights=weights, k=calls)
                failures = _binomial(rng, calls, error_rate)
                failing = callers[:failures]
                latencies = usual.draw(rng, calls)
            kept.append(Sample(moment, calls, failures, _histogram(latencies)))
            _count(clients.setdefault(moment, {}), callers, failing)
    return Counted(samples, clients)


def _moments(start: datetime, end: datetime, length: timedelta) -> Iterator[datetime]:
    while start < end:
        yield start
        start += length


def _count(counts: dict[str, Counts], callers: Sequence[str], failing: Sequence[str]) -> None:
    bad = Counter(failing)
    for caller, calls in Counter(callers).items():
        total = counts.get(caller, Counts(0, 0))
        counts[caller] = Counts(total.invocations + calls, total.bad + bad[caller])


def _curve(moment: datetime) -> float:
    """1 on average; most calls at 15 o'clock, a quarter of them at 3."""
    return 1 + 0.6 * math.cos(math.tau * (moment.hour + moment.minute / 60 - 15) / 24)


def _variate(rng: random.Random, variation: float) -> float:
    return rng.gammavariate(1 / variation**2, variation**2) if variation else 1.0


def _poisson(rng: random.Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def _binomial(rng: random.Random, calls: int, share: float) -> int:
    return sum(rng.random() < share for _ in range(calls))


def _bucket(ms: float) -> int:
    return math.ceil(math.log(ms, GAMMA))


class _Latencies:
    """The log-normal distribution of a model's latencies, by the buckets of the histogram."""

    def __init__(self, model: Model, times: float) -> None:
        mean = math.log(model.median_ms * times)
        ends = [(bucket * math.log(GAMMA) - mean) / model.sigma for bucket in range(MAX_BUCKET)]
        below = [0.5 * math.erfc(-end / math.sqrt(2)) for end in ends]
        self._buckets = [bucket for bucket in range(MAX_BUCKET) if 1e-6 < below[bucket] < 1 - 1e-6]
        self._below = [below[bucket] for bucket in self._buckets]

    def draw(self, rng: random.Random, count: int) -> list[int]:
        return rng.choices(self._buckets, cum_weights=self._below, k=count)


def _histogram(latencies: Iterable[int]) -> Histogram:
    counts = Counter(latencies)
    ordered = sorted(counts)
    return ordered, [counts[bucket] for bucket in ordered]
