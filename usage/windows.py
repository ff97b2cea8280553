"""Time: half-open windows, buckets, and how a window is answered from rows by the day, hour and minute and raw fragments.

The one module that truncates and steps. It refuses naive times; answers are aware UTC.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
UTC_ZONE = ZoneInfo("UTC")
FIRST_YEAR, LAST_YEAR = 2, 9000  # keeps steps of days within what a datetime can hold


class Granularity(StrEnum):
    HOUR = "hour"
    DAY = "day"


def utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises `ValueError` for a naive one."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return moment.astimezone(UTC)


def floor_hour(moment: datetime) -> datetime:
    return utc(moment).replace(minute=0, second=0, microsecond=0)


def ceil_hour(moment: datetime) -> datetime:
    floor = floor_hour(moment)
    return floor if floor == utc(moment) else floor + HOUR


def floor_minute(moment: datetime) -> datetime:
    return utc(moment).replace(second=0, microsecond=0)


def ceil_minute(moment: datetime) -> datetime:
    floor = floor_minute(moment)
    return floor if floor == utc(moment) else floor + MINUTE


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """When a day begins in a zone. Where midnight is skipped, the first moment after it."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def local_day(moment: datetime, zone: ZoneInfo) -> date:
    return utc(moment).astimezone(zone).date()


def first_of_month(day: date) -> date:
    return day.replace(day=1)


def next_month(day: date) -> date:
    """The first day of the month after that of a day."""
    return (first_of_month(day) + 31 * DAY).replace(day=1)


def previous_month(day: date) -> date:
    """The first day of the month before that of a day."""
    return first_of_month(first_of_month(day) - DAY)


@dataclass(frozen=True, order=True)
class Window:
    """start <= t < end, aware UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", utc(self.start))
        object.__setattr__(self, "end", utc(self.end))
        if self.start > self.end:
            raise ValueError(f"{self.start} is after {self.end}")

    def __bool__(self) -> bool:
        return self.start < self.end

    def before(self) -> "Window":
        """The window of the same length that ends where this one starts."""
        return Window(self.start - (self.end - self.start), self.start)

    def after(self, moment: datetime) -> "Window":
        """What of the window does not lie before a moment; empty where all of it does."""
        start = max(self.start, moment)
        return Window(start, max(start, self.end))

    def days(self, zone: ZoneInfo) -> Iterator[date]:
        """Every day of a zone that the window touches."""
        day = local_day(self.start, zone)
        while midnight(day, zone) < self.end:
            if midnight(day + DAY, zone) > self.start:
                yield day
            day += DAY

    def whole_days(self, zone: ZoneInfo = UTC_ZONE) -> "Window":
        """The window widened to whole days."""
        last = local_day(self.end, zone)
        if midnight(last, zone) < self.end:
            last += DAY
        return Window(midnight(local_day(self.start, zone), zone), midnight(last, zone))

    def pieces(self, length: timedelta) -> Iterator["Window"]:
        """Consecutive windows of a length that make up this one; the last may be shorter."""
        start = self.start
        while start < self.end:
            yield Window(start, min(start + length, self.end))
            start += length


@dataclass(frozen=True)
class Piece:
    """A part of a window that lies in one bucket and is not answered from a row of that bucket."""

    bucket_start: datetime
    window: Window


@dataclass(frozen=True)
class Plan:
    """Where the figures of a window come from; together the parts are exactly the window, and none overlaps.

    `rows` are read as they stand: hours, or the days [first_day, end_day) of `zone`. `hours` are whole hours and
    `fragments` parts of an hour that belong to a bucket which the window cuts: at most two of the former and, as a
    day of a zone can begin within an hour, four of the latter, each under an hour long. `minutes` are whole minutes of
    such parts, where these are kept.
    """

    granularity: Granularity
    zone: ZoneInfo
    rows: Window | None
    first_day: date | None
    end_day: date | None
    hours: tuple[Piece, ...]
    fragments: tuple[Piece, ...]
    minutes: tuple[Piece, ...] = ()

    def by_minutes(self, since: datetime) -> "Plan":
        """The same with whole minutes in the place of fragments that lie after a moment; of these less than a minute is left
        at each edge.
        """
        minutes: list[Piece] = []
        fragments: list[Piece] = []
        for piece in self.fragments:
            start, end = ceil_minute(piece.window.start), floor_minute(piece.window.end)
            inside = Window(start, end) if piece.window.start >= since and start < end else None
            if inside:
                minutes.append(Piece(piece.bucket_start, inside))
            fragments += [Piece(piece.bucket_start, part) for part in _around(piece.window, inside)]
        return replace(self, minutes=tuple(minutes), fragments=tuple(fragments))


def plan(window: Window, granularity: Granularity, zone: ZoneInfo = UTC_ZONE) -> Plan:
    """How to answer a window by hour, or by day of a zone."""
    if granularity is Granularity.HOUR:
        first, end = ceil_hour(window.start), floor_hour(window.end)
        rows = Window(first, end) if first < end else None
        cut = _around(window, rows)
        return Plan(granularity, zone, rows, None, None, (), tuple(p for w in cut for p in _by_hour(w)))
    days = list(window.days(zone))
    whole = [d for d in days if midnight(d, zone) >= window.start and midnight(d + DAY, zone) <= window.end]
    rows = Window(midnight(whole[0], zone), midnight(whole[-1] + DAY, zone)) if whole else None
    hours: list[Piece] = []
    fragments: list[Piece] = []
    for part in _around(window, rows):
        for day in part.days(zone):
            bucket = midnight(day, zone)
            start, end = max(part.start, bucket), min(part.end, midnight(day + DAY, zone))
            inside = Window(ceil_hour(start), floor_hour(end)) if ceil_hour(start) < floor_hour(end) else None
            if inside:
                hours.append(Piece(bucket, inside))
            fragments.extend(
                Piece(bucket, fragment)
                for cut in _around(Window(start, end), inside)
                for fragment in _split_at_hours(cut)
            )
    first_day, end_day = (whole[0], whole[-1] + DAY) if whole else (None, None)
    return Plan(granularity, zone, rows, first_day, end_day, tuple(hours), tuple(fragments))


def _around(window: Window, inner: Window | None) -> list[Window]:
    """What is left of a window without an inner one."""
    if inner is None:
        return [window] if window else []
    return [part for part in (Window(window.start, inner.start), Window(inner.end, window.end)) if part]


def _split_at_hours(window: Window) -> Iterator[Window]:
    start = window.start
    while start < window.end:
        end = min(floor_hour(start) + HOUR, window.end)
        yield Window(start, end)
        start = end


def _by_hour(window: Window) -> Iterator[Piece]:
    for part in _split_at_hours(window):
        yield Piece(floor_hour(part.start), part)


def shift_days(moment: datetime, days: int, zone: ZoneInfo) -> datetime:
    """The same time of day in a zone, some days later or earlier."""
    return (utc(moment).astimezone(zone) + days * DAY).astimezone(UTC)


def month(first: date, zone: ZoneInfo) -> Window:
    """The calendar month of a zone that begins with a day."""
    return Window(midnight(first, zone), midnight(next_month(first), zone))


def buckets(window: Window, granularity: Granularity, zone: ZoneInfo) -> Iterator[Window]:
    """Every bucket that a window touches, whole, whether or not anything happened in it."""
    if granularity is Granularity.DAY:
        for day in window.days(zone):
            yield Window(midnight(day, zone), midnight(day + DAY, zone))
    elif window:
        yield from Window(floor_hour(window.start), ceil_hour(window.end)).pieces(HOUR)
