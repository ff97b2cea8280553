"""Percentiles from histograms, held against exact ones (nearest rank)."""

import math
from collections.abc import Sequence

import pytest
from django.db import connection
from hypothesis import given, settings
from hypothesis import strategies as st

from orgs.limits import MAX_LATENCY_MS
from usage.histogram import ALPHA, BUCKET_SQL, merge, percentiles, representative

FRACTIONS = (0.5, 0.95, 0.99)

latencies = st.one_of(
    st.lists(st.integers(0, MAX_LATENCY_MS), min_size=1, max_size=300),
    st.lists(st.integers(0, 60), min_size=1, max_size=300),
    st.lists(st.sampled_from([3, 90_000]), min_size=1, max_size=300),
    st.builds(lambda value, count: [value] * count, st.integers(0, MAX_LATENCY_MS), st.integers(1, 50)),
)


def histogram(values: Sequence[int]) -> tuple[list[int], list[int]]:
    """As the rollup makes it: the database computes the buckets."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT array_agg(bucket ORDER BY bucket), array_agg(n ORDER BY bucket) FROM ("
            f" SELECT {BUCKET_SQL} AS bucket, count(*) AS n FROM unnest(%s::int[]) AS latency_ms GROUP BY 1) counted",
            [list(values)],
        )
        buckets, counts = cursor.fetchone()
    return buckets, counts


def exact(values: Sequence[int], fraction: float) -> int:
    return sorted(values)[max(1, math.ceil(round(fraction * len(values), 9))) - 1]


@pytest.mark.django_db
@settings(deadline=None, max_examples=150)
@given(latencies)
def test_percentiles_are_within_one_percent(values: list[int]) -> None:
    for found, fraction in zip(percentiles(histogram(values), FRACTIONS), FRACTIONS, strict=True):
        assert found is not None
        true = exact(values, fraction)
        assert abs(found - true) <= ALPHA * true + 1e-6


@pytest.mark.django_db
@settings(deadline=None, max_examples=30)
@given(latencies, latencies)
def test_merging_is_the_histogram_of_all(left: list[int], right: list[int]) -> None:
    buckets, counts = merge([histogram(left), histogram(right)])
    assert (list(buckets), list(counts)) == histogram(left + right)


@pytest.mark.django_db
def test_every_latency_is_within_one_percent_of_its_bucket() -> None:
    values = [*range(20_000), *(int(1.001**n) for n in range(9_000, 18_270))]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT latency_ms, {BUCKET_SQL} FROM unnest(%s::int[]) AS latency_ms", [values])
        for value, bucket in cursor.fetchall():
            assert abs(representative(bucket) - value) <= ALPHA * value + 1e-6, value


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert percentiles(([], []), FRACTIONS) == [None, None, None]
