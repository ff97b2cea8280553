"""What the usage page and its CSV tell: the figures of one question, by model, by bucket, and against the period before.

Read once; everything else is sums over that one answer, so that no two parts of a page can disagree.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property

from orgs.models import Org, ServedModel

from .filters import Filters
from .models import Freshness
from .series import Figures, Point, Unanswerable, points, total
from .windows import Window, buckets


@dataclass(frozen=True)
class ModelFigures:
    """The figures of one model over the whole window."""

    model_id: uuid.UUID
    name: str
    figures: Figures

    @property
    def tokens(self) -> int:
        return self.figures.input_tokens + self.figures.output_tokens

    @property
    def cents_per_thousand(self) -> Decimal | None:
        """Cost of a thousand calls, over those that have a price."""
        priced = self.figures.invocations - self.figures.unpriced_invocations
        return self.figures.cost_cents * 1000 / priced if priced else None


@dataclass(frozen=True)
class Row:
    """One line of the series: a bucket, one model of it or all (None), and its figures."""

    bucket_start: datetime
    model_id: uuid.UUID | None
    figures: Figures


@dataclass(frozen=True)
class Overview:
    org: Org
    filters: Filters
    points: list[Point]
    names: dict[uuid.UUID, str]

    @cached_property
    def total(self) -> Figures:
        return total([model.figures for model in self.models])

    @cached_property
    def models(self) -> list[ModelFigures]:
        """Each model that saw traffic."""
        by_model: dict[uuid.UUID, list[Point]] = {}
        for point in self.points:
            by_model.setdefault(point.model_id, []).append(point)
        return [ModelFigures(model, self.name_of(model), total(found)) for model, found in by_model.items()]

    @cached_property
    def buckets(self) -> list[Window]:
        """Every bucket of the window, empty ones too."""
        return list(buckets(self.filters.window, self.filters.grain, self.filters.zone))

    @cached_property
    def rows(self) -> list[Row]:
        """The series as a table: by bucket and model, or by bucket."""
        if self.filters.group == "model":
            return [Row(point.bucket_start, point.model_id, point) for point in self.points]
        by_bucket: dict[datetime, list[Point]] = {}
        for point in self.points:
            by_bucket.setdefault(point.bucket_start, []).append(point)
        return [Row(start, None, total(found)) for start, found in by_bucket.items()]

    def name_of(self, model_id: uuid.UUID | None) -> str:
        return "All models" if model_id is None else self.names[model_id]


def read(org: Org, filters: Filters) -> Overview:
    """Ask, and name the models. Raises `Unanswerable`."""
    found = points(filters.question(org.pk))
    model_ids = {point.model_id for point in found} | ({filters.model} if filters.model else set())
    return Overview(org, filters, found, names_of(model_ids | models_of(org)))


def read_before(org: Org, filters: Filters) -> Figures | None:
    """The totals of the period before; None where they are no longer kept."""
    try:
        return total(points(filters.question_before(org.pk)))
    except Unanswerable:
        return None


def models_of(org: Org) -> set[uuid.UUID]:
    """Every model that an org ever used. One row per org and model, by one_freshness_per_model."""
    return set(Freshness.objects.filter(org=org).values_list("model_id", flat=True))


def names_of(model_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, str]:
    """What people call models; of one that nobody registered, the beginning of its id."""
    named = ServedModel.objects.filter(pk__in=model_ids, is_stub=False)
    registered = dict(named.values_list("pk", "display_name"))
    return {pk: registered.get(pk) or f"Unregistered model {str(pk)[:8]}…" for pk in model_ids}
