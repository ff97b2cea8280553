"""Latency histograms with logarithmic buckets: they add up, percentiles do not.

The mapping is DDSketch's (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch", VLDB 2019): bucket i
holds the values in (γ^(i-1), γ^i] with γ = (1+α)/(1-α), and a value between stands for all of them, within α of each.
α is 1 %. Values are whole milliseconds; zero has a bucket of its own, ZERO. A histogram is two arrays of one
length: bucket numbers in ascending order, and how many values each holds (sparse: empty buckets are left out).
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate

ALPHA = 0.01
GAMMA = (1 + ALPHA) / (1 - ALPHA)
ZERO = -1
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}  # what is told of latencies

Histogram = tuple[Sequence[int], Sequence[int]]

# The bucket of `latency_ms`, as PostgreSQL computes it; nothing else does.
BUCKET_SQL = (
    f"CASE WHEN latency_ms = 0 THEN {ZERO} ELSE ceil(ln(latency_ms::float8) / {math.log(GAMMA)!r}) END::smallint"
)


@cache
def representative(bucket: int) -> float:
    """The value, in ms, that stands for all values of a bucket; less than 1 % from each.

    They are whole numbers from a to b: 2ab/(a+b) is (b-a)/(b+a) of both away, and of none farther.
    """
    if bucket == ZERO:
        return 0.0
    first, last = math.floor(GAMMA ** (bucket - 1) + 1e-9) + 1, math.floor(GAMMA**bucket + 1e-9)
    if first > last:  # no whole number lies in it
        return GAMMA**bucket
    return 2 * first * last / (first + last)


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """The histogram of all values of several."""
    counts: dict[int, int] = {}
    for buckets, values in histograms:
        for bucket, count in zip(buckets, values, strict=True):
            counts[bucket] = counts.get(bucket, 0) + count
    ordered = sorted(counts)
    return ordered, [counts[bucket] for bucket in ordered]


def percentiles(histogram: Histogram, fractions: Sequence[float]) -> list[float | None]:
    """Nearest-rank percentiles in ms, within 1 % of the exact ones; None where the histogram is empty.

    The p-th percentile of n values is the ⌈p·n⌉-th smallest.
    """
    buckets, counts = histogram
    cumulated = list(accumulate(counts))
    if not cumulated:
        return [None] * len(fractions)
    ranks = (max(1, math.ceil(round(fraction * cumulated[-1], 9))) for fraction in fractions)
    return [representative(buckets[bisect_left(cumulated, rank)]) for rank in ranks]
