"""Figures of an org over a window: the one way the API, the pages and the exports read them.

One statement, so one snapshot: daily or hourly rows by primary key, and for the buckets that the window cuts their hours
and, under an hour each, raw fragments by the primary key of the events. Nothing here grows with the number of events.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django.db import connection
from django.utils import timezone
from psycopg import sql

from orgs.limits import MAX_SERIES_POINTS
from orgs.models import Org

from .aggregation import HISTOGRAM, MEASURES, ROLLED_UP, summed
from .histogram import BUCKET_SQL, Histogram, merge
from .models import ZoneInForce
from .retention import daily_horizon, hourly_horizon
from .windows import DAY, UTC_ZONE, Granularity, Piece, Plan, Window, midnight, plan


class Unanswerable(ValueError):
    """A question that can't be answered; `field` is the parameter to change, the text says to what."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(slots=True)
class Figures:
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

    def add(self, other: "Figures") -> None:
        for name in MEASURES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

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


assert [f.name for f in fields(Figures)] == list(MEASURES)


@dataclass(slots=True)
class Point(Figures):
    """The figures of one bucket and model, as far as the window covers the bucket. `histogram` where it was asked for."""

    bucket_start: datetime = field(kw_only=True)
    model_id: uuid.UUID = field(kw_only=True)
    histogram: Histogram = field(kw_only=True, default=((), ()))


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
    if len(rows) > MAX_SERIES_POINTS:
        raise Unanswerable(
            "start",
            f"has more than {MAX_SERIES_POINTS:,} points up to end: ask for a shorter range, granularity=day or one modelId",
        )
    found: dict[tuple[datetime, uuid.UUID], Point] = {}
    midnights: dict[date, datetime] = {}
    count = len(MEASURES)
    for bucket_start, day, model_id, *values in rows:
        if day is not None and day not in midnights:
            midnights[day] = midnight(day, question.zone)
        bucket = bucket_start or midnights[day]
        histogram = tuple(values[count:]) if histograms else ((), ())
        point = Point(*values[:count], bucket_start=bucket, model_id=model_id, histogram=histogram)
        known = found.setdefault((bucket, model_id), point)
        if known is not point:  # a bucket that the window cuts comes in parts
            known.add(point)
            known.histogram = merge((known.histogram, point.histogram))
    return sorted(found.values(), key=lambda point: (point.bucket_start, point.model_id.int))


def total(items: Iterable[Figures]) -> Figures:
    """The sum of figures, exactly."""
    result = Figures()
    for item in items:
        result.add(item)
    return result


def _check_horizons(question: Question) -> None:
    """Refuse what retention has taken, naming the nearest bound that can be answered."""
    now, start = timezone.now(), question.window.start
    hours, days = hourly_horizon(now), daily_horizon(now, question.zone)
    if question.granularity is Granularity.HOUR and start < hours:
        raise Unanswerable("start", f"lies before the hours that are kept: the earliest is {hours:%Y-%m-%dT%H:%M:%SZ}")
    if start < days:
        raise Unanswerable("start", f"lies before the days that are kept: the earliest is {days:%Y-%m-%dT%H:%M:%SZ}")
    for name, moment in (("start", start), ("end", question.window.end)):
        if question.granularity is Granularity.DAY and moment < hours:
            day = moment.astimezone(question.zone).date()
            nearest = midnight(day, question.zone)
            if nearest != moment:
                raise Unanswerable(
                    name,
                    "cuts a day whose hours are no longer kept: the nearest bounds are"
                    f" {nearest:%Y-%m-%dT%H:%M:%SZ} and {midnight(day + DAY, question.zone):%Y-%m-%dT%H:%M:%SZ}",
                )


def _statement(question: Question, parts: Plan, histograms: bool) -> tuple[sql.Composed, dict[str, Any]]:
    """Rows of (bucket_start or NULL, day or NULL, model, measures…)."""
    columns = sql.SQL(", ".join((*MEASURES, *HISTOGRAM) if histograms else MEASURES))
    model = sql.SQL("" if question.model_id is None else " AND model_id = %(model)s")
    parameters: dict[str, Any] = {"org": question.org_id, "model": question.model_id, "zone": question.zone.key}

    def bound(value: object) -> sql.Placeholder:
        name = f"p{len(parameters)}"
        parameters[name] = value
        return sql.Placeholder(name)

    def hours(bucket: sql.Composable, window: Window) -> sql.Composable:
        return sql.SQL(
            "SELECT {bucket}, NULL::date, model_id, {columns} FROM usage_hourly"
            " WHERE org_id = %(org)s AND bucket_start >= {start} AND bucket_start < {end}{model}"
        ).format(bucket=bucket, columns=columns, start=bound(window.start), end=bound(window.end), model=model)

    def constant(bucket: datetime) -> sql.Composable:
        return sql.SQL("{}::timestamptz").format(bound(bucket))

    def days(first: date, end: date) -> sql.Composable:
        return sql.SQL(
            "SELECT NULL::timestamptz, day, model_id, {columns} FROM usage_daily"
            " WHERE org_id = %(org)s AND time_zone = %(zone)s AND day >= {first} AND day < {end}{model}"
        ).format(columns=columns, first=bound(first), end=bound(end), model=model)

    def fragment(piece: Piece) -> sql.Composable:
        return sql.SQL(
            "SELECT {bucket}, NULL::date, model_id, {sums}{histogram} FROM ("
            " SELECT model_id, {latency} AS latency_bucket, {measures} FROM usage_events e"
            " WHERE org_id = %(org)s AND occurred_at >= {start} AND occurred_at < {end}{model} AND {rolled_up}"
            " GROUP BY 1, 2) f GROUP BY model_id"
        ).format(
            bucket=constant(piece.bucket_start),
            sums=sql.SQL(", ".join(summed(name) for name in MEASURES)),
            histogram=sql.SQL(
                ", array_agg(latency_bucket ORDER BY latency_bucket), array_agg(invocations ORDER BY latency_bucket)"
                if histograms
                else ""
            ),
            latency=sql.SQL(BUCKET_SQL),
            measures=sql.SQL(", ".join(f"{how} AS {name}" for name, how in MEASURES.items())),
            start=bound(piece.window.start),
            end=bound(piece.window.end),
            model=model,
            rolled_up=sql.SQL(ROLLED_UP),
        )

    selects: list[sql.Composable] = []
    if parts.first_day is not None and parts.end_day is not None:
        selects.append(days(parts.first_day, parts.end_day))
    elif parts.rows is not None:
        selects.append(hours(sql.SQL("bucket_start"), parts.rows))
    selects += [hours(constant(piece.bucket_start), piece.window) for piece in parts.hours]
    selects += [fragment(piece) for piece in parts.fragments]
    if not selects:  # an empty window
        selects.append(sql.SQL("SELECT 1 WHERE false"))
    limit = sql.SQL(" LIMIT {}").format(bound(MAX_SERIES_POINTS + 1))
    return sql.SQL(" UNION ALL ").join(sql.SQL("({})").format(select) for select in selects) + limit, parameters
