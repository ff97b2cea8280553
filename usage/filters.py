"""What the address of a usage page asks for: the query string, read, and written again."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from orgs.models import Org

from .series import Question, zone_of
from .windows import DAY, HOUR, Granularity, Window, ceil_hour, local_day, midnight

RANGES = {
    "24h": "Last 24 hours",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "month": "This month",
    "last_month": "Last month",
    "custom": "Custom",
}
MEASURES = {"spend": "Spend", "invocations": "Invocations", "tokens": "Tokens"}
SORTS = ("spend", "invocations", "input", "output", "errors", "name")
GRANULARITIES = {"": "Automatic", "hour": "By hour", "day": "By day"}
HOURLY_UP_TO = timedelta(days=3)  # automatic granularity: hours up to here, days beyond


@dataclass(frozen=True)
class Filters:
    """The state of a page. `errors` says, per field, what could not be read; its default stands instead."""

    org: Org
    zone: ZoneInfo
    now: datetime
    range: str = "7d"
    first: date | None = None
    last: date | None = None
    granularity_choice: str = ""
    model_id: uuid.UUID | None = None
    measure: str = "spend"
    sort: str = "spend"
    page: int = 1
    errors: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, query: Mapping[str, str], org: Org, now: datetime) -> "Filters":
        errors: dict[str, str] = {}

        def choice(name: str, allowed: Mapping[str, str] | tuple[str, ...], default: str) -> str:
            given = query.get(name, default)
            if given in allowed:
                return given
            errors[name] = f"{given!r} is none of the choices"
            return default

        def day(name: str) -> date | None:
            if not query.get(name):
                return None
            try:
                return date.fromisoformat(query[name])
            except ValueError:
                errors[name] = "must be a date, such as 2026-01-31"
                return None

        model_id = None
        if query.get("model"):
            try:
                model_id = uuid.UUID(query["model"])
            except ValueError:
                errors["model"] = "is no model"
        page = query.get("page", "1")
        filters = cls(
            org=org,
            zone=zone_of(org),
            now=now,
            range=choice("range", RANGES, "7d"),
            first=day("start"),
            last=day("end"),
            granularity_choice=choice("granularity", GRANULARITIES, ""),
            model_id=model_id,
            measure=choice("measure", MEASURES, "spend"),
            sort=choice("sort", SORTS, "spend"),
            page=max(1, int(page)) if page.isdecimal() and len(page) < 7 else 1,
            errors=errors,
        )
        return filters.checked()

    def checked(self) -> "Filters":
        """With an error where a custom range can't be one."""
        if self.range != "custom" or self.errors:
            return self
        if self.first is None or self.last is None:
            return replace(self, range="7d", errors={"start": "A custom range needs a first and a last day."})
        if not self.first <= self.last or self.last.year > 9000 or self.first.year < 1900:
            return replace(self, range="7d", errors={"end": "The last day must not be before the first."})
        return self

    @property
    def window(self) -> Window:
        """Whole days of the zone, the last of which may not be over; of the last 24 hours, whole hours."""
        today = local_day(self.now, self.zone)
        if self.range == "24h":
            end = ceil_hour(self.now)
            return Window(end - 24 * HOUR, end)
        month = today.replace(day=1)
        first, last = {
            "7d": (today - 6 * DAY, today),
            "30d": (today - 29 * DAY, today),
            "month": (month, today),
            "last_month": ((month - DAY).replace(day=1), month - DAY),
            "custom": (self.first or today, self.last or today),
        }[self.range]
        return Window(midnight(first, self.zone), midnight(last + DAY, self.zone))

    @property
    def granularity(self) -> Granularity:
        if self.granularity_choice:
            return Granularity(self.granularity_choice)
        window = self.window
        return Granularity.HOUR if window.end - window.start <= HOURLY_UP_TO else Granularity.DAY

    @property
    def question(self) -> Question:
        return Question(self.org.pk, self.window, self.granularity, self.model_id, self.zone)

    @property
    def question_before(self) -> Question:
        """The same about the time before: as many days, or the month before a month."""
        window = self.window
        if self.range in ("month", "last_month"):
            first = local_day(window.start, self.zone)
            previous = (first - DAY).replace(day=1)
            days = local_day(window.end - timedelta(microseconds=1), self.zone) - first + DAY
            before = Window(midnight(previous, self.zone), min(midnight(previous + days, self.zone), window.start))
        elif self.range == "24h":
            before = window.before()
        else:
            days = local_day(window.end, self.zone) - local_day(window.start, self.zone)
            before = Window(midnight(local_day(window.start, self.zone) - days, self.zone), window.start)
        return replace(self.question, window=before, granularity=Granularity.DAY)

    def link(self, **changes: object) -> str:
        """The query string of this state with some of it changed; defaults are left out."""
        state = {
            "range": self.range if self.range != "7d" else "",
            "start": self.first if self.range == "custom" else "",
            "end": self.last if self.range == "custom" else "",
            "granularity": self.granularity_choice,
            "model": self.model_id,
            "measure": self.measure if self.measure != "spend" else "",
            "sort": self.sort if self.sort != "spend" else "",
            "page": self.page if self.page > 1 else "",
        }
        return "?" + urlencode({name: value for name, value in (state | changes).items() if value})
