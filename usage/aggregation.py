"""Events into rollup rows: the one piece of SQL that says what a rollup is.

`collect` aggregates some events, once, at the finest grain that every rollup needs; `Rollup.fold` says how the rows of one
rollup come out of that. Adding new events, rebuilding and verifying all go through these two.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from django.db.backends.utils import CursorWrapper
from psycopg import sql

from .histogram import BUCKET_SQL
from .models import ZoneInForce
from .windows import DAY, Window, midnight

# Measure, and how it is counted over events.
MEASURES = {
    "invocations": "count(*)",
    "errors": "count(*) FILTER (WHERE status = 1)",
    "timeouts": "count(*) FILTER (WHERE status = 2)",
    "throttled": "count(*) FILTER (WHERE status = 3)",
    "input_tokens": "sum(input_tokens)",
    "output_tokens": "sum(output_tokens)",
    "cached_input_tokens": "sum(cached_input_tokens)",
    "cache_creation_input_tokens": "sum(cache_creation_input_tokens)",
    "cost_cents": "coalesce(sum(cost_estimate_cents), 0)",
    "unpriced_invocations": "count(*) FILTER (WHERE cost_estimate_cents IS NULL)",
}
HISTOGRAM = ("latency_buckets", "latency_counts")
COLUMNS = (*MEASURES, *HISTOGRAM)

# Events of batches that are not rolled up yet are in no figure. Few rows: index batches_not_rolled_up.
ROLLED_UP = "NOT EXISTS (SELECT FROM ingestion_batches b WHERE b.rolled_up_at IS NULL AND b.id = e.batch_id)"


def summed(measure: str) -> str:
    """The sum of a measure, of the type it has in a row: PostgreSQL makes every sum of bigint a numeric."""
    return f"sum({measure})" if measure == "cost_cents" else f"sum({measure})::bigint"


def zones_in_force() -> dict[uuid.UUID, ZoneInfo]:
    """The orgs that have days of their own, and their zones."""
    return {org_id: ZoneInfo(name) for org_id, name in ZoneInForce.objects.values_list("org_id", "time_zone")}


def collect(
    cursor: CursorWrapper,
    span: Window,
    condition: str,
    parameters: Mapping[str, Any],
    zones: Mapping[uuid.UUID, ZoneInfo],
) -> None:
    """Aggregate the events `e` of a span that meet a condition into the temporary table `usage_delta`.

    One row per org, model, UTC hour, day of the org's zone and latency bucket. The days come from this process, so that
    rollups and answers use one time zone database.
    """
    days = [
        (org_id, zone.key, day, midnight(day, zone), midnight(day + DAY, zone))
        for org_id, zone in zones.items()
        for day in span.days(zone)
    ]
    org_ids, names, dates, starts, ends = map(list, zip(*days, strict=True)) if days else ([], [], [], [], [])
    cursor.execute("DROP TABLE IF EXISTS usage_delta")
    cursor.execute(
        sql.SQL(
            """
            CREATE TEMPORARY TABLE usage_delta ON COMMIT DROP AS
            SELECT e.org_id, e.model_id, date_bin('1 hour', e.occurred_at, '2000-01-01 00:00+00') AS hour,
                local.time_zone AS local_zone, local.day AS local_day, {bucket} AS latency_bucket,
                max(e.occurred_at) AS last_event_at, {measures}
            FROM usage_events e
            LEFT JOIN unnest(%(org_ids)s::uuid[], %(zones)s::text[], %(days)s::date[], %(starts)s::timestamptz[],
                %(ends)s::timestamptz[]) AS local(org_id, time_zone, day, start_at, end_at)
                ON local.org_id = e.org_id AND e.occurred_at >= local.start_at AND e.occurred_at < local.end_at
            WHERE e.occurred_at >= %(start)s AND e.occurred_at < %(end)s AND {condition}
            GROUP BY 1, 2, 3, 4, 5, 6
            """
        ).format(
            bucket=sql.SQL(BUCKET_SQL),
            measures=sql.SQL(", ".join(f"{how} AS {name}" for name, how in MEASURES.items())),
            condition=sql.SQL(condition),
        ),
        {
            **parameters,
            "org_ids": org_ids,
            "zones": names,
            "days": dates,
            "starts": starts,
            "ends": ends,
            "start": span.start,
            "end": span.end,
        },
    )


@dataclass(frozen=True)
class Rollup:
    """One rollup table: its key, and how each part of the key comes out of `usage_delta`."""

    table: str
    key: Mapping[str, str]
    bucket: str  # the part of the key that is time
    rows: str = "true"  # which rows of the table, and of the delta, belong to this rollup

    @property
    def columns(self) -> str:
        return ", ".join((*self.key, *COLUMNS))

    def fold(self, condition: str = "true") -> str:
        """A query of the rows that `usage_delta` makes, where a condition on the key holds."""
        key = ", ".join(f"{expression} AS {name}" for name, expression in self.key.items())
        names = ", ".join(self.key)
        sums = ", ".join(f"{summed(name)} AS {name}" for name in MEASURES)
        return f"""
            SELECT {names}, {sums},
                array_agg(latency_bucket ORDER BY latency_bucket) AS latency_buckets,
                array_agg(invocations ORDER BY latency_bucket) AS latency_counts
            FROM (
                SELECT {key}, latency_bucket, {sums} FROM usage_delta WHERE {self.rows}
                GROUP BY {names}, latency_bucket
            ) folded
            WHERE {condition}
            GROUP BY {names}
            ORDER BY {names}
        """

    def add(self) -> str:
        """Add what `usage_delta` holds to the table. Histograms are merged bucket by bucket. Uses the primary key."""
        sums = ", ".join(f"{name} = kept.{name} + excluded.{name}" for name in MEASURES)
        return f"""
            INSERT INTO {self.table} AS kept ({self.columns}) {self.fold()}
            ON CONFLICT ({", ".join(self.key)}) DO UPDATE SET {sums},
                (latency_buckets, latency_counts) = (
                    SELECT array_agg(bucket ORDER BY bucket), array_agg(count ORDER BY bucket)
                    FROM (
                        SELECT bucket, sum(count)::bigint AS count FROM (
                            SELECT * FROM unnest(kept.latency_buckets, kept.latency_counts)
                            UNION ALL SELECT * FROM unnest(excluded.latency_buckets, excluded.latency_counts)
                        ) both_of_them(bucket, count)
                        GROUP BY bucket
                    ) merged
                )
        """


HOURLY = Rollup("usage_hourly", {"org_id": "org_id", "bucket_start": "hour", "model_id": "model_id"}, "bucket_start")
DAILY = Rollup(
    "usage_daily",
    {
        "org_id": "org_id",
        "time_zone": "'UTC'::text",
        "day": "(hour AT TIME ZONE 'UTC')::date",
        "model_id": "model_id",
    },
    "day",
)
DAILY_LOCAL = Rollup(
    "usage_daily",
    {"org_id": "org_id", "time_zone": "local_zone", "day": "local_day", "model_id": "model_id"},
    "day",
    rows="local_day IS NOT NULL",
)
ROLLUPS = (HOURLY, DAILY, DAILY_LOCAL)
