"""What many samples come to: percentiles, slopes of memory, and requests beside restarts."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

MARGIN = 15.0  # seconds before and after a restart that count as its own
ENDS = 3  # samples that start and end of a memory are the median of

Points = Sequence[tuple[float, float]]  # seconds and megabytes


@dataclass(frozen=True)
class Answer:
    """What became of a request. Seconds are counted from when it was due."""

    due: float
    kind: str
    seconds: float
    problem: str  # empty where it was answered as it should be
    lag: int | None = None  # seconds that the answer says its figures trail


@dataclass(frozen=True)
class Restart:
    name: str
    began: float
    up: float

    def distance(self, start: float, end: float) -> float:
        """Seconds between it and something that took from start to end; 0 where they overlap."""
        return max(0.0, start - self.up, self.began - end)


@dataclass(frozen=True)
class Sample:
    """The memory of one process at one moment."""

    at: float
    name: str
    pid: int
    megabytes: float


@dataclass(frozen=True)
class Memory:
    start: float
    end: float
    most: float
    slope: float | None  # megabytes an hour; None where nothing lived long enough


def percentile(values: Sequence[float], share: float) -> float | None:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def percentiles(values: Sequence[float], digits: int = 1) -> dict[str, float | None]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    found = {name: percentile(values, share) for name, share in shares.items()}
    return {name: None if value is None else round(value, digits) for name, value in found.items()}


def restart_of(start: float, end: float, restarts: Iterable[Restart], margin: float = MARGIN) -> str:
    """Whose restart something fell into, the nearest; empty where into none."""
    near = [(restart.distance(start, end), -restart.began, restart.name) for restart in restarts]
    distance, _, name = min(near, default=(margin + 1, 0.0, ""))
    return name if distance <= margin else ""


def failures(answers: Iterable[Answer], restarts: Sequence[Restart]) -> dict[str, dict[str, int]]:
    """How many requests failed: by whose restart they fell into, then by kind and what was wrong."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        if answer.problem:
            during = restart_of(answer.due, answer.due + answer.seconds, restarts) or "no restart"
            found[during][answer.problem] += 1
    return {during: dict(counter.most_common()) for during, counter in found.items()}


def slope(lives: Iterable[Points]) -> float | None:
    """Least squares over several lives of a process, each with a level of its own; an hour."""
    together = spread = 0.0
    for points in lives:
        if points:
            at, level = fmean(time for time, _ in points), fmean(value for _, value in points)
            together += sum((time - at) * (value - level) for time, value in points)
            spread += sum((time - at) ** 2 for time, _ in points)
    return together / spread * 3600 if spread else None


def memories(samples: Iterable[Sample], warm_up: float) -> dict[str, Memory]:
    """Of each name, without the first seconds of each life: caches fill then, and modules are loaded."""
    born: dict[tuple[str, int], float] = {}
    lives: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if sample.at - born.setdefault((sample.name, sample.pid), sample.at) >= warm_up:
            lives[sample.name][sample.pid].append((sample.at, sample.megabytes))
    found = {}
    for name, by_pid in lives.items():
        values = [value for _, value in sorted(point for points in by_pid.values() for point in points)]
        found[name] = Memory(
            median(values[:ENDS]), median(values[-ENDS:]), max(values), slope(by_pid.values())
        )  # fmt: skip
    return found
