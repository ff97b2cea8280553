"""Figures of an org over a window: the one way the API, the pages and the exports read them.

One statement, so one snapshot: daily or hourly rows by primary key, and for the buckets that the window cuts their hours
and, under an hour each, raw fragments by the primary key of the events. Nothing here grows with the number of events.
"""

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from operator import attrgetter
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from django.db import connection
from django.utils import timezone
from psycopg import sql

from orgs.limits import MAX_SERIES_POINTS
from orgs.models import Org

from .aggregation import HISTOGRAM, MEASURES, ROLLED_UP, summed
from .histogram import BUCKET_SQL, Histogram, merge
from .models import ZoneInForce
from .retention import daily_horizon, hourly_horizon, longest
from .windows import DAY, HOUR, UTC_ZONE, Granularity, Piece, Plan, Window, local_day, midnight, plan

MAX_ROWS = 2 * MAX_SERIES_POINTS  # read for an answer: the points of buckets that a window cuts come in parts
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unanswerable(ValueError):
    """A question that can't be answered; `field` is the parameter to change, the text says to what."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


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


class Point(Figures):
    """The figures of one bucket and model, as far as the window covers the bucket. `histogram` where it was asked for."""

    bucket_start: datetime = _EPOCH
    model_id: uuid.UUID = uuid.UUID(int=0)
    histogram: Histogram = ((), ())


def total(items: Collection[Figures]) -> Figures:
    """The sum of figures, exactly; a measure at a time, which is several times as fast as point by point."""
    sums = Figures(**{name: sum(map(get, items)) for name, get in _GETTERS.items()})
    sums.cost_cents = Decimal(sums.cost_cents)
    return sums


@dataclass(frozen=True)
class Question:
    """What is asked. `zone` is the zone whose days are meant; hours are always hours of UTC."""

    org_id: uuid.UUID
    window: Window
    granularity: Granularity = Granularity.DAY
    model_id: uuid.UUID | None = None
    zone: ZoneInfo = UTC_ZONE


def zone_of(org: Org) -> ZoneInfo:
    """The zone that an org's days are kept in."""
    name = ZoneInForce.objects.filter(org=org).values_list("time_zone", flat=True).first()
    return ZoneInfo(name) if name else UTC_ZONE


def points(question: Question, *, histograms: bool = False) -> list[Point]:
    """One point per bucket and model that saw traffic, by bucket, then model. Raises `Unanswerable`."""
    _check_horizons(question)
    parts = plan(question.window, question.granularity, question.zone)
    statement, parameters = _statement(question, parts, histograms)
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows = cursor.fetchall()
    found = _points(rows, question, histograms)
    if len(found) > MAX_SERIES_POINTS or len(rows) > MAX_ROWS:
        raise Unanswerable(
            "start",
            f"has more than {MAX_SERIES_POINTS:,} points up to end: ask for a shorter range, granularity=day or one modelId",
        )
    return found


def _points(rows: Iterable[tuple[Any, ...]], question: Question, histograms: bool) -> list[Point]:
    """Rows of (bucket, model, measures…, histogram) as points, ordered; a bucket that the window cuts comes in parts."""
    count = len(MEASURES)
    parts: dict[tuple[int, uuid.UUID], list[Point]] = {}
    starts: dict[int, datetime] = {}
    for bucket, model_id, *values in rows:
        start = starts.get(bucket)
        if start is None:
            start = starts[bucket] = _start_of(bucket, question)
        # Positions: the measures, then what `Point` adds to them.
        row = (*values[:count], start, model_id, tuple(values[count:]) if histograms else ((), ()))
        parts.setdefault((bucket, model_id), []).append(Point(*row))
    return [
        found[0] if len(found) == 1 else _joined(found)
        for _, found in sorted(parts.items(), key=lambda item: (item[0][0], item[0][1].int))
    ]


def _joined(parts: list[Point]) -> Point:
    first, sums = parts[0], msgspec.structs.astuple(total(parts))
    return Point(*(*sums, first.bucket_start, first.model_id, merge([part.histogram for part in parts])))


def _bucket_of(start: datetime, question: Question) -> int:
    """A bucket as a number, as the statement returns it: hours since 1970, or days since then in the zone."""
    if question.granularity is Granularity.HOUR:
        return (start - _EPOCH) // HOUR
    return (local_day(start, question.zone) - _EPOCH.date()).days


def _start_of(bucket: int, question: Question) -> datetime:
    if question.granularity is Granularity.HOUR:
        return _EPOCH + bucket * HOUR
    return midnight(_EPOCH.date() + bucket * DAY, question.zone)


def _check_horizons(question: Question) -> None:
    """Refuse what retention has taken, naming the nearest bound that can be answered."""
    now, start = timezone.now(), question.window.start
    hours, days = hourly_horizon(now), daily_horizon(now, question.zone)
    if question.granularity is Granularity.HOUR and start < hours:
        raise Unanswerable("start", f"lies before the hours that are kept: the earliest is {hours:%Y-%m-%dT%H:%M:%SZ}")
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
    """Rows of (bucket, model, measures…, histogram)."""
    columns = sql.SQL(", ".join((*MEASURES, *HISTOGRAM) if histograms else MEASURES))
    sums = sql.SQL(", ".join(summed(name) for name in MEASURES))
    model = sql.SQL("" if question.model_id is None else " AND model_id = %(model)s")
    parameters: dict[str, Any] = {"org": question.org_id, "model": question.model_id, "zone": question.zone.key}

    def bound(value: object) -> sql.Placeholder:
        name = f"p{len(parameters)}"
        parameters[name] = value
        return sql.Placeholder(name)

    def hours(window: Window) -> sql.Composable:
        return sql.SQL(
            "SELECT (extract(epoch FROM bucket_start) / 3600)::bigint, model_id, {columns} FROM usage_hourly"
            " WHERE org_id = %(org)s AND bucket_start >= {start} AND bucket_start < {end}{model}"
        ).format(columns=columns, start=bound(window.start), end=bound(window.end), model=model)

    def days(first: date, end: date) -> sql.Composable:
        return sql.SQL(
            "SELECT day - '1970-01-01'::date, model_id, {columns} FROM usage_daily"
            " WHERE org_id = %(org)s AND time_zone = %(zone)s AND day >= {first} AND day < {end}{model}"
        ).format(columns=columns, first=bound(first), end=bound(end), model=model)

    def hours_of_a_day(piece: Piece) -> sql.Composable:
        # Histograms are merged in Python.
        return sql.SQL(
            "SELECT {bucket}::bigint, model_id, {columns} FROM usage_hourly"
            " WHERE org_id = %(org)s AND bucket_start >= {start} AND bucket_start < {end}{model}{group}"
        ).format(
            bucket=bound(_bucket_of(piece.bucket_start, question)),
            columns=columns if histograms else sums,
            start=bound(piece.window.start),
            end=bound(piece.window.end),
            model=model,
            group=sql.SQL("" if histograms else " GROUP BY model_id"),
        )

    def fragment(piece: Piece) -> sql.Composable:
        measures = sql.SQL(", ".join(f"{how} AS {name}" for name, how in MEASURES.items()))
        events = sql.SQL(
            "FROM usage_events e WHERE org_id = %(org)s AND occurred_at >= {start} AND occurred_at < {end}{model} AND {rolled_up}"
        ).format(
            start=bound(piece.window.start), end=bound(piece.window.end), model=model, rolled_up=sql.SQL(ROLLED_UP)
        )
        bucket = bound(_bucket_of(piece.bucket_start, question))
        if not histograms:
            return sql.SQL("SELECT {bucket}::bigint, model_id, {measures} {events} GROUP BY model_id").format(
                bucket=bucket, measures=measures, events=events
            )
        return sql.SQL(
            "SELECT {bucket}::bigint, model_id, {sums}, array_agg(latency_bucket ORDER BY latency_bucket),"
            " array_agg(invocations ORDER BY latency_bucket) FROM ("
            " SELECT model_id, {latency} AS latency_bucket, {measures} {events} GROUP BY 1, 2) f GROUP BY model_id"
        ).format(bucket=bucket, sums=sums, latency=sql.SQL(BUCKET_SQL), measures=measures, events=events)

    selects: list[sql.Composable] = []
    if parts.first_day is not None and parts.end_day is not None:
        selects.append(days(parts.first_day, parts.end_day))
    elif parts.rows is not None:
        selects.append(hours(parts.rows))
    selects += [hours_of_a_day(piece) for piece in parts.hours]
    selects += [fragment(piece) for piece in parts.fragments]
    if not selects:  # an empty window
        selects.append(sql.SQL("SELECT 1 WHERE false"))
    limit = sql.SQL(" LIMIT {}").format(bound(MAX_ROWS + 1))
    return sql.SQL(" UNION ALL ").join(sql.SQL("({})").format(select) for select in selects) + limit, parameters
