"""The edges of the service: every error is a problem document, every request has an id, the API describes itself."""

import json
import logging
import uuid
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.http import UnreadablePostError
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.test import APIClient

from orgs.models import Org

from ..factories import as_json, at, ingest, make_event, make_key, make_org, make_user
from ..processes import NOWHERE

pytestmark = pytest.mark.django_db
ROOT = "/analytics/v1"
UNKNOWN_ORG = f"{ROOT}/orgs/00000000-0000-4000-8000-000000000000"


@pytest.fixture
def org() -> Org:
    return make_org()


@pytest.fixture
def machine(org: Org) -> APIClient:
    """A client with a key of the org that may do everything."""
    return APIClient(raise_request_exception=False, headers={"X-API-Key": make_key(org)})


# ── Errors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def assert_is_problem(answer: Any, status: int, path: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert answer["X-Request-ID"]
    body: dict[str, Any] = answer.json()
    assert list(body) == ["type", "title", "status", "detail", "instance", "errors"]
    assert body["type"] == f"urn:analytics:problem:{body['title'].lower().replace(' ', '-')}"
    assert (body["status"], body["instance"]) == (status, path)
    assert body["detail"]
    return body


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/analytics/", {}, 404),
        ("GET", f"{ROOT}/nothing", {}, 404),
        ("POST", f"{ROOT}/nothing", {}, 404),
        ("GET", f"{ROOT}/orgs/acme/usage", {}, 404),
        ("GET", "{org}/usage/", {}, 404),
        ("GET", f"{ROOT}/status/", {}, 404),
        ("GET", "{org}/usage", {}, 400),
        ("GET", f"{ROOT}/nothing", {"Host": "evil.example"}, 400),
        ("GET", "{org}/usage", {"X-API-Key": "wrong"}, 401),
        ("GET", f"{UNKNOWN_ORG}/usage", {}, 403),
        ("POST", "{org}/usage", {}, 405),
        ("DELETE", "{org}/freshness", {}, 405),
        ("GET", "{org}/events", {}, 405),
        ("GET", f"{ROOT}/events/validate", {}, 405),
        ("POST", f"{ROOT}/schema", {}, 405),
        ("GET", "{org}/usage", {"Accept": "text/csv"}, 406),
        ("GET", "{org}/reliability", {"Accept": "application/xml;q=0.9, image/*"}, 406),
        ("POST", "{org}/events", {"Content-Type": "text/csv"}, 415),
        ("POST", f"{ROOT}/events/validate", {"Content-Type": "application/xml"}, 415),
        ("POST", "{org}/events", {"Content-Type": "application/json"}, 400),
        ("POST", f"{ROOT}/events/validate", {"Content-Type": "application/json"}, 400),
    ],
)
def test_every_error_is_a_problem_document(
    machine: APIClient, org: Org, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    path = path.replace("{org}", f"{ROOT}/orgs/{org.pk}")
    kind = headers.pop("Content-Type", "application/json")
    body = "{not json" if method == "POST" else ""
    answer = machine.generic(method, path, body, content_type=kind, headers=headers)
    assert_is_problem(answer, status, path)
    if status == 405:
        assert method not in answer["Allow"]


def test_an_error_that_nobody_foresaw_is_a_problem_too(
    machine: APIClient, org: Org, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usage.views.points", lambda question: 1 / 0)
    path = f"{ROOT}/orgs/{org.pk}/usage"
    answer = machine.get(path, {"start": at(0).isoformat(), "end": at(1).isoformat()})
    body = assert_is_problem(answer, 500, path)
    assert "division" not in answer.content.decode()
    assert body["errors"] == []


def test_errors_of_pages_are_pages(org: Org) -> None:
    client = APIClient()
    client.force_login(make_user())
    for path, status in (("/nothing/", 404), (f"/orgs/{org.slug}/usage/", 403)):
        answer = client.get(path)
        assert (answer.status_code, answer["Content-Type"]) == (status, "text/html; charset=utf-8")
        assert answer["X-Request-ID"] in answer.content.decode()


# ── Request ids ──────────────────────────────────────────────────────────────────────────────────────────────────


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.msg for record in caplog.records if isinstance(record.msg, dict)]


@pytest.mark.parametrize("given", ["abc", "req-1.2_3:4/5+6=", "00-4bf92f3577b34da6a3ce929d0e0e4736-00-01", "x" * 128])
@pytest.mark.parametrize("path", [f"{ROOT}/status/healthz", f"{ROOT}/nothing", f"{UNKNOWN_ORG}/usage", "/login/"])
def test_a_request_id_is_taken_over(api: APIClient, given: str, path: str) -> None:
    assert api.get(path, headers={"X-Request-ID": given})["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\nb", "a\0b", "ä", "<script>", '"', "a,b"])
@pytest.mark.parametrize("path", [f"{ROOT}/status/healthz", f"{UNKNOWN_ORG}/usage"])
def test_a_request_id_is_made_where_none_is_given_or_an_absurd_one(
    api: APIClient, caplog: pytest.LogCaptureFixture, given: str | None, path: str
) -> None:
    made = [api.get(path, headers={"X-Request-ID": given} if given is not None else {})["X-Request-ID"] for _ in "12"]
    assert made[0] != made[1]
    assert [uuid.UUID(one).version for one in made] == [4, 4]
    assert [event["request_id"] for event in events(caplog) if event["event"] == "request_finished"] == made


def test_every_log_line_of_a_request_carries_its_id(
    machine: APIClient, org: Org, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    ingest([make_event(org)])
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": f"redis://{NOWHERE}/0"}}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        machine.get(f"{ROOT}/orgs/{org.pk}/freshness", headers={"X-Request-ID": "look-for-me"})
    said = [event["event"] for event in events(caplog)]
    assert said == ["cache_unavailable", "cache_unavailable", "request_finished"]
    assert {event["request_id"] for event in events(caplog)} == {"look-for-me"}


def test_the_id_of_one_request_does_not_stick_to_the_next(machine: APIClient, caplog: pytest.LogCaptureFixture) -> None:
    for given in ("first", "second"):
        machine.get(f"{ROOT}/status/healthz", headers={"X-Request-ID": given})
    assert [event["request_id"] for event in events(caplog)] == ["first", "second"]


def test_what_a_request_stores_is_logged_with_its_id(
    machine: APIClient, org: Org, caplog: pytest.LogCaptureFixture
) -> None:
    body = [as_json(make_event(org))]
    machine.post(f"{ROOT}/orgs/{org.pk}/events", body, format="json", headers={"X-Request-ID": "sent-by-me"})
    assert {"batch_stored", "request_finished"} <= {event["event"] for event in events(caplog)}
    assert {event["request_id"] for event in events(caplog)} == {"sent-by-me"}


# ── Operations ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_healthz_and_readyz_say_ok(api: APIClient) -> None:
    for name in ("healthz", "readyz"):
        answer = api.get(f"{ROOT}/status/{name}")
        assert (answer.status_code, answer.content, answer["Content-Type"]) == (200, b"OK", "text/plain")
        assert "X-Degraded" not in answer


def test_healthz_asks_nobody(
    api: APIClient, settings: Settings, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": f"redis://{NOWHERE}/0"}}
    with django_assert_num_queries(0):
        assert api.get(f"{ROOT}/status/healthz").content == b"OK"


def test_metrics_are_prometheus_text(api: APIClient) -> None:
    api.get(f"{ROOT}/status/healthz")
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.content.decode())}
    by_view = families["django_http_requests_total_by_view_transport_method"].samples
    assert any(sample.labels["view"] == "healthz" and sample.value >= 1 for sample in by_view)
    assert "django_db_execute" in families


# ── The API describes itself ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def document(api: APIClient) -> dict[str, Any]:
    answer = api.get(f"{ROOT}/schema", headers={"Accept": "application/vnd.oai.openapi+json"})
    assert answer.status_code == 200
    found: dict[str, Any] = json.loads(answer.content)
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{m.upper()} {path}": op for path, found in document["paths"].items() for m, op in found.items()}


def test_the_document_is_openapi_3_1_and_valid() -> None:
    out = StringIO()
    call_command("spectacular", "--validate", "--fail-on-warn", "--format", "openapi-json", stdout=out)
    assert json.loads(out.getvalue())["openapi"].startswith("3.1")


def test_every_operation_declares_who_may_not(document: dict[str, Any]) -> None:
    assert operations(document)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for name, operation in operations(document).items():
        for status in ("400", "401", "403", "429", "503"):
            assert operation["responses"][status]["content"] == problem, (name, status)
        assert {"ApiKey": []} in operation["security"], name
        for status, response in operation["responses"].items():
            wanted = {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}
            assert response["headers"].keys() == wanted | ({"Retry-After"} if status in ("429", "503") else set())
        assert {"Bearer": []} in operation["security"], name
    bearer = document["components"]["securitySchemes"]["Bearer"]
    assert bearer == {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    required = document["components"]["schemas"]["Problem"]["required"]
    assert required == ["type", "title", "status", "detail", "instance", "errors"]


def test_the_document_has_the_routes_of_the_contract(document: dict[str, Any]) -> None:
    org = f"{ROOT}/orgs/{{org_id}}"
    assert {
        f"POST {ROOT}/events/validate",
        f"POST {org}/events",
        f"GET {org}/usage",
        f"GET {org}/freshness",
        f"GET {org}/reliability",
    } <= set(operations(document))
    usage = operations(document)[f"GET {org}/usage"]
    names = {parameter["name"]: parameter.get("required", False) for parameter in usage["parameters"]}
    assert names == {
        "org_id": True, "start": True, "end": True, "granularity": False, "modelId": False, "timeZone": False,
        "groupBy": False,
    }  # fmt: skip


def test_the_document_can_be_browsed(api: APIClient) -> None:
    page = api.get(f"{ROOT}/docs", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert page["Content-Type"].startswith("text/html")
    html = page.content.decode()
    assert "<script>" not in html, "the policy allows no inline script"
    assert "swagger-ui" in html


def test_cookies_are_kept_from_scripts_and_from_other_sites() -> None:
    user = make_user()
    client = Client()
    client.get("/login/")
    client.post("/login/", {"username": user.email, "password": "correct horse"})
    assert set(client.cookies) == {"csrftoken", "sessionid", "known-browser"}
    for cookie in client.cookies.values():
        assert cookie["httponly"]
        assert cookie["samesite"] in ("Lax", "Strict")


def test_who_goes_away_while_sending_is_no_failure_of_the_service(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any) -> bytes:
        raise UnreadablePostError("[Errno 104] Connection reset by peer")

    monkeypatch.setattr("django.test.client.FakePayload.read", gone)
    org = make_org()
    for path in (f"{ROOT}/orgs/{org.pk}/events", f"{ROOT}/orgs/{org.pk}/exports"):
        answer = api.post(path, [], format="json", headers={"X-API-Key": make_key(org)})
        assert answer.status_code == 400
        assert "cut short" in answer.json()["detail"]
