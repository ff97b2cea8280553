"""What the address of a usage page asks for: the query string, read, and written again."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django.conf import settings

from .retention import longest
from .series import Group, Question
from .windows import (
    DAY,
    FIRST_YEAR,
    HOUR,
    LAST_YEAR,
    UTC_ZONE,
    Granularity,
    Window,
    ceil_hour,
    local_day,
    midnight,
    previous_month,
    shift_days,
    utc,
)

RANGES = {
    "24h": "24 hours",
    "7d": "7 days",
    "30d": "30 days",
    "month": "This month",
    "last_month": "Last month",
    "custom": "Custom",
}
GRANULARITIES = {"auto": "Automatic", "hour": "By hour", "day": "By day"}
MEASURES = {"spend": "Spend", "invocations": "Calls", "tokens": "Tokens"}
KINDS = {"model": "Models", "client": "Clients"}
GROUPS = {"model": "Per model", "client": "Per client", "none": "All together"}
# What the table of models or clients can be sorted by; a minus before it means largest first.
SORTS = ("name", "share", "spend", "rate", "invocations", "input", "output", "errors")
HOURLY_UP_TO = timedelta(days=3)  # automatic granularity: hours up to here, days beyond
_FOREVER = datetime.max.replace(tzinfo=UTC)


class _Wrong(ValueError):
    """A parameter is not what it should be."""


@dataclass(frozen=True)
class Filters:
    """The state of a page. `errors` says, per field, what could not be read; its default stands instead."""

    zone: ZoneInfo = UTC_ZONE
    now: datetime = _FOREVER
    range: str = "7d"
    start: str = ""
    end: str = ""
    granularity: str = "auto"
    model: uuid.UUID | None = None
    measure: str = "spend"
    group: str = "model"
    sort: str = "-spend"
    page: int = 1
    exact: str = ""  # "1": percentiles of the calls themselves too
    clients: str = ""  # "1": clients too, where that takes longer than the rest of the page
    errors: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def window(self) -> Window:
        """Whole days of the zone, the last of which may not be over; for 24 hours whole hours."""
        today = local_day(self.now, self.zone)
        if self.range == "custom" and not {"start", "end"} & set(self.errors):
            return _custom(self.start, self.end, self.zone)
        if self.range == "24h":
            end = ceil_hour(self.now)
            return Window(end - 24 * HOUR, end)
        month = today.replace(day=1)
        first, last = {
            "30d": (today - 29 * DAY, today),
            "month": (month, today),
            "last_month": (previous_month(month), month - DAY),
        }.get(self.range, (today - 6 * DAY, today))
        return Window(midnight(first, self.zone), midnight(last + DAY, self.zone))

    @cached_property
    def window_before(self) -> Window:
        """The period before; of one that is under way as much as has passed of this one, so that like stands beside like."""
        window, zone = self.window, self.zone
        passed = min(window.end, max(self.now, window.start))
        if self.range in ("month", "last_month"):
            first = local_day(window.start, zone)
            days = (first - previous_month(first)).days
        elif self.range == "24h" or not self._whole_days:
            length = window.end - window.start
            return Window(window.start - length, passed - length)
        else:
            days = (local_day(window.end, zone) - local_day(window.start, zone)).days
        # A month may be longer than the one before it.
        start, end = shift_days(window.start, -days, zone), shift_days(passed, -days, zone)
        if passed == window.end:
            end = window.start
        return Window(start, min(end, window.start))

    @property
    def _whole_days(self) -> bool:
        edges = (self.window.start, self.window.end)
        return all(edge == midnight(local_day(edge, self.zone), self.zone) for edge in edges)

    @property
    def grain(self) -> Granularity:
        if self.granularity != "auto":
            return Granularity(self.granularity)
        return Granularity.HOUR if self.window.end - self.window.start <= HOURLY_UP_TO else Granularity.DAY

    def question(self, org_id: uuid.UUID) -> Question:
        group = Group.CLIENT if self.group == "client" else Group.MODEL
        return Question(org_id, self.window, self.grain, self.model, self.zone, group)

    def question_before(self, org_id: uuid.UUID) -> Question:
        return Question(org_id, self.window_before, Granularity.DAY, self.model, self.zone)

    def link(self, **changes: object) -> str:
        """The query string of this state with some of it changed; defaults are left out, and a change begins at page 1."""
        state = {f.name: getattr(self, f.name) for f in _STATE} | {"page": 1, "clients": ""} | changes
        if state["range"] != "custom":
            state["start"] = state["end"] = ""
        kept = {f.name: state[f.name] for f in _STATE if state[f.name] not in (f.default, "", None)}
        return "?" + urlencode(kept)

    @property
    def carried(self) -> str:
        """What the other page of the same figures takes over: the range, its steps and the model."""
        own = {f.name: f.default for f in _STATE if f.name in ("measure", "group", "sort", "exact", "clients")}
        query = self.link(**own)
        return "" if query == "?" else query

    @property
    def first_day(self) -> str:
        """The start as a date or date-time input shows it."""
        if self.range == "custom" and self.start:
            return self.start
        return local_day(self.window.start, self.zone).isoformat()

    @property
    def last_day(self) -> str:
        if self.range == "custom" and self.end:
            return self.end
        return local_day(min(self.window.end - HOUR, self.now), self.zone).isoformat()


_STATE = [f for f in fields(Filters) if f.name not in ("zone", "now", "errors")]


def read(query: Mapping[str, str], zone: ZoneInfo, now: datetime) -> Filters:
    """The state that a query string tells. Never raises: what is wrong stands in `errors`."""
    errors: dict[str, str] = {}

    def choice(name: str, allowed: Collection[str], default: str) -> str:
        given = query.get(name) or default
        if given in allowed:
            return given
        errors[name] = f"must be one of {', '.join(allowed)}"
        return default

    start, end = query.get("start", "").strip(), query.get("end", "").strip()
    chosen = choice("range", RANGES, "custom" if start or end else "7d")
    if chosen == "custom":
        try:
            _custom(start, end, zone)
        except _Wrong as wrong:
            errors[wrong.args[0]] = wrong.args[1]
    model = None
    try:
        model = uuid.UUID(query["model"]) if query.get("model") else None
    except ValueError:
        errors["model"] = "must be the id of a model"
    page = query.get("page", "")
    return Filters(
        zone=zone,
        now=now,
        range=chosen,
        start=start if chosen == "custom" else "",
        end=end if chosen == "custom" else "",
        granularity=choice("granularity", GRANULARITIES, "auto"),
        model=model,
        measure=choice("measure", MEASURES, "spend"),
        group=choice("group", GROUPS, "model"),
        sort=choice("sort", [*SORTS, *(f"-{name}" for name in SORTS)], "-spend"),
        exact=choice("exact", ("", "1"), ""),
        clients=choice("clients", ("", "1"), ""),
        page=max(1, int(page)) if page.isascii() and page.isdecimal() and len(page) < 7 else 1,
        errors=errors,
    )


def _custom(start: str, end: str, zone: ZoneInfo) -> Window:
    """From the start of one day to the end of another, or between two moments."""
    first, last = _edge("start", start, zone), _edge("end", end, zone)
    if first >= last:
        raise _Wrong("end", "must not lie before the start")
    if last - first > longest():
        months = settings.DAILY_RETENTION_MONTHS
        raise _Wrong(
            "start", f"and end lie more than {longest().days} days apart; figures are kept for {months} months"
        )
    return Window(first, last)


def _edge(name: str, text: str, zone: ZoneInfo) -> datetime:
    if not text:
        raise _Wrong(name, "is needed for a custom range")
    try:
        moment = datetime.fromisoformat(text)
        if not FIRST_YEAR <= moment.year <= LAST_YEAR:
            raise _Wrong(name, f"lies too far {'ahead' if moment.year > LAST_YEAR else 'back'}")
        if "T" not in text and " " not in text:  # a day; the last one is included
            return midnight(moment.date() + (DAY if name == "end" else timedelta()), zone)
        return utc(moment if moment.tzinfo else moment.replace(tzinfo=zone))
    except _Wrong:
        raise
    except (ValueError, OverflowError):
        raise _Wrong(name, "must be a date such as 2026-01-31, or a time such as 2026-01-31T14:00") from None
