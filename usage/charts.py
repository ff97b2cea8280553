"""Stacked bars as SVG, made here: no script, no library. Colours are classes, so that dark mode is the style sheet's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

MAX_SERIES = 8  # the rest are one, "other"
WIDTH, HEIGHT = 960, 280  # units of the drawing; it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 64, 8, 12, 28  # room for the axes


@dataclass(frozen=True)
class Series:
    """One colour of the stack: a name, and an amount per bucket."""

    name: str
    amounts: Sequence[Decimal]
    colour: str


@dataclass(frozen=True)
class Segment:
    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Bar:
    """One bucket: its segments, the area that reacts to the pointer and to focus, and what it says."""

    segments: list[Segment]
    x: float
    width: float
    title: str
    unfinished: bool


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


@dataclass(frozen=True)
class Chart:
    bars: list[Bar]
    amounts: list[Tick]
    times: list[Tick]
    legend: list[Series]


def round_steps(largest: Decimal) -> list[Decimal]:
    """Zero and three to six round steps (1, 2 or 5 times a power of ten) that reach the largest amount."""
    if largest <= 0:
        return [Decimal(0), Decimal(1)]
    rough = float(largest) / 4
    power = Decimal(10) ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if float(power * factor) >= rough * 0.999)
    steps = math.ceil(float(largest / step) - 1e-9)
    return [step * n for n in range(steps + 1)]


def top_series(amounts: dict[str, list[Decimal]]) -> list[Series]:
    """The largest series by sum, at most `MAX_SERIES` of them, the rest together."""
    ordered = sorted(amounts.items(), key=lambda item: (-sum(item[1]), item[0]))
    if len(ordered) > MAX_SERIES:
        rest = [sum(values, Decimal()) for values in zip(*(v for _, v in ordered[MAX_SERIES - 1 :]), strict=True)]
        ordered = [*ordered[: MAX_SERIES - 1], (f"{len(ordered) - MAX_SERIES + 1} others", rest)]
    return [Series(name, values, f"series-{number}") for number, (name, values) in enumerate(ordered, start=1)]


def stacked(
    series: Sequence[Series],
    buckets: Sequence[str],
    labels: dict[int, str],
    titles: Sequence[str],
    unfinished: set[int],
    label_of: Callable[[Decimal], str],
) -> Chart:
    """A chart of series over buckets.

    `labels` are the buckets that get a label on the axis, `titles` what each bucket says, `unfinished` the buckets that
    are not over yet.
    """
    sums = [sum((s.amounts[n] for s in series), Decimal()) for n in range(len(buckets))]
    steps = round_steps(max(sums, default=Decimal()))
    scale = (HEIGHT - TOP - BOTTOM) / float(steps[-1])
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(buckets))
    gap = min(6.0, slot * 0.2)
    bars = []
    for n in range(len(buckets)):
        x, y = LEFT + n * slot, float(HEIGHT - BOTTOM)
        segments = []
        for one in series:
            height = float(one.amounts[n]) * scale
            if height <= 0:
                continue
            y -= height
            segments.append(
                Segment(round(x + gap / 2, 2), round(y, 2), round(slot - gap, 2), round(height, 2), one.colour)
            )
        bars.append(Bar(segments, round(x, 2), round(slot, 2), titles[n], n in unfinished))
    return Chart(
        bars,
        [Tick(round(HEIGHT - BOTTOM - float(step) * scale, 2), label_of(step)) for step in steps],
        [Tick(round(LEFT + (n + 0.5) * slot, 2), label) for n, label in labels.items()],
        list(series),
    )
