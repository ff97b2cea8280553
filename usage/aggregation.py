"""Events into rollup rows: the one piece of SQL that says what a rollup is.

`collect` aggregates some events, once, at the finest grain that any rollup needs; `Rollup.rows_of_delta` says how the rows of
one rollup come out of that. Adding new events, rebuilding and verifying all go through these two.

Latencies are collected as lists of histogram buckets and counted once per rollup row, with small integers for keys:
grouping the events themselves by bucket too, under keys of two UUIDs, took twice the time.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.db.backends.utils import CursorWrapper
from psycopg import sql

from ingestion.partitioning import Partitioned, Unit
from orgs.limits import MAX_CLIENTS_AN_HOUR, MAX_ERROR_CODES_AN_HOUR

from .histogram import BUCKET_SQL, ZERO
from .models import REST, ZoneInForce
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


_ORIGIN = "'2000-01-01 00:00+00'::timestamptz"
_EVENTS = """
FROM usage_events e WHERE e.occurred_at >= %(start)s AND e.occurred_at < %(end)s AND {condition}
"""
# Days begin at whole quarters of an hour, in every zone: so their join meets some thousand rows, and not every event.
_BY_QUARTER = """
CREATE TEMPORARY TABLE usage_delta ON COMMIT DROP AS
SELECT quarters.*, date_bin('1 hour', quarter, {origin}) AS hour, local.day AS local_day, local.time_zone AS local_zone,
    local.start_at AS local_start
FROM (
    SELECT e.org_id, e.model_id, date_bin('15 minutes', e.occurred_at, {origin}) AS quarter,
        coalesce(e.client_id, '') AS client_id, e.status,
        CASE WHEN e.status = 0 THEN '' ELSE coalesce(e.error_code, '') END AS error_code,
        max(e.occurred_at) AS last_event_at, {measures}, array_agg({bucket}) AS latencies
    {events} GROUP BY 1, 2, 3, 4, 5, 6
) quarters
LEFT JOIN unnest(%(org_ids)s::uuid[], %(zones)s::text[], %(days)s::date[], %(starts)s::timestamptz[], %(ends)s::timestamptz[])
    AS local(org_id, time_zone, day, start_at, end_at)
    ON local.org_id = quarters.org_id AND quarter >= local.start_at AND quarter < local.end_at
"""
_BY_MINUTE = """
CREATE TEMPORARY TABLE usage_delta_minutes ON COMMIT DROP AS
SELECT e.org_id, e.model_id, date_bin('1 minute', e.occurred_at, {origin}) AS minute, {measures},
    array_agg({bucket}) AS latencies
{events} AND e.occurred_at >= %(minutes_from)s GROUP BY 1, 2, 3
"""
_LISTED = ("usage_delta", "usage_delta_minutes")  # what has lists of buckets yet, and no histograms


def collect(
    cursor: CursorWrapper,
    span: Window,
    condition: str,
    parameters: Mapping[str, Any],
    days: Sequence[LocalDay],
    minutes_from: datetime,
) -> None:
    """Aggregate the events `e` of a span that meet a condition into temporary tables.

    `usage_delta` has one row per org, model, quarter of an hour, client, status and error code, and tells the UTC hour and the
    day of the org's zone that it lies in. `usage_delta_hours` has these hours and days, with histograms. `usage_delta_minutes`
    has one row per org, model and minute, from `minutes_from` on: as far back as minutes are kept. The days come from this
    process, so that rollups and answers use one time zone database.
    """
    org_ids, names, dates, starts, ends = map(list, zip(*days, strict=True)) if days else ([], [], [], [], [])
    cursor.execute("SET LOCAL work_mem = '128MB'; SET LOCAL enable_hashagg = on")  # there is one writer: in memory
    cursor.execute("DROP TABLE IF EXISTS usage_delta, usage_delta_hours, usage_delta_minutes")
    for statement in (_BY_QUARTER, _BY_MINUTE):
        cursor.execute(
            sql.SQL(statement).format(
                origin=sql.SQL(_ORIGIN),
                bucket=sql.SQL(BUCKET_SQL),
                measures=sql.SQL(", ".join(f"{how} AS {name}" for name, how in MEASURES.items())),
                events=sql.SQL(_EVENTS).format(condition=sql.SQL(condition)),
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
                "minutes_from": minutes_from,
            },
        )
    # What follows groups hundreds of thousands of small numbers into nearly as many groups: sorting takes half the time.
    cursor.execute("SET LOCAL enable_hashagg = off")
    by_hour = {name: name for name in ("org_id", "model_id", "hour", "local_day", "local_zone")}
    cursor.execute(
        f"CREATE TEMPORARY TABLE usage_delta_hours ON COMMIT DROP AS {_rows(by_hour, 'usage_delta', 'true', 'true')}"
    )


def _rows(key: Mapping[str, str], delta: str, rows: str, condition: str, kept: str | None = None) -> str:
    """A query of some rows of what was collected, added up by a key; histograms with what the rows of a table have of it."""
    names = ", ".join(key)
    sums = ", ".join(f"{summed(name)} AS {name}" for name in MEASURES)
    latencies, counts = ", ".join(HISTOGRAM), "unnest(latency_counts)::float8"
    buckets = "unnest(latency_buckets)"
    if delta in _LISTED:
        latencies, counts, buckets = "latencies", "1::float8", "unnest(latencies)"
    # A row and a bucket in one number: what sorts fast. Counts are added as floats, which are exact up to 2^53 and several
    # times as fast as what PostgreSQL adds bigints in.
    code = f"number * {_BUCKETS} + {{}} - {ZERO}"
    there = f"""
        UNION ALL
        SELECT {code.format("unnest(latency_buckets)")}, unnest(latency_counts)::float8 FROM sums
        CROSS JOIN LATERAL (
            SELECT latency_buckets, latency_counts FROM {kept} k
            WHERE {" AND ".join(f"k.{name} = sums.{name}" for name in key)} LIMIT 1
        ) kept
    """
    return f"""
        WITH keyed AS (
            SELECT dense_rank() OVER (ORDER BY {names}) AS number, * FROM (
                SELECT {", ".join(f"{expression} AS {name}" for name, expression in key.items())},
                    {", ".join(MEASURES)}, {latencies} FROM {delta} WHERE {rows}
            ) delta
            WHERE {condition}
        ), sums AS (
            SELECT number, {names}, {sums} FROM keyed GROUP BY number, {names}
        ), counts AS (
            SELECT {code.format(buckets)} AS code, {counts} AS count FROM keyed
            {there if kept else ""}
        ), histograms AS (
            SELECT code / {_BUCKETS} AS number,
                array_agg(mod(code, {_BUCKETS})::smallint + {ZERO}::smallint ORDER BY code) AS latency_buckets,
                array_agg(count ORDER BY code) AS latency_counts
            FROM (SELECT code, sum(count)::bigint AS count FROM counts GROUP BY code) merged
            GROUP BY 1
        )
        SELECT {names}, {", ".join(COLUMNS)} FROM sums JOIN histograms USING (number) ORDER BY number
    """


def hour_of(moment: str) -> str:
    """The UTC hour of a column of moments."""
    return f"date_bin('1 hour', {moment}, {_ORIGIN})"


def merged_histograms(rows: str, by: str, condition: str = "true") -> str:
    """A query of the histograms of some rows, added up by some of their columns."""
    return f"""
        SELECT {by}, array_agg(latency ORDER BY latency) AS latency_buckets,
            array_agg(calls ORDER BY latency) AS latency_counts
        FROM (
            SELECT {by}, latency, sum(calls::float8)::bigint AS calls
            FROM {rows}, unnest({", ".join(HISTOGRAM)}) AS h(latency, calls)
            WHERE {condition} GROUP BY {by}, latency
        ) counts
        GROUP BY {by}
    """


class Kept(StrEnum):
    """As long as what a rollup's rows are kept."""

    MINUTES = "minutes"
    HOURS = "hours"
    DAYS = "days"


@dataclass(frozen=True)
class Crowd:
    """A part of a key that has no bound: which client, which error code. Once an hour is over, those with the most calls and
    those that cost most keep their names, and the rest are one row. Equal ones by name, so that neither order nor batching shows.
    """

    name: str
    keeps: int  # names of an org's hour, by calls, and as many by cost
    among: str = "true"  # which rows compete; the others keep their names

    @staticmethod
    def place(by: str, name: str) -> str:
        """A column: the better of the places that a name has among those of its group, by calls and by cost."""
        places = (
            f"""row_number() OVER (PARTITION BY {by} ORDER BY sum({measure}) DESC, {name} COLLATE "C")"""
            for measure in ("invocations", "cost_cents")
        )
        return f"least({', '.join(places)})"


@dataclass(frozen=True)
class Rollup:
    """One rollup table: its key, and how each part of the key comes out of what is collected."""

    partitions: Partitioned
    key: Mapping[str, str]
    bucket: str  # the part of the key that is time
    kept: Kept
    rows: str = "true"  # which rows of the delta belong to this rollup
    delta: str = "usage_delta"
    crowd: Crowd | None = None

    @property
    def table(self) -> str:
        return self.partitions.table

    @property
    def columns(self) -> str:
        return ", ".join((*self.key, *COLUMNS))

    def rows_of_delta(self, condition: str = "true", *, adds: bool = False) -> str:
        """A query of the rows that what was collected makes, where a condition on the key holds.

        With `adds`, histograms hold what the table's row of the same key has already; its measures are left out.
        """
        return _rows(self.key, self.delta, self.rows, condition, self.table if adds else None)

    def add(self, condition: str = "true") -> str:
        """Add what was collected to the table, where a condition on the key holds. Right with one writer alone.

        One probe of the table's primary key per row.
        """
        sums = ", ".join(f"{name} = kept.{name} + excluded.{name}" for name in MEASURES)
        histograms = ", ".join(f"{name} = excluded.{name}" for name in HISTOGRAM)
        return f"""
            INSERT INTO {self.table} AS kept ({self.columns}) {self.rows_of_delta(condition, adds=True)}
            ON CONFLICT ({", ".join(self.key)}) DO UPDATE SET {sums}, {histograms}
        """

    def folded(self, rows: str, unnamed: str = "false") -> str:
        """A query of rows, as it is once their hours are over: see `Crowd`. Folding twice is folding once.

        Where `unnamed` holds of a row, all names of its hour count as the rest.
        """
        if self.crowd is None:
            return rows
        crowd = self.crowd
        hour = hour_of(self.bucket)
        others = ", ".join(name for name in self.key if name != crowd.name)
        sums = ", ".join(f"{summed(name)} AS {name}" for name in MEASURES)
        return f"""
            WITH found AS (SELECT {self.columns} FROM ({rows}) r),
            named AS (
                SELECT org_id, {hour} AS hour, {crowd.name} AS name,
                    {crowd.place(f"org_id, {hour}", crowd.name)} AS place
                FROM found WHERE {crowd.among} AND {crowd.name} <> '{REST}' GROUP BY 1, 2, 3
            ), parted AS (
                SELECT found.*, {crowd.among} AND ({crowd.name} = '{REST}' OR place > {crowd.keeps} OR {unnamed}) AS is_rest
                FROM found LEFT JOIN named
                    ON named.org_id = found.org_id AND named.hour = {hour} AND named.name = {crowd.name}
            ), histograms AS ({merged_histograms("parted", others, "is_rest")})
            SELECT {self.columns} FROM parted WHERE NOT is_rest
            UNION ALL
            SELECT {self.columns} FROM (
                SELECT {others}, '{REST}'::text AS {crowd.name}, {sums} FROM parted WHERE is_rest GROUP BY {others}
            ) sums JOIN histograms USING ({others})
        """


HOURS = Partitioned("usage_hourly", Unit.MONTH)
DAYS = Partitioned("usage_daily", Unit.MONTH, of_moments=False)
MINUTES = Partitioned("usage_minutes", Unit.DAY)

# Where the org's day begins within an hour, that hour has two rows: so days of any zone are made of whole rows.
_PART = "greatest(hour, local_start)"

HOURLY = Rollup(
    HOURS,
    {"org_id": "org_id", "bucket_start": "hour", "model_id": "model_id"},
    "bucket_start",
    Kept.HOURS,
    delta="usage_delta_hours",
)
DAILY = Rollup(
    DAYS,
    {
        "org_id": "org_id",
        "time_zone": "'UTC'::text",
        "day": "(hour AT TIME ZONE 'UTC')::date",
        "model_id": "model_id",
    },
    "day",
    Kept.DAYS,
    delta="usage_delta_hours",
)
DAILY_LOCAL = Rollup(
    DAYS,
    {"org_id": "org_id", "time_zone": "local_zone", "day": "local_day", "model_id": "model_id"},
    "day",
    Kept.DAYS,
    rows="local_day IS NOT NULL",
    delta="usage_delta_hours",
)
MINUTELY = Rollup(
    MINUTES,
    {"org_id": "org_id", "bucket_start": "minute", "model_id": "model_id"},
    "bucket_start",
    Kept.MINUTES,
    delta="usage_delta_minutes",
)
CLIENTS = Rollup(
    Partitioned("usage_clients", Unit.MONTH),
    {"org_id": "org_id", "bucket_start": _PART, "model_id": "model_id", "client_id": "client_id"},
    "bucket_start",
    Kept.HOURS,
    crowd=Crowd("client_id", MAX_CLIENTS_AN_HOUR),
)
OUTCOMES = Rollup(
    Partitioned("usage_outcomes", Unit.MONTH),
    {
        "org_id": "org_id",
        "bucket_start": _PART,
        "model_id": "model_id",
        "status": "status",
        "error_code": "error_code",
    },
    "bucket_start",
    Kept.HOURS,
    crowd=Crowd("error_code", MAX_ERROR_CODES_AN_HOUR, among="status <> 0"),
)
ROLLUPS = (HOURLY, DAILY, DAILY_LOCAL, MINUTELY, CLIENTS, OUTCOMES)
