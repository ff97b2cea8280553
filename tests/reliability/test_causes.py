"""Which keys explain the bad calls."""

from hypothesis import given
from hypothesis import strategies as st

from reliability.causes import MAX_CAUSES, MIN_SHARE, Counts, ranked, ranked_codes

counts = st.integers(0, 1_000).flatmap(lambda calls: st.builds(Counts, st.just(calls), st.integers(0, calls)))


def test_nothing_has_no_cause() -> None:
    assert ranked({}, {}) == []
    assert ranked({"a": Counts(0, 0)}, {"a": Counts(0, 0)}) == []
    assert ranked_codes({}, {}, 0, 0) == []


def test_the_one_that_left_its_normal_comes_first() -> None:
    before = {"a": Counts(10_000, 100), "b": Counts(10_000, 500)}
    first, *others = ranked({"a": Counts(100, 30), "b": Counts(100, 6)}, before)
    assert (first.key, first.bad, round(first.expected, 1)) == ("a", 30, 1.0)
    assert first.share > 0.95
    assert others == []


def test_more_traffic_is_not_a_cause() -> None:
    before = {"a": Counts(10_000, 100), "b": Counts(10_000, 100)}
    assert [cause.key for cause in ranked({"a": Counts(5_000, 50), "b": Counts(100, 20)}, before)] == ["b"]


def test_a_key_nobody_has_seen_is_expected_to_be_like_the_others() -> None:
    (cause,) = ranked({"old": Counts(100, 2), "new": Counts(100, 30)}, {"old": Counts(10_000, 200)})
    assert (cause.key, round(cause.expected, 1)) == ("new", 2.0)


def test_error_codes_are_expected_by_the_number_of_all_calls() -> None:
    (cause,) = ranked_codes({"overloaded": 50, "bad_request": 10}, {"bad_request": 100}, 1_000, 10_000)
    assert (cause.key, cause.expected, cause.share) == ("overloaded", 0, 1)


def test_without_calls_before_no_code_is_expected() -> None:
    assert ranked_codes({"timeout": 5}, {}, 10, 0)[0].expected == 0


def test_an_incident_of_all_is_shared_out() -> None:
    before = {name: Counts(10_000, 100) for name in "abcdefg"}
    causes = ranked({name: Counts(100, 30) for name in before}, before)
    assert len(causes) == MAX_CAUSES
    assert {round(cause.share, 3) for cause in causes} == {0.143}


@given(st.dictionaries(st.text(max_size=3), counts), st.dictionaries(st.text(max_size=3), counts))
def test_causes_are_few_and_ordered(now: dict[str, Counts], before: dict[str, Counts]) -> None:
    shares = [cause.share for cause in ranked(now, before)]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) <= MAX_CAUSES
    assert all(share >= MIN_SHARE for share in shares)
    assert sum(shares) < 1 + 1e-9
