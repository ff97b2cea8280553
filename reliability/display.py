"""An overview as the reliability page shows it: cells, charts, and incidents in words."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from urllib.parse import urlencode

from django.urls import reverse

from orgs.limits import MAX_INCIDENTS
from orgs.templatetags.moments import zone_label
from usage.display import Cell, SeriesRow, SeriesTable, Total, paged, span_text
from usage.filters import Filters
from usage.formatting import (
    NOTHING,
    calls,
    change,
    grouped,
    latency,
    money,
    percentage,
    points,
    round_latency,
    round_percentage,
    short,
)
from usage.histogram import PERCENTILES
from usage.lines import Line, LineChart, lined
from usage.models import REST
from usage.overview import client_name
from usage.series import Figures, Key
from usage.timeline import bucket_namer
from usage.windows import DAY, HOUR, MINUTE

from . import exact
from .conditions import Condition
from .detection import Measure
from .models import Blame, Incident
from .overview import Outcomes, Overview

STANDS_OUT = 0.4  # of the bad calls beyond the usual: a likely cause has at least this part
CSV_ROWS = 1_000_000  # of an incident's file: its onset comes last
MAX_ROWS = 20  # of the lists that are not the series
# On both sides of an incident that is looked at closely: so much that all is an hour, of which exact percentiles can be had.
LEAST_PADDING, MOST_PADDING = timedelta(minutes=10), timedelta(minutes=25)
_EXPLAINED = {
    "p50": "Half of the calls took at most this long.",
    "p95": "95 of 100 calls took at most this long.",
    "p99": "99 of 100 calls took at most this long.",
}


def rate_cell(outcomes: Outcomes | Figures) -> Cell:
    failed, number = outcomes.failures, outcomes.invocations
    if not number:
        return Cell(NOTHING, "", "No calls.")
    title = f"{failed:,} of {calls(number)} failed"
    return Cell(percentage(failed, number), f"{failed / number:.6f}", title)


def latency_cell(ms: float | None) -> Cell:
    return Cell(NOTHING, "", "No calls.") if ms is None else Cell(latency(ms), f"{ms}", f"{ms:,.0f} ms")


def _latency_cells(outcomes: Outcomes) -> list[Cell]:
    return [latency_cell(ms) for ms in outcomes.latencies.values()]


# ── Totals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def totals(overview: Overview, before: Outcomes | None) -> list[Total]:
    now, earlier = overview.total, before or Outcomes()
    span = span_text(overview.filters.window_before, overview.filters)

    def told(old: str) -> str:
        if before is None:
            return "The period before is no longer kept."
        if not earlier.invocations:
            return f"Nothing in the period before ({span})."
        return f"Against {old} in the period before ({span})."

    rate, rate_before = now.error_rate or 0.0, earlier.error_rate
    return [
        Total("total-invocations", "Calls", "Calls of any outcome, failed ones included.",
              Cell.count(now.invocations), change(now.invocations, earlier.invocations), told(grouped(earlier.invocations))),
        Total("total-error-rate", "Error rate", "Part of the calls that ended in an error, timed out or were throttled.",
              rate_cell(now), NOTHING if rate_before is None else points(rate, rate_before),
              told(percentage(earlier.failures, earlier.invocations))),
        *(
            Total(f"total-{name}", f"{name} latency", _EXPLAINED[name] + " Within 1%.",
                  latency_cell(now.latencies[name]), _latency_change(now.latencies[name], earlier.latencies[name]),
                  told(latency(earlier.latencies[name])))
            for name in PERCENTILES
        ),
    ]  # fmt: skip


def _latency_change(now: float | None, before: float | None) -> str:
    return NOTHING if now is None or not before else change(Decimal(str(now)), Decimal(str(before)))


@dataclass(frozen=True)
class Percentile:
    """One that is computed both ways."""

    name: str
    approximate: Cell
    exact: Cell


def exact_percentiles(overview: Overview, exact: dict[str, int | None]) -> list[Percentile]:
    """Milliseconds in full: what is compared is within 1 %."""
    return [
        Percentile(name, _in_ms(overview.total.latencies[name], 1), _in_ms(value, 0)) for name, value in exact.items()
    ]


def _in_ms(ms: float | None, digits: int) -> Cell:
    return (
        Cell(NOTHING, "", "No calls.") if ms is None else Cell(f"{ms:,.{digits}f} ms", f"{ms}", f"{ms:,.{digits}f} ms")
    )


# ── Charts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def charts(overview: Overview) -> tuple[LineChart, LineChart]:
    """The error rate, and the latencies, over the same buckets and with the same incidents."""
    filters, timeline, bars = overview.filters, overview.timeline, overview.bars
    unfinished, times = timeline.unfinished(filters.now), timeline.labels
    stretches = [_stretch(incident, filters) for incident in overview.incidents]
    marks = [(timeline.position(start), timeline.position(end)) for start, end in stretches]
    heads, tails = [], []
    for n, window in enumerate(timeline.windows):
        heads.append(timeline.name(n) + (" (not over yet)" if n in unfinished else ""))
        meanwhile = [
            f"Incident: {incident.get_measure_display()}"
            for incident, (start, end) in zip(overview.incidents, stretches, strict=True)
            if start < window.end and window.start < end
        ]
        tails.append(list(dict.fromkeys(meanwhile)))
    rate = Line("Error rate", [None if bar.error_rate is None else 100 * bar.error_rate for bar in bars], "rate")
    bands = [Line(name, [bar.latencies[name] for bar in bars], name) for name in PERCENTILES]
    rates_say = [_said(head, _rate_lines(bar), tail) for head, bar, tail in zip(heads, bars, tails, strict=True)]
    bands_say = [_said(head, _latency_lines(bar), tail) for head, bar, tail in zip(heads, bars, tails, strict=True)]
    return (
        lined("error-rate", [rate], (None, rate), rates_say, times, unfinished, marks, round_percentage),
        lined("latency", bands, (bands[0], bands[1]), bands_say, times, unfinished, marks, round_latency),
    )


def _said(head: str, lines: list[str], tail: list[str]) -> str:
    return "\n".join([head, *(lines or ["Calls: none"]), *tail])


def _rate_lines(bar: Outcomes) -> list[str]:
    if not bar.invocations:
        return []
    rate = percentage(bar.failures, bar.invocations)
    return [f"Error rate: {rate}", f"Failed calls: {bar.failures:,}", f"Calls: {bar.invocations:,}"]


def _latency_lines(bar: Outcomes) -> list[str]:
    if not bar.invocations:
        return []
    return [*(f"{name}: {latency(ms)}" for name, ms in bar.latencies.items()), f"Calls: {bar.invocations:,}"]


def _stretch(incident: Incident, filters: Filters) -> tuple[datetime, datetime]:
    """When it was; one that goes on reaches up to now."""
    return incident.started_at, max(incident.ended_at, filters.now) if incident.is_open else incident.ended_at


# ── Incidents ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class IncidentRow:
    when: str
    lasted: str
    what: str
    is_open: bool
    causes: list[str]
    costs: str
    conditions: list[str]
    closer_link: str
    csv_link: str


def incident_rows(overview: Overview) -> list[IncidentRow]:
    return [_incident_row(incident, overview) for incident in overview.incidents[:MAX_ROWS]]


def more_incidents(overview: Overview) -> str:
    rest = len(overview.incidents) - MAX_ROWS
    if rest <= 0:
        return ""
    number = f"More than {MAX_INCIDENTS - MAX_ROWS:,}" if len(overview.incidents) > MAX_INCIDENTS else f"{rest:,}"
    return f"{number} more, earlier in this range: choose a shorter one to see them."


def _incident_row(incident: Incident, overview: Overview) -> IncidentRow:
    filters = overview.filters
    start, end = _stretch(incident, filters)
    return IncidentRow(
        when=_when(incident.started_at, incident.ended_at, incident.is_open, filters),
        lasted=_lasted(end - start),
        what=_what(incident, overview),
        is_open=incident.is_open,
        causes=_causes(incident, overview),
        costs=f"{calls(incident.failures)} of {incident.invocations:,} failed; the failed ones used"
        f" {short(incident.failed_tokens)} tokens and cost {money(incident.failed_cost_cents)}.",
        conditions=[_sentence(Condition(condition).text) for condition in incident.conditions],
        closer_link=_closer(incident, end, filters),
        csv_link=_csv(incident, end),
    )


def _sentence(text: str) -> str:
    return (text[0] if text.startswith("p9") else text[0].upper()) + text[1:]


def _when(start: datetime, end: datetime, is_open: bool, filters: Filters) -> str:
    first, last = start.astimezone(filters.zone), end.astimezone(filters.zone)
    if is_open:
        return f"Since {first:%a %-d %b %Y, %H:%M} {zone_label(first)}"
    until = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%a %-d %b, %H:%M}"
    return f"{first:%a %-d %b %Y, %H:%M} – {until} {zone_label(last)}"


def _lasted(length: timedelta) -> str:
    minutes = max(1, length // MINUTE)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def _what(incident: Incident, overview: Overview) -> str:
    whose = f" of {overview.names[incident.model_id]}" if incident.model_id else ""
    if incident.measure == Measure.P95:
        return f"p95 latency{whose} {latency(incident.observed)} instead of {latency(incident.normal)}"
    return f"Error rate{whose} {_rate(incident.observed)} instead of {_rate(incident.normal)}"


def _rate(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.1 else percentage(Decimal(str(share)), 1)


def _causes(incident: Incident, overview: Overview) -> list[str]:
    """The one of each kind that explains most, where it stands out."""
    bad = "slow" if incident.measure == Measure.P95 else "failed"
    found = []
    for kind in ("models", "clients", "errorCodes"):
        blames: list[Blame] = incident.causes.get(kind, [])
        if blames and blames[0]["share"] >= STANDS_OUT:
            share = percentage(Decimal(str(blames[0]["share"])), 1)
            found.append(f"{_blamed(kind, blames[0]['name'], overview)}: {share} of the {bad} calls beyond the usual")
    return found or ["No model, client or error code stands out."]


def _blamed(kind: str, name: str, overview: Overview) -> str:
    if kind == "models":
        return f"Model {overview.names[uuid.UUID(name)]}"
    noun, called = ("Client", client_name(name)) if kind == "clients" else ("Error code", code_name(name))
    return f"{noun} {name}" if called == name else called


def _closer(incident: Incident, end: datetime, filters: Filters) -> str:
    """This page, for the incident and what was around it, by the minute where that is kept."""
    padding = min(MOST_PADDING, max(LEAST_PADDING, (exact.LONGEST - (end - incident.started_at)) // 2))
    start, end = incident.started_at - padding, min(end + padding, max(filters.now, end))
    return filters.link(
        range="custom", start=_local(start, filters), end=_local(end, filters), granularity="auto", exact="",
        model=incident.model_id or filters.model,
    )  # fmt: skip


def _local(moment: datetime, filters: Filters) -> str:
    """A time as the form's inputs take it; with its offset where clocks that go back make it mean two."""
    minute = moment.astimezone(filters.zone).replace(second=0, microsecond=0)
    is_plain = minute.utcoffset() == minute.replace(fold=1 - minute.fold).utcoffset()
    return (
        minute.replace(tzinfo=None).isoformat(timespec="minutes") if is_plain else minute.isoformat(timespec="minutes")
    )


def _csv(incident: Incident, end: datetime) -> str:
    query = {"start": f"{incident.started_at:%Y-%m-%dT%H:%M:%SZ}", "end": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
    query["limit"] = str(CSV_ROWS)
    if incident.model_id:
        query["modelId"] = str(incident.model_id)
    return f"{reverse('api-incident-csv', args=[incident.org_id])}?{urlencode(query)}"


# ── Lists ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """One line of a list; `width` is that of its bar, in percent."""

    name: str
    cells: list[Cell]
    share: str = ""
    width: float = 0
    link: str = ""
    style: str = ""


@dataclass(frozen=True)
class Listing:
    """The first rows of a list, and how many more there are."""

    rows: list[Row]
    more: str

    @classmethod
    def of(cls, rows: list[Row]) -> "Listing":
        rest = len(rows) - MAX_ROWS
        return cls(rows[:MAX_ROWS], f"{rest:,} more with fewer failed calls." if rest > 0 else "")


def statuses(overview: Overview) -> list[Row]:
    total = overview.total
    found = (
        ("Success", total.invocations - total.failures, "success"),
        ("Errors", total.errors, "failed"),
        ("Timed out", total.timeouts, "failed"),
        ("Throttled", total.throttled, "failed"),
    )
    return [_share_row(name, number, total.invocations, style) for name, number, style in found]


def code_rows(codes: dict[Key, Figures]) -> Listing:
    whole = sum(figures.invocations for figures in codes.values())
    ordered = sorted(codes.items(), key=lambda item: (-item[1].invocations, str(item[0])))
    return Listing.of([_share_row(code_name(key), figures.invocations, whole, "failed") for key, figures in ordered])


def _share_row(name: str, number: int, whole: int, style: str) -> Row:
    width = round(100 * number / whole, 2) if whole else 0
    return Row(name, [Cell.count(number)], percentage(number, whole), width, style=style)


def client_rows(clients: dict[Key, Figures]) -> Listing:
    ordered = sorted(clients.items(), key=lambda item: (-item[1].failures, -item[1].invocations, str(item[0])))
    return Listing.of(
        [
            Row(client_name(str(key)), [Cell.count(one.failures), Cell.count(one.invocations), rate_cell(one)])
            for key, one in ordered
        ]
    )


def model_rows(overview: Overview) -> Listing:
    filters, names = overview.filters, overview.names
    ordered = sorted(
        overview.models.items(), key=lambda item: (-item[1].failures, -item[1].invocations, names[item[0]].casefold())
    )
    return Listing.of(
        [
            Row(
                names[model],
                [Cell.count(one.failures), Cell.count(one.invocations), rate_cell(one), *_latency_cells(one)],
                link=filters.link(model=None if filters.model == model else model),
            )
            for model, one in ordered
        ]
    )


def code_name(code: Key) -> str:
    """What a page calls an error code."""
    return {"": "No code told", REST: "Other codes"}.get(str(code), str(code))


# ── The series ───────────────────────────────────────────────────────────────────────────────────────────────────


def series_table(overview: Overview) -> SeriesTable:
    filters, unit = overview.filters, overview.unit
    name = bucket_namer(overview.window, unit, filters.zone)
    ends = {bucket.start: bucket.end for bucket in overview.timeline.buckets}

    def drawn(row: tuple[datetime, Outcomes]) -> SeriesRow:
        start, one = row
        return SeriesRow(
            name(start),
            start.astimezone(filters.zone).isoformat(),
            ends[start] > filters.now,
            "",
            [Cell.count(one.invocations), Cell.count(one.failures), rate_cell(one), *_latency_cells(one)],
        )

    return paged(overview.rows, filters, drawn)


def step_name(overview: Overview) -> str:
    return {MINUTE: "Minute", HOUR: "Hour", DAY: "Day"}[overview.unit]
