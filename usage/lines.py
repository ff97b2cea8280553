"""Lines over time as SVG, like the bars of `charts`: computed here, drawn in parts of the whole, coloured by the style sheet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby

from .charts import COLUMN, HEIGHT, Drawing, Shape, Slot, amount_ticks, round_steps, time_ticks

MIN_MARK = 0.5  # percent of the width: what lasted a minute is seen among days


@dataclass(frozen=True)
class Line:
    """A name, and a value per bucket; None where there is none."""

    name: str
    values: Sequence[float | None]
    style: str


@dataclass(frozen=True)
class Mark:
    """A stretch of time, in percent of the width."""

    x: float
    width: float


@dataclass(frozen=True)
class LineChart(Drawing):
    id: str
    area: str
    marks: list[Mark]
    legend: list[Line]


def lined(
    pk: str,
    lines: Sequence[Line],
    area: tuple[Line | None, Line],
    says: Sequence[str],
    times: Mapping[int, str],
    unfinished: set[int],
    marks: Sequence[tuple[float, float]],
    label_of: Callable[[Decimal, Decimal], str],
) -> LineChart:
    """A chart of as many buckets as `says` has texts; `marks` are from where to where, in buckets.

    The area is that between two lines, or below one. A bucket without a value is a gap in it and in the lines.
    """
    count = len(says)
    width = 100 / max(1, count)
    largest = max((value for line in lines for value in line.values if value is not None), default=0.0)
    steps = round_steps(Decimal(str(largest)))
    scale = HEIGHT / float(steps[-1])
    lower, upper = area
    return LineChart(
        id=pk,
        columns=count * COLUMN,
        area=_area(lower, upper, scale),
        shapes=[Shape(line.style, _path(line, scale)) for line in lines],
        marks=[_mark(start * width, end * width) for start, end in marks],
        slots=[Slot(round(n * width, 3), round(width, 3), text, n in unfinished, 0) for n, text in enumerate(says)],
        amounts=amount_ticks(steps, label_of),
        times=time_ticks(times, count),
        legend=list(lines),
    )


def _mark(start: float, end: float) -> Mark:
    return Mark(round(min(start, 100 - MIN_MARK), 3), round(max(end - start, MIN_MARK), 3))


def _runs(line: Line) -> list[list[int]]:
    """The stretches of buckets that have a value."""
    found = groupby(range(len(line.values)), key=lambda n: line.values[n] is not None)
    return [list(run) for has_values, run in found if has_values]


def _outline(line: Line, run: Sequence[int], scale: float) -> list[str]:
    """From the middle of a bucket to that of the next; one that stands alone is as wide as half of it."""
    at = [(n * COLUMN + COLUMN // 2, f"{_y(line.values[n], scale):.1f}") for n in run]
    if len(at) == 1:
        x, y = at[0]
        at = [(x - COLUMN // 4, y), (x + COLUMN // 4, y)]
    return [f"{x} {y}" for x, y in at]


def _y(value: float | None, scale: float) -> float:
    assert value is not None
    return HEIGHT - value * scale


def _path(line: Line, scale: float) -> str:
    return "".join("M" + "L".join(_outline(line, run, scale)) for run in _runs(line))


def _area(lower: Line | None, upper: Line, scale: float) -> str:
    """`lower` has a value wherever `upper` has one; without it the area reaches down to zero."""
    floor = lower or Line("", [None if value is None else 0.0 for value in upper.values], "")
    return "".join(
        "M" + "L".join(_outline(upper, run, scale) + _outline(floor, run, scale)[::-1]) + "z" for run in _runs(upper)
    )
