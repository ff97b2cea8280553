"""What the reliability page tells. The series is read once: totals, status and models are sums over that one answer.

Clients and error codes are kept by the hour alone, so where a range reaches back beyond hours they are not told.
"""

import uuid
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Protocol, TypeVar

from django.utils import timezone

from orgs.models import Org
from usage.filters import Filters
from usage.histogram import PERCENTILES, Histogram, merge, percentiles
from usage.overview import models_of, names_of
from usage.recent import minutes
from usage.retention import minutes_horizon
from usage.series import Figures, Group, Key, Question, Unanswerable, points
from usage.timeline import UNITS, Timeline
from usage.windows import HOUR, MINUTE, Granularity, Window, buckets, ceil_minute, floor_minute

from . import exact
from .incidents import incidents_of
from .models import Incident

MINUTES_UP_TO = timedelta(hours=6)
_NO_HISTOGRAM: Histogram = ((), ())
K = TypeVar("K", bound=Hashable)


class Counted(Protocol):
    """What a point of a series and a minute have in common."""

    @property
    def invocations(self) -> int: ...
    @property
    def errors(self) -> int: ...
    @property
    def timeouts(self) -> int: ...
    @property
    def throttled(self) -> int: ...
    @property
    def histogram(self) -> Histogram: ...


@dataclass(frozen=True)
class Outcomes:
    """How some calls ended, and how long they took."""

    invocations: int = 0
    errors: int = 0
    timeouts: int = 0
    throttled: int = 0
    histogram: Histogram = _NO_HISTOGRAM

    @property
    def failures(self) -> int:
        return self.errors + self.timeouts + self.throttled

    @property
    def error_rate(self) -> float | None:
        return self.failures / self.invocations if self.invocations else None

    @cached_property
    def latencies(self) -> dict[str, float | None]:
        """The percentiles in ms, each within 1 %."""
        return dict(zip(PERCENTILES, percentiles(self.histogram, list(PERCENTILES.values())), strict=True))


@dataclass(frozen=True)
class Part:
    """The outcomes of one model, in one bucket."""

    bucket_start: datetime
    model_id: uuid.UUID
    outcomes: Counted


def together(items: Iterable[Counted]) -> Outcomes:
    found = list(items)
    return Outcomes(
        sum(item.invocations for item in found),
        sum(item.errors for item in found),
        sum(item.timeouts for item in found),
        sum(item.throttled for item in found),
        merge(item.histogram for item in found),
    )


@dataclass(frozen=True)
class Overview:
    org: Org
    filters: Filters
    window: Window
    unit: timedelta
    parts: list[Part]
    incidents: list[Incident]
    names: dict[uuid.UUID, str] = field(default_factory=dict)

    @cached_property
    def timeline(self) -> Timeline:
        """Every bucket of the window, empty ones too."""
        if self.unit < HOUR:
            return Timeline(list(self.window.pieces(MINUTE)), MINUTE, self.filters.zone)
        filters = self.filters
        return Timeline(list(buckets(self.window, filters.grain, filters.zone)), self.unit, filters.zone)

    @cached_property
    def rows(self) -> list[tuple[datetime, Outcomes]]:
        """The series, all models together: the buckets that saw calls, in the order of time."""
        return sorted(self._by(lambda part: part.bucket_start).items(), key=lambda row: row[0])

    @cached_property
    def bars(self) -> list[Outcomes]:
        """The series as the charts show it: a bar may hold several buckets, and may be empty."""
        found: list[list[Outcomes]] = [[] for _ in self.timeline.bars]
        for start, outcomes in self.rows:
            found[self.timeline.place[start]].append(outcomes)
        return [one[0] if len(one) == 1 else together(one) for one in found]

    @cached_property
    def models(self) -> dict[uuid.UUID, Outcomes]:
        return self._by(lambda part: part.model_id)

    @cached_property
    def total(self) -> Outcomes:
        return together(self.bars)

    def _by(self, key_of: Callable[[Part], K]) -> dict[K, Outcomes]:
        found: dict[K, list[Counted]] = {}
        for part in self.parts:
            found.setdefault(key_of(part), []).append(part.outcomes)
        return {key: together(items) for key, items in found.items()}


def read(org: Org, filters: Filters) -> Overview:
    """Ask, and name the models. Raises `Unanswerable`."""
    window, unit = _buckets_of(filters)
    _check(filters, window)
    parts = _minutes(org, filters, window) if unit < HOUR else _points(org, filters)
    incidents = incidents_of(org, window, filters.model)
    found = Overview(org, filters, window, unit, parts, incidents)
    return replace(found, names=names_of(_models_named(found), filters.model))


def _buckets_of(filters: Filters) -> tuple[Window, timedelta]:
    """The window, and how long its buckets are. Minutes are told whole."""
    window = filters.window
    by_minute = Window(floor_minute(window.start), ceil_minute(window.end))
    is_short = by_minute.end - by_minute.start <= MINUTES_UP_TO
    if filters.granularity == "auto" and is_short and by_minute.start >= minutes_horizon(timezone.now()):
        return by_minute, MINUTE
    return window, UNITS[filters.grain]


def _check(filters: Filters, window: Window) -> None:
    if filters.exact and window.end - window.start > exact.LONGEST:
        raise Unanswerable("exact", "percentiles are made from every single call: ask for a range of at most one hour")


def _minutes(org: Org, filters: Filters, window: Window) -> list[Part]:
    return [Part(minute.start, minute.model_id, minute) for minute in minutes(window, org.pk, filters.model)]


def _points(org: Org, filters: Filters) -> list[Part]:
    question = replace(filters.question(org.pk), group=Group.MODEL)
    return [
        Part(point.bucket_start, point.key, point)
        for point in points(question, histograms=True)
        if isinstance(point.key, uuid.UUID)
    ]


def _models_named(found: Overview) -> set[uuid.UUID]:
    named = set(found.models) | models_of(found.org) | {one.model_id for one in found.incidents if one.model_id}
    return named | {uuid.UUID(blame["name"]) for one in found.incidents for blame in one.causes["models"]}


def read_before(org: Org, filters: Filters) -> Outcomes | None:
    """The totals of the period before; None where they are no longer kept."""
    try:
        return together(points(filters.question_before(org.pk), histograms=True))
    except Unanswerable:
        return None


def read_group(found: Overview, group: Group) -> dict[Key, Figures] | None:
    """The figures of each client or error code over the whole window; None where they are no longer kept."""
    filters = found.filters
    question = Question(
        found.org.pk, found.window, Granularity.HOUR, filters.model, filters.zone, group, as_one=True
    )  # fmt: skip
    try:
        return {point.key: point for point in points(question)}
    except Unanswerable:
        return None


def read_exact(found: Overview) -> dict[str, int | None] | None:
    """The percentiles of the calls themselves, where they are asked for."""
    if not found.filters.exact:
        return None
    values = exact.percentiles(found.org.pk, found.window, list(PERCENTILES.values()), found.filters.model)
    return dict(zip(PERCENTILES, values, strict=True))
