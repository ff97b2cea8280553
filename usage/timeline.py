"""The axis of time under a chart: which bars there are, what they are called, which of them are named below it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

from orgs.templatetags.moments import zone_label

from .charts import MAX_BARS
from .windows import DAY, HOUR, Granularity, Window, local_day

MAX_TIME_LABELS = 8
UNITS = {Granularity.HOUR: HOUR, Granularity.DAY: DAY}
_MINUTES = (1, 2, 5, 10, 15, 30, 60)  # between names, where bars are minutes


@dataclass(frozen=True)
class Timeline:
    """Consecutive buckets of a unit of time; where there are too many, a bar holds those of a day or of a month."""

    buckets: list[Window]
    unit: timedelta
    zone: ZoneInfo

    @cached_property
    def bars(self) -> list[list[Window]]:
        """The buckets of each bar."""
        if len(self.buckets) <= MAX_BARS:
            return [[bucket] for bucket in self.buckets]
        by_day: dict[object, list[Window]] = {}
        for bucket in self.buckets:
            by_day.setdefault(local_day(bucket.start, self.zone), []).append(bucket)
        if len(by_day) <= MAX_BARS:
            return list(by_day.values())
        by_month: dict[object, list[Window]] = {}
        for bucket in self.buckets:
            by_month.setdefault(local_day(bucket.start, self.zone).replace(day=1), []).append(bucket)
        return list(by_month.values())

    @property
    def is_coarser(self) -> bool:
        """Whether bars are longer than the buckets asked for."""
        return len(self.bars) < len(self.buckets)

    @cached_property
    def windows(self) -> list[Window]:
        return [Window(bar[0].start, bar[-1].end) for bar in self.bars]

    @cached_property
    def place(self) -> dict[datetime, int]:
        """In which bar the bucket is that starts at a moment."""
        return {bucket.start: n for n, bar in enumerate(self.bars) for bucket in bar}

    @property
    def _has_times(self) -> bool:
        return self.unit < DAY and not self.is_coarser

    def unfinished(self, now: datetime) -> set[int]:
        return {n for n, window in enumerate(self.windows) if window.start <= now < window.end}

    def position(self, moment: datetime) -> float:
        """Where a moment lies, in bars from the start; at the edge where it lies beyond."""
        for n, window in enumerate(self.windows):
            if moment < window.end:
                return n + max(0.0, (moment - window.start) / (window.end - window.start))
        return float(len(self.windows))

    def name(self, n: int) -> str:
        window = self.windows[n]
        start, end = window.start.astimezone(self.zone), window.end.astimezone(self.zone)
        if self._has_times:
            return f"{start:%a %-d %b %Y, %H:%M}–{end:%H:%M} {zone_label(start)}"
        return f"{start:%a %-d %b %Y}" if window.end - window.start < 2 * DAY else f"{start:%B %Y}"

    @property
    def labels(self) -> dict[int, str]:
        """At most `MAX_TIME_LABELS` names along the axis: of minutes or hours, or of the first bar of a day or month."""
        starts = [window.start.astimezone(self.zone) for window in self.windows]
        if not self._has_times:
            is_monthly = bool(starts) and self.windows[0].end - self.windows[0].start >= 2 * DAY
            step = -(-len(starts) // MAX_TIME_LABELS)
            form = "%b %Y" if is_monthly else "%-d %b"
            return {n: starts[n].strftime(form) for n in range(0, len(starts), max(1, step))}
        if self.unit < HOUR:
            every = next((step for step in _MINUTES if len(starts) <= step * MAX_TIME_LABELS), _MINUTES[-1])
            return {
                n: f"{start:%H:%M}" for n, start in enumerate(starts) if (60 * start.hour + start.minute) % every == 0
            }
        if len(starts) <= 30:
            every = 1 if len(starts) <= MAX_TIME_LABELS else 3
            return {n: f"{start:%H:%M}" for n, start in enumerate(starts) if start.hour % every == 0}
        mornings = [n for n, start in enumerate(starts) if start.hour == 0]
        step = max(1, -(-len(mornings) // MAX_TIME_LABELS))
        return {n: f"{starts[n]:%-d %b}" for n in mornings[::step]}


def bucket_namer(window: Window, unit: timedelta, zone: ZoneInfo) -> Callable[[datetime], str]:
    """How a bucket is written. Where clocks change within the range, times carry the name of theirs."""
    if unit >= DAY:
        return lambda start: f"{start.astimezone(zone):%a %-d %b %Y}"
    changes = window.start.astimezone(zone).utcoffset() != window.end.astimezone(zone).utcoffset()

    def name(start: datetime) -> str:
        local = start.astimezone(zone)
        return f"{local:%a %-d %b %Y, %H:%M}" + (f" {zone_label(local)}" if changes else "")

    return name
