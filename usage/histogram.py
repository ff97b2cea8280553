"""Latency histograms with logarithmic buckets: they add up, percentiles do not.

The mapping is DDSketch's (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch", VLDB 2019): bucket i
holds the values in (γ^(i-1), γ^i] with γ = (1+α)/(1-α), and is represented by 2γ^i/(γ+1), which is within α of all of
them. α is 1 %. Values are whole milliseconds; zero has a bucket of its own, ZERO. A histogram is two arrays of one
length: bucket numbers in ascending order, and how many values each holds (sparse: empty buckets are left out).
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

ALPHA = 0.01
GAMMA = (1 + ALPHA) / (1 - ALPHA)
ZERO = -1

Histogram = tuple[Sequence[int], Sequence[int]]

# The bucket of `latency_ms`, as PostgreSQL computes it; nothing else does.
BUCKET_SQL = (
    f"CASE WHEN latency_ms = 0 THEN {ZERO} ELSE ceil(ln(latency_ms::float8) / {math.log(GAMMA)!r}) END::smallint"
)


def representative(bucket: int) -> float:
    """The value, in ms, that stands for all values of a bucket; at most 1 % from each.

    Where a bucket holds a single whole number, it is that number.
    """
    if bucket == ZERO:
        return 0.0
    low, high = GAMMA ** (bucket - 1), GAMMA**bucket
    whole = math.floor(high + 1e-9)
    if whole > low and whole - 1 <= low:
        return float(whole)
    return round(2 * high / (GAMMA + 1), 2)


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
