"""What the usage page shows of some filters: totals, chart, table by model, table by bucket."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from orgs.limits import MAX_PAGE_ROWS
from orgs.models import ServedModel

from . import charts, freshness
from .filters import Filters
from .formatting import change, exact_money, grouped, money, percentage, short
from .series import Figures, Point, Unanswerable, points, total
from .windows import DAY, HOUR, Granularity, local_day, midnight

MAX_TIME_LABELS = 8


@dataclass(frozen=True)
class Card:
    """One total, and how it changed against the time before."""

    id: str
    title: str
    shown: str
    exact: str
    data_exact: str
    change: str


@dataclass(frozen=True)
class ModelRow:
    name: str
    id: uuid.UUID
    share: str
    spend: str
    exact_spend: str
    per_thousand: str
    figures: Figures
    link: str
    is_unpriced: bool


@dataclass(frozen=True)
class BucketRow:
    label: str
    name: str
    spend: str
    exact_spend: str
    figures: Figures
    unfinished: bool


@dataclass(frozen=True)
class Report:
    filters: Filters
    cards: list[Card]
    chart: charts.Chart
    models: list[ModelRow]
    buckets: list[BucketRow]
    pages: int
    unpriced: list[tuple[str, int]]
    freshness: freshness.Entry
    window_label: str
    names: dict[uuid.UUID, str]

    @property
    def is_empty(self) -> bool:
        return not self.models

    @property
    def has_ever_counted(self) -> bool:
        return self.freshness.last_rollup_at is not None

    @property
    def complete_up_to(self) -> datetime | None:
        """Figures hold every call accepted before this."""
        lag = self.freshness.lag_seconds
        return None if lag is None else self.filters.now - timedelta(seconds=lag)


def model_names(ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, str]:
    """Names for people; a model that nobody registered is known by the start of its id."""
    registered = dict(ServedModel.objects.filter(pk__in=set(ids)).values_list("pk", "display_name"))
    return {pk: registered.get(pk, f"Unregistered model {str(pk)[:8]}…") for pk in set(ids)}


def bucket_label(filters: Filters, bucket: datetime) -> str:
    local = bucket.astimezone(filters.zone)
    return f"{local:%a %d %b, %H:%M}" if filters.granularity is Granularity.HOUR else f"{local:%a %d %b %Y}"


def build(filters: Filters) -> Report:
    """Everything on the page, from two reads of the rollups. Raises `Unanswerable`."""
    series = points(filters.question)
    try:
        before = total(points(filters.question_before))
    except Unanswerable:  # no longer kept: nothing to compare with
        before = Figures()
    sums = total(series)
    by_model = _by(series, lambda point: point.model_id)
    names = model_names({*by_model, *([filters.model_id] if filters.model_id else [])})
    rows = sorted(series, key=lambda point: (-point.bucket_start.timestamp(), names[point.model_id]))
    pages = max(1, -(-len(rows) // MAX_PAGE_ROWS))
    first = (min(filters.page, pages) - 1) * MAX_PAGE_ROWS
    return Report(
        filters=filters,
        cards=_cards(sums, before),
        chart=_chart(filters, series, names),
        models=_model_rows(filters, by_model, sums, names),
        buckets=[_bucket_row(filters, point, names) for point in rows[first : first + MAX_PAGE_ROWS]],
        pages=pages,
        unpriced=[(names[m], f.unpriced_invocations) for m, f in by_model.items() if f.unpriced_invocations],
        freshness=freshness.overall(filters.org.pk),
        window_label=_window_label(filters),
        names=names,
    )


def _by(series: list[Point], key: Callable[[Point], uuid.UUID]) -> dict[uuid.UUID, Figures]:
    found: dict[uuid.UUID, Figures] = {}
    for point in series:
        found.setdefault(key(point), Figures()).add(point)
    return found


def _cards(now: Figures, before: Figures) -> list[Card]:
    def count(id_: str, title: str, value: int, earlier: int) -> Card:
        return Card(id_, title, short(value), grouped(value), str(value), change(value, earlier))

    spend = Card(
        "total-spend",
        "Spend",
        money(now.cost_cents),
        exact_money(now.cost_cents),
        now.exact_cost,
        change(now.cost_cents, before.cost_cents),
    )
    return [
        spend,
        count("total-invocations", "Invocations", now.invocations, before.invocations),
        count("total-input-tokens", "Input tokens", now.input_tokens, before.input_tokens),
        count("total-output-tokens", "Output tokens", now.output_tokens, before.output_tokens),
    ]


_SORT_KEYS: dict[str, Callable[[ModelRow], object]] = {
    "spend": lambda row: -row.figures.cost_cents,
    "invocations": lambda row: -row.figures.invocations,
    "input": lambda row: -row.figures.input_tokens,
    "output": lambda row: -row.figures.output_tokens,
    "errors": lambda row: -row.figures.failures,
    "name": lambda row: row.name.lower(),
}


def _model_rows(
    filters: Filters, by_model: dict[uuid.UUID, Figures], sums: Figures, names: dict[uuid.UUID, str]
) -> list[ModelRow]:
    rows = []
    for model_id, figures in by_model.items():
        priced = figures.invocations - figures.unpriced_invocations
        rows.append(
            ModelRow(
                name=names[model_id],
                id=model_id,
                share=percentage(figures.cost_cents, sums.cost_cents),
                spend=money(figures.cost_cents) if priced else "no price",
                exact_spend=exact_money(figures.cost_cents),
                per_thousand=money(1000 * figures.cost_cents / priced) if priced else "–",
                figures=figures,
                link=filters.link(model=model_id, page=""),
                is_unpriced=bool(figures.unpriced_invocations),
            )
        )
    key = _SORT_KEYS[filters.sort]
    return sorted(rows, key=lambda row: (key(row), row.name))  # type: ignore[arg-type, return-value]


def _bucket_row(filters: Filters, point: Point, names: dict[uuid.UUID, str]) -> BucketRow:
    return BucketRow(
        label=bucket_label(filters, point.bucket_start),
        name=names[point.model_id],
        spend=money(point.cost_cents) if point.invocations > point.unpriced_invocations else "no price",
        exact_spend=exact_money(point.cost_cents),
        figures=point,
        unfinished=_end_of(filters, point.bucket_start) > filters.now,
    )


def _end_of(filters: Filters, bucket: datetime) -> datetime:
    if filters.granularity is Granularity.HOUR:
        return bucket + HOUR
    return midnight(local_day(bucket, filters.zone) + DAY, filters.zone)


def _buckets(filters: Filters) -> list[datetime]:
    """Every bucket of the window, with traffic or without."""
    window = filters.window
    if filters.granularity is Granularity.HOUR:
        return [piece.start for piece in window.pieces(HOUR)]
    return [midnight(day, filters.zone) for day in window.days(filters.zone)]


_AMOUNTS: dict[str, Callable[[Figures], Decimal]] = {
    "spend": lambda figures: figures.cost_cents / 100,
    "invocations": lambda figures: Decimal(figures.invocations),
    "tokens": lambda figures: Decimal(figures.input_tokens + figures.output_tokens),
}


def _chart(filters: Filters, series: list[Point], names: dict[uuid.UUID, str]) -> charts.Chart:
    buckets = _buckets(filters)
    # A zone of half hours has buckets of whole UTC hours all the same.
    position = {bucket: n for n, bucket in enumerate(buckets)}
    amount = _AMOUNTS[filters.measure]
    amounts: dict[str, list[Decimal]] = {}
    sums = [Figures() for _ in buckets]
    for point in series:
        n = position.get(point.bucket_start)
        if n is None:  # the hour that a window of a zone of half hours begins in
            n = 0 if point.bucket_start < buckets[0] else len(buckets) - 1
        amounts.setdefault(names[point.model_id], [Decimal()] * len(buckets))[n] += amount(point)
        sums[n].add(point)
    step = max(1, -(-len(buckets) // MAX_TIME_LABELS))
    form = "%d %b" if filters.granularity is Granularity.DAY or len(buckets) > 24 else "%H:%M"
    return charts.stacked(
        charts.top_series(amounts),
        [bucket_label(filters, bucket) for bucket in buckets],
        {n: buckets[n].astimezone(filters.zone).strftime(form) for n in range(0, len(buckets), step)},
        [
            f"{bucket_label(filters, bucket)}: {money(f.cost_cents)}, {f.invocations:,} invocations,"
            f" {f.input_tokens:,} input and {f.output_tokens:,} output tokens"
            + (" (not over yet)" if _end_of(filters, bucket) > filters.now else "")
            for bucket, f in zip(buckets, sums, strict=True)
        ],
        {n for n, bucket in enumerate(buckets) if _end_of(filters, bucket) > filters.now},
        _axis_label(filters),
    )


def _axis_label(filters: Filters) -> Callable[[Decimal], str]:
    def label(amount: Decimal) -> str:
        if filters.measure == "spend":
            return (
                exact_money(amount * 100).rstrip("0").rstrip(".")
                if amount < 1
                else money(amount * 100).removesuffix(".00")
            )
        return short(int(amount)) if amount == int(amount) else str(amount.normalize())

    return label


def _window_label(filters: Filters) -> str:
    start, end = (moment.astimezone(filters.zone) for moment in (filters.window.start, filters.window.end))
    if filters.range == "24h":
        return f"{start:%d %b %Y, %H:%M} to {end:%d %b %Y, %H:%M}, time zone {filters.zone.key}"
    last = (filters.window.end - timedelta(microseconds=1)).astimezone(filters.zone)
    return f"{start:%d %b %Y} to {last:%d %b %Y}, days of {filters.zone.key}"
