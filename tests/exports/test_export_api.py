"""Exports by API: asked for, followed, downloaded. What is wrong is named; what is somebody else's is not there."""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import time_machine
from django.conf import LazySettings
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from exports import jobs, making
from exports.models import ExportBucket, ExportJob, State
from exports.writers import Format
from orgs.limits import MAX_JSON_BYTES, MAX_OPEN_EXPORTS
from orgs.models import AuditRecord, Org, Scope
from usage.rollups import roll_up
from usage.windows import DAY, HOUR, Window

from ..factories import MODEL, NOON, ingest, make_event, make_key, make_org

pytestmark = pytest.mark.django_db(transaction=True)

RANGE = {"start": (NOON - DAY).isoformat(), "end": (NOON + DAY).isoformat()}
Call = Callable[..., Any]


@pytest.fixture
def org(folder: Path) -> Org:
    org = make_org()
    ingest([make_event(org, occurred_at=NOON + n * HOUR) for n in range(3)])
    roll_up()
    return org


@pytest.fixture
def call(api: APIClient, org: Org) -> Call:
    """A request below the org's exports, with a key that may do all; `of` names another org, `key` another key."""
    token = make_key(org)

    def one(method: str, path: str = "", body: Any = None, of: Org = org, key: str = token, **headers: str) -> Any:
        address = path if path.startswith("/") else f"/analytics/v1/orgs/{of.pk}/exports{path}"
        return getattr(api, method)(
            address, body, headers={"X-API-Key": key, **headers}, **({"format": "json"} if method == "post" else {})
        )

    return one


def ask(call: Call, **body: Any) -> Any:
    return call("post", "", {"timeRange": RANGE, **body})


def test_a_job_is_what_the_contract_says(call: Call, org: Org) -> None:
    answer = ask(call)
    assert answer.status_code == 202
    job = answer.json()
    assert job["orgId"] == str(org.pk)
    assert (job["status"], job["granularity"], job["dataset"], job["format"]) == ("pending", "daily", "usage", "csv")
    assert job["timeRange"] == {name: f"{value[:19]}Z" for name, value in RANGE.items()}
    assert job["initiatedBy"].startswith("key:ak_")
    assert [job[name] for name in ("completedAt", "outputUri", "checksum", "rowCount", "error")] == [None] * 5


def test_a_file_is_followed_and_downloaded_and_that_is_recorded(call: Call, org: Org, client: Client) -> None:
    job_id = ask(call).json()["jobId"]
    download = f"/analytics/v1/orgs/{org.pk}/exports/{job_id}/download"
    assert call("get", download).status_code == 404
    making.attempt(job_id)
    job = call("get", f"/analytics/v1/orgs/{org.pk}/exports/{job_id}").json()
    assert (job["status"], job["rowCount"], job["totals"]["invocations"]) == ("succeeded", 1, "3")
    assert job["outputUri"].endswith(download)
    answer = call("get", download)
    assert answer.status_code == 302
    file = client.get(urlsplit(answer["Location"]).path)
    content = b"".join(file)
    assert hashlib.sha256(content).hexdigest() == job["checksum"]
    assert file["Content-Type"] == "text/csv; charset=utf-8"
    assert file["Content-Disposition"].startswith(f'attachment; filename="usage-daily-{org.slug}-')
    assert file["Cache-Control"] == "max-age=0, no-cache, no-store, must-revalidate, private"
    records = AuditRecord.objects.filter(target=job_id).order_by("pk").values_list("action", "actor", "org")
    assert list(records) == [
        ("asked for export", job["initiatedBy"], org.pk),
        ("downloaded export", job["initiatedBy"], org.pk),
    ]


# ── Links ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def link(call: Call, org: Org) -> str:
    job_id = ask(call).json()["jobId"]
    making.attempt(job_id)
    location = call("get", f"/analytics/v1/orgs/{org.pk}/exports/{job_id}/download")["Location"]
    return urlsplit(location).path


def test_a_link_that_was_altered_by_any_one_character_is_refused(link: str, client: Client) -> None:
    assert client.get(link).status_code == 200
    start = len("/exports/files/")
    for place in range(start, len(link)):
        other = "A" if link[place] != "A" else "B"
        answer = client.get(link[:place] + other + link[place + 1 :])
        assert answer.status_code == 403, place
        assert b"invocations" not in answer.content
    for cut in (link[:-1], link + "A", link[:start] + link[start + 1 :]):
        assert client.get(cut).status_code == 403


def test_a_link_ends_with_its_time_and_never_outlives_the_file(
    call: Call, org: Org, link: str, client: Client, settings: LazySettings
) -> None:
    with time_machine.travel(timezone.now() + timedelta(hours=23, minutes=59), tick=False):
        assert client.get(link).status_code == 200
    with time_machine.travel(timezone.now() + timedelta(hours=24, seconds=1), tick=False):
        assert client.get(link).status_code == 403
    job = ExportJob.objects.get()
    ExportJob.objects.update(expires_at=timezone.now() + timedelta(minutes=1))
    short = urlsplit(call("get", f"/analytics/v1/orgs/{org.pk}/exports/{job.pk}/download")["Location"]).path
    with time_machine.travel(timezone.now() + timedelta(minutes=2), tick=False):
        assert client.get(short).status_code == 403
        assert call("get", f"/analytics/v1/orgs/{org.pk}/exports/{job.pk}/download").status_code == 404


def test_a_link_signed_with_another_secret_is_refused(link: str, client: Client, settings: LazySettings) -> None:
    settings.SECRET_KEY = "another" * 10
    assert client.get(link).status_code == 403


def test_a_file_that_is_gone_is_not_found(link: str, client: Client, folder: Path) -> None:
    for file in folder.rglob("*.csv"):
        file.unlink()
    assert client.get(link).status_code == 404


# ── What is somebody else's ──────────────────────────────────────────────────────────────────────────────────────
def test_another_orgs_job_is_not_there_under_any_address(call: Call, org: Org) -> None:
    job_id = ask(call).json()["jobId"]
    making.attempt(job_id)
    other = make_org()
    key = make_key(other)
    mine, theirs = f"/analytics/v1/orgs/{org.pk}/exports/{job_id}", f"/analytics/v1/orgs/{other.pk}/exports/{job_id}"
    for method, end in (("get", ""), ("get", "/download"), ("post", "/cancel"), ("post", "/rerun")):
        refused, absent = call(method, mine + end, key=key), call(method, theirs + end, key=key)
        assert (refused.status_code, absent.status_code) == (403, 404)
        assert org.slug.encode() not in refused.content + absent.content
    assert call("get", f"/analytics/v1/orgs/{other.pk}/exports", key=key).json() == {"items": [], "next": None}
    assert ExportJob.objects.get().status == State.SUCCEEDED


# ── What can be asked for ────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"timeRange": None}, "timeRange", "may not be null"),
        ({"timeRange": {"start": RANGE["start"]}}, "timeRange.end", "required"),
        ({"timeRange": {**RANGE, "end": RANGE["start"]}}, "timeRange.end", "must be after start"),
        ({"timeRange": {**RANGE, "end": "2026-01-01T00:00:00"}}, "timeRange.end", "offset"),
        ({"timeRange": {**RANGE, "end": 5}}, "timeRange.end", "RFC 3339"),
        ({"timeRange": {"start": (NOON - 32 * DAY).isoformat(), "end": NOON.isoformat()}}, "timeRange.end", "31 days"),
        ({"timeRange": {"start": "2019-01-01T00:00:00Z", "end": "2019-01-02T00:00:00Z"}}, "timeRange.start", "earliest"),
        (
            {"timeRange": {**RANGE, "start": "0001-01-01T00:00:00Z"}, "timeZone": "org"},
            "timeRange.start",
            "the earliest is",
        ),
        ({"granularity": "weekly"}, "granularity", "not a valid choice"),
        ({"granularty": "daily"}, "granularty", "not known"),
        ({"dataset": "org_summary"}, "dataset", "not a valid choice"),
        ({"format": "pdf"}, "format", "not a valid choice"),
        ({"models": []}, "models", "at least 1"),
        ({"models": ["x"]}, "models", "valid UUID"),
        ({"models": [str(MODEL)] * 1001}, "models", "no more than 1000"),
        ({"status": "error"}, "status", "belongs to incident_events"),
        ({"dataset": "incident_events", "limit": 0}, "limit", "greater than or equal to 1"),
        ({"dataset": "incident_events", "models": [str(MODEL), str(uuid4())]}, "models", "one model"),
        ({"delivery": {"type": "ftp", "bucket": "b"}}, "delivery.type", "not a valid choice"),
        ({"delivery": {"type": "s3"}}, "delivery.bucket", "required"),
        ({"delivery": {"type": "s3", "bucket": "not-listed"}}, "delivery.bucket", "list"),
        ({"delivery": {"type": "s3", "bucket": "a\0b"}}, "delivery.bucket", "Null characters"),
        ({"timeZone": "Mars"}, "timeZone", "not a valid choice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(call: Call, body: dict[str, Any], field: str, words: str) -> None:
    answer = ask(call, **body)
    assert answer.status_code == 400, answer.content
    assert [(error["field"], words in error["message"]) for error in answer.json()["errors"]] == [(field, True)], (
        answer.json()
    )
    assert not ExportJob.objects.exists()


@pytest.mark.parametrize("body", ["[]", "5", "null", '"text"', "{", "\xff"])
def test_a_body_that_is_no_object_is_refused(api: APIClient, org: Org, body: str) -> None:
    answer = api.post(
        f"/analytics/v1/orgs/{org.pk}/exports",
        body,
        content_type="application/json",
        headers={"X-API-Key": make_key(org)},
    )
    assert answer.status_code == 400, answer.content


def test_calls_of_one_model_and_status_can_be_asked_for(call: Call) -> None:
    job = ask(call, dataset="incident_events", models=[str(MODEL)], status="success", limit=2, format="parquet").json()
    making.attempt(job["jobId"])
    found = ExportJob.objects.get()
    assert (found.status, found.row_count, found.granularity) == (State.SUCCEEDED, 2, "")


def test_a_bucket_on_the_orgs_list_is_taken(call: Call, org: Org) -> None:
    ExportBucket.objects.create(org=org, bucket="of-acme")
    assert ask(call, delivery={"type": "s3", "bucket": "of-acme"}).status_code == 202
    assert ExportJob.objects.get().bucket == "of-acme"


def test_the_same_request_is_one_job_and_a_key_of_ones_own_says_so_for_longer(call: Call) -> None:
    assert ask(call).json()["jobId"] == ask(call).json()["jobId"]
    body = {"timeRange": RANGE}
    first, second = (call("post", "", body, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert first.json()["jobId"] == second.json()["jobId"]
    other = call("post", "", {**body, "granularity": "hourly"}, **{"Idempotency-Key": "k"})
    assert (other.status_code, "asked for something else" in other.json()["detail"]) == (409, True)
    assert call("post", "", body, **{"Idempotency-Key": "k" * 129}).json()["errors"][0]["field"] == "Idempotency-Key"


def test_too_many_at_once_are_refused_with_when_to_come_back(call: Call) -> None:
    for n in range(MAX_OPEN_EXPORTS):
        assert ask(call, timeRange={**RANGE, "end": (NOON - n * HOUR).isoformat()}).status_code == 202
    refused = ask(call)
    assert (refused.status_code, refused["Retry-After"]) == (429, "30")
    assert "Wait for one, or cancel it" in refused.json()["detail"]


def test_a_job_is_cancelled_and_run_again(call: Call, org: Org) -> None:
    job_id = ask(call).json()["jobId"]
    address = f"/analytics/v1/orgs/{org.pk}/exports/{job_id}"
    assert call("post", f"{address}/rerun").status_code == 409
    cancelled = call("post", f"{address}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "failed")
    assert cancelled.json()["error"].startswith("Cancelled by ak_")
    assert call("post", f"{address}/cancel").status_code == 409
    again = call("post", f"{address}/rerun")
    assert (again.status_code, again.json()["status"]) == (202, "pending")
    assert again.json()["jobId"] != job_id


# ── The list ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_list_comes_newest_first_page_by_page_without_gaps(call: Call, org: Org) -> None:
    at = timezone.now()
    for n in range(7):
        job = jobs.Wanted(org=org, window=Window(NOON, NOON + DAY)).job("user:x")
        job.created_at, job.status = at - timedelta(seconds=n // 3), State.FAILED
        job.save()
    seen, address = [], f"/analytics/v1/orgs/{org.pk}/exports?limit=2"
    while address:
        page = call("get", address).json()
        seen += [(item["createdAt"], item["jobId"]) for item in page["items"]]
        parts = urlsplit(page["next"] or "")
        address = f"{parts.path}?{parts.query}" if page["next"] else ""
    assert len(seen) == 7
    assert seen == sorted(seen, reverse=True)


def test_the_list_can_be_narrowed_by_status(call: Call) -> None:
    making.attempt(ask(call).json()["jobId"])
    ask(call, granularity="hourly")
    by_status = {status: len(call("get", "?status=" + status).json()["items"]) for status in State.values}
    assert by_status == {"pending": 1, "running": 0, "succeeded": 1, "failed": 0, "expired": 0}


@pytest.mark.parametrize(
    "query", ["state=running", "status=done", "limit=0", "limit=201", "limit=x", "cursor=abc", "cursor=cD1hYmM="]
)
def test_a_wrong_list_is_refused(call: Call, query: str) -> None:
    answer = call("get", f"?{query}")
    assert answer.status_code == 400, answer.content
    assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


def test_datasets_say_what_their_columns_mean(api: APIClient, org: Org) -> None:
    answer = api.get("/analytics/v1/exports/datasets", headers={"X-API-Key": make_key(org, Scope.EXPORTS_READ)})
    items = {item["dataset"]: item for item in answer.json()["items"]}
    assert set(items) == {"usage", "incident_events"}
    assert items["usage"]["formats"] == [kind.value for kind in Format]
    cost = next(column for column in items["usage"]["columns"] if column["name"] == "cost_cents")
    assert cost == {
        "name": "cost_cents",
        "type": "decimal",
        "unit": "cents",
        "meaning": "Exact cost of the calls that have a price.",
    }


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 20_000 + b"]" * 20_000, 400),
        (b'{"a":' * 8_000 + b"1" + b"}" * 8_000, 400),
        (b'{"timeRange": ', 400),
        (b"\xff\xfe", 400),
        (b" " * MAX_JSON_BYTES + b"{}", 413),
    ],
    ids=["deep lists", "deep objects", "cut", "no UTF-8", "too large"],
)
def test_a_body_that_is_no_request_is_the_client_s_mistake(api: APIClient, org: Org, body: bytes, status: int) -> None:
    headers = {"X-API-Key": make_key(org)}
    address = f"/analytics/v1/orgs/{org.pk}/exports"
    answer = api.post(address, body, content_type="application/json", headers=headers)
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
