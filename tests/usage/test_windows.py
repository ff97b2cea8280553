"""Time: windows, days of a zone, and plans that cover a window exactly."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage.windows import (
    DAY,
    HOUR,
    MINUTE,
    Granularity,
    Plan,
    Window,
    ceil_hour,
    floor_hour,
    floor_minute,
    midnight,
    plan,
)

ZONES = [
    ZoneInfo(name)
    for name in ("UTC", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Apia", "Europe/Berlin")
]
times = st.datetimes(datetime(2024, 9, 1), datetime(2026, 11, 1), timezones=st.just(UTC))
windows = st.builds(
    lambda start, length: Window(start, start + length),
    times,
    st.timedeltas(timedelta(microseconds=1), timedelta(days=10)),
)


def test_naive_times_are_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Window(datetime(2026, 1, 1), datetime(2026, 1, 2))


def test_a_window_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="is after"):
        Window(datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))


def test_a_day_of_a_zone_has_the_hours_that_its_clocks_give_it() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    spring, autumn = date(2026, 3, 29), date(2026, 10, 25)
    assert midnight(spring + DAY, berlin) - midnight(spring, berlin) == timedelta(hours=23)
    assert midnight(autumn + DAY, berlin) - midnight(autumn, berlin) == timedelta(hours=25)


@given(times)
def test_hours_are_floored_and_ceiled(moment: datetime) -> None:
    assert floor_hour(moment) <= moment < floor_hour(moment) + HOUR
    assert moment <= ceil_hour(moment) < moment + HOUR


@given(windows, st.sampled_from(Granularity), st.sampled_from(ZONES), times)
def test_the_parts_of_a_plan_are_exactly_the_window(
    window: Window, granularity: Granularity, zone: ZoneInfo, minutes_since: datetime
) -> None:
    by_hours = plan(window, granularity, zone)
    by_minutes = by_hours.by_minutes(minutes_since)
    for parts in (by_hours, by_minutes):
        assert_exact(parts, window, granularity, zone)
    assert not by_hours.minutes
    for piece in by_minutes.minutes:
        assert piece.window.start >= minutes_since
        assert floor_minute(piece.window.start) == piece.window.start
        assert floor_minute(piece.window.end) == piece.window.end
    for piece in by_minutes.fragments:
        assert piece.window.start < minutes_since or piece.window.end - piece.window.start < 2 * MINUTE


def assert_exact(parts: Plan, window: Window, granularity: Granularity, zone: ZoneInfo) -> None:
    pieces = [*parts.hours, *parts.minutes, *parts.fragments]
    covered = sorted([piece.window for piece in pieces] + ([parts.rows] if parts.rows else []))
    assert covered[0].start == window.start
    assert covered[-1].end == window.end
    assert all(left.end == right.start for left, right in pairwise(covered))
    assert all(piece.window.end - piece.window.start < HOUR for piece in parts.fragments)
    assert len(parts.hours) <= 2
    assert len(parts.fragments) <= 4 + len(parts.minutes)
    for piece in parts.hours:
        assert floor_hour(piece.window.start) == piece.window.start
        assert floor_hour(piece.window.end) == piece.window.end
    for piece in pieces:
        if granularity is Granularity.HOUR:
            assert piece.bucket_start == floor_hour(piece.window.start)
        else:
            day = piece.window.start.astimezone(zone).date()
            assert piece.bucket_start == midnight(day, zone)
            assert piece.window.end <= midnight(day + DAY, zone)


@given(windows, st.sampled_from(ZONES))
def test_whole_days_contain_the_window(window: Window, zone: ZoneInfo) -> None:
    widened = window.whole_days(zone)
    assert widened.start <= window.start
    assert window.end <= widened.end
    assert len(list(widened.days(zone))) == len(list(window.days(zone)))


@given(windows)
def test_pieces_make_up_the_window(window: Window) -> None:
    pieces = list(window.pieces(DAY))
    assert pieces[0].start == window.start
    assert pieces[-1].end == window.end
    assert all(left.end == right.start for left, right in pairwise(pieces))
