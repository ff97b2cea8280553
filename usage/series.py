"""Figures of an org over a window: the one way the API, the pages and the exports read them.

One statement, so one snapshot: daily or hourly rows by primary key, and for the buckets that the window cuts their hours,
their minutes as far as these are kept, and raw fragments by the primary key of the events: under an hour each, and where there
are minutes under one minute. Nothing here grows with the number of events.

Figures are grouped by model, or by what hourly rows tell beside it: client, status, error code. Of clients and codes each
bucket names those with the most calls and those that cost most; the rest are one.
"""

import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from operator import attrgetter
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from django.db import connection
from django.utils import timezone
from psycopg import sql

from orgs.limits import MAX_SERIES_POINTS
from orgs.models import Org

from .aggregation import (
    CLIENTS,
    HISTOGRAM,
    HOURLY,
    MEASURES,
    MINUTELY,
    OUTCOMES,
    ROLLED_UP,
    Rollup,
    merged_histograms,
    summed,
)
from .histogram import BUCKET_SQL, Histogram, merge
from .models import REST, ZoneInForce
from .retention import daily_horizon, groups_horizon, hourly_horizon, longest, whole_minutes_since
from .windows import DAY, HOUR, UTC_ZONE, Granularity, Piece, Plan, Window, local_day, midnight, plan

MAX_ROWS = 2 * MAX_SERIES_POINTS  # read for an answer: the points of buckets that a window cuts come in parts
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unanswerable(ValueError):
    """A question that can't be answered; `field` is the parameter to change, the text says to what."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class TooManyPoints(Unanswerable):
    """Shorter windows of the same question can be answered."""


class Figures(msgspec.Struct):
    """Sums over some events. `cost_cents` is exact and leaves unpriced invocations out."""

    invocations: int = 0
    errors: int = 0
    timeouts: int = 0
    throttled: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cost_cents: Decimal = Decimal("0.0000")
    unpriced_invocations: int = 0

    @property
    def failures(self) -> int:
        """Calls with any status but success."""
        return self.errors + self.timeouts + self.throttled

    @property
    def rounded_cost_cents(self) -> int:
        """Whole cents, half-even: rounded once, at the edge."""
        return int(self.cost_cents.quantize(Decimal(1), ROUND_HALF_EVEN))

    @property
    def exact_cost(self) -> str:
        """Cents with four decimals."""
        return f"{self.cost_cents:.4f}"


assert Figures.__struct_fields__ == tuple(MEASURES)
_GETTERS = {name: attrgetter(name) for name in MEASURES}


Key = uuid.UUID | str | int  # of a model, a client or an error code, a status


class Point(Figures):
    """The figures of one bucket and part, as far as the window covers the bucket. `histogram` where it was asked for."""

    bucket_start: datetime = _EPOCH
    key: Key = uuid.UUID(int=0)
    histogram: Histogram = ((), ())


def total(items: Collection[Figures]) -> Figures:
    """The sum of figures, exactly; a measure at a time, which is several times as fast as point by point."""
    sums = Figures(**{name: sum(map(get, items)) for name, get in _GETTERS.items()})
    sums.cost_cents = Decimal(sums.cost_cents)
    return sums


class Group(StrEnum):
    """What figures are told by. Clients and error codes that none was told of are ""; the rest together are `REST`."""

    MODEL = "model"
    CLIENT = "client"
    STATUS = "status"
    ERROR_CODE = "errorCode"


@dataclass(frozen=True)
class _Source:
    """Where the figures of a group come from: a rollup by the hour, its column, and what that is of a raw event."""

    rollup: Rollup
    name: str
    of_event: str
    among: str = "true"  # which rows and events belong to it


_SOURCES = {
    Group.MODEL: _Source(HOURLY, "model_id", "model_id"),
    Group.CLIENT: _Source(CLIENTS, "client_id", "coalesce(client_id, '')"),
    Group.STATUS: _Source(OUTCOMES, "status", "status"),
    Group.ERROR_CODE: _Source(OUTCOMES, "error_code", "coalesce(error_code, '')", among="status <> 0"),
}
# What the API calls a part.
PART_NAMES = {Group.MODEL: "modelId", Group.CLIENT: "clientId", Group.STATUS: "status", Group.ERROR_CODE: "errorCode"}


@dataclass(frozen=True)
class Question:
    """What is asked. `zone` is the zone whose days are meant; hours are always hours of UTC.

    With `as_one` the whole window is one bucket; its figures come from hours then.
    """

    org_id: uuid.UUID
    window: Window
    granularity: Granularity = Granularity.DAY
    model_id: uuid.UUID | None = None
    zone: ZoneInfo = UTC_ZONE
    group: Group = Group.MODEL
    as_one: bool = False

    @property
    def needs_hours(self) -> bool:
        return self.granularity is Granularity.HOUR or self.as_one or self.group is not Group.MODEL


def zone_of(org: Org) -> ZoneInfo:
    """The zone that an org's days are kept in."""
    name = ZoneInForce.objects.filter(org=org).values_list("time_zone", flat=True).first()
    return ZoneInfo(name) if name else UTC_ZONE


def points(question: Question, *, histograms: bool = False) -> list[Point]:
    """One point per bucket and part that saw traffic, by bucket, then part. Raises `Unanswerable`."""
    check_horizons(question)
    granularity = Granularity.HOUR if question.as_one else question.granularity
    parts = plan(question.window, granularity, question.zone)
    if parts.fragments and question.group is Group.MODEL:  # minutes are of models alone
        parts = parts.by_minutes(whole_minutes_since(timezone.now()))
    statement, parameters = _statement(question, parts, histograms)
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows = cursor.fetchall()
    found = _points(rows, question, histograms)
    if len(found) > MAX_SERIES_POINTS or len(rows) > MAX_ROWS:
        raise TooManyPoints(
            "start",
            f"has more than {MAX_SERIES_POINTS:,} points up to end: ask for a shorter range, granularity=day or one modelId",
        )
    return found


def _points(rows: Iterable[tuple[Any, ...]], question: Question, histograms: bool) -> list[Point]:
    """Rows of (bucket, part, measures…, histogram) as points, ordered; a bucket that the window cuts comes in parts."""
    count = len(MEASURES)
    parts: dict[tuple[int, Key], list[Point]] = {}
    starts: dict[int, datetime] = {}
    for bucket, key, *values in rows:
        start = starts.get(bucket)
        if start is None:
            start = starts[bucket] = _start_of(bucket, question)
        # Positions: the measures, then what `Point` adds to them.
        row = (*values[:count], start, key, tuple(values[count:]) if histograms else ((), ()))
        parts.setdefault((bucket, key), []).append(Point(*row))
    return [found[0] if len(found) == 1 else _joined(found) for _, found in sorted(parts.items(), key=_order)]


def _order(item: tuple[tuple[int, Key], object]) -> tuple[int, int | str]:
    bucket, key = item[0]
    return bucket, key.int if isinstance(key, uuid.UUID) else key


def _joined(parts: list[Point]) -> Point:
    first, sums = parts[0], msgspec.structs.astuple(total(parts))
    return Point(*(*sums, first.bucket_start, first.key, merge([part.histogram for part in parts])))


def _bucket_of(start: datetime, question: Question) -> int:
    """A bucket as a number, as the statement returns it: hours since 1970, or days since then in the zone."""
    if question.as_one:
        return 0
    if question.granularity is Granularity.HOUR:
        return (start - _EPOCH) // HOUR
    return (local_day(start, question.zone) - _EPOCH.date()).days


def _start_of(bucket: int, question: Question) -> datetime:
    if question.as_one:
        return question.window.start
    if question.granularity is Granularity.HOUR:
        return _EPOCH + bucket * HOUR
    return midnight(_EPOCH.date() + bucket * DAY, question.zone)


def check_horizons(question: Question) -> None:
    """Refuse what retention has taken, naming the nearest bound that can be answered."""
    now, start = timezone.now(), question.window.start
    hours, days = hourly_horizon(now), daily_horizon(now, question.zone)
    if question.needs_hours and start < hours:
        why = "" if question.group is Group.MODEL else f", and {PART_NAMES[question.group]} is kept by the hour"
        raise Unanswerable(
            "start", f"lies before the hours that are kept{why}: the earliest is {hours:%Y-%m-%dT%H:%M:%SZ}"
        )
    if question.group is not Group.MODEL:
        since = groups_horizon()
        if since is not None and start < since:
            raise Unanswerable(
                "start",
                f"lies before {PART_NAMES[question.group]} was kept: the earliest is {since:%Y-%m-%dT%H:%M:%SZ}",
            )
    if start < days:
        raise Unanswerable("start", f"lies before the days that are kept: the earliest is {days:%Y-%m-%dT%H:%M:%SZ}")
    if question.window.end - start > longest():
        raise Unanswerable("end", f"lies more than {longest().days} days after start: ask for a shorter range")
    for name, moment in (("start", start), ("end", question.window.end)):
        if question.granularity is Granularity.DAY:
            day = moment.astimezone(question.zone).date()
            nearest = midnight(day, question.zone)
            # A day that is cut at its end is read from its hours too, and a day of a zone can begin before they do.
            if nearest != moment and max(start, nearest) < hours:
                raise Unanswerable(
                    name,
                    "cuts a day whose hours are no longer kept: the nearest bounds are"
                    f" {nearest:%Y-%m-%dT%H:%M:%SZ} and {midnight(day + DAY, question.zone):%Y-%m-%dT%H:%M:%SZ}",
                )


def _statement(question: Question, parts: Plan, histograms: bool) -> tuple[sql.Composed, dict[str, Any]]:
    """Rows of (bucket, part, measures…, histogram)."""
    source = _SOURCES[question.group]
    by_model = question.group is Group.MODEL and not question.as_one
    columns = sql.SQL(", ".join((*MEASURES, *HISTOGRAM) if histograms else MEASURES))
    sums = sql.SQL(", ".join(f"{summed(name)} AS {name}" for name in MEASURES))
    name = sql.SQL(source.name)
    condition = sql.SQL("org_id = %(org)s AND {}{}").format(
        sql.SQL(source.among), sql.SQL("" if question.model_id is None else " AND model_id = %(model)s")
    )
    parameters: dict[str, Any] = {"org": question.org_id, "model": question.model_id, "zone": question.zone.key}

    def bound(value: object) -> sql.Placeholder:
        name = f"p{len(parameters)}"
        parameters[name] = value
        return sql.Placeholder(name)

    def moments(rollup: Rollup, window: Window, bucket: sql.Composable, *, added: bool = False) -> sql.Composable:
        """Rows by the hour or minute as they stand, or added up: those of a bucket that the window cuts."""
        return sql.SQL(
            "SELECT {bucket}::bigint AS bucket, {name} AS part, {columns} FROM {table}"
            " WHERE bucket_start >= {start} AND bucket_start < {end} AND {condition}{group}"
        ).format(
            bucket=bucket,
            name=name,
            columns=sums if added else columns,
            table=sql.SQL(rollup.table),
            start=bound(window.start),
            end=bound(window.end),
            condition=condition,
            group=sql.SQL(" GROUP BY 2" if added else ""),
        )

    def days(first: date, end: date) -> sql.Composable:
        return sql.SQL(
            "SELECT day - '1970-01-01'::date AS bucket, model_id AS part, {columns} FROM usage_daily"
            " WHERE time_zone = %(zone)s AND day >= {first} AND day < {end} AND {condition}"
        ).format(columns=columns, first=bound(first), end=bound(end), condition=condition)

    def cut(rollup: Rollup, piece: Piece) -> sql.Composable:
        # Histograms of models are merged in Python; other groups are added up around all of it.
        bucket = bound(_bucket_of(piece.bucket_start, question))
        return moments(rollup, piece.window, bucket, added=by_model and not histograms)

    def fragment(piece: Piece) -> sql.Composable:
        measures = sql.SQL(", ".join(f"{how} AS {name}" for name, how in MEASURES.items()))
        events = sql.SQL(
            "FROM usage_events e WHERE occurred_at >= {start} AND occurred_at < {end} AND {condition} AND {rolled_up}"
        ).format(
            start=bound(piece.window.start),
            end=bound(piece.window.end),
            condition=condition,
            rolled_up=sql.SQL(ROLLED_UP),
        )
        bucket = bound(_bucket_of(piece.bucket_start, question))
        part = sql.SQL(source.of_event)
        if not histograms:
            return sql.SQL("SELECT {bucket}::bigint AS bucket, {part} AS part, {measures} {events} GROUP BY 2").format(
                bucket=bucket, part=part, measures=measures, events=events
            )
        return sql.SQL(
            "SELECT {bucket}::bigint AS bucket, part, {sums},"
            " array_agg(latency_bucket ORDER BY latency_bucket) AS latency_buckets,"
            " array_agg(calls ORDER BY latency_bucket) AS latency_counts FROM ("
            " SELECT {part} AS part, {latency} AS latency_bucket, count(*) AS calls, {measures} {events} GROUP BY 1, 2) f"
            " GROUP BY part"
        ).format(bucket=bucket, sums=sums, part=part, latency=sql.SQL(BUCKET_SQL), measures=measures, events=events)

    selects: list[sql.Composable] = []
    if parts.first_day is not None and parts.end_day is not None:
        if by_model:
            selects.append(days(parts.first_day, parts.end_day))
        else:
            whole = _whole_days(parts.first_day, parts.end_day, parts.zone)
            selects += [cut(source.rollup, piece) for piece in whole]
    elif parts.rows is not None:
        bucket = "0" if question.as_one else "floor(extract(epoch FROM bucket_start) / 3600)"
        selects.append(moments(source.rollup, parts.rows, sql.SQL(bucket)))
    selects += [cut(source.rollup, piece) for piece in parts.hours]
    selects += [cut(MINUTELY, piece) for piece in parts.minutes]
    selects += [fragment(piece) for piece in parts.fragments]
    if not selects:  # an empty window
        return sql.Composed([sql.SQL("SELECT 1 WHERE false")]), {}
    rows = sql.SQL(" UNION ALL ").join(sql.SQL("({})").format(select) for select in selects)
    if not by_model:
        rows = sql.SQL(_folded(source, histograms)).format(rows=rows)
    return sql.Composed([rows, sql.SQL(" LIMIT {}").format(bound(MAX_ROWS + 1))]), parameters


def _whole_days(first: date, end: date, zone: ZoneInfo) -> Iterator[Piece]:
    """Days of a zone, as rows by the hour make them up: none of theirs reaches over a midnight of the org."""
    for n in range((end - first).days):
        start = midnight(first + n * DAY, zone)
        yield Piece(start, Window(start, midnight(first + (n + 1) * DAY, zone)))


def _folded(source: _Source, histograms: bool) -> str:
    """A query of `{rows}`, one for each bucket and part. Names beyond those that a bucket may have are one: `REST`."""
    columns = ", ".join((*MEASURES, *HISTOGRAM) if histograms else MEASURES)
    sums = ", ".join(f"{summed(name)} AS {name}" for name in MEASURES)
    crowd = source.rollup.crowd
    if crowd is None or crowd.name != source.name:
        parted = "SELECT * FROM found"
    else:
        parted = f"""
            SELECT found.bucket, CASE WHEN place <= {crowd.keeps} THEN part ELSE '{REST}' END AS part, {columns}
            FROM found LEFT JOIN (
                SELECT bucket, part AS name, {crowd.place("bucket", "part")} AS place
                FROM found WHERE part <> '{REST}' GROUP BY 1, 2
            ) named ON named.bucket = found.bucket AND named.name = part
        """
    merged = f"JOIN ({merged_histograms('parted', 'bucket, part')}) histograms USING (bucket, part)"
    return f"""
        WITH found AS ({{rows}}), parted AS ({parted})
        SELECT bucket, part, {columns} FROM (SELECT bucket, part, {sums} FROM parted GROUP BY 1, 2) sums
        {merged if histograms else ""}
    """
