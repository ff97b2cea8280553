"""Freshness and rollup rows in the admin, and the index page that says how the service is doing."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from analytics_site.admin import doing
from ingestion.models import Batch, Door, Ledger
from ingestion.replaying import replay
from orgs.limits import MAX_PAGE_ROWS
from usage.models import Freshness
from usage.rollups import roll_up

from ..factories import NOON, ingest, make_event, make_model, make_org, make_user

pytestmark = pytest.mark.django_db


def page(name: str, *args: object) -> str:
    return reverse(f"admin:{name}", args=args)


def levels() -> dict[str, str]:
    return {line.name: line.level for line in doing(timezone.now())}


def texts() -> dict[str, str]:
    return {line.name: line.text for line in doing(timezone.now())}


# ── Freshness ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_freshness_is_read_only(boss: Client) -> None:
    make_model()
    ingest([make_event(make_org())])
    roll_up()
    row = Freshness.objects.get()
    assert boss.get(page("usage_freshness_changelist"), {"q": "Acme"}).context["cl"].result_count == 1
    assert boss.get(page("usage_freshness_change", row.pk)).status_code == 200
    assert boss.post(page("usage_freshness_change", row.pk), {"org": row.org_id}).status_code == 403
    assert boss.post(page("usage_freshness_delete", row.pk), {"post": "yes"}).status_code == 403
    assert boss.get(page("usage_freshness_add")).status_code == 403


# ── Rollup rows ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_org_leads_to_its_rollup_rows(boss: Client) -> None:
    org = make_org(time_zone="Asia/Kolkata")
    make_model()
    ingest([make_event(org, occurred_at=NOON), make_event(org, occurred_at=NOON + timedelta(hours=7))])
    roll_up()
    html = boss.get(page("orgs_org_change", org.pk)).content.decode()
    expected = {
        "hourly": [f"{NOON + timedelta(hours=7):%Y-%m-%d %H:00}", f"{NOON:%Y-%m-%d %H:00}"],
        "daily": [f"{NOON:%Y-%m-%d}"],
        # 19:00 UTC is half past midnight there.
        "daily-local": [f"{NOON + timedelta(days=1):%Y-%m-%d}", f"{NOON:%Y-%m-%d}"],
    }
    for grain, buckets in expected.items():
        url = page("usage_rollups", org.pk, grain)
        assert url in html
        rows = boss.get(url).context["listing"].rows
        assert [row[0] for row in rows] == buckets
        assert {row[1] for row in rows} == {"Cedar Large"}


def test_rollup_rows_are_bounded_and_cannot_be_changed(boss: Client) -> None:
    org = make_org()
    ingest([make_event(org, occurred_at=NOON - timedelta(hours=i)) for i in range(MAX_PAGE_ROWS + 5)])
    roll_up()
    url = page("usage_rollups", org.pk, "hourly")
    with CaptureQueriesContext(connection) as queries:
        response = boss.get(url)
    assert len(response.context["listing"].rows) == MAX_PAGE_ROWS
    assert "The first 200 are shown" in response.content.decode()
    assert not any("COUNT" in q["sql"] for q in queries)
    assert boss.post(url).status_code == 405


def test_unknown_orgs_and_grains_are_not_found_and_support_sees_the_others(client: Client, boss: Client) -> None:
    org = make_org()
    assert (
        boss.get(page("usage_rollups", make_user().pk and "00000000-0000-4000-8000-000000000000", "hourly")).status_code
        == 404
    )
    assert boss.get(page("usage_rollups", org.pk, "yearly")).status_code == 404
    assert list(boss.get(page("usage_rollups", org.pk, "daily-local")).context["listing"].rows) == []
    client.force_login(make_user(is_staff=True))
    assert client.get(page("usage_rollups", org.pk, "hourly")).status_code == 200
    assert "rollups" in client.get(page("orgs_org_change", org.pk)).content.decode()


# ── The index page ───────────────────────────────────────────────────────────────────────────────────────────────
def test_an_empty_service_is_told_from_a_broken_one(boss: Client) -> None:
    assert levels() == {
        "Rollup": "ok",
        "Freshness": "ok",
        "Latest batch": "warning",
        "Quarantine": "ok",
        "Dedupe ledger": "ok",
        "Orgs": "ok",
        "Models": "ok",
    }
    assert "How the service is doing" in boss.get(page("index")).content.decode()


def test_the_index_says_what_waits_and_since_when(boss: Client) -> None:
    batch = ingest([make_event()])
    replay([b"nonsense"], Door.TRACE)
    Batch.objects.filter(pk=batch.pk).update(completed_at=timezone.now() - timedelta(minutes=7))
    Ledger.objects.update(rotated_at=timezone.now() - timedelta(days=3))
    assert texts()["Rollup"].startswith("2 batches waiting since ")
    assert "trail by 7 min" in texts()["Freshness"]
    assert texts()["Quarantine"] == "1 message waiting."
    assert texts()["Orgs"] == texts()["Models"] == "1 stub to be completed."
    found = levels()
    assert (found["Rollup"], found["Freshness"], found["Dedupe ledger"]) == ("warning", "warning", "warning")
    Batch.objects.filter(pk=batch.pk).update(completed_at=timezone.now() - timedelta(minutes=11))
    assert levels()["Freshness"] == "error"
    html = boss.get(page("index")).content.decode()
    assert f"{page('ingestion_batch_changelist')}?rollup=waiting" in html


def test_the_index_asks_a_bounded_number_of_bounded_questions(boss: Client) -> None:
    ingest([make_event()])
    replay([b"nonsense"], Door.TRACE)
    with CaptureQueriesContext(connection) as queries:
        list(doing(timezone.now()))
    assert len(queries) == 7
    assert all("LIMIT" in q["sql"] for q in queries)
