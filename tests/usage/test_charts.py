"""Charts: round zero-based steps, at most eight series, one path per series."""

from decimal import Decimal

import pytest

from usage.charts import HEIGHT, MAX_SERIES, OTHER, round_steps, stacked, top_series
from usage.formatting import change, money, percentage, round_money, round_number, short


@pytest.mark.parametrize(
    ("largest", "step", "top"),
    [
        (0, 1, 1),
        (1, "0.5", 1),
        (7, 2, 8),
        (334, 100, 400),
        (400, 100, 400),
        (401, 200, 600),
        ("0.0003", "0.0001", "0.0003"),
        (10**24, 5 * 10**23, 10**24),
    ],
)
def test_steps_are_round_begin_at_zero_and_reach_the_largest(largest: object, step: object, top: object) -> None:
    steps = round_steps(Decimal(str(largest)))
    assert steps[0] == 0
    assert steps[1] == Decimal(str(step))
    assert steps[-1] == Decimal(str(top))
    assert len(steps) <= 6


def test_whole_things_have_whole_steps() -> None:
    assert round_steps(1, Decimal(1)) == [0, 1]


def test_eight_series_have_names_and_the_rest_is_other() -> None:
    series, colours = top_series({n: [n, 0] for n in range(1, 12)}, lambda n: f"model {n}")
    assert [s.name for s in series[:2]] == ["model 11", "model 10"]
    assert len(series) == MAX_SERIES + 1
    assert (series[-1].name, list(series[-1].amounts)) == ("Other (3 models)", [6, 0])
    assert colours[11] == "c1"
    assert [n for n in colours if colours[n] == OTHER] == [3, 2, 1]


def test_bars_stack_from_zero_to_the_last_step() -> None:
    series, _ = top_series({"a": [3, 0], "b": [1, 0]}, str)
    chart = stacked(series, ["first", "second"], {0: "1 Nov"}, {1}, round_number, Decimal(1))
    assert [tick.label for tick in chart.amounts] == ["0", "1", "2", "3", "4"]
    assert [tick.position for tick in chart.amounts][::4] == [HEIGHT, 0]
    assert [slot.top for slot in chart.slots] == [0, HEIGHT]
    assert [slot.is_unfinished for slot in chart.slots] == [False, True]
    assert [shape.path.count("M") for shape in chart.shapes] == [1, 1]
    assert chart.shapes[0].path.startswith("M18 240.0")
    assert f"V{HEIGHT / 4:.1f}" in chart.shapes[0].path


def test_nothing_at_all_is_a_chart_too() -> None:
    chart = stacked([], ["a", "b"], {}, set(), round_money)
    assert chart.shapes == []
    assert [tick.label for tick in chart.amounts] == ["$0.00", "$0.01"]
    assert stacked([], [], {}, set(), round_money).slots == []


@pytest.mark.parametrize(
    ("cents", "text"),
    [
        ("123456", "$1,234.56"),
        ("0", "$0.00"),
        ("0.4999", "<$0.01"),
        ("0.5000", "<$0.01"),
        ("1.5", "$0.02"),
        ("2.5", "$0.02"),
        ("123456789012345678901234567890.1234", "$1,234,567,890,123,456,789,012,345,678.90"),
    ],
)
def test_money_is_rounded_half_even_and_never_to_nothing(cents: str, text: str) -> None:
    assert money(Decimal(cents)) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_999, "9,999"), (10_000, "10.0 k"), (999_949, "999.9 k"), (999_950, "1.0 M"), (1_234_567, "1.2 M")],
)
def test_large_numbers_are_short(number: int, text: str) -> None:
    assert short(number).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("now", "before", "text"),
    [(5, 0, "–"), (110, 100, "+10.0%"), (90, 100, "−10.0%"), (100, 100, "±0.0%"), (10**12, 1, "+99,999,999,999,900%")],
)
def test_change_has_a_sign_and_a_dash_where_nothing_was(now: int, before: int, text: str) -> None:
    assert change(now, before) == text


def test_a_part_of_nothing_is_a_dash() -> None:
    assert (percentage(1, 0), percentage(1, 3), percentage(1, 10**6)) == ("–", "33.3%", "<0.1%")


@pytest.mark.parametrize(
    ("amount", "step", "text"),
    [(50, 50, "$0.50"), (100, 50, "$1.00"), (20_000, 10_000, "$200"), ("0.05", "0.05", "$0.0005"), (0, 10**6, "$0")],
)
def test_amounts_of_an_axis_have_the_decimals_of_its_step(amount: object, step: object, text: str) -> None:
    assert round_money(Decimal(str(amount)), Decimal(str(step))) == text
