"""What the usage page and its CSV tell: one question's figures, by model or client, by bucket, and against the period before.

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
from .models import REST, Freshness
from .series import Figures, Key, Point, Unanswerable, points, total
from .windows import Window, buckets


@dataclass(frozen=True)
class PartFigures:
    """The figures of one model or client over the whole window."""

    key: Key
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
    """One line of the series: a bucket, one model or client of it or all (None), and its figures."""

    bucket_start: datetime
    key: Key | None
    figures: Figures


@dataclass(frozen=True)
class Overview:
    org: Org
    filters: Filters
    points: list[Point]
    names: dict[uuid.UUID, str]

    @cached_property
    def total(self) -> Figures:
        return total([part.figures for part in self.parts])

    @property
    def is_by_client(self) -> bool:
        return self.filters.group == "client"

    @cached_property
    def parts(self) -> list[PartFigures]:
        """Each model, or client, that saw traffic."""
        by_key: dict[Key, list[Point]] = {}
        for point in self.points:
            by_key.setdefault(point.key, []).append(point)
        return [PartFigures(key, self.name_of(key), total(found)) for key, found in by_key.items()]

    @cached_property
    def buckets(self) -> list[Window]:
        """Every bucket of the window, empty ones too."""
        return list(buckets(self.filters.window, self.filters.grain, self.filters.zone))

    @cached_property
    def rows(self) -> list[Row]:
        """The series as a table: by bucket and model or client, or by bucket."""
        if self.filters.group != "none":
            return [Row(point.bucket_start, point.key, point) for point in self.points]
        by_bucket: dict[datetime, list[Point]] = {}
        for point in self.points:
            by_bucket.setdefault(point.bucket_start, []).append(point)
        return [Row(start, None, total(found)) for start, found in by_bucket.items()]

    def name_of(self, key: Key | None) -> str:
        """What a part is called; None is all of them."""
        if key is None:
            return "All models"
        return self.names[key] if isinstance(key, uuid.UUID) else client_name(str(key))


def read(org: Org, filters: Filters) -> Overview:
    """Ask, and name the models. Raises `Unanswerable`."""
    found = points(filters.question(org.pk))
    model_ids = {point.key for point in found if isinstance(point.key, uuid.UUID)} | models_of(org)
    return Overview(org, filters, found, names_of(model_ids, filters.model))


def read_before(org: Org, filters: Filters) -> Figures | None:
    """The totals of the period before; None where they are no longer kept."""
    try:
        return total(points(filters.question_before(org.pk)))
    except Unanswerable:
        return None


def models_of(org: Org) -> set[uuid.UUID]:
    """Every model that an org ever used. One row per org and model, by one_freshness_per_model."""
    return set(Freshness.objects.filter(org=org).values_list("model_id", flat=True))


def client_name(client_id: str) -> str:
    """What a page calls a client."""
    return {"": "No client told", REST: "Other clients"}.get(client_id, client_id)


def names_of(model_ids: Iterable[uuid.UUID], asked: uuid.UUID | None = None) -> dict[uuid.UUID, str]:
    """What people call models; of one that nobody registered, the beginning of its id.

    So too of the one that was asked for, where it is none of them: its name may be another org's business.
    """
    model_ids = set(model_ids)
    named = ServedModel.objects.filter(pk__in=model_ids, is_stub=False)
    registered = dict(named.values_list("pk", "display_name"))
    names = {pk: registered.get(pk) or f"Unregistered model {str(pk)[:8]}…" for pk in model_ids}
    return names if asked is None else {asked: f"Model {str(asked)[:8]}…"} | names
