"""An overview as a page shows it: cells with a text, the exact value, and a title that says what it counts."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TypeVar

from orgs.limits import MAX_PAGE_ROWS
from orgs.templatetags.moments import moment_text, zone_label

from .charts import Chart, stacked, top_series
from .filters import Filters
from .formatting import (
    NOTHING,
    calls,
    change,
    exact_cents,
    grouped,
    lag,
    money,
    percentage,
    round_money,
    round_number,
    short,
)
from .freshness import Entry, Status
from .overview import Overview, PartFigures, Row
from .series import Figures, Key
from .timeline import UNITS as UNITS_OF_TIME
from .timeline import Timeline, bucket_namer
from .windows import DAY, Window, local_day, midnight

Amount = Callable[[Figures], Decimal | int]
R = TypeVar("R")

AMOUNTS: dict[str, Amount] = {
    "spend": lambda f: f.cost_cents,
    "invocations": lambda f: f.invocations,
    "tokens": lambda f: f.input_tokens + f.output_tokens,
}
UNITS = {"spend": "Spend", "invocations": "Calls", "tokens": "Tokens"}


@dataclass(frozen=True)
class Cell:
    """A figure: what is written, the exact value for a machine, and the exact value in words."""

    text: str
    exact: str
    title: str

    @classmethod
    def cents(cls, value: Decimal) -> "Cell":
        return cls(money(value), f"{value:.4f}", exact_cents(value))

    @classmethod
    def spend(cls, figures: Figures) -> "Cell":
        """A cost that nobody knows is not a cost of zero."""
        if figures.invocations == figures.unpriced_invocations:
            return cls(NOTHING, "", "None of these calls has a price.")
        return cls.cents(figures.cost_cents)

    @classmethod
    def count(cls, value: int) -> "Cell":
        return cls(grouped(value), str(value), grouped(value))

    @classmethod
    def tokens(cls, value: int) -> "Cell":
        return cls(short(value), str(value), f"{value:,} tokens")


# ── Totals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Total:
    """One of the figures on top, and how it changed."""

    id: str
    label: str
    explained: str
    cell: Cell
    change: str
    change_title: str


def totals(overview: Overview, before: Figures | None) -> list[Total]:
    now = overview.total
    earlier = before or Figures()
    span = span_text(overview.filters.window_before, overview.filters)

    def one(pk: str, label: str, explained: str, read: Amount, cell: Callable[..., Cell]) -> Total:
        value, old = read(now), read(earlier)
        if before is None:
            title = "The period before is no longer kept."
        elif not old:
            title = f"Nothing in the period before ({span})."
        else:
            title = f"Against {cell(old).title} in the period before ({span})."
        return Total(pk, label, explained, cell(value), change(value, old), title)

    return [
        one("total-spend", "Spend", "What the calls cost; calls without a price are left out.",
            lambda f: f.cost_cents, Cell.cents),
        one("total-invocations", "Calls", "Calls of any outcome, failed ones included.",
            lambda f: f.invocations, Cell.count),
        one("total-input-tokens", "Input tokens", "Tokens sent to models, cached ones included.",
            lambda f: f.input_tokens, Cell.tokens),
        one("total-output-tokens", "Output tokens", "Tokens that models wrote.",
            lambda f: f.output_tokens, Cell.tokens),
    ]  # fmt: skip


# ── The table of models, or clients ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Column:
    key: str
    label: str
    explained: str
    link: str
    sorted: str  # ascending, descending or nothing, as aria-sort wants it

    @property
    def is_text(self) -> bool:
        return self.key == "name"


@dataclass(frozen=True)
class PartRow:
    name: str
    link: str
    colour: str
    share: str
    share_width: float
    cells: list[Cell]
    unpriced: str


def _sort_value(measure: str) -> dict[str, Callable[[PartFigures], Decimal | int | str]]:
    return {
        "name": lambda m: m.name.casefold(),
        "share": lambda m: AMOUNTS[measure](m.figures),
        "spend": lambda m: m.figures.cost_cents,
        "rate": lambda m: m.cents_per_thousand or 0,
        "invocations": lambda m: m.figures.invocations,
        "input": lambda m: m.figures.input_tokens,
        "output": lambda m: m.figures.output_tokens,
        "errors": lambda m: m.figures.failures,
    }


def part_columns(filters: Filters) -> list[Column]:
    of = {"spend": "spend", "invocations": "calls", "tokens": "tokens"}[filters.measure]
    columns = (
        ("name", "Client", "The key or application that called.")
        if filters.group == "client"
        else ("name", "Model", "The model that was called."),
        ("share", f"Share of {of}", f"Its part of all {of} in this range."),
        ("spend", "Spend", "What its calls cost; calls without a price are left out."),
        ("rate", "Per 1,000 calls", "What a thousand of its calls cost, over those that have a price."),
        ("invocations", "Calls", "Calls of any outcome, failed ones included."),
        ("input", "Input tokens", "Tokens sent to models, cached ones included."),
        ("output", "Output tokens", "Tokens that models wrote."),
        (
            "errors",
            "Failed calls",
            "Calls that ended in an error, timed out or were throttled; their part of its calls.",
        ),
    )
    return [_column(filters, *column) for column in columns]


def _column(filters: Filters, key: str, label: str, explained: str) -> Column:
    """Names sort from A first, figures from the largest; the same heading once more turns it round."""
    first, second = (key, f"-{key}") if key == "name" else (f"-{key}", key)
    state = {key: "ascending", f"-{key}": "descending"}.get(filters.sort, "")
    return Column(key, label, explained, filters.link(sort=second if filters.sort == first else first), state)


def part_rows(overview: Overview, colours: dict[Key, str]) -> list[PartRow]:
    filters, amount = overview.filters, AMOUNTS[overview.filters.measure]
    whole = amount(overview.total)
    by_name = sorted(overview.parts, key=lambda part: (part.name.casefold(), str(part.key)))
    value = _sort_value(filters.measure)[filters.sort.lstrip("-")]
    return [
        _part_row(model, filters, colours.get(model.key, "c1"), amount(model.figures), whole)
        for model in sorted(by_name, key=value, reverse=filters.sort.startswith("-"))
    ]


def _part_row(model: PartFigures, filters: Filters, colour: str, part: Decimal | int, whole: Decimal | int) -> PartRow:
    figures, rate = model.figures, model.cents_per_thousand
    failed = figures.failures
    return PartRow(
        name=model.name,
        link=filters.link(model=None if filters.model == model.key else model.key)
        if isinstance(model.key, uuid.UUID)
        else "",
        colour=colour,
        share=percentage(part, whole),
        share_width=round(float(100 * part / whole), 2) if whole else 0,
        cells=[
            Cell.spend(figures),
            Cell(NOTHING, "", "None of its calls has a price.") if rate is None else Cell.cents(rate),
            Cell.count(figures.invocations),
            Cell.tokens(figures.input_tokens),
            Cell.tokens(figures.output_tokens),
            Cell(
                f"{failed:,} ({percentage(failed, figures.invocations)})" if failed else "0",
                str(failed),
                f"{figures.errors:,} errors, {figures.timeouts:,} timed out, {figures.throttled:,} throttled",
            ),
        ],
        unpriced=f"{calls(figures.unpriced_invocations)} without a price" if figures.unpriced_invocations else "",
    )


def unpriced_notes(overview: Overview, limit: int = 3) -> list[str]:
    """Which calls the spend leaves out, the most first."""
    found = sorted(overview.parts, key=lambda m: (-m.figures.unpriced_invocations, m.name))
    found = [model for model in found if model.figures.unpriced_invocations]
    notes = []
    for model in found[:limit]:
        number = model.figures.unpriced_invocations
        verb, pronoun = ("has", "it is") if number == 1 else ("have", "they are")
        notes.append(f"{calls(number)} of {model.name} {verb} no price; {pronoun} not in the spend.")
    if rest := found[limit:]:
        number = sum(model.figures.unpriced_invocations for model in rest)
        notes.append(f"{calls(number)} more, of {len(rest)} other{'' if len(rest) == 1 else 's'}, likewise.")
    return notes


# ── The series ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class SeriesRow:
    when: str
    start: str
    is_unfinished: bool
    model: str
    cells: list[Cell]


@dataclass(frozen=True)
class SeriesTable:
    """One page of the series; `first` and `last` count from 1."""

    rows: list[SeriesRow]
    first: int
    last: int
    count: int
    previous: str
    next: str

    @property
    def summary(self) -> str:
        return "Table of one row" if self.count == 1 else f"Table of {self.count:,} rows"

    @property
    def position(self) -> str:
        return f"{self.first:,}–{self.last:,} of {self.count:,}"


def series_table(overview: Overview) -> SeriesTable:
    filters = overview.filters
    name = bucket_namer(filters.window, UNITS_OF_TIME[filters.grain], filters.zone)
    ends = {bucket.start: bucket.end for bucket in overview.buckets}

    def drawn(row: Row) -> SeriesRow:
        return SeriesRow(
            name(row.bucket_start),
            row.bucket_start.astimezone(filters.zone).isoformat(),
            ends[row.bucket_start] > filters.now,
            overview.name_of(row.key),
            [
                Cell.spend(row.figures),
                Cell.count(row.figures.invocations),
                Cell.count(row.figures.input_tokens),
                Cell.count(row.figures.output_tokens),
                Cell.count(row.figures.failures),
                Cell.count(row.figures.unpriced_invocations),
            ],
        )

    return paged(overview.rows, filters, drawn)


def paged(rows: Sequence[R], filters: Filters, drawn: Callable[[R], SeriesRow]) -> SeriesTable:
    """The page of a series that is asked for, or the last one."""
    pages = max(1, -(-len(rows) // MAX_PAGE_ROWS))
    page = min(filters.page, pages)
    first = (page - 1) * MAX_PAGE_ROWS
    shown = [drawn(row) for row in rows[first : first + MAX_PAGE_ROWS]]
    return SeriesTable(
        rows=shown,
        first=first + 1,
        last=first + len(shown),
        count=len(rows),
        previous=filters.link(page=page - 1) if page > 1 else "",
        next=filters.link(page=page + 1) if page < pages else "",
    )


# ── The chart ────────────────────────────────────────────────────────────────────────────────────────────────────


def chart(overview: Overview) -> tuple[Chart, dict[Key, str], bool]:
    """The chart, the colour of each part of it, and whether its bars are longer than the buckets asked for."""
    filters, amount = overview.filters, AMOUNTS[overview.filters.measure]
    timeline = Timeline(overview.buckets, UNITS_OF_TIME[filters.grain], filters.zone)
    count = len(timeline.bars)
    amounts: dict[Key, list[Decimal | int]] = {part.key: [0] * count for part in overview.parts}
    for point in overview.points:
        amounts[point.key][timeline.place[point.bucket_start]] += amount(point)
    series, colours = top_series(amounts, overview.name_of, "client" if overview.is_by_client else "model")
    is_spend = filters.measure == "spend"
    text: Callable[..., str] = money if is_spend else grouped
    unfinished = timeline.unfinished(filters.now)
    says = []
    for n in range(count):
        parts = [(one.name, one.amounts[n]) for one in series if one.amounts[n]]
        lines = [timeline.name(n) + (" (not over yet)" if n in unfinished else "")]
        lines.append(f"{UNITS[filters.measure]}: {text(sum((value for _, value in parts), Decimal(0)))}")
        if len(series) > 1:
            lines += [f"{name}: {text(value)}" for name, value in parts]
        says.append("\n".join(lines))
    label = round_money if is_spend else round_number
    drawn = stacked(series, says, timeline.labels, unfinished, label, Decimal(0) if is_spend else Decimal(1))
    return drawn, colours, timeline.is_coarser


# ── Time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def span_text(window: Window, filters: Filters) -> str:
    """A window in words: days where it is made of whole days, else with times."""
    zone = filters.zone
    if all(edge == midnight(local_day(edge, zone), zone) for edge in (window.start, window.end)) and window:
        first, last = local_day(window.start, zone), local_day(window.end, zone) - DAY
        if first == last:
            return f"{first:%-d %b %Y}"
        left = f"{first:%-d}" if (first.year, first.month) == (last.year, last.month) else (
            f"{first:%-d %b}" if first.year == last.year else f"{first:%-d %b %Y}"
        )  # fmt: skip
        return f"{left} – {last:%-d %b %Y}"
    start, end = window.start.astimezone(zone), window.end.astimezone(zone)
    return f"{start:%-d %b %Y, %H:%M} – {end:%-d %b %Y, %H:%M}"


def zone_text(filters: Filters) -> str:
    """The zone in use, written out, with what it is ahead of UTC."""
    if filters.zone.key == "UTC":
        return "UTC"
    offset = filters.now.astimezone(filters.zone).strftime("%z")
    sign = "−" if offset[0] == "-" else "+"
    minutes = "" if offset[3:5] == "00" else f":{offset[3:5]}"
    return f"{filters.zone.key.replace('_', ' ')} (UTC{sign}{int(offset[1:3])}{minutes})"


@dataclass(frozen=True)
class FreshnessNote:
    """How far the figures reach, in words; `meaning` where that matters for reading them."""

    status: Status
    label: str
    text: str
    meaning: str
    title: str


def freshness_note(entry: Entry, filters: Filters) -> FreshnessNote:
    if entry.last_event_at is None or entry.lag_seconds is None:
        return FreshnessNote(Status.DELAYED, "Waiting", "no calls have been received yet", "", "")
    local = (filters.now - timedelta(seconds=entry.lag_seconds)).astimezone(filters.zone)
    is_today = local.date() == local_day(filters.now, filters.zone)
    clock = f"{local:%H:%M}" if is_today else f"{local:%-d %b, %H:%M}"
    text = f"complete up to {clock} {zone_label(local)}, {lag(entry.lag_seconds)} behind"
    meaning = {
        Status.FRESH: "",
        Status.STALE: "Calls since then are still being counted, so the newest figures are a little too low.",
        Status.DELAYED: "Calls since then are not counted yet, so the newest figures are too low. Nothing is lost.",
    }[entry.status]
    title = f"Newest call that is counted: {moment_text(entry.last_event_at, filters.zone)}."
    return FreshnessNote(entry.status, entry.status.capitalize(), text, meaning, title)
