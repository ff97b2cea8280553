"""When what happens, fixed before anything runs: a service that is slow is asked no less for it."""

import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

# Shares of the requests, by what they ask; exports come beside them, at a rate of their own.
MIX = {"usage by hour": 25, "usage by day": 20, "reliability": 20, "freshness": 15, "incidents": 10, "events": 10}
EXPORT = "export"
EXPORT_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Ask:
    """A request that is to be sent."""

    due: float  # seconds since the start
    kind: str
    org: int  # index


@dataclass(frozen=True)
class Clock:
    """Seconds since the start, the same in all processes."""

    zero: float = field(default_factory=time.monotonic)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def now(self) -> float:
        return time.monotonic() - self.zero

    def at(self, seconds: float) -> datetime:
        return self.began + timedelta(seconds=seconds)


def arrivals(rate: float, seconds: float, draw: random.Random) -> "array[float]":
    """The moments of a Poisson process, given how many there are in all: those of the rate."""
    return array("d", sorted(draw.uniform(0, seconds) for _ in range(round(rate * seconds))))


def asks(rate: float, seconds: float, orgs: int, draw: random.Random) -> list[Ask]:
    """The requests of a run, in the order in which they are due."""
    dues = arrivals(rate, seconds, draw)
    kinds = draw.choices(list(MIX), list(MIX.values()), k=len(dues))
    found = [Ask(due, kind, draw.randrange(orgs)) for due, kind in zip(dues, kinds, strict=True)]
    exports = int(seconds / EXPORT_EVERY)
    found += [Ask((n + 0.5) * EXPORT_EVERY, EXPORT, draw.randrange(orgs)) for n in range(exports)]
    return sorted(found, key=lambda ask: ask.due)


def spread(names: Sequence[str], seconds: float) -> list[tuple[float, str]]:
    """When each is restarted: evenly, with as much time before the first and after the last."""
    return [(seconds * number / (len(names) + 1), name) for number, name in enumerate(names, 1)]
