"""The watch: looks at the last hours of every org, minute by minute, and keeps the incidents it finds.

Each run looks at the last `WATCHED` anew, so that events which came late are taken into account, and a run that was killed or
did not happen costs nothing. What began before that is carried on: its window grows, and it ends when nothing more of it is
found; it keeps its start, and whose it is.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.core.cache import cache
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from redis.exceptions import RedisError

from ingestion.locks import Lock, hold_for_session, let_go_for_session
from usage.freshness import complete_up_to
from usage.histogram import merge
from usage.recent import Row, hours, minutes, orgs_since
from usage.retention import hourly_horizon, minutes_horizon
from usage.windows import HOUR, MINUTE, Window, floor_hour, floor_minute

from . import conditions
from .detection import JOIN, Excursion, Measure, excursions
from .explaining import explain
from .models import Incident, Watch
from .normal import LOOKBACK, Normal, Normals, Sample

logger = structlog.get_logger(__name__)

WATCHED = timedelta(hours=2)
# After downtime, so much is looked at in one go: each minute with an hour before it.
CATCHES_UP_BY = timedelta(hours=1)
# An open incident that only goes on is explained this often: that may read an hour of raw events.
EXPLAINED_EVERY = timedelta(minutes=5)
# A model has an incident to itself where it has this part of what is beyond normal, in at least half of the time.
OWN = 0.8
_KEPT_NORMAL = 2 * 3600  # seconds in the cache; learnt again each hour

Subject = uuid.UUID | None  # a model, or all of an org together


@dataclass(frozen=True)
class Found:
    """A window of one subject."""

    model_id: Subject
    excursion: Excursion
    conditions: list[str]


def watch(since: datetime | None = None, at_once: timedelta = timedelta.max) -> int:
    """Look once; returns how many incidents are open. Returns at once where another process looks.

    With `since`, what was looked at from then on is looked at again, as far back as minutes are kept. What is left
    once `at_once` is over is left to the next run.
    """
    if not hold_for_session(Lock.WATCH, ""):
        return 0
    began = time.monotonic()
    try:
        now = timezone.now()
        until = floor_minute(complete_up_to(now))  # what is not counted yet is no recovery
        watched = Watch.objects.values_list("watched_up_to", flat=True).filter(pk=1).first()
        horizon = minutes_horizon(now)
        step = max(horizon, watched or horizon if since is None else min(since, watched or since))
        while step < until:
            step = min(step + CATCHES_UP_BY, until)
            _look(Window(max(horizon, step - WATCHED), step))
            Watch.objects.update_or_create(pk=1, defaults={"watched_up_to": step})
            if time.monotonic() - began >= at_once.total_seconds():
                break
    finally:
        let_go_for_session(Lock.WATCH, "")
    return Incident.objects.filter(is_open=True).count()


def samples_of(rows: Iterable[Row]) -> dict[Subject, list[Sample]]:
    """The rows of one org by subject, in the order of time."""
    subjects: dict[Subject, list[Sample]] = {}
    starts: dict[datetime, list[Row]] = defaultdict(list)
    for row in rows:
        sample = Sample(row.start, row.invocations, row.failures, row.histogram)
        subjects.setdefault(row.model_id, []).append(sample)
        starts[row.start].append(row)
    subjects[None] = [
        Sample(
            start,
            sum(row.invocations for row in found),
            sum(row.failures for row in found),
            found[0].histogram if len(found) == 1 else merge(row.histogram for row in found),
        )
        for start, found in sorted(starts.items())
    ]
    return subjects


def _look(window: Window) -> None:
    """One org a transaction: what goes wrong with one holds up nobody's incidents."""
    kept: dict[uuid.UUID, list[Incident]] = defaultdict(list)
    touched = Incident.objects.filter(Q(ended_at__gt=window.start - JOIN) | Q(is_open=True))  # incidents_by_end, _open
    for incident in touched.filter(started_at__lt=window.end):
        kept[incident.org_id].append(incident)
    for org_id in sorted(orgs_since(window.start) | set(kept)):
        try:
            with transaction.atomic():
                subjects = samples_of(minutes(window, org_id))
                _keep(org_id, list(find(org_id, subjects, window)), kept[org_id], window)
        except Exception:
            logger.exception("watch_failed", org_id=str(org_id))


def find(org_id: uuid.UUID, subjects: Mapping[Subject, Sequence[Sample]], window: Window) -> Iterator[Found]:
    """The windows in which an org or a model of it left its own normal, one for each story and measure."""
    normals = _normals(org_id, window)
    windows = {subject: excursions(samples, normals.of(subject), MINUTE) for subject, samples in subjects.items()}
    stories = [
        story
        for measure in Measure
        for story in _stories(
            {subject: [each for each in found if each.measure is measure] for subject, found in windows.items()}
        )
    ]
    held = {subject: conditions.held(subjects[subject]) for subject in {subject for subject, _ in stories}}
    for subject, each in stories:
        meanwhile = {
            one.condition.value for one in held[subject] if one.start < each.end + JOIN and each.start < one.end
        }
        yield Found(subject, each, sorted(meanwhile))


def _stories(windows: Mapping[Subject, Sequence[Excursion]]) -> Iterator[tuple[Subject, Excursion]]:
    """Of the windows of one measure that are about the same time: the model's where it is one alone, else the org's."""
    models = [(subject, each) for subject, found in windows.items() if subject is not None for each in found]
    for whole in windows.get(None, ()):
        inside = [(subject, each) for subject, each in models if _share(each, whole) >= 0.5]
        subjects = {subject for subject, _ in inside}
        if len(subjects) == 1 and sum(map(_beyond, (each for _, each in inside))) >= OWN * _beyond(whole):
            continue
        models = [one for one in models if one not in inside]
        yield None, whole
    yield from models


def _share(part: Excursion, whole: Excursion) -> float:
    """How much of the time of one window another takes."""
    both = min(part.end, whole.end) - max(part.start, whole.start)
    return max(timedelta(), both) / (whole.end - whole.start)


def _beyond(excursion: Excursion) -> float:
    """How far beyond normal: failed calls, or by how much the p95 is above it, times the calls."""
    return (excursion.observed - excursion.normal) * excursion.invocations


# ── What is normal ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Hours:
    """What is normal for a subject, by the hour of the day."""

    by_hour: Mapping[int, Normal]

    def at(self, moment: datetime) -> Normal:
        return self.by_hour[moment.hour]


@dataclass(frozen=True)
class Known:
    """What is normal for an org's models together, for each, and for one that was never seen."""

    subjects: Mapping[Subject, Hours]
    unseen: Hours

    def of(self, subject: Subject) -> Hours:
        return self.subjects.get(subject, self.unseen)


def _normals(org_id: uuid.UUID, window: Window) -> Known:
    """By the week before the hour in which a window begins. Learnt once an hour, for all processes."""
    hour = floor_hour(window.start)
    key = f"normal:{org_id}:{hour:%Y%m%d%H}"
    try:
        known: Known | None = cache.get(key)
        if known is None:
            known = _learn(org_id, hour)
            cache.set(key, known, _KEPT_NORMAL)
    except (RedisError, OSError) as error:
        logger.warning("cache_unavailable", error=error)
        known = _learn(org_id, hour)
    return known


def _learn(org_id: uuid.UUID, hour: datetime) -> Known:
    week = Window(hour - LOOKBACK, hour).after(hourly_horizon(timezone.now()))
    # A window that begins in this hour ends in the last of these at the latest.
    asked = [hour + n * HOUR for n in range(WATCHED // HOUR + 2)]

    def learnt(normals: Normals) -> Hours:
        return Hours({moment.hour: normals.at(moment) for moment in asked})

    subjects = samples_of(hours(week, org_id))
    whole = Normals(subjects.pop(None))
    found: dict[Subject, Hours] = {model: learnt(Normals(samples, whole)) for model, samples in subjects.items()}
    found[None] = learnt(whole)
    return Known(found, learnt(Normals([], whole)))


# ── What is kept ─────────────────────────────────────────────────────────────────────────────────────────────────


def _keep(org_id: uuid.UUID, found: list[Found], stored: list[Incident], window: Window) -> None:
    """Bring an org's incidents of a window in line with what was found in it."""
    left = list(stored)
    for each in sorted(found, key=lambda each: -each.excursion.score):
        incident = _same(each, left)
        if incident is None:
            _store(Incident(org_id=org_id), each, window)
        else:
            left.remove(incident)
            (_carry_on if incident.started_at < window.start else _store)(incident, each, window)
    for incident in left:
        if incident.started_at >= window.start:
            logger.info("incident_refuted", org_id=str(org_id), incident_id=str(incident.pk))  # by what came late
            incident.delete()
        elif incident.is_open:
            _end(incident)


def _same(found: Found, stored: Sequence[Incident]) -> Incident | None:
    """The incident that a window belongs to: of the same subject, or of the org where it has become a model's, or back."""
    start, end = found.excursion.start - JOIN, found.excursion.end + JOIN
    close = [one for one in stored if one.measure == found.excursion.measure and one.overlaps(start, end)]
    same = [one for one in close if one.model_id == found.model_id]
    related = [one for one in close if None in (one.model_id, found.model_id)]
    return next(iter(same or related), None)


def _store(incident: Incident, found: Found, window: Window) -> None:
    """An incident that lies within the window: what was found is all there is to it."""
    excursion = found.excursion
    is_new = incident._state.adding
    before = (incident.model_id, incident.started_at, incident.ended_at, incident.invocations, incident.failures)
    incident.model_id = found.model_id
    incident.measure = excursion.measure.value
    incident.started_at, incident.ended_at = excursion.start, excursion.end
    incident.invocations, incident.failures = excursion.invocations, excursion.failures
    incident.observed, incident.normal, incident.score = excursion.observed, excursion.normal, excursion.score
    incident.conditions = found.conditions
    was_open, incident.is_open = incident.is_open, _goes_on(excursion, window)
    now = (incident.model_id, incident.started_at, incident.ended_at, incident.invocations, incident.failures)
    if before == now and was_open == incident.is_open:
        return
    _explain(incident, always=is_new or before[:2] != now[:2] or not incident.is_open)
    incident.save()
    if is_new:
        logger.info(
            "incident_found",
            org_id=str(incident.org_id),
            model_id=str(incident.model_id) if incident.model_id else None,
            measure=incident.measure,
            started_at=f"{incident.started_at:%Y-%m-%dT%H:%MZ}",
            observed=round(incident.observed, 4),
            normal=round(incident.normal, 4),
        )


def _carry_on(incident: Incident, found: Found, window: Window) -> None:
    """An incident that began before the window: what is left of it in there can only make it longer."""
    excursion = found.excursion
    if excursion.end > incident.ended_at:
        incident.ended_at = excursion.end
        incident.conditions = sorted({*incident.conditions, *found.conditions})
        was_open, incident.is_open = incident.is_open, _goes_on(excursion, window)
        _explain(incident, always=was_open != incident.is_open)
        incident.save()
    elif incident.is_open and not _goes_on(excursion, window):
        _end(incident)


def _end(incident: Incident) -> None:
    incident.is_open = False
    _explain(incident, always=True)
    incident.save()


def _goes_on(excursion: Excursion, window: Window) -> bool:
    return excursion.end >= window.end - JOIN


def _explain(incident: Incident, *, always: bool) -> None:
    now = timezone.now()
    if always or incident.explained_at is None or now - incident.explained_at >= EXPLAINED_EVERY:
        explain(incident)
        incident.explained_at = now
