"""Lines: zero-based, broken where there is no value, marks that are seen; and the axis of time below them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from usage.charts import HEIGHT, MAX_BARS
from usage.formatting import latency, points, round_latency, round_percentage
from usage.lines import MIN_MARK, Line, LineChart, lined
from usage.timeline import MAX_TIME_LABELS, Timeline
from usage.windows import DAY, HOUR, UTC_ZONE, Window, buckets

MINUTE = timedelta(minutes=1)
MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)


def drawn(values: list[float | None], lower: list[float | None] | None = None, **given: object) -> LineChart:
    upper = Line("upper", values, "p95")
    floor = Line("lower", lower, "p50") if lower else None
    lines = [upper, floor] if floor else [upper]
    says = [f"bucket {n}" for n in range(len(values))]
    defaults: dict[str, object] = {
        "times": {0: "1 Nov"},
        "unfinished": set(),
        "marks": [],
        "label_of": round_percentage,
    }
    return lined("rate", lines, (floor, upper), says, **defaults | given)  # type: ignore[arg-type]


def test_a_line_goes_through_the_middles_of_its_buckets_from_zero_up() -> None:
    chart = drawn([0, 4, 2])
    assert [tick.label for tick in chart.amounts] == ["0%", "1%", "2%", "3%", "4%"]
    assert chart.shapes[0].path == f"M50 {HEIGHT}.0L150 0.0L250 {HEIGHT / 2}"
    assert chart.area == f"M50 {HEIGHT}.0L150 0.0L250 {HEIGHT / 2}L250 {HEIGHT}.0L150 {HEIGHT}.0L50 {HEIGHT}.0z"
    assert [slot.says for slot in chart.slots] == ["bucket 0", "bucket 1", "bucket 2"]


def test_no_value_is_a_gap_and_one_between_gaps_is_seen() -> None:
    chart = drawn([1, 1, None, 1, None])
    assert chart.shapes[0].path == "M50 0.0L150 0.0M325 0.0L375 0.0"
    assert chart.area.count("z") == 2


def test_the_area_lies_between_two_lines() -> None:
    chart = drawn([4, 4], [1, 1])
    assert chart.area == "M50 0.0L150 0.0L150 180.0L50 180.0z"
    assert [shape.colour for shape in chart.shapes] == ["p95", "p50"]


def test_marks_are_parts_of_the_width_and_never_too_thin() -> None:
    chart = drawn([1, 1, 1, 1], marks=[(1.0, 2.5), (3.0, 3.0), (4.0, 4.0)])
    assert [(mark.x, mark.width) for mark in chart.marks] == [(25, 37.5), (75, MIN_MARK), (100 - MIN_MARK, MIN_MARK)]


def test_nothing_at_all_is_a_chart_too() -> None:
    assert drawn([]).shapes[0].path == ""
    chart = drawn([None, None], unfinished={1})
    assert (chart.shapes[0].path, chart.area, chart.has_unfinished) == ("", "", True)
    assert [tick.label for tick in chart.amounts] == ["0%", "1%"]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(None, "–"), (0, "0 ms"), (999.4, "999 ms"), (999.6, "1.00 s"), (4123, "4.12 s"), (30_000, "30.0 s"),
     (86_400_000, "86,400 s")],
)  # fmt: skip
def test_latencies_are_read_in_one_unit(ms: float | None, text: str) -> None:
    assert latency(ms).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("ms", "step", "text"),
    [(0, 200, "0 ms"), (800, 200, "800 ms"), (1500, 500, "1.5 s"), (2000, 1000, "2 s"), (20_000, 10_000, "20 s")],
)
def test_latencies_of_an_axis_are_of_one_unit(ms: int, step: int, text: str) -> None:
    assert round_latency(Decimal(ms), Decimal(step)).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("now", "before", "text"), [(0.05, 0.02, "+3.0 points"), (0, 0.5, "−50.0 points"), (0.1, 0.1, "±0.0 points")]
)
def test_shares_change_by_points(now: float, before: float, text: str) -> None:
    assert points(now, before) == text


# ── The axis of time ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [1, 7, 30, 59, 80, 120, 200, 360])
def test_minutes_have_at_most_a_few_round_names(length: int) -> None:
    start = MIDNIGHT + timedelta(hours=9, minutes=7)
    labels = Timeline(list(Window(start, start + length * MINUTE).pieces(MINUTE)), MINUTE, UTC_ZONE).labels
    assert len(labels) <= MAX_TIME_LABELS
    assert length < 7 or len(labels) > 1
    assert labels == {n: f"{start + n * MINUTE:%H:%M}" for n in labels}


def test_a_moment_has_a_place_in_its_bar() -> None:
    timeline = Timeline(list(Window(MIDNIGHT, MIDNIGHT + 4 * HOUR).pieces(HOUR)), HOUR, UTC_ZONE)
    moments = [MIDNIGHT - DAY, MIDNIGHT, MIDNIGHT + 90 * MINUTE, MIDNIGHT + 4 * HOUR, MIDNIGHT + DAY]
    assert [timeline.position(moment) for moment in moments] == [0, 0, 1.5, 4, 4]


def test_too_many_hours_are_days() -> None:
    window = Window(MIDNIGHT, MIDNIGHT + 20 * DAY)
    timeline = Timeline(list(buckets(window, "hour", UTC_ZONE)), HOUR, UTC_ZONE)  # type: ignore[arg-type]
    assert (len(timeline.bars), timeline.is_coarser) == (20, True)
    assert len(timeline.buckets) > MAX_BARS
    assert timeline.place[MIDNIGHT + 30 * HOUR] == 1
    assert timeline.name(1) == "Tue 3 Mar 2026"
