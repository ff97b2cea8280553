"""The watch: looks at the last hours of every org, minute by minute, and keeps the incidents it finds.

Each run looks at the last `WATCHED` anew, so that events which came late are taken into account, and a run that was killed or
did not happen costs nothing. What began before that is carried on: its window grows, and it ends when nothing of it is found.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

import structlog
from django.db import connection, transaction
from django.utils import timezone

from ingestion.locks import Lock, try_take
from usage.freshness import complete_up_to
from usage.histogram import merge
from usage.recent import Row, hours, minutes
from usage.retention import hourly_horizon, minutes_horizon
from usage.windows import HOUR, Window, floor_hour

from . import conditions
from .conditions import MINUTE
from .detection import JOIN, Excursion, Measure, excursions
from .explaining import explain
from .models import Incident, Watch
from .normal import LOOKBACK, Normal, Normals, Sample

logger = structlog.get_logger(__name__)

WATCHED = timedelta(hours=3)
# A model has an incident to itself where it has this part of what is beyond normal.
OWN = 0.8

Subject = uuid.UUID | None  # a model, or all of an org together


@dataclass(frozen=True)
class Found:
    """A window of one subject."""

    model_id: Subject
    excursion: Excursion
    conditions: list[str]


def watch() -> int:
    """Look once; returns how many incidents are open. Returns at once where another process looks."""
    with transaction.atomic(), connection.cursor() as cursor:
        if not try_take(cursor, Lock.WATCH):
            return 0
        now = timezone.now()
        until = complete_up_to(now).replace(second=0, microsecond=0)  # what is not counted yet is no recovery
        before = Watch.objects.filter(pk=1).first()
        horizon = minutes_horizon(now)
        since = max(horizon, min(until, before.watched_up_to) - WATCHED if before else horizon)
        if since < until:
            _look(Window(since, until))
            Watch.objects.update_or_create(pk=1, defaults={"watched_up_to": until})
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
    kept: dict[uuid.UUID, list[Incident]] = defaultdict(list)
    for incident in Incident.objects.filter(ended_at__gt=window.start - JOIN).select_related("org"):  # incidents_by_end
        kept[incident.org_id].append(incident)
    for org_id, rows in groupby(minutes(window), key=lambda row: row.org_id):
        _keep(org_id, list(find(org_id, samples_of(rows), window)), kept.pop(org_id, []), window)
    for org_id, stored in kept.items():  # no calls any more
        _keep(org_id, [], stored, window)


def find(org_id: uuid.UUID, subjects: Mapping[Subject, Sequence[Sample]], window: Window) -> Iterator[Found]:
    """The windows in which an org or a model of it left its own normal, one for each story and measure."""
    normals = _normals(org_id, floor_hour(window.start), window)
    for measure in Measure:
        windows: dict[Subject, list[Excursion]] = {
            subject: [each for each in excursions(samples, normals.of(subject), MINUTE) if each.measure is measure]
            for subject, samples in subjects.items()
        }
        for subject, each in _stories(windows):
            held = {
                name.condition.value
                for name in conditions.held(subjects[subject])
                if name.start < each.end + JOIN and each.start < name.end
            }
            yield Found(subject, each, sorted(held))


def _stories(windows: Mapping[Subject, Sequence[Excursion]]) -> Iterator[tuple[Subject, Excursion]]:
    """Of the windows of one measure that overlap: the model's where it is one alone, else the org's."""
    models = [(subject, each) for subject, found in windows.items() if subject is not None for each in found]
    for whole in windows.get(None, ()):
        inside = [(subject, each) for subject, each in models if each.start < whole.end and whole.start < each.end]
        subjects = {subject for subject, _ in inside}
        if len(subjects) == 1 and sum(map(_beyond, (each for _, each in inside))) >= OWN * _beyond(whole):
            continue
        models = [one for one in models if one not in inside]
        yield None, whole
    yield from models


def _beyond(excursion: Excursion) -> float:
    """How far beyond normal: failed calls, or by how much the p95 is above it, times the calls."""
    return (excursion.observed - excursion.normal) * excursion.invocations


# ── What is normal ───────────────────────────────────────────────────────────────────────────────────────────────


class _Learnt:
    """What is normal for a subject in the hours of a window."""

    def __init__(self, normals: Normals, window: Window) -> None:
        whole = Window(floor_hour(window.start), window.end)
        starts = [piece.start for piece in whole.pieces(HOUR)][:24]
        self._hours: dict[int, Normal] = {start.hour: normals.at(start) for start in starts}

    def at(self, moment: datetime) -> Normal:
        return self._hours[moment.hour]


@dataclass(frozen=True)
class _Known:
    """What an org's hours before `hour` say is normal: of all its models together, of each, and of one never seen."""

    hour: datetime
    hours: int  # that it was learnt for
    subjects: Mapping[Subject, _Learnt]
    unseen: _Learnt

    def of(self, subject: Subject) -> _Learnt:
        return self.subjects.get(subject, self.unseen)


_known: dict[uuid.UUID, _Known] = {}  # changes once an hour: a few hundred bytes a model


def _normals(org_id: uuid.UUID, hour: datetime, window: Window) -> _Known:
    count = (window.end - hour) // HOUR
    found = _known.get(org_id)
    if found is None or (found.hour, found.hours) != (hour, count):
        days = Window(hour - LOOKBACK, hour).after(hourly_horizon(timezone.now()))
        subjects = samples_of(hours(days, org_id))
        whole = Normals(subjects.pop(None))
        learnt: dict[Subject, _Learnt] = {
            model: _Learnt(Normals(samples, whole), window) for model, samples in subjects.items()
        }
        learnt[None] = _Learnt(whole, window)
        found = _known[org_id] = _Known(hour, count, learnt, _Learnt(Normals([], whole), window))
    return found


# ── What is kept ─────────────────────────────────────────────────────────────────────────────────────────────────


def _keep(org_id: uuid.UUID, found: list[Found], stored: list[Incident], window: Window) -> None:
    """Bring an org's incidents of a window in line with what was found in it."""
    left = list(stored)
    for each in sorted(found, key=lambda each: -each.excursion.score):
        incident = _same(each, left)
        if incident is not None:
            left.remove(incident)
        _store(org_id, each, incident, window)
    for incident in left:
        if incident.started_at >= window.start:  # what came late has refuted it
            incident.delete()
        elif incident.is_open:
            incident.is_open = False
            incident.save(update_fields=["is_open", "changed_at"])


def _same(found: Found, stored: Sequence[Incident]) -> Incident | None:
    """The incident that a window belongs to: of the same subject, or of the org where it has become a model's, or back."""
    start, end = found.excursion.start - JOIN, found.excursion.end + JOIN
    close = [one for one in stored if one.measure == found.excursion.measure and one.overlaps(start, end)]
    same = [one for one in close if one.model_id == found.model_id]
    related = [one for one in close if None in (one.model_id, found.model_id)]
    return next(iter(same or related), None)


def _store(org_id: uuid.UUID, found: Found, incident: Incident | None, window: Window) -> None:
    excursion = found.excursion
    is_open = excursion.end >= window.end - JOIN
    if incident is None:
        incident = Incident(org_id=org_id, started_at=excursion.start)
    before = (incident.model_id, incident.started_at, incident.ended_at, incident.is_open, incident.score)
    incident.model_id = found.model_id
    incident.measure = excursion.measure.value
    if incident.started_at >= window.start:
        incident.started_at = excursion.start
    incident.ended_at = excursion.end
    incident.is_open = is_open
    incident.normal = excursion.normal
    incident.score = max(incident.score or 0.0, excursion.score)
    incident.conditions = sorted({*incident.conditions, *found.conditions})
    now = (incident.model_id, incident.started_at, incident.ended_at, incident.is_open, incident.score)
    if before == now and not is_open:
        return
    explain(incident)
    is_new = incident._state.adding
    incident.save()
    if is_new:
        logger.info(
            "incident_found",
            org_id=str(org_id),
            model_id=str(incident.model_id) if incident.model_id else None,
            measure=incident.measure,
            started_at=f"{incident.started_at:%Y-%m-%dT%H:%MZ}",
            observed=round(incident.observed, 4),
            normal=round(incident.normal, 4),
        )
