"""Which models, clients or error codes explain that more calls were bad (failed, or slow) than normal."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from .normal import DEFAULT_ERROR_RATE, SUBJECT_CALLS

MAX_CAUSES = 5
# Of all bad calls beyond the expected; less is not worth a line.
MIN_SHARE = 0.05

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Counts:
    invocations: int
    bad: int


@dataclass(frozen=True, slots=True)
class Cause(Generic[K]):
    """`share`: what part this key has of the bad calls beyond the expected ones, 0 to 1."""

    key: K
    bad: int
    expected: float
    share: float


def ranked(now: Mapping[K, Counts], before: Mapping[K, Counts]) -> list[Cause[K]]:
    """Of keys that make calls (models, clients): worse than their own normal, whatever their traffic does.

    What little traffic before says little about is drawn towards the share of all keys (see `normal`).
    """
    common = _drawn(
        Counts(sum(counts.invocations for counts in before.values()), sum(counts.bad for counts in before.values())),
        DEFAULT_ERROR_RATE,
    )
    return _causes(
        {
            key: (counts.bad, counts.invocations * _drawn(before.get(key, Counts(0, 0)), common))
            for key, counts in now.items()
        }
    )


def ranked_codes(
    now: Mapping[K, int], before: Mapping[K, int], invocations_now: int, invocations_before: int
) -> list[Cause[K]]:
    """Of keys that only bad calls have (error codes): more often than before, by the number of all calls."""
    scale = invocations_now / invocations_before if invocations_before else 0.0
    return _causes({key: (bad, scale * before.get(key, 0)) for key, bad in now.items()})


def _drawn(counts: Counts, towards: float) -> float:
    return (counts.bad + SUBJECT_CALLS * towards) / (counts.invocations + SUBJECT_CALLS)


def _causes(found: Mapping[K, tuple[int, float]]) -> list[Cause[K]]:
    """By the bad calls beyond the expected, the most first."""
    beyond = {key: bad - expected for key, (bad, expected) in found.items() if bad > expected}
    total = sum(beyond.values())
    causes = [Cause(key, *found[key], excess / total) for key, excess in beyond.items()]
    causes.sort(key=lambda cause: -cause.share)
    return [cause for cause in causes if cause.share >= MIN_SHARE][:MAX_CAUSES]
