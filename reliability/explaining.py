"""What explains an incident, and what it cost: figures of its window against those of the day before it."""

from collections.abc import Callable, Mapping
from typing import Any

from django.utils import timezone

from usage.histogram import merge
from usage.retention import hourly_horizon
from usage.series import Group, Key, Point, Question, points, total
from usage.windows import DAY, Window, floor_hour

from .causes import Cause, Counts, ranked, ranked_codes
from .detection import Measure
from .models import Blame, Incident
from .normal import SLOWER, count_from, first_slow, p95_of

_KINDS = (Group.MODEL, Group.CLIENT, Group.ERROR_CODE)


def explain(incident: Incident) -> None:
    """Set magnitude, cost and causes by the whole window, from rollups but for the hours that it cuts: index of the events."""
    slow = first_slow(SLOWER * incident.normal) if incident.measure == Measure.P95 else None
    horizon = hourly_horizon(timezone.now())

    def of(group: Group, window: Window) -> list[Point]:
        question = Question(
            incident.org_id, window.after(horizon), model_id=incident.model_id, group=group, as_one=True
        )
        return points(question, histograms=slow is not None and group is not Group.STATUS)

    def bad(point: Point) -> int:
        return point.failures if slow is None else count_from(point.histogram, slow)

    window = Window(incident.started_at, incident.ended_at)
    hour = floor_hour(window.start)
    now = {group: of(group, window) for group in _KINDS}
    before = {group: of(group, Window(hour - DAY, hour)) for group in _KINDS}
    figures = total(now[Group.MODEL])
    incident.invocations, incident.failures = figures.invocations, figures.failures
    if slow is not None:
        incident.observed = p95_of(merge(point.histogram for point in now[Group.MODEL])) or incident.observed
    elif figures.invocations:
        incident.observed = figures.failures / figures.invocations
    failed = total([point for point in of(Group.STATUS, window) if point.key != 0])
    incident.failed_tokens = failed.input_tokens + failed.output_tokens
    incident.failed_cost_cents = failed.cost_cents
    incident.causes = {
        "models": _callers(now[Group.MODEL], before[Group.MODEL], bad),
        "clients": _callers(now[Group.CLIENT], before[Group.CLIENT], bad),
        "errorCodes": _codes(now, before, bad),
    }


def _callers(now: list[Point], before: list[Point], bad: Callable[[Point], int]) -> list[Blame]:
    def counts(found: list[Point]) -> dict[Key, Counts]:
        return {point.key: Counts(point.invocations, bad(point)) for point in found}

    return [_blame(cause) for cause in ranked(counts(now), counts(before))]


def _codes(
    now: Mapping[Group, list[Point]], before: Mapping[Group, list[Point]], bad: Callable[[Point], int]
) -> list[Blame]:
    """Successful calls can be slow too: they have no code, and their part of it all."""

    def counts(found: Mapping[Group, list[Point]]) -> dict[Key | None, int]:
        codes: dict[Key | None, int] = {point.key: bad(point) for point in found[Group.ERROR_CODE]}
        return codes | {None: sum(map(bad, found[Group.MODEL])) - sum(codes.values())}

    invocations = (total(found[Group.MODEL]).invocations for found in (now, before))
    causes = ranked_codes(counts(now), counts(before), *invocations)
    return [_blame(cause) for cause in causes if cause.key is not None]


def _blame(cause: Cause[Any]) -> Blame:
    return {
        "name": str(cause.key),
        "share": round(cause.share, 4),
        "bad": cause.bad,
        "expected": round(cause.expected, 2),
    }
