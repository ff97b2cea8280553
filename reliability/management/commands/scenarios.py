"""How well incidents are found: scenarios of synthetic orgs, many seeds each, as a table and as JSON.

A window that is found is a find where it is of the right subject and overlaps the one put in. What overlaps in time, of
whatever subject and measure, is one story; a story that overlaps no incident is false.
"""

import json
import random
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from multiprocessing import get_context
from typing import Any

from django.core.management.base import BaseCommand

from reliability.causes import Counts, ranked
from reliability.detection import Excursion, Measure, excursions
from reliability.normal import LOOKBACK, Normals, Sample, p95_of
from reliability.synthetic import (
    CLIENTS,
    FIRST_DAY,
    MODELS,
    Counted,
    Incident,
    Model,
    Org,
    summed,
    traffic,
)
from usage.histogram import merge
from usage.windows import DAY, HOUR, MINUTE

ALL = "all"
LAST_DAY = FIRST_DAY + LOOKBACK
BUSY, QUIET, MONTH = 100.0, 1.0, 10.0  # calls a minute
PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one seed. Errors of edges are in minutes, those of the magnitude relative; None where nothing is to be found."""

    false: int
    found: bool | None = None
    edge_error: int | None = None
    magnitude_error: float | None = None
    cause_first: bool | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    scenario: str
    runs: int
    found: int
    missed: int
    false: int
    edge_error_median: int | None
    edge_error_max: int | None
    within_a_minute: int | None
    within_five_minutes: int | None
    magnitude_error_median: float | None
    magnitude_error_max: float | None
    cause_first: int | None


class Command(BaseCommand):
    help = "Judges the detection of incidents by synthetic orgs: found, missed and false ones."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--seeds", type=int, default=50)
        parser.add_argument("--first-seed", type=int, default=0)
        parser.add_argument("--only", choices=list(SCENARIOS), action="append")

    def handle(self, *args: Any, **options: Any) -> None:
        seeds = range(options["first_seed"], options["first_seed"] + options["seeds"])
        names = options["only"] or list(SCENARIOS)
        tasks = [(name, seed) for name in names for seed in seeds]
        with get_context("fork").Pool(PROCESSES) as pool:
            outcomes = pool.starmap(run, tasks, chunksize=1)
        summaries = [
            _summary(name, [outcome for task, outcome in zip(tasks, outcomes, strict=True) if task[0] == name])
            for name in names
        ]
        heads = (
            "scenario",
            "runs",
            "found",
            "missed",
            "false",
            "edges, min",
            "±1 min",
            "±5 min",
            "magnitude",
            "cause first",
        )
        self.stdout.write(_row(heads))
        for summary in summaries:
            self.stdout.write(_row(_cells(summary)))
        self.stdout.write(json.dumps({"seeds": [seeds.start, seeds.stop], "scenarios": [*map(asdict, summaries)]}))


def run(name: str, seed: int) -> Outcome:
    return SCENARIOS[name](random.Random(f"{name} {seed}"))


def errors_of_a_model(rng: random.Random) -> Outcome:
    start, model = _moment(rng), rng.choice(MODELS).name
    incident = Incident(start, start + 15 * MINUTE, model=model, error_rate=0.3)
    return _judge(rng, Org(BUSY), incident, model, Measure.ERROR_RATE)


def client_times_out(rng: random.Random) -> Outcome:
    start, client = _moment(rng), rng.choice(CLIENTS)
    incident = Incident(start, start + 30 * MINUTE, client=client, error_rate=0.8, times_out=True)
    return _judge(rng, Org(BUSY), incident, ALL, Measure.ERROR_RATE)


def latency_doubles(rng: random.Random) -> Outcome:
    start = _moment(rng)
    return _judge(rng, Org(BUSY), Incident(start, start + 20 * MINUTE, slower=2), ALL, Measure.P95)


def quiet_outage(rng: random.Random) -> Outcome:
    start = _moment(rng)
    return _judge(rng, Org(QUIET), Incident(start, start + HOUR, error_rate=1), ALL, Measure.ERROR_RATE)


def new_model_fails(rng: random.Random) -> Outcome:
    start = _moment(rng)
    incident = Incident(start, start + 20 * MINUTE, model="new", error_rate=0.3)
    return _judge(rng, Org(BUSY, _with_new(start - HOUR)), incident, "new", Measure.ERROR_RATE)


def new_model_is_healthy(rng: random.Random) -> Outcome:
    return _judge(rng, Org(BUSY, _with_new(_moment(rng))), None, ALL, Measure.ERROR_RATE)


def nothing_in_a_month(rng: random.Random) -> Outcome:
    org = Org(MONTH)
    past = dict(traffic(rng, org, FIRST_DAY, LAST_DAY, HOUR).samples)
    found: list[Excursion] = []
    for number in range(30):
        day = LAST_DAY + number * DAY
        minutes = traffic(rng, org, day, day + DAY, MINUTE)
        found += [each for windows in detect(past, minutes).values() for each in windows]
        for name, samples in past.items():
            recent = [sample for sample in samples if sample.start >= day + DAY - LOOKBACK]
            past[name] = recent + summed(minutes.samples[name], HOUR)
    return Outcome(false=len(_stories(found)))


SCENARIOS: Mapping[str, Callable[[random.Random], Outcome]] = {
    "errors of a model": errors_of_a_model,
    "client times out": client_times_out,
    "latency doubles": latency_doubles,
    "quiet outage": quiet_outage,
    "new model fails": new_model_fails,
    "new model is healthy": new_model_is_healthy,
    "nothing in a month": nothing_in_a_month,
}


def detect(week: Mapping[str, Sequence[Sample]], minutes: Counted) -> dict[str, list[Excursion]]:
    """Excursions of the org and of each of its models; `week` holds the hours before."""
    normals = Normals(summed(sample for samples in week.values() for sample in samples))
    found = {ALL: excursions(minutes.all(), normals, MINUTE)}
    for model, samples in minutes.samples.items():
        found[model] = excursions(samples, Normals(week.get(model, []), normals), MINUTE)
    return found


def _judge(rng: random.Random, org: Org, incident: Incident | None, subject: str, measure: Measure) -> Outcome:
    past = traffic(rng, org, FIRST_DAY, LAST_DAY, HOUR)
    minutes = traffic(rng, org, LAST_DAY, LAST_DAY + DAY, MINUTE, incident)
    found = detect({name: samples for name, samples in past.samples.items() if samples}, minutes)
    stories = _stories([each for windows in found.values() for each in windows])
    if incident is None:
        return Outcome(false=len(stories))
    false = sum(not _overlaps(start, end, incident) for start, end in stories)
    right = [each for each in found[subject] if each.measure is measure and _overlaps(each.start, each.end, incident)]
    if not right:
        return Outcome(false, found=False)
    window = max(right, key=lambda each: each.score)
    samples = minutes.all() if subject == ALL else minutes.samples[subject]
    true = _figure([sample for sample in samples if incident.start <= sample.start < incident.end], measure)
    edges = max(abs(window.start - incident.start), abs(window.end - incident.end)) // MINUTE
    return Outcome(
        false, True, edges, abs(window.observed - true) / true, _cause_first(incident, window, past, minutes)
    )


def _cause_first(incident: Incident, window: Excursion, past: Counted, minutes: Counted) -> bool | None:
    if incident.client:
        before = past.by_client(FIRST_DAY, LAST_DAY)
        causes = ranked(minutes.by_client(window.start, window.end), before)
    elif incident.model:
        now = {name: _counts(samples, window.start, window.end) for name, samples in minutes.samples.items()}
        causes = ranked(now, {name: _counts(samples, FIRST_DAY, LAST_DAY) for name, samples in past.samples.items()})
    else:
        return None
    return bool(causes) and causes[0].key in {incident.client, incident.model}


def _counts(samples: Sequence[Sample], start: datetime, end: datetime) -> Counts:
    inside = [sample for sample in samples if start <= sample.start < end]
    return Counts(sum(sample.invocations for sample in inside), sum(sample.failures for sample in inside))


def _figure(samples: Sequence[Sample], measure: Measure) -> float:
    if measure is Measure.P95:
        return p95_of(merge(sample.histogram for sample in samples)) or 0.0
    return sum(sample.failures for sample in samples) / sum(sample.invocations for sample in samples)


def _stories(found: Sequence[Excursion]) -> list[tuple[datetime, datetime]]:
    stories: list[tuple[datetime, datetime]] = []
    for each in sorted(found, key=lambda each: each.start):
        if stories and each.start <= stories[-1][1]:
            stories[-1] = stories[-1][0], max(stories[-1][1], each.end)
        else:
            stories.append((each.start, each.end))
    return stories


def _overlaps(start: datetime, end: datetime, incident: Incident) -> bool:
    return start < incident.end and incident.start < end


def _moment(rng: random.Random) -> datetime:
    """A minute of the last day, so that an incident of an hour, and an hour before, are in it."""
    return LAST_DAY + rng.randrange(60, 22 * 60) * MINUTE


def _with_new(since: datetime) -> tuple[Model, ...]:
    return (*MODELS, Model("new", 0.2, 800, 0.6, since))


def _summary(name: str, outcomes: Sequence[Outcome]) -> Summary:
    found = [outcome for outcome in outcomes if outcome.found]
    edges = sorted(outcome.edge_error for outcome in found if outcome.edge_error is not None)
    magnitudes = sorted(outcome.magnitude_error for outcome in found if outcome.magnitude_error is not None)
    causes = [outcome.cause_first for outcome in found if outcome.cause_first is not None]
    return Summary(
        scenario=name,
        runs=len(outcomes),
        found=len(found),
        missed=sum(outcome.found is False for outcome in outcomes),
        false=sum(outcome.false for outcome in outcomes),
        edge_error_median=edges[len(edges) // 2] if edges else None,
        edge_error_max=edges[-1] if edges else None,
        within_a_minute=sum(edge <= 1 for edge in edges) if edges else None,
        within_five_minutes=sum(edge <= 5 for edge in edges) if edges else None,
        magnitude_error_median=round(magnitudes[len(magnitudes) // 2], 3) if magnitudes else None,
        magnitude_error_max=round(magnitudes[-1], 3) if magnitudes else None,
        cause_first=sum(causes) if causes else None,
    )


def _cells(summary: Summary) -> Sequence[object]:
    edges = magnitudes = "-"
    if summary.edge_error_max is not None:
        edges = f"{summary.edge_error_median} to {summary.edge_error_max}"
    if summary.magnitude_error_median is not None and summary.magnitude_error_max is not None:
        magnitudes = f"{summary.magnitude_error_median:.1%} to {summary.magnitude_error_max:.1%}"
    causes = "-" if summary.cause_first is None else summary.cause_first
    within = ["-" if count is None else count for count in (summary.within_a_minute, summary.within_five_minutes)]
    counts = (summary.runs, summary.found, summary.missed, summary.false)
    return summary.scenario, *counts, edges, *within, magnitudes, causes


def _row(cells: Sequence[object]) -> str:
    first, *others = map(str, cells)
    return f"{first:22}" + "".join(f"{cell:>14}" for cell in others)
