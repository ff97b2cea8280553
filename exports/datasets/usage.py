"""Usage by bucket and model: what finance closes a month with. `COLUMNS` says what is in it.

A bucket that the range cuts counts its part alone. Months are sums of days, and days those of the zone that is asked for; hours
are hours of UTC. Rows are ordered by bucket, then model. The range is read in pieces, so memory is that of the points of a day
by the hour, or at most of `MAX_SERIES_POINTS`, however long it is.
"""

import uuid
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from itertools import groupby, islice
from typing import cast
from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import timezone

from ingestion.horizon import complete_since
from orgs.limits import EXPORT_ROWS_AT_ONCE, MAX_EXPORT_DAYS
from usage.overview import names_of
from usage.retention import hourly_horizon
from usage.series import Figures, Point, Question, TooManyPoints, Unanswerable, check_horizons, points, total
from usage.windows import DAY, UTC_ZONE, Granularity, Window, buckets, first_of_month, local_day, midnight, shift_days

from . import Column, Control, Dataset, Row, Type, snapshot

COLUMNS = (
    Column("bucket_start", Type.TIMESTAMP, "UTC, seconds", "Start of the hour, day or month.", is_whole_seconds=True),
    Column("model_id", Type.UUID, "", "Which model."),
    Column("model", Type.TEXT, "", "What people call it."),
    Column("invocations", Type.INTEGER, "calls", "Calls of any outcome.", is_summed=True),
    Column("errors", Type.INTEGER, "calls", "Those with status error.", is_summed=True),
    Column("timeouts", Type.INTEGER, "calls", "Those with status timeout.", is_summed=True),
    Column("throttled", Type.INTEGER, "calls", "Those with status throttled.", is_summed=True),
    Column("input_tokens", Type.INTEGER, "tokens", "Tokens sent, cached ones among them.", is_summed=True),
    Column("output_tokens", Type.INTEGER, "tokens", "Tokens that came back.", is_summed=True),
    Column("cost_cents", Type.DECIMAL, "cents", "Exact cost of the calls that have a price.", is_summed=True),
    Column("currency", Type.TEXT, "ISO 4217", "What the cents are of."),
    Column(
        "unpriced_invocations", Type.INTEGER, "calls", "Calls without a price: counted, and not in the cost.",
        is_summed=True,
    ),
)  # fmt: skip


class Grain(StrEnum):
    HOURLY = "hourly"
    DAILY = "daily"
    MONTHLY = "monthly"


@dataclass(frozen=True)
class Request:
    """Which usage is meant. `zone` is that of the days and months: UTC, or the org's (`usage.series.zone_of`).

    `model_ids` of None are all models, those too that appear later.
    """

    org_id: uuid.UUID
    window: Window
    grain: Grain = Grain.DAILY
    zone: ZoneInfo = UTC_ZONE
    model_ids: frozenset[uuid.UUID] | None = None

    @property
    def question(self) -> Question:
        """All of it, as `usage.series` knows it: of one model, or of all."""
        granularity = Granularity.HOUR if self.grain is Grain.HOURLY else Granularity.DAY
        one = next(iter(self.model_ids)) if self.model_ids is not None and len(self.model_ids) == 1 else None
        return Question(self.org_id, self.window, granularity, one, self.zone)


def dataset(request: Request) -> Dataset:
    """Raises `Unanswerable` for a range that is too long or no longer kept, and for no model at all."""
    check_horizons(request.question)
    check_length(request.window, request.zone)
    if request.model_ids is not None and not request.model_ids:
        raise Unanswerable("models", "names no model: leave it out to have them all")
    return Dataset("usage", COLUMNS, _rows(request), control=lambda rows: _control(request))


def check_length(window: Window, zone: ZoneInfo) -> None:
    """Raises `Unanswerable` for a range that is too long for one file."""
    if window.end > shift_days(window.start, MAX_EXPORT_DAYS, zone):
        raise Unanswerable("end", f"lies more than {MAX_EXPORT_DAYS} days after start: ask for a shorter range")


def read(question: Question, model_ids: frozenset[uuid.UUID] | None = None) -> Iterator[Point]:
    """What `usage.series.points` gives, in the same order, with no limit to how many; some models only where they are named."""
    for window in _windows(question):
        piece = replace(question, window=window)
        try:
            found = points(piece)
        except TooManyPoints:
            halves = _halves(piece)
            if halves is None:
                raise
            for half in halves:
                yield from read(half, model_ids)
            continue
        yield from (point for point in found if model_ids is None or point.key in model_ids)


def other_road(question: Question, model_ids: frozenset[uuid.UUID] | None = None) -> tuple[str, Figures]:
    """The figures of a whole window, and which rollup they were read from: not the one that the question's points come from.

    Where hours are no longer kept, or an hour that the window cuts would have to be read from raw events that are gone, days
    are all there is.
    """
    if question.granularity is Granularity.HOUR:
        return "days", added(read(replace(question, granularity=Granularity.DAY), model_ids))
    hours = replace(question, granularity=Granularity.HOUR)
    now = timezone.now()
    if question.window.start >= max(hourly_horizon(now), complete_since(now)):
        return "hours", added(read(hours, model_ids))
    return "days", added(read(question, model_ids))


def added(found: Iterable[Point]) -> Figures:
    """The sum of points, added up as they are read."""
    sums = Figures()
    points = iter(found)
    while some := list(islice(points, EXPORT_ROWS_AT_ONCE)):
        sums = total([sums, *some])
    return sums


def _control(request: Request) -> Control:
    road, figures = other_road(request.question, request.model_ids)
    return Control(road, {column.name: getattr(figures, column.name) for column in COLUMNS if column.is_summed})


def _windows(question: Question) -> Iterator[Window]:
    """Hours a UTC day at a time; days all at once. No bucket lies in two."""
    if question.granularity is Granularity.DAY:
        return iter([question.window])
    days = (Window(midnight(day, UTC_ZONE), midnight(day + DAY, UTC_ZONE)) for day in question.window.days(UTC_ZONE))
    return (Window(max(day.start, question.window.start), min(day.end, question.window.end)) for day in days)


def _halves(question: Question) -> tuple[Question, Question] | None:
    """The same question in two, parted between buckets; None where it is about one."""
    starts = [bucket.start for bucket in buckets(question.window, question.granularity, question.zone)]
    if len(starts) < 2:
        return None
    middle = starts[len(starts) // 2]
    first, second = Window(question.window.start, middle), Window(middle, question.window.end)
    return replace(question, window=first), replace(question, window=second)


def _rows(request: Request) -> Generator[Row, None, None]:
    names: dict[uuid.UUID, tuple[str, str]] = {}  # as text, and what people call it
    currency = settings.CURRENCY
    with snapshot():
        found = read(request.question, request.model_ids)
        for point in _months(found, request.zone) if request.grain is Grain.MONTHLY else found:
            key = cast(uuid.UUID, point.key)
            if key not in names:
                names[key] = (str(key), names_of([key])[key])
            yield (
                point.bucket_start,
                *names[key],
                point.invocations,
                point.errors,
                point.timeouts,
                point.throttled,
                point.input_tokens,
                point.output_tokens,
                point.cost_cents,
                currency,
                point.unpriced_invocations,
            )


def _months(days: Iterator[Point], zone: ZoneInfo) -> Iterator[Point]:
    """Days of a zone, in their order, added up by its months."""

    def month_of(point: Point) -> date:
        return first_of_month(local_day(point.bucket_start, zone))

    for first, those in groupby(days, month_of):
        sums: dict[uuid.UUID, Figures] = {}
        for point in those:
            key = cast(uuid.UUID, point.key)
            sums[key] = total([sums[key], point]) if key in sums else point
        for key in sorted(sums):
            yield _point(sums[key], first, key, zone)


def _point(figures: Figures, first: date, key: uuid.UUID, zone: ZoneInfo) -> Point:
    measures = {name: getattr(figures, name) for name in Figures.__struct_fields__}
    return Point(**measures, bucket_start=midnight(first, zone), key=key)
