"""The reliability page: its figures are those of the API, incidents are told in words, and every state has words."""

import math
import random
import re
import uuid
from datetime import datetime, timedelta
from decimal import Decimal
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from ingestion.models import Batch
from orgs.models import Org, Scope, User
from reliability import exact
from reliability.models import Incident
from tests.factories import (
    MODEL,
    NOON,
    OTHER_MODEL,
    ROLE_QUERIES,
    at,
    ingest,
    make_event,
    make_key,
    make_model,
    make_org,
    make_user,
)
from usage.models import REST
from usage.rollups import roll_up
from usage.windows import DAY, HOUR, Window

pytestmark = pytest.mark.django_db
TODAY = f"range=custom&start={NOON:%Y-%m-%d}&end={NOON:%Y-%m-%d}"
PERCENTILES = ("p50", "p95", "p99")


def visit(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def answer(org: Org, query: str = "", user: User | None = None) -> Any:
    return visit(user or make_user(org=org)).get(f"/orgs/{org.slug}/reliability/?{query}")


def page(org: Org, query: str = TODAY) -> str:
    response = answer(org, query)
    assert response.status_code == 200
    return str(response.content.decode())


def exact_values(html: str) -> dict[str, str]:
    return dict(re.findall(r'id="((?:total|exact)-[a-z0-9-]+)"\s+data-exact="([^"]*)"', html))


def table(html: str, pk: str) -> list[list[str]]:
    """The texts of a table's body."""
    body = html.split(f'id="{pk}"')[1].split("<tbody>")[1].split("</tbody>", maxsplit=1)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [
        [
            " ".join(unescape(re.sub(r"<[^>]*>", " ", cell)).split())
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


def custom(start: datetime, end: datetime) -> str:
    return f"range=custom&start={start:%Y-%m-%dT%H:%M}&end={end:%Y-%m-%dT%H:%M}"


def make_incident(org: Org, **fields: Any) -> Incident:
    defaults: dict[str, Any] = {
        "model_id": MODEL,
        "measure": "errorRate",
        "started_at": at(10, 5),
        "ended_at": at(10, 25),
        "is_open": False,
        "observed": 0.31,
        "normal": 0.012,
        "score": 40.0,
        "invocations": 100,
        "failures": 31,
        "failed_tokens": 12_345,
        "failed_cost_cents": Decimal("1234.5000"),
    }
    return Incident.objects.create(org=org, **defaults | fields)


@pytest.fixture
def org() -> Org:
    """A day of two models, clients and codes: 6 of 20 calls fail; and two calls the day before."""
    org = make_org("Acme", slug="acme")
    make_model()
    make_model(OTHER_MODEL, "Birch Mini")
    fails = [make_event(org, occurred_at=at(10, n), status="error", error_code="overloaded", client_id="web",
                        latency_ms=1_000 * n) for n in range(1, 5)]  # fmt: skip
    fine = [make_event(org, occurred_at=at(10, n), latency_ms=100 + n, client_id="batch") for n in range(14)]
    ingest(
        [
            *fails,
            *fine,
            make_event(org, occurred_at=at(11), model_id=OTHER_MODEL, status="timeout", latency_ms=30_000),
            make_event(org, occurred_at=at(12), model_id=OTHER_MODEL, status="throttled", error_code="rate_limited"),
            make_event(org, occurred_at=at(10) - DAY, status="error"),
            make_event(org, occurred_at=at(10) - DAY),
        ]
    )
    roll_up()
    return org


def test_totals_are_told_and_compared_with_the_period_before(org: Org) -> None:
    html = page(org)
    found = exact_values(html)
    assert found["total-invocations"] == "20"
    assert found["total-error-rate"] == "0.300000"
    assert "6 of 20 calls failed" in html
    assert "−20.0 points" in html
    assert "Against 50.0% in the period before" in html
    assert "+900.0%" in html


def test_the_series_is_that_of_the_api(org: Org) -> None:
    key = make_key(org, Scope.RELIABILITY_READ)
    asked = {"start": at(0).isoformat(), "end": (at(0) + DAY).isoformat(), "granularity": "hour", "modelId": str(MODEL)}
    points = (
        Client().get(f"/analytics/v1/orgs/{org.pk}/reliability", asked, headers={"X-API-Key": key}).json()["series"]
    )
    assert len(points) == 1
    html = page(org, f"{TODAY}&model={MODEL}")
    found = exact_values(html)
    assert float(found["total-error-rate"]) == pytest.approx(points[0]["errorRate"], abs=1e-6)
    assert [float(found[f"total-{name}"]) for name in PERCENTILES] == list(points[0]["latencyMs"].values())
    assert [row[1:4] for row in table(html, "series")] == [["18", "4", "22.2%"]]


def test_outcomes_codes_clients_and_models_are_told_by_failed_calls(org: Org) -> None:
    html = page(org)
    assert table(html, "statuses") == [
        ["Success", "14", "70.0%"],
        ["Errors", "4", "20.0%"],
        ["Timed out", "1", "5.0%"],
        ["Throttled", "1", "5.0%"],
    ]
    assert table(html, "codes") == [
        ["overloaded", "4", "66.7%"],
        ["No code told", "1", "16.7%"],
        ["rate_limited", "1", "16.7%"],
    ]
    assert table(html, "clients") == [
        ["web", "4", "4", "100.0%"],
        ["No client told", "2", "2", "100.0%"],
        ["batch", "0", "14", "0.0%"],
    ]
    assert [row[:4] for row in table(html, "models")] == [
        ["Cedar Large", "4", "18", "22.2%"],
        ["Birch Mini", "2", "2", "100.0%"],
    ]


def test_a_row_of_a_model_filters_the_page(org: Org) -> None:
    html = page(org)
    assert f"&amp;model={OTHER_MODEL}" in html.split('id="models"')[1]
    filtered = page(org, f"{TODAY}&model={OTHER_MODEL}")
    assert exact_values(filtered)["total-invocations"] == "2"
    assert "Only <strong>Birch Mini</strong>" in filtered
    assert [row[0] for row in table(filtered, "codes")] == ["No code told", "rate_limited"]


def test_a_long_list_says_how_many_more() -> None:
    org = make_org()
    ingest([make_event(org, client_id=f"client {n}", status="error", error_code=f"code {n}") for n in range(23)])
    roll_up()
    html = page(org)
    assert len(table(html, "clients")) == len(table(html, "codes")) == 20
    assert html.count("3 more with fewer failed calls.") == 2


def test_what_is_left_of_a_crowd_has_a_name() -> None:
    org = make_org()
    ingest([make_event(org, client_id=REST, status="error", error_code=REST)])
    roll_up()
    html = page(org)
    assert table(html, "clients")[0][0] == "Other clients"
    assert table(html, "codes")[0][0] == "Other codes"


def test_a_page_leads_to_the_other_with_its_range_and_model(org: Org) -> None:
    html = unescape(page(org, f"{TODAY}&model={MODEL}&granularity=hour"))
    assert f'href="/orgs/acme/usage/?{TODAY}&granularity=hour&model={MODEL}"' in html
    usage = visit(make_user(org=org)).get(f"/orgs/acme/usage/?{TODAY}&measure=tokens&group=client").content.decode()
    assert f'href="/orgs/acme/reliability/?{TODAY}"' in unescape(usage)


# ── Incidents ────────────────────────────────────────────────────────────────────────────────────────────────────


def blame(name: str, share: float) -> dict[str, Any]:
    return {"name": name, "share": share, "bad": 10, "expected": 1.0}


def test_an_incident_is_told_in_words(org: Org) -> None:
    make_incident(
        org,
        causes={
            "models": [blame(str(MODEL), 0.97)],
            "clients": [blame("web", 0.8), blame("batch", 0.1)],
            "errorCodes": [blame("", 0.6)],
        },
        conditions=["errorRate", "p95"],
    )
    html = unescape(page(org))
    assert "Error rate of Cedar Large 31% instead of 1.2%" in html
    assert f"{NOON:%a %-d %b %Y}, 10:05 – 10:25 UTC · 20 min" in html
    assert "Model Cedar Large: 97.0% of the failed calls beyond the usual" in html
    assert "Client web: 80.0%" in html
    assert "Client batch" not in html
    assert "No code told: 60.0%" in html
    assert "31 calls of 100 failed; the failed ones used 12.3\N{NO-BREAK SPACE}k tokens and cost $12.34." in html
    assert "Error rate above 5 % for 5 minutes" in html
    assert "p95 latency above 2 s for 10 minutes" in html
    assert "Ongoing" not in html
    assert html.count('<g class="mark">') == 4  # of both charts, and in their legends


def test_slowness_of_all_models_that_goes_on(org: Org) -> None:
    make_incident(org, measure="p95", observed=4_123.0, normal=1_900.0, model_id=None, is_open=True)
    html = unescape(page(org, "range=30d"))
    assert "p95 latency 4.12\N{NO-BREAK SPACE}s instead of 1.90\N{NO-BREAK SPACE}s" in html
    assert "Since " in html
    assert ">Ongoing</span>" in html


def test_an_incident_leads_to_what_was_around_it_and_to_its_calls(org: Org) -> None:
    make_incident(org)
    html = unescape(page(org))
    around = f"?{custom(at(9, 45), at(10, 45)).replace(':', '%3A')}&model={MODEL}"
    assert f'href="{around}"' in html
    closer = page(org, around[1:])
    assert exact_values(closer)["total-invocations"] == "18"
    assert "Exact percentiles" in closer, "an hour at most"
    link = re.search(r'href="(/analytics/[^"]*incident\.csv[^"]*)"', html)
    assert link is not None
    # The session of the page is enough for the file.
    response = visit(make_user(org=org)).get(link[1])
    assert response.status_code == 200
    lines = b"".join(response.streaming_content).decode().strip().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1 + 9  # minutes 5 to 13


def test_incidents_elsewhere_are_not_listed(org: Org) -> None:
    make_incident(org, started_at=at(1) - DAY, ended_at=at(2) - DAY)
    make_incident(make_org("Other"))
    assert "No incident in this range." in page(org)
    make_incident(org)
    assert "Error rate of Cedar Large" not in page(org, f"{TODAY}&model={OTHER_MODEL}")


def test_many_incidents_are_counted(org: Org) -> None:
    for minute in range(23):
        make_incident(org, started_at=at(10, minute), ended_at=at(10, minute + 1))
    html = page(org)
    assert html.count("Look closer") == 20
    assert "3 more, earlier in this range" in html


# ── Steps ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_short_window_of_late_is_told_by_the_minute() -> None:
    org, now = make_org(), timezone.now().replace(second=0, microsecond=0)
    start = now - timedelta(minutes=90)
    ingest(
        [make_event(org, occurred_at=start + timedelta(minutes=n, seconds=30), latency_ms=n + 1) for n in (1, 1, 40)]
    )
    roll_up()
    html = page(org, custom(start, now))
    assert "Minute by minute" in html
    assert [row[1] for row in table(html, "series")] == ["2", "1"]
    assert html.count('class="slot"') == 2 * 90
    assert "Calls: none" in html
    assert "Hour by hour" in page(org, custom(start, now) + "&granularity=hour")


def test_a_window_that_begins_within_a_minute_has_that_minute_whole() -> None:
    org, now = make_org(), timezone.now().replace(second=0, microsecond=0)
    start = now - timedelta(minutes=30)
    ingest([make_event(org, occurred_at=start + timedelta(seconds=10))])
    roll_up()
    query = f"range=custom&start={start:%Y-%m-%dT%H:%M}:40Z&end={now:%Y-%m-%dT%H:%M}Z"
    assert exact_values(page(org, query))["total-invocations"] == "1"


def test_many_hours_are_drawn_as_days(org: Org) -> None:
    html = page(org, "range=30d&granularity=hour")
    assert html.count('class="slot"') == 2 * 30
    assert "The steps are longer than those you chose" in html
    assert "Hour by hour" in html


def test_hours_that_are_gone_leave_the_days() -> None:
    org, past = make_org(), timezone.now() - timedelta(days=120)
    ingest([make_event(org, occurred_at=past, status="error")])
    roll_up()
    html = page(org, f"range=custom&start={past:%Y-%m-%d}&end={past:%Y-%m-%d}&granularity=day")
    assert exact_values(html)["total-invocations"] == "1"
    assert "Clients are kept by the hour" in html
    assert "Error codes are kept by the hour" in html


# ── Exact percentiles ────────────────────────────────────────────────────────────────────────────────────────────


def test_exact_percentiles_are_those_of_the_calls_that_count() -> None:
    org, chance = make_org(), random.Random(7)
    values = [chance.randint(0, 5_000) for _ in range(200)]
    ingest([make_event(org, occurred_at=at(9, n % 60), latency_ms=value) for n, value in enumerate(values)])
    roll_up()
    ingest([make_event(org, occurred_at=at(9), latency_ms=80_000) for _ in range(100)])  # not counted yet
    html = page(org, custom(at(9), at(10)) + "&exact=1")
    found = exact_values(html)
    for name, fraction in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        value = sorted(values)[math.ceil(fraction * len(values)) - 1]
        assert found[f"exact-{name}"] == str(value)
        assert float(found[f"total-{name}"]) == pytest.approx(value, rel=0.01)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY latency_ms) FROM usage_events WHERE org_id = %s"
            " AND batch_id IN (SELECT id FROM ingestion_batches WHERE rolled_up_at IS NOT NULL)",
            [org.pk],
        )
        assert found["exact-p95"] == str(cursor.fetchone()[0])
    assert Batch.objects.filter(rolled_up_at=None).exists()


def test_exact_percentiles_are_offered_for_an_hour_and_refused_beyond(org: Org) -> None:
    assert "&amp;exact=1" in page(org, custom(at(10), at(11)))
    assert "exact=1" not in page(org, custom(at(10), at(11, 1)))
    response = answer(org, f"{TODAY}&exact=1")
    assert response.status_code == 400
    assert "at most one hour" in response.content.decode()
    with pytest.raises(ValueError, match="longer"):
        exact.percentiles(org.pk, Window(at(10), at(10) + 2 * HOUR), [0.5])


def test_exact_percentiles_are_those_of_one_model(org: Org) -> None:
    hour = Window(at(11), at(12))
    assert exact.percentiles(org.pk, hour, [0.5, 0.99], OTHER_MODEL) == [30_000, 30_000]
    assert exact.percentiles(org.pk, hour, [0.5, 0.99], MODEL) == [None, None]
    assert exact.percentiles(uuid.uuid4(), hour, [0.5]) == [None]


# ── States ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_org_is_told_how_to_send_a_first_event() -> None:
    assert "curl -H" in page(make_org(), "")


def test_a_range_without_calls_says_when_the_newest_was(org: Org) -> None:
    html = page(org, "range=24h")
    assert "No calls in this range" in html
    assert "Show 30 days" in html


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("range=custom", "start is needed"),
        ("range=custom&start=0001-01-01&end=0001-01-02", "too far back"),
        ("range=weird", "must be one of"),
        ("model=1", "must be the id of a model"),
        ("exact=2", "must be one of"),
    ],
)
def test_what_cannot_be_answered_is_said_beside_the_form(query: str, said: str, org: Org) -> None:
    response = answer(org, query)
    assert response.status_code == 400
    assert said in response.content.decode()
    assert 'action="/orgs/acme/reliability/"' in response.content.decode()


def test_nobody_sees_a_foreign_org(org: Org) -> None:
    assert answer(org, "", make_user(org=make_org("Other"))).status_code == 403
    assert Client().get("/orgs/acme/reliability/").status_code == 302


def test_the_page_asks_the_database_a_fixed_number_of_times(
    org: Org, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    make_incident(org)
    client = visit(make_user(org=org))
    client.get("/orgs/acme/reliability/")  # fills the cache of the freshness
    with django_assert_num_queries(2 * ROLE_QUERIES + 19):
        client.get(f"/orgs/acme/reliability/?{TODAY}")


def test_no_inline_script_or_style(org: Org) -> None:
    make_incident(org)
    html = page(org)
    assert " style=" not in html
    assert "<style" not in html
    assert "<script>" not in html


def test_staff_read_incidents_in_words(boss: Client) -> None:
    org = make_org()
    make_model()
    shared = {"org": org, "started_at": at(1), "ended_at": at(2), "score": 20, "invocations": 9, "failures": 4}
    Incident.objects.create(measure="errorRate", model_id=MODEL, observed=0.7538461538, normal=0.01, **shared)
    Incident.objects.create(measure="p95", observed=9_996, normal=2_000, is_open=False, **shared)
    html = boss.get("/admin/reliability/incident/").content.decode()
    for text in ("Cedar Large", "75.4%", "1.0%", "ongoing", "all together", "10.0\N{NO-BREAK SPACE}s", "over"):
        assert f">{text}<" in html
