"""Whether every event is there, once, and how soon it was in the figures: asked of the database when all is over."""

from dataclasses import dataclass

from django.db import connection

SAMPLED = 20  # of so many events one; never a late one

# One by one: an event that is missing is not made up for by one that is there twice.
_LOST = """
SELECT count(*) FROM generate_series(0::bigint, %(made)s - 1) n
LEFT JOIN usage_events e ON e.event_id = md5(%(prefix)s || n)::uuid WHERE e.event_id IS NULL
"""
_ROWS = "SELECT count(*), count(DISTINCT (org_id, event_id)) FROM usage_events"
_ROLLUP = "SELECT coalesce(sum(invocations), 0)::bigint FROM usage_hourly"
# From when an event was due, and from when its batch was accepted, to its batch being in the figures.
_FRESHNESS = """
SELECT percentile_disc(ARRAY[0.5, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM b.rolled_up_at - e.occurred_at)),
       percentile_disc(ARRAY[0.5, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM b.rolled_up_at - b.completed_at))
FROM generate_series(0::bigint, %(made)s - 1, %(sampled)s) n
JOIN usage_events e ON e.event_id = md5(%(prefix)s || n)::uuid JOIN ingestion_batches b ON b.id = e.batch_id
"""


@dataclass(frozen=True)
class Count:
    lost: int
    doubled: int
    stored: int
    counted: int  # calls that the rollup by the hour has


def count(made: dict[str, int]) -> Count:
    """Of events of several kinds, each named by its prefix."""
    with connection.cursor() as cursor:
        lost = 0
        for prefix, events in made.items():
            cursor.execute(_LOST, {"prefix": prefix, "made": events})
            lost += cursor.fetchone()[0]
        cursor.execute(_ROWS)
        rows, stored = cursor.fetchone()
        cursor.execute(_ROLLUP)
        (counted,) = cursor.fetchone()
    return Count(lost, rows - stored, stored, counted)


def freshness(prefix: str, made: int) -> dict[str, list[float]]:
    """p50, p95, p99 and the most, in seconds."""
    with connection.cursor() as cursor:
        cursor.execute(_FRESHNESS, {"prefix": prefix, "made": made, "sampled": SAMPLED})
        found = cursor.fetchone()
    names = ("due_to_counted_s", "accepted_to_counted_s")
    return {name: [round(float(value), 2) for value in values or ()] for name, values in zip(names, found, strict=True)}
