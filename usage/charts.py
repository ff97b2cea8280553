"""Stacked bars as SVG, computed here: no script, no library.

The drawing is the plot alone. Widths are parts of the whole and heights are pixels, so that it fills any screen while
texts and lines keep their size. Colours are classes, so that light and dark are the style sheet's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

MAX_SERIES = 8  # the rest are one, "other"
MAX_BARS = 370  # more can neither be told apart nor walked through
DENSE = 60  # bars
HEIGHT = 240  # pixels
COLUMN = 100  # units of the drawing that one bucket is wide
OTHER = "other"

K = TypeVar("K")


@dataclass(frozen=True)
class Series:
    """One colour of the stack: a name, and an amount per bucket."""

    name: str
    amounts: Sequence[Decimal | int]
    colour: str


@dataclass(frozen=True)
class Shape:
    """All of one series' bars as one path."""

    colour: str
    path: str


@dataclass(frozen=True)
class Slot:
    """The area of one bucket, in percent of the width; what it says when it is pointed at."""

    x: float
    width: float
    says: str
    is_unfinished: bool
    top: float  # of its bar, in pixels

    @property
    def height(self) -> float:
        return round(HEIGHT - self.top, 2)


@dataclass(frozen=True)
class Tick:
    """A place on an axis: pixels from the top, or percent of the width."""

    position: float
    label: str
    is_minor: bool = False  # left out on a phone


@dataclass(frozen=True)
class Drawing:
    """What every chart over time has, bars or lines."""

    columns: int  # width of the drawing in its units
    shapes: list[Shape]
    slots: list[Slot]
    amounts: list[Tick]
    times: list[Tick]

    @property
    def has_unfinished(self) -> bool:
        return any(slot.is_unfinished for slot in self.slots)


@dataclass(frozen=True)
class Chart(Drawing):
    legend: list[Series]

    @property
    def is_dense(self) -> bool:
        """Too many bars for lines between their parts."""
        return len(self.slots) > DENSE


def round_steps(largest: Decimal | int, smallest_step: Decimal = Decimal(0)) -> list[Decimal]:
    """Zero and three to five round steps (1, 2 or 5 times a power of ten), the last at or above the largest amount."""
    if largest <= 0:
        return [Decimal(0), max(Decimal(1), smallest_step)]
    rough = Decimal(largest) / 4
    power = Decimal(1).scaleb(rough.adjusted())
    step = max(smallest_step, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough))
    return [step * n for n in range(math.ceil(Decimal(largest) / step) + 1)]


def amount_ticks(steps: Sequence[Decimal], label_of: Callable[[Decimal, Decimal], str]) -> list[Tick]:
    """Round steps, as `round_steps` has them, from the bottom of the drawing to its top."""
    scale = HEIGHT / float(steps[-1])
    return [Tick(round(HEIGHT - float(step) * scale, 2), label_of(step, steps[1])) for step in steps]


def time_ticks(times: Mapping[int, str], count: int) -> list[Tick]:
    """The names of some of so many buckets, each below the middle of its own."""
    width = 100 / max(1, count)
    return [
        Tick(round((n + 0.5) * width, 4), label, is_minor=position % 2 == 1)
        for position, (n, label) in enumerate(times.items())
    ]


def top_series(
    amounts: Mapping[K, Sequence[Decimal | int]], name_of: Callable[[K], str], noun: str = "model"
) -> tuple[list[Series], dict[K, str]]:
    """The largest series by their sums, the rest together; and each one's colour."""
    ordered = sorted(amounts, key=lambda key: (-sum(amounts[key]), name_of(key)))
    series = [Series(name_of(key), amounts[key], f"c{n}") for n, key in enumerate(ordered[:MAX_SERIES], start=1)]
    colours = {key: f"c{n + 1}" if n < MAX_SERIES else OTHER for n, key in enumerate(ordered)}
    if rest := ordered[MAX_SERIES:]:
        sums = [sum(values) for values in zip(*(amounts[key] for key in rest), strict=True)]
        series.append(Series(f"Other ({len(rest)} {noun}{'' if len(rest) == 1 else 's'})", sums, OTHER))
    return series, colours


def stacked(
    series: Sequence[Series],
    says: Sequence[str],
    times: Mapping[int, str],
    unfinished: set[int],
    label_of: Callable[[Decimal, Decimal], str],
    smallest_step: Decimal = Decimal(0),
) -> Chart:
    """A chart of series over as many buckets as `says` has texts; `times` are the buckets that are named on the axis."""
    count = len(says)
    heights = [sum((one.amounts[n] for one in series), Decimal()) for n in range(count)]
    steps = round_steps(max(heights, default=Decimal()), smallest_step)
    scale = HEIGHT / float(steps[-1])
    margin = 12 if count > DENSE else 18  # of a column, on both sides
    digits = 0 if count > DENSE else 1  # of a pixel: what a page weighs
    floors = [float(HEIGHT)] * count
    shapes = []
    for one in series:
        bars = []
        for n, amount in enumerate(one.amounts):
            if not amount:
                continue
            floor = floors[n]
            floors[n] = floor - float(amount) * scale
            bars.append(
                f"M{n * COLUMN + margin} {floor:.{digits}f}h{COLUMN - 2 * margin}V{floors[n]:.{digits}f}h{2 * margin - COLUMN}z"
            )
        if bars:
            shapes.append(Shape(one.colour, "".join(bars)))
    width = 100 / max(1, count)
    slots = [
        Slot(round(n * width, 3), round(width, 3), text, n in unfinished, round(floors[n], 2))
        for n, text in enumerate(says)
    ]
    return Chart(
        columns=count * COLUMN,
        shapes=shapes,
        slots=slots,
        amounts=amount_ticks(steps, label_of),
        times=time_ticks(times, count),
        legend=list(series),
    )
