"""What explains an incident, and what it cost: figures of its window against those of the day before it."""

import uuid
from collections.abc import Callable

from usage.histogram import merge
from usage.series import Figures, Group, Key, Point, Question, points, total
from usage.windows import DAY, Window, floor_hour

from .causes import Cause, Counts, ranked, ranked_codes
from .detection import Measure
from .models import Blame, Causes, Incident
from .normal import SLOWER, count_from, first_slow, p95_of


def explain(incident: Incident) -> None:
    """Set magnitude, cost and causes by the whole window, from rollups but for the hours that it cuts: index of the events."""
    window = Window(incident.started_at, incident.ended_at)
    end = floor_hour(window.start)
    earlier = Window(end - DAY, end)
    latency = incident.measure == Measure.P95

    def of(group: Group, asked: Window) -> list[Point]:
        question = Question(incident.org_id, asked, model_id=incident.model_id, group=group, as_one=True)
        return points(question, histograms=latency and group in (Group.MODEL, Group.CLIENT))

    models = of(Group.MODEL, window)
    figures = total(models)
    incident.invocations, incident.failures = figures.invocations, figures.failures
    failed = total([point for point in of(Group.STATUS, window) if point.key != 0])
    incident.failed_tokens = failed.input_tokens + failed.output_tokens
    incident.failed_cost_cents = failed.cost_cents
    bad: Callable[[Point], int]
    if latency:
        incident.observed = p95_of(merge(point.histogram for point in models)) or incident.observed
        slow = first_slow(SLOWER * incident.normal)
        bad = lambda point: count_from(point.histogram, slow)  # noqa: E731
    else:
        incident.observed = figures.failures / figures.invocations if figures.invocations else incident.observed
        bad = lambda point: point.failures  # noqa: E731

    def blamed(group: Group, now: list[Point]) -> list[Blame]:
        before = of(group, earlier)
        return [_blame(cause) for cause in ranked(_counts(now, bad), _counts(before, bad))]

    causes: Causes = {
        "models": blamed(Group.MODEL, models),
        "clients": blamed(Group.CLIENT, of(Group.CLIENT, window)),
        "errorCodes": _codes(of, window, earlier, figures),
    }
    incident.causes = causes


def _codes(
    of: Callable[[Group, Window], list[Point]], window: Window, earlier: Window, figures: Figures
) -> list[Blame]:
    now = {point.key: point.invocations for point in of(Group.ERROR_CODE, window)}
    before = {point.key: point.invocations for point in of(Group.ERROR_CODE, earlier)}
    calls_before = total(of(Group.STATUS, earlier)).invocations
    return [_blame(cause) for cause in ranked_codes(now, before, figures.invocations, calls_before)]


def _counts(found: list[Point], bad: Callable[[Point], int]) -> dict[Key, Counts]:
    return {point.key: Counts(point.invocations, bad(point)) for point in found}


def _blame(cause: Cause[Key]) -> Blame:
    name = str(cause.key) if isinstance(cause.key, uuid.UUID) else cause.key
    return {
        "name": str(name),
        "share": round(cause.share, 4),
        "bad": cause.bad,
        "expected": round(cause.expected, 2),
    }
