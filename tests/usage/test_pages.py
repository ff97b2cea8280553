"""The usage page and its CSV: the address is the state, the figures are exact, and every state has words."""

import csv
import re
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from orgs.models import AuditRecord, Org, User
from tests.factories import (
    MODEL,
    NOON,
    OTHER_MODEL,
    ROLE_QUERIES,
    at,
    ingest,
    make_event,
    make_model,
    make_org,
    make_user,
)
from usage import filters
from usage.rollups import adopt_zones, roll_up
from usage.windows import Granularity, Window

pytestmark = pytest.mark.django_db
BERLIN = ZoneInfo("Europe/Berlin")
DAY = f"range=custom&start={NOON:%Y-%m-%d}&end={NOON:%Y-%m-%d}"


def visit(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def page(org: Org, query: str = "", user: User | None = None) -> str:
    response = visit(user or make_user(org=org)).get(f"/orgs/{org.slug}/usage/?{query}")
    assert response.status_code == 200
    return response.content.decode()


def exact(html: str) -> dict[str, str]:
    return dict(re.findall(r'id="(total-[a-z-]+)"\s+data-exact="([^"]*)"', html))


def rows(org: Org, query: str) -> list[dict[str, str]]:
    response = visit(make_user(org=org)).get(f"/orgs/{org.slug}/usage.csv?{query}")
    assert response.status_code == 200
    text = b"".join(response.streaming_content).decode()  # type: ignore[attr-defined]
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture
def org() -> Org:
    """Three calls of two models, one without a price, and one call the day before."""
    org = make_org("Acme <b>", slug="acme")
    make_model()
    make_model(OTHER_MODEL, "Birch Mini")
    ingest(
        [
            make_event(org, occurred_at=at(9), cost_estimate_cents=Decimal("100.0001")),
            make_event(org, occurred_at=at(10), status="timeout", error_code="x"),
            make_event(org, occurred_at=at(10), model_id=OTHER_MODEL, cost_estimate_cents=None),
            make_event(org, occurred_at=at(10) - timedelta(days=1), cost_estimate_cents=Decimal("50.1250")),
        ]
    )
    roll_up()
    return org


def test_totals_are_exact_and_compared_with_the_period_before(org: Org) -> None:
    html = page(org, DAY)
    assert exact(html) == {
        "total-spend": "100.2501",
        "total-invocations": "3",
        "total-input-tokens": "30",
        "total-output-tokens": "15",
    }
    assert ">$1.00</span>" in html
    assert "+100.0%" in html
    assert "+200.0%" in html
    assert "Against 50.1250 cents in the period before" in html


def test_nothing_before_is_a_dash(org: Org) -> None:
    day_before = NOON - timedelta(days=1)
    html = page(org, f"range=custom&start={day_before:%Y-%m-%d}&end={day_before:%Y-%m-%d}")
    assert "Nothing in the period before" in html
    assert '">–<span' in html


def test_what_has_no_price_is_said_in_words(org: Org) -> None:
    assert "1 call of Birch Mini has no price; it is not in the spend." in page(org, DAY)


def test_names_are_text(org: Org) -> None:
    html = page(org, DAY)
    assert "Acme &lt;b&gt;" in html
    assert "Acme <b>" not in html


def test_a_model_filters_the_page_and_its_row_is_the_link(org: Org) -> None:
    html = page(org, DAY)
    link = f"?range=custom&amp;start={NOON:%Y-%m-%d}&amp;end={NOON:%Y-%m-%d}&amp;model={OTHER_MODEL}"
    assert f'href="{link}"' in html
    filtered = page(org, f"{DAY}&model={OTHER_MODEL}")
    assert exact(filtered)["total-invocations"] == "1"
    assert "Show all models" in filtered


def test_models_sort_by_any_column(org: Org) -> None:
    def order(sort: str) -> list[str]:
        table = page(org, f"{DAY}&sort={sort}").split('id="models"')[1].split("</table>")[0]
        return re.findall(r">(Cedar Large|Birch Mini)</a>", table)

    assert order("-spend") == ["Cedar Large", "Birch Mini"]
    assert order("spend") == ["Birch Mini", "Cedar Large"]
    assert order("name") == ["Birch Mini", "Cedar Large"]
    assert 'aria-sort="descending"' in page(org, DAY)


def test_a_model_that_nobody_registered_has_a_name_too() -> None:
    org, stranger = make_org(), uuid.uuid4()
    ingest([make_event(org, model_id=stranger)])
    roll_up()
    assert f"Unregistered model {str(stranger)[:8]}…" in page(org, DAY)


def test_days_are_those_of_the_org_and_the_zone_is_written_out() -> None:
    org = make_org(time_zone="Asia/Kolkata")
    adopt_zones()
    ingest([make_event(org, occurred_at=at(18, 29)), make_event(org, occurred_at=at(18, 30))])
    roll_up()
    html = page(org, DAY)
    assert exact(html)["total-invocations"] == "1"
    assert "Asia/Kolkata (UTC+5:30)" in html
    hourly = rows(org, f"{DAY}&granularity=hour")
    assert [row["bucket_local"][11:] for row in hourly] == ["23:30:00+05:30"]


def test_the_csv_is_the_table(org: Org) -> None:
    found = rows(org, f"{DAY}&granularity=day")
    assert [(row["model"], row["cost_cents"], row["unpriced_invocations"]) for row in found] == [
        ("Cedar Large", "100.2501", "0"),
        ("Birch Mini", "0.0000", "1"),
    ]
    assert found[0] == {
        "bucket_start": f"{NOON:%Y-%m-%d}T00:00:00Z",
        "bucket_local": f"{NOON:%Y-%m-%d}T00:00:00+00:00",
        "model_id": str(MODEL),
        "model": "Cedar Large",
        "client": "",
        "invocations": "2",
        "errors": "0",
        "timeouts": "1",
        "throttled": "0",
        "input_tokens": "20",
        "output_tokens": "10",
        "cost_cents": "100.2501",
        "currency": "USD",
        "unpriced_invocations": "0",
    }
    together = rows(org, f"{DAY}&granularity=day&group=none")
    assert [(row["model"], row["invocations"], row["cost_cents"]) for row in together] == [
        ("All models", "3", "100.2501")
    ]


def test_who_spent_it() -> None:
    org = make_org()
    ingest(
        [
            make_event(org, client_id="web", cost_estimate_cents=Decimal(70)),
            make_event(org, client_id="=cmd", model_id=OTHER_MODEL),
            make_event(org, occurred_at=at(13), client_id="web"),
            make_event(org),
        ]
    )
    roll_up()
    found = rows(org, f"{DAY}&granularity=day&group=client")
    assert [(row["model_id"], row["model"], row["client"], row["invocations"], row["cost_cents"]) for row in found] == [
        ("", "All models", "", "1", "0.2500"),
        ("", "All models", "'=cmd", "1", "0.2500"),
        ("", "All models", "web", "2", "70.2500"),
    ]
    html = page(org, f"{DAY}&group=client")
    table = html.split('id="models"')[1].split("</table>")[0]
    assert [name.strip() for name in re.findall(r"</span>\s*([^<>]+?)\s*</th>", table)] == [
        "web",
        "=cmd",
        "No client told",
    ]
    assert exact(html) == exact(page(org, DAY))


def test_a_name_is_no_formula() -> None:
    org = make_org()
    make_model(name='=HYPERLINK("x")')
    ingest([make_event(org)])
    roll_up()
    assert rows(org, DAY)[0]["model"] == '\'=HYPERLINK("x")'


def test_a_long_series_comes_in_pages_and_whole_as_csv() -> None:
    org = make_org()
    ingest([make_event(org, model_id=uuid.UUID(int=n + 1), occurred_at=at(n % 24)) for n in range(240)])
    roll_up()
    query = f"{DAY}&granularity=hour"
    first, second, beyond = (page(org, f"{query}&page={n}") for n in (1, 2, 99))
    assert "1–200 of 240" in first
    assert 'rel="next"' in first
    assert "201–240 of 240" in second
    assert 'rel="prev"' in second
    assert "201–240 of 240" in beyond
    assert len(rows(org, f"{query}&page=2")) == 240


def test_a_new_org_is_told_how_to_send_a_first_event() -> None:
    org = make_org()
    html = page(org)
    assert "curl -H" in html
    assert f"/analytics/v1/orgs/{org.pk}/events" in html
    assert f'href="/orgs/{org.slug}/settings/#keys"' in html
    assert "no calls have been received yet" in html


def test_a_range_without_calls_says_when_the_newest_was(org: Org) -> None:
    html = page(org, "range=24h")
    assert "No calls in this range" in html
    assert f"{NOON:%-d %b %Y}" in html


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("range=custom", "start is needed"),
        ("range=custom&start=2026-01-02&end=2026-01-01", "must not lie before the start"),
        ("range=custom&start=gestern&end=2026-01-01", "must be a date"),
        ("range=custom&start=0001-01-01&end=0001-01-02", "too far back"),
        ("range=custom&start=9999-12-30&end=9999-12-31", "too far ahead"),
        ("range=custom&start=2020-01-01&end=2026-01-01", "days apart"),
        ("range=weird", "must be one of"),
        ("measure=%00", "must be one of"),
        ("model=1", "must be the id of a model"),
        ("sort=-", "must be one of"),
    ],
)
def test_what_cannot_be_answered_is_said_beside_the_form(query: str, said: str, org: Org) -> None:
    client = visit(make_user(org=org))
    for path in ("usage/", "usage.csv"):
        response = client.get(f"/orgs/{org.slug}/{path}?{query}")
        assert response.status_code == 400
        assert said in response.content.decode()


def test_hours_that_are_gone_are_refused_with_the_bound(org: Org) -> None:
    past = timezone.now() - timedelta(days=200)
    query = f"range=custom&start={past:%Y-%m-%d}&end={past:%Y-%m-%d}&granularity=hour"
    response = visit(make_user(org=org)).get(f"/orgs/{org.slug}/usage/?{query}")
    assert response.status_code == 400
    assert "hours that are kept" in response.content.decode()


def test_huge_values_are_shown() -> None:
    org = make_org()
    huge: dict[str, Any] = {"cost_estimate_cents": Decimal(10**9), "input_tokens": 2**31 - 1}
    ingest([make_event(org, **huge) for _ in range(3)])
    roll_up()
    html = page(org, DAY)
    assert exact(html)["total-spend"] == "3000000000.0000"
    assert "$30,000,000.00" in html
    assert "6.4\N{NO-BREAK SPACE}B" in html


def test_nobody_sees_a_foreign_org_and_a_missing_one_answers_alike(org: Org) -> None:
    client = visit(make_user(org=make_org("Other")))
    for path in ("usage/", "usage.csv"):
        foreign = client.get(f"/orgs/{org.slug}/{path}")
        missing = client.get(f"/orgs/no-such-org/{path}")
        assert (foreign.status_code, missing.status_code) == (403, 403)
        assert _without_id(foreign.content) == _without_id(missing.content)


def _without_id(content: bytes) -> str:
    return re.sub(r"<code>.*?</code>", "", content.decode())


def test_who_is_not_signed_in_comes_back_to_the_same_figures(org: Org) -> None:
    response = Client().get(f"/orgs/{org.slug}/usage/?range=30d")
    assert response.status_code == 302
    assert response["Location"] == f"/login/?next=/orgs/{org.slug}/usage/%3Frange%3D30d"


def test_staff_see_that_they_look_from_outside_and_it_is_recorded(org: Org) -> None:
    html = page(org, DAY, make_user(is_staff=True))
    assert "as staff" in html
    assert AuditRecord.objects.filter(org=org).count() == 1
    assert "as staff" not in page(org, DAY)


def test_the_page_asks_the_database_a_fixed_number_of_times(
    org: Org, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    client = visit(make_user(org=org))
    client.get(f"/orgs/{org.slug}/usage/")  # fills the cache of the freshness
    with django_assert_num_queries(2 * ROLE_QUERIES + 14):
        client.get(f"/orgs/{org.slug}/usage/?{DAY}&granularity=hour")


def test_no_inline_script_or_style(org: Org) -> None:
    html = page(org, DAY)
    assert " style=" not in html
    assert "<style" not in html
    assert "<script>" not in html


# ── The state ────────────────────────────────────────────────────────────────────────────────────────────────────

NOW = datetime(2026, 3, 31, 10, 30, tzinfo=UTC)


def read(zone: ZoneInfo = BERLIN, **query: str) -> filters.Filters:
    return filters.read(query, zone, NOW)


def span(window: Window) -> tuple[str, str]:
    return tuple(f"{edge.astimezone(BERLIN):%m-%d %H:%M}" for edge in (window.start, window.end))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("query", "window", "before"),
    [
        ({}, ("03-25 00:00", "04-01 00:00"), ("03-18 00:00", "03-24 12:30")),
        ({"range": "24h"}, ("03-30 13:00", "03-31 13:00"), ("03-29 13:00", "03-30 12:30")),
        ({"range": "30d"}, ("03-02 00:00", "04-01 00:00"), ("01-31 00:00", "03-01 12:30")),
        ({"range": "month"}, ("03-01 00:00", "04-01 00:00"), ("02-01 00:00", "03-01 00:00")),
        ({"range": "last_month"}, ("02-01 00:00", "03-01 00:00"), ("01-01 00:00", "02-01 00:00")),
        ({"start": "2026-03-10", "end": "2026-03-11"}, ("03-10 00:00", "03-12 00:00"), ("03-08 00:00", "03-10 00:00")),
        (
            {"start": "2026-03-10T12:00", "end": "2026-03-10T14:30"},
            ("03-10 12:00", "03-10 14:30"),
            ("03-10 09:30", "03-10 12:00"),
        ),
        (
            {"start": "2026-03-10T12:00Z", "end": "2026-03-10T13:00Z"},
            ("03-10 13:00", "03-10 14:00"),
            ("03-10 12:00", "03-10 13:00"),
        ),
    ],
)
def test_ranges_are_days_of_the_zone_and_compare_like_with_like(
    query: dict[str, str], window: tuple[str, str], before: tuple[str, str]
) -> None:
    state = read(**query)
    assert not state.errors
    assert span(state.window) == window
    assert span(state.window_before) == before


def test_steps_are_hours_up_to_three_days() -> None:
    assert read(range="24h").grain is Granularity.HOUR
    assert read(start="2026-03-10", end="2026-03-12").grain is Granularity.HOUR
    assert read(start="2026-03-10", end="2026-03-13").grain is Granularity.DAY
    assert read(granularity="hour").grain is Granularity.HOUR


def test_a_link_holds_the_state_without_its_defaults() -> None:
    state = read(start="2026-03-10", end="2026-03-11", measure="tokens", page="2")
    assert state.link() == "?range=custom&start=2026-03-10&end=2026-03-11&measure=tokens"
    assert state.link(page=3).endswith("&page=3")
    assert state.link(range="7d", measure="spend") == "?"
    assert read(**dict(pair.split("=") for pair in state.link()[1:].split("&"))).window == state.window


@time_machine.travel(NOON + timedelta(days=1), tick=False)
def test_a_bucket_that_is_not_over_is_drawn_so() -> None:
    org = make_org()
    ingest([make_event(org, occurred_at=NOON + timedelta(hours=23))])
    roll_up()
    html = page(org)
    assert html.count('fill="url(#hatch)"') == 2  # the bar and its sample in the legend
    assert "(not over yet)" in html


@pytest.mark.parametrize("page_name", ["usage", "reliability"])
def test_a_model_of_another_org_has_no_name_here(page_name: str) -> None:
    mine, other = make_org(), make_org("Globex")
    make_model(OTHER_MODEL, "Globex secret project")
    ingest([make_event(mine), make_event(other, model_id=OTHER_MODEL)])
    roll_up()
    address = f"/orgs/{mine.slug}/{page_name}/?{DAY}&model={OTHER_MODEL}"
    html = visit(make_user(org=mine)).get(address).content.decode()
    assert "Globex secret project" not in html
    assert f"Model {str(OTHER_MODEL)[:8]}…" in html
    theirs = visit(make_user(org=other)).get(address.replace(mine.slug, other.slug)).content.decode()
    assert "Globex secret project" in theirs
