"""Windows in which a subject left its own normal.

Each bucket of time scores the log-likelihood ratio of its counts, in nats: bad calls being as many as in an incident,
against as many as normal. Windows are the maximal scoring subsequences (Ruzzo, Tompa: "A Linear Time Algorithm for
Finding All Maximal Scoring Subsequences", ISMB 1999) that reach THRESHOLD. What is bad depends on the measure: calls that
failed, or calls slower than SLOWER times the normal p95. Severe incidents are looked for first, mild ones in what is left:
the score of a mild one would find a short severe one late, if at all, and take in what little goes wrong hours later.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import accumulate

from usage.histogram import merge

from .normal import P95, SLOWER, Normal, Normality, Sample, count_from, first_slow, p95_of

# Nats. While all is normal, e to the score of a window that begins at a given bucket is a martingale of mean 1, so such a
# window reaches t with a probability of at most e^-t (Ville). An org of five subjects has 43,200 beginnings a month for
# each of them, two measures and two severities: 864,000, or e^13.7. So 16 would be one false window in ten months. The rest
# is for bad calls that come together more often than independent ones.
THRESHOLD = 18.0
# A mild incident has at least this share of bad calls, and this many times the normal one; a severe one that many more.
MIN_ERRORS, ERRORS_TIMES = 0.05, 3.0
MIN_SLOW, SLOW_TIMES = 0.08, 4.0
SEVERE = 5.0
# Fewer are no incident, however unlikely.
MIN_CALLS = 10
MIN_BAD = 8
# What comes back sooner has not gone.
JOIN = timedelta(minutes=5)
# Nobody knows what was between two failures with no call in between for longer.
SILENCE = timedelta(hours=1)


class Measure(StrEnum):
    ERROR_RATE = "errorRate"
    P95 = "p95"


@dataclass(frozen=True, slots=True)
class Excursion:
    """A half-open window. `observed` and `normal` are shares of failed calls, or p95s in ms; `score` is in nats."""

    measure: Measure
    start: datetime
    end: datetime
    invocations: int
    failures: int
    observed: float
    normal: float
    score: float


@dataclass(frozen=True, slots=True)
class _Odds:
    """How bad calls are counted and weighed while a `Normal` holds."""

    share: float  # of bad calls, normally
    usual: float  # the same, at most, in an hour of no incident
    mild: float  # the same in an incident
    severe: float
    value: float  # what is normal, in the measure's unit
    slow: int  # the first bucket of slow calls; of no meaning for errors


@dataclass(frozen=True, slots=True)
class _Bucket:
    sample: Sample
    odds: _Odds
    calls: int
    bad: int
    mild: float  # scores, in nats
    severe: float


# First and last bucket (exclusive), and the score.
Segment = tuple[int, int, float]


def excursions(samples: Sequence[Sample], normals: Normality, length: timedelta) -> list[Excursion]:
    """All of them by measure and time; `samples` are in the order of time, of buckets of `length`, empty ones left out."""
    found = []
    for measure in Measure:
        buckets = list(_buckets(samples, normals, measure))
        runs = list(_runs(buckets, length))
        severe = _reaching(buckets, [bucket.severe for bucket in buckets], runs, length)
        mild = _reaching(buckets, [bucket.mild for bucket in buckets], _without(runs, severe), length)
        segments = sorted(severe + mild)
        for first, last, score in _joined(buckets, segments, length):
            window = buckets[first:last]
            if _counts(window, measure):
                found.append(_excursion(window, measure, score, length))
    return found


def maximal_segments(scores: Sequence[float]) -> list[Segment]:
    """Ruzzo and Tompa's: disjoint, in order, all of positive score; no shorter or longer one of each would score more.

    The links, to the last candidate with less in front of it, make the search of their step 1 linear in all.
    """
    candidates: list[tuple[int, int, float, float, int]] = []  # first, last, sums up to first and last, link
    total = 0.0
    for index, score in enumerate(scores):
        before, total = total, total + score
        if score <= 0:
            continue
        first, left = index, before
        while True:
            link = len(candidates) - 1
            while link >= 0 and candidates[link][2] >= left:
                link = candidates[link][4]
            if link < 0 or candidates[link][3] >= total:
                break
            first, _, left, _, _ = candidates[link]
            del candidates[link:]
        candidates.append((first, index + 1, left, total, link))
    return [(first, last, right - left) for first, last, left, right, _ in candidates]


def _buckets(samples: Sequence[Sample], normals: Normality, measure: Measure) -> Iterator[_Bucket]:
    known: dict[Normal, _Odds | None] = {}
    for sample in samples:
        normal = normals.at(sample.start)
        if normal not in known:
            known[normal] = _odds(normal, measure)
        if (odds := known[normal]) is None:
            continue
        if measure is Measure.ERROR_RATE:
            calls, bad = sample.invocations, sample.failures
        else:
            calls, bad = sum(sample.histogram[1]), count_from(sample.histogram, odds.slow)
        if calls:
            mild = _score(calls, bad, odds.usual, odds.mild)
            severe = _score(calls, bad, odds.share, odds.severe)
            yield _Bucket(sample, odds, calls, bad, mild, severe)


def _score(calls: int, bad: int, normal: float, incident: float) -> float:
    """Nats by which `incident` is likelier than `normal` as the share of bad calls."""
    return bad * math.log(incident / normal) + (calls - bad) * math.log((1 - incident) / (1 - normal))


def _odds(normal: Normal, measure: Measure) -> _Odds | None:
    if measure is Measure.ERROR_RATE:
        share, value, slow = min(normal.error_rate, 0.99), normal.error_rate, 0
        # The variation from hour to hour is no incident, however many calls show it. What is severe is beyond it anyway.
        usual = min(max(share, normal.usual_errors), 0.99)
        mild, severe = max(MIN_ERRORS, ERRORS_TIMES * usual), SEVERE * max(MIN_ERRORS, ERRORS_TIMES * share)
    elif normal.p95_ms is not None:
        share, value, slow = min(normal.slow_share, 0.99), normal.p95_ms, first_slow(SLOWER * normal.p95_ms)
        usual, mild = share, max(MIN_SLOW, SLOW_TIMES * share)
        severe = SEVERE * mild
    else:
        return None
    return _Odds(share, usual, _possible(mild, usual), _possible(max(mild, severe), share), value, slow)


def _possible(incident: float, share: float) -> float:
    """Where it would be nearly all calls, or more, half of those that are not bad normally."""
    return min(incident, (1 + share) / 2)


def _reaching(
    buckets: Sequence[_Bucket], scores: Sequence[float], runs: Iterable[tuple[int, int]], length: timedelta
) -> list[Segment]:
    """The windows of these runs that reach THRESHOLD.

    Two long outages outweigh the healthy hours between them. So a window ends where the evidence that all is well again
    reaches THRESHOLD too.
    """
    reaching = []
    for segment in _segments(scores, runs):
        begin, end, _ = segment
        healthy = [
            stretch
            for stretch in _segments([-score for score in scores[begin:end]], [(0, end - begin)])
            if buckets[begin + stretch[1] - 1].sample.start + length - buckets[begin + stretch[0]].sample.start >= JOIN
        ]
        shifted = [(begin + first, begin + last, score) for first, last, score in healthy]
        for first, last in _without([(begin, end)], shifted):
            score = sum(scores[first:last])
            if score >= THRESHOLD:
                reaching.append(_trimmed(buckets, scores, (first, last, score)))
    return reaching


def _segments(scores: Sequence[float], runs: Iterable[tuple[int, int]]) -> list[Segment]:
    return [
        (begin + first, begin + last, score)
        for begin, end in runs
        for first, last, score in maximal_segments(scores[begin:end])
        if score >= THRESHOLD
    ]


def _runs(buckets: Sequence[_Bucket], length: timedelta) -> Iterator[tuple[int, int]]:
    """Stretches without a long silence."""
    first = 0
    for index in range(1, len(buckets)):
        if buckets[index].sample.start - buckets[index - 1].sample.start > length + SILENCE:
            yield first, index
            first = index
    if buckets:
        yield first, len(buckets)


def _without(runs: Iterable[tuple[int, int]], segments: Sequence[Segment]) -> Iterator[tuple[int, int]]:
    for begin, end in runs:
        inside = [segment for segment in segments if begin <= segment[0] < end]
        begins = [begin, *(last for _, last, _ in inside)]
        ends = [*(first for first, _, _ in inside), end]
        yield from zip(begins, ends, strict=True)


def _trimmed(buckets: Sequence[_Bucket], scores: Sequence[float], segment: Segment) -> Segment:
    """The segment without what is at its edges by chance, a single failure a few minutes after the end, say.

    Scored once more by the share of bad calls that it has: the likeliest edges for such an incident. An edge that would be
    an incident of its own stays.
    """
    first, last, score = segment
    window = buckets[first:last]
    share = (sum(bucket.bad for bucket in window) + 0.5) / (sum(bucket.calls for bucket in window) + 1)
    fitted = [_score(bucket.calls, bucket.bad, bucket.odds.share, max(share, bucket.odds.mild)) for bucket in window]
    begin, end, _ = max(maximal_segments(fitted), key=lambda part: part[2], default=(0, len(window), score))
    sums = [0.0, *accumulate(scores[first:last])]
    if sums[begin] >= THRESHOLD:
        begin = 0
    if sums[-1] - sums[end] >= THRESHOLD:
        end = len(window)
    return first + begin, first + end, score


def _joined(buckets: Sequence[_Bucket], segments: Sequence[Segment], length: timedelta) -> list[Segment]:
    joined: list[Segment] = []
    for first, last, score in segments:
        if joined and buckets[first].sample.start - buckets[joined[-1][1] - 1].sample.start - length < JOIN:
            earlier, _, gathered = joined.pop()
            joined.append((earlier, last, gathered + score))
        else:
            joined.append((first, last, score))
    return joined


def _counts(window: Sequence[_Bucket], measure: Measure) -> bool:
    calls, bad = sum(bucket.calls for bucket in window), sum(bucket.bad for bucket in window)
    # The p95 is slow itself only where more than 5 % of the calls are.
    slow = measure is Measure.ERROR_RATE or bad > (1 - P95) * calls
    return slow and bad >= MIN_BAD and calls >= MIN_CALLS


def _excursion(window: Sequence[_Bucket], measure: Measure, score: float, length: timedelta) -> Excursion:
    samples = [bucket.sample for bucket in window]
    invocations = sum(sample.invocations for sample in samples)
    failures = sum(sample.failures for sample in samples)
    calls = sum(bucket.calls for bucket in window)
    if measure is Measure.ERROR_RATE:
        observed = failures / invocations
    else:
        observed = p95_of(merge(sample.histogram for sample in samples)) or 0.0
    return Excursion(
        measure=measure,
        start=samples[0].start,
        end=samples[-1].start + length,
        invocations=invocations,
        failures=failures,
        observed=observed,
        normal=sum(bucket.calls * bucket.odds.value for bucket in window) / calls,
        score=score,
    )
