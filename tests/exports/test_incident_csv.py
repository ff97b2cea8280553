"""The incident CSV: the contract's columns, every event once, newest first, harmless, and no more than asked for."""

import csv
import uuid
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import connection
from django.utils import timezone
from psycopg import sql
from rest_framework.test import APIClient

from exports.datasets.incident_events import Incident
from ingestion.models import Batch
from orgs.limits import DEFAULT_INCIDENT_ROWS
from orgs.models import Org, Scope
from usage.windows import DAY, Window

from ..factories import MODEL, OTHER_MODEL, at, ingest, make_event, make_key, make_org

pytestmark = pytest.mark.django_db

Ask = Callable[..., Any]
CONTRACT = (
    "event_id,org_id,occurred_at,received_at,model_id,actor_id,client_id,input_tokens,output_tokens,latency_ms,status,"
    "error_code,cost_estimate_cents,metadata"
)


@pytest.fixture
def org() -> Org:
    return make_org()


@pytest.fixture
def ask(api: APIClient, org: Org) -> Ask:
    token = make_key(org, Scope.RELIABILITY_READ)

    def get(accept: str = "*/*", **query: Any) -> Any:
        asked = {"start": at(0).isoformat(), "end": (at(0) + DAY).isoformat()} | query
        headers = {"X-API-Key": token, "Accept": accept}
        return api.get(f"/analytics/v1/orgs/{org.pk}/reliability/incident.csv", asked, headers=headers)

    return get


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content
    return b"".join(answer.streaming_content).decode()


def rows(answer: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text(answer), newline="")))


def test_every_column_says_what_the_event_said(ask: Ask, org: Org) -> None:
    event = make_event(
        org, occurred_at=at(9) + timedelta(microseconds=7), actor_id=uuid.uuid4(), client_id='web, "eu"\nnorth',
        status="throttled", error_code="limit", metadata={"region": "eü"}, cost_estimate_cents=Decimal("0.0001"),
    )  # fmt: skip
    ingest([event])
    answer = ask(accept="text/csv")
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert answer["Content-Disposition"].startswith(f'attachment; filename="incident-{org.slug}-')
    assert "X-Truncated" not in answer
    whole = text(answer)
    assert whole.startswith(CONTRACT + "\r\n")
    assert whole.endswith("\r\n")
    (row,) = csv.DictReader(StringIO(whole, newline=""))
    assert row == {
        "event_id": str(event.event_id), "org_id": str(org.pk), "occurred_at": f"{at(9):%Y-%m-%d}T09:00:00.000007Z",
        "received_at": f"{Batch.objects.get().started_at:%Y-%m-%dT%H:%M:%S.%fZ}", "model_id": str(MODEL),
        "actor_id": str(event.actor_id), "client_id": 'web, "eu"\nnorth', "input_tokens": "10", "output_tokens": "5",
        "latency_ms": "100", "status": "throttled", "error_code": "limit", "cost_estimate_cents": "0.0001",
        "metadata": '{"region": "eü"}',
    }  # fmt: skip


def test_what_is_not_known_is_empty(ask: Ask, org: Org) -> None:
    ingest([make_event(org, cost_estimate_cents=None)])
    (row,) = rows(ask())
    assert [row[name] for name in ("actor_id", "client_id", "error_code", "cost_estimate_cents", "metadata")] == [
        ""
    ] * 5


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_is_made_harmless(ask: Ask, org: Org, start: str) -> None:
    ingest([make_event(org, client_id=f"{start}1", error_code=f"{start}2", status="error")])
    (row,) = rows(ask())
    assert (row["client_id"], row["error_code"]) == (f"'{start}1", f"'{start}2")


def test_newest_first_and_cut_at_the_limit(ask: Ask, org: Org) -> None:
    ingest([make_event(org, occurred_at=at(0) + timedelta(hours=hour)) for hour in range(24)])
    ingest([make_event(org, occurred_at=at(0) - timedelta(microseconds=1)), make_event(org, occurred_at=at(0) + DAY)])
    found = [row["occurred_at"] for row in rows(ask())]
    assert len(found) == 24, "start is included, end is not"
    assert found == sorted(found, reverse=True)
    exact = ask(limit=24)
    assert "X-Truncated" not in exact
    assert len(rows(exact)) == 24
    cut = ask(limit=5)
    assert cut["X-Truncated"] == "true"
    assert [row["occurred_at"] for row in rows(cut)] == found[:5]
    across = ask(start=(at(0) - DAY).isoformat(), end=(at(0) + 2 * DAY).isoformat())
    assert len(rows(across)) == 26
    assert DEFAULT_INCIDENT_ROWS == 10_000


def test_model_and_status_narrow_it_and_no_other_org_is_seen(ask: Ask, org: Org) -> None:
    wanted = make_event(org, model_id=OTHER_MODEL, status="error")
    ingest([wanted, make_event(org, status="error"), make_event(org, model_id=OTHER_MODEL), make_event(status="error")])
    assert len(rows(ask())) == 3
    assert len(rows(ask(status="success"))) == 1
    assert [row["event_id"] for row in rows(ask(status="error", modelId=OTHER_MODEL))] == [str(wanted.event_id)]


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ({"limit": "0"}, "limit", "must be an integer from 1 to 5,000,000"),
        ({"limit": "1e3"}, "limit", "must be an integer"),
        ({"limit": "5000001"}, "limit", "must be an integer"),
        ({"limit": ["5", "6"]}, "limit", "is given more than once"),
        ({"status": "failed"}, "status", "must be one of success, error, timeout, throttled"),
        ({"modelId": "x"}, "modelId", "must be a UUID"),
        ({"start": "yesterday"}, "start", "must be an RFC 3339 date-time"),
        ({"granularity": "hour"}, "granularity", "is not known here"),
        ({"end": "2020-01-01T00:00:00Z"}, "end", "must be after start"),
    ],
)
def test_a_wrong_question_is_told(ask: Ask, query: dict[str, Any], field: str, words: str) -> None:
    for accept in ("*/*", "text/csv"):
        answer = ask(accept=accept, **query)
        assert answer.status_code == 400
        assert answer["Content-Type"] == "application/problem+json"
        (error,) = answer.json()["errors"]
        assert error["field"] == field
        assert words in error["message"]


def test_events_that_are_no_longer_kept_are_refused(ask: Ask, settings: LazySettings) -> None:
    settings.RAW_RETENTION_DAYS = 10
    start = timezone.now() - timedelta(days=11)
    answer = ask(start=start.isoformat(), end=timezone.now().isoformat())
    assert answer.status_code == 400
    assert "the earliest is" in answer.json()["errors"][0]["message"]


def test_a_key_without_the_scope_or_of_another_org_gets_nothing(api: APIClient, org: Org) -> None:
    query = {"start": at(0).isoformat(), "end": (at(0) + DAY).isoformat()}
    address = f"/analytics/v1/orgs/{org.pk}/reliability/incident.csv"
    assert api.get(address, query).status_code == 401
    for token in (make_key(org, Scope.USAGE_READ), make_key(make_org("Globex"), Scope.RELIABILITY_READ)):
        assert api.get(address, query, headers={"X-API-Key": token}).status_code == 403


def test_the_file_comes_in_the_order_of_the_primary_key_and_is_never_sorted() -> None:
    org = make_org()
    ingest([make_event(org)])
    incident = Incident(org.pk, Window(at(0), at(0) + DAY), 1_000)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")  # of a table with one row anything is cheap
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute(sql.SQL("EXPLAIN {}").format(incident.query))
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Index Scan Backward" in plan
    assert "Sort" not in plan
