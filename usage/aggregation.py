"""Events into rollup rows: the one piece of SQL that says what a rollup is.

`collect` aggregates some events, once, at the finest grain that every rollup needs; `Rollup.fold` says how the rows of one
rollup come out of that. Adding new events, rebuilding and verifying all go through these two.

Latencies are collected as lists of histogram buckets and counted once per rollup row, with small integers for keys:
grouping the events themselves by bucket too, under keys of two UUIDs, took twice the time.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.db.backends.utils import CursorWrapper
from psycopg import sql

from ingestion.partitioning import Partitioned, Unit

from .histogram import BUCKET_SQL, ZERO
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
_BUCKETS = 1024  # more than a latency of a day needs: 915
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


class LocalDay(NamedTuple):
    """A day of an org's zone: what it is called, and the moments it reaches from and to."""

    org_id: uuid.UUID
    time_zone: str
    day: date
    start: datetime
    end: datetime


def local_days(span: Window, zones: Mapping[uuid.UUID, ZoneInfo]) -> list[LocalDay]:
    """Every day that a span touches, of the orgs that have days of their own."""
    return [
        LocalDay(org_id, zone.key, day, midnight(day, zone), midnight(day + DAY, zone))
        for org_id, zone in zones.items()
        for day in span.days(zone)
    ]


def collect(
    cursor: CursorWrapper, span: Window, condition: str, parameters: Mapping[str, Any], days: Sequence[LocalDay]
) -> None:
    """Aggregate the events `e` of a span that meet a condition into the temporary table `usage_delta`.

    One row per org, model, UTC hour and day of the org's zone. The days come from this process, so that rollups and answers
    use one time zone database.
    """
    org_ids, names, dates, starts, ends = map(list, zip(*days, strict=True)) if days else ([], [], [], [], [])
    cursor.execute("SET LOCAL work_mem = '128MB'")  # there is one writer; it sorts and hashes in memory
    cursor.execute("DROP TABLE IF EXISTS usage_delta")
    cursor.execute(
        sql.SQL(
            """
            CREATE TEMPORARY TABLE usage_delta ON COMMIT DROP AS
            SELECT e.org_id, e.model_id, date_bin('1 hour', e.occurred_at, '2000-01-01 00:00+00') AS hour,
                local.day AS local_day, max(local.time_zone) AS local_zone,
                max(e.occurred_at) AS last_event_at, {measures}, array_agg({bucket}) AS latencies
            FROM usage_events e
            LEFT JOIN unnest(%(org_ids)s::uuid[], %(zones)s::text[], %(days)s::date[], %(starts)s::timestamptz[],
                %(ends)s::timestamptz[]) AS local(org_id, time_zone, day, start_at, end_at)
                ON local.org_id = e.org_id AND e.occurred_at >= local.start_at AND e.occurred_at < local.end_at
            WHERE e.occurred_at >= %(start)s AND e.occurred_at < %(end)s AND {condition}
            GROUP BY 1, 2, 3, 4
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

    partitions: Partitioned
    key: Mapping[str, str]
    bucket: str  # the part of the key that is time
    rows: str = "true"  # which rows of the table, and of the delta, belong to this rollup

    @property
    def table(self) -> str:
        return self.partitions.table

    @property
    def is_hourly(self) -> bool:
        """Whether rows are kept as long as hours are, else as long as days."""
        return self.partitions.of_moments

    @property
    def columns(self) -> str:
        return ", ".join((*self.key, *COLUMNS))

    def fold(self, condition: str = "true", *, adds: bool = False) -> str:
        """A query of the rows that `usage_delta` makes, where a condition on the key holds.

        With `adds`, histograms hold what the table's row of the same key has already; its measures are left out.
        """
        key = ", ".join(f"{expression} AS {name}" for name, expression in self.key.items())
        names = ", ".join(self.key)
        sums = ", ".join(f"{summed(name)} AS {name}" for name in MEASURES)
        # A row and a bucket in one number: what hashes and sorts fast.
        code = f"number * {_BUCKETS} + {{bucket}} - {ZERO}"
        kept = f"""
            UNION ALL
            SELECT {code.format(bucket="unnest(latency_buckets)")}, unnest(latency_counts) FROM sums
            CROSS JOIN LATERAL (
                SELECT latency_buckets, latency_counts FROM {self.table} k
                WHERE {" AND ".join(f"k.{name} = sums.{name}" for name in self.key)} LIMIT 1
            ) kept
        """
        return f"""
            WITH keyed AS (
                SELECT dense_rank() OVER (ORDER BY {names}) AS number, * FROM (
                    SELECT {key}, {", ".join(MEASURES)}, latencies FROM usage_delta WHERE {self.rows}
                ) delta
                WHERE {condition}
            ), sums AS (
                SELECT number, {names}, {sums} FROM keyed GROUP BY number, {names}
            ), counts AS (
                SELECT code, count(*) AS count FROM (
                    SELECT {code.format(bucket="unnest(latencies)")} AS code FROM keyed
                ) delta
                GROUP BY code
                {kept if adds else ""}
            ), histograms AS (
                SELECT code / {_BUCKETS} AS number,
                    array_agg(mod(code, {_BUCKETS})::smallint + {ZERO}::smallint ORDER BY code) AS latency_buckets,
                    array_agg(count ORDER BY code) AS latency_counts
                FROM (SELECT code, sum(count)::bigint AS count FROM counts GROUP BY code) merged
                GROUP BY 1
            )
            SELECT {self.columns} FROM sums JOIN histograms USING (number) ORDER BY number
        """

    def add(self, condition: str = "true") -> str:
        """Add what `usage_delta` holds to the table, where a condition on the key holds. Right with one writer alone.

        One probe of the table's primary key per row.
        """
        sums = ", ".join(f"{name} = kept.{name} + excluded.{name}" for name in MEASURES)
        histograms = ", ".join(f"{name} = excluded.{name}" for name in HISTOGRAM)
        return f"""
            INSERT INTO {self.table} AS kept ({self.columns}) {self.fold(condition, adds=True)}
            ON CONFLICT ({", ".join(self.key)}) DO UPDATE SET {sums}, {histograms}
        """


HOURS = Partitioned("usage_hourly", Unit.MONTH)
DAYS = Partitioned("usage_daily", Unit.MONTH, of_moments=False)

HOURLY = Rollup(HOURS, {"org_id": "org_id", "bucket_start": "hour", "model_id": "model_id"}, "bucket_start")
DAILY = Rollup(
    DAYS,
    {
        "org_id": "org_id",
        "time_zone": "'UTC'::text",
        "day": "(hour AT TIME ZONE 'UTC')::date",
        "model_id": "model_id",
    },
    "day",
)
DAILY_LOCAL = Rollup(
    DAYS,
    {"org_id": "org_id", "time_zone": "local_zone", "day": "local_day", "model_id": "model_id"},
    "day",
    rows="local_day IS NOT NULL",
)
ROLLUPS = (HOURLY, DAILY, DAILY_LOCAL)
