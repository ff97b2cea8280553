"""The HTTP doors: what comes in is stored, or answered with a problem; never half."""

import gzip
import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIRequest
from django.utils import timezone
from rest_framework.exceptions import ParseError
from rest_framework.test import APIClient

from ingestion.models import Batch, Conflict, QuarantinedMessage, UsageEvent
from ingestion.parsing import read_body
from orgs.limits import MAX_BODY_BYTES
from orgs.models import Org, Scope, ServedModel

from ..factories import as_json, make_event, make_key, make_org, make_user

pytestmark = pytest.mark.django_db

Send = Callable[..., Any]


@pytest.fixture
def org() -> Org:
    return make_org()


@pytest.fixture
def send(api: APIClient, org: Org) -> Send:
    token = make_key(org, Scope.EVENTS_WRITE)

    def post(body: Any, content_type: str = "application/json", **headers: str) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return api.post(
            f"/analytics/v1/orgs/{org.pk}/events",
            data,
            content_type=content_type,
            headers={"X-API-Key": token, **headers},
        )

    return post


def stored() -> int:
    return UsageEvent.objects.count()


def test_events_are_answered_after_they_are_stored(send: Send, org: Org) -> None:
    answer = send([as_json(make_event(org)) for _ in range(3)])
    assert answer.status_code == 200
    batch = Batch.objects.get()
    assert answer.json() == {"batchId": str(batch.public_id), "accepted": 3, "duplicates": 0, "rejected": []}
    assert stored() == 3


def test_a_repeat_adds_nothing(send: Send, org: Org) -> None:
    events = [as_json(make_event(org)) for _ in range(3)]
    send(events)
    assert send(events).json()["duplicates"] == 3
    assert stored() == 3
    assert Conflict.objects.count() == 0


def test_one_bad_event_does_not_spoil_its_neighbours(send: Send, org: Org) -> None:
    good, bad = make_event(org), as_json(make_event(org), inputTokens=-1, latencyMs="fast")
    answer = send([as_json(good), bad, 7]).json()
    assert answer["accepted"] == 1
    assert answer["rejected"] == [
        {
            "index": 1,
            "eventId": bad["eventId"],
            "errors": [
                {"field": "latencyMs", "message": "must be an integer from 0 to 86,400,000"},
                {"field": "inputTokens", "message": "must be an integer from 0 to 2,147,483,647"},
            ],
        },
        {"index": 2, "eventId": None, "errors": [{"field": "", "message": "must be a JSON object"}]},
    ]
    assert QuarantinedMessage.objects.count() == 0


def test_an_event_of_another_org_is_rejected(send: Send) -> None:
    answer = send([as_json(make_event(make_org("Globex")))]).json()
    assert answer["accepted"] == 0
    assert answer["rejected"][0]["errors"] == [{"field": "orgId", "message": "must be the org of the path"}]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"inputTokens": -1}, "inputTokens"),
        ({"inputTokens": 2**31}, "inputTokens"),
        ({"inputTokens": 1.5}, "inputTokens"),
        ({"inputTokens": True}, "inputTokens"),
        ({"outputTokens": None}, "outputTokens"),
        ({"latencyMs": 86_400_001}, "latencyMs"),
        ({"status": "ok"}, "status"),
        ({"occurredAt": "2026-01-01T00:00:00"}, "occurredAt"),
        ({"occurredAt": (timezone.now() + timedelta(minutes=30)).isoformat()}, "occurredAt"),
        ({"occurredAt": "0001-01-01T00:00:00Z"}, "occurredAt"),
        ({"occurredAt": 5}, "occurredAt"),
        ({"eventId": "x"}, "eventId"),
        ({"modelId": None}, "modelId"),
        ({"errorCode": "oops"}, "errorCode"),
        ({"clientId": "a\0b"}, "clientId"),
        ({"clientId": "x" * 129}, "clientId"),
        ({"metadata": {"k" * 5000: "v"}}, "metadata"),
        ({"metadata": {str(i): "v" for i in range(33)}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {"k": "\0"}}, "metadata"),
        ({"costEstimateCents": "1.5"}, "costEstimateCents"),
        ({"costEstimateCents": -0.1}, "costEstimateCents"),
        ({"costEstimateCents": 0.00001}, "costEstimateCents"),
        ({"costEstimateCents": 10**9 + 1}, "costEstimateCents"),
        ({"cachedInputTokens": 6, "cacheCreationInputTokens": 5}, "cachedInputTokens"),
    ],
)
def test_a_field_that_is_wrong_is_named(send: Send, org: Org, fields: dict[str, Any], field: str) -> None:
    answer = send([as_json(make_event(org), **fields), as_json(make_event(org))])
    assert answer.status_code == 200
    assert field in {error["field"] for error in answer.json()["rejected"][0]["errors"]}
    assert answer.json()["accepted"] == stored() == 1


def bomb() -> bytes:
    return gzip.compress(b" " * (200 * 1024 * 1024), 9)


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{not json", {}, 400, "is not valid JSON"),
        (b"\xff\xfe", {}, 400, "is not valid JSON"),
        (b"", {}, 400, "is empty"),
        (b"[]", {}, 400, "1 to 5,000 events; this one has 0"),
        (b"{}", {}, 400, "must be a JSON array"),
        (b"[" * 100_000, {}, 400, "is not valid JSON"),
        (b"[" + b"1," * 5000 + b"1]", {}, 400, "this one has 5,001"),
        (b" " * (6 * 1024 * 1024), {}, 413, "larger than"),
        (b"[]", {"Content-Encoding": "gzip"}, 400, "gzip body is broken"),
        (gzip.compress(b"[1,2]")[:-5], {"Content-Encoding": "gzip"}, 400, "cut short"),
        (bomb(), {"Content-Encoding": "gzip"}, 413, "larger than"),
        (b"[]", {"Content-Encoding": "br"}, 415, "gzip or identity"),
        (gzip.compress(b"") * 101, {"Content-Encoding": "gzip"}, 400, "more than 100 members"),
        (gzip.compress(b"[" + b"1," * 100_000 + b"1]"), {"Content-Encoding": "gzip"}, 400, "this one has 100,001"),
    ],
    # A body never stands in a test's name: gzip writes the time of day into its header, and every worker collects anew.
    ids=lambda value: "body" if isinstance(value, bytes) else None if isinstance(value, dict) else str(value),
)
def test_a_body_that_is_wrong_is_a_problem(
    send: Send, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = send(body, **headers)
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert Batch.objects.count() == 0


def test_a_body_that_broke_off_is_refused() -> None:
    broken = WSGIRequest({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "5", "wsgi.input": BytesIO(b"[{}]")})
    with pytest.raises(ParseError, match="cut short"):
        read_body(broken)


@pytest.mark.parametrize("odd", ["1e99999999999999999999", "0e-16384", "0." + "0" * 16_384, "1" * 5_000])
@pytest.mark.parametrize("field", ["costEstimateCents", "region"])
def test_a_number_that_nothing_can_hold_does_not_spoil_its_neighbours(
    send: Send, org: Org, field: str, odd: str
) -> None:
    event = json.dumps(as_json(make_event(org)) | {field: "ODD"}).replace('"ODD"', odd)
    answer = send(f"[{event}, {json.dumps(as_json(make_event(org)))}]".encode())
    assert answer.status_code == 200
    assert answer.json()["accepted"] >= 1
    assert answer.json()["accepted"] + len(answer.json()["rejected"]) == 2


def test_another_content_type_is_a_problem(send: Send) -> None:
    assert send(b"a,b", content_type="text/csv").status_code == 415


def test_a_body_without_a_length_is_a_problem(send: Send) -> None:
    assert send(b"", **{"Transfer-Encoding": "chunked"}).status_code == 411


def test_gzip_and_ndjson_are_taken(send: Send, org: Org) -> None:
    lines = b"\n".join(json.dumps(as_json(make_event(org))).encode() for _ in range(3))
    packed = gzip.compress(lines[:50]) + gzip.compress(lines[50:])
    answer = send(packed, content_type="application/x-ndjson", **{"Content-Encoding": "gzip"})
    assert answer.json()["accepted"] == 3


def test_the_largest_request_is_taken(send: Send, org: Org) -> None:
    body = json.dumps([as_json(make_event(org)) for _ in range(5000)]).encode()
    assert len(body) < MAX_BODY_BYTES
    assert send(body).json()["accepted"] == 5000


def test_snake_case_is_taken_and_unknown_fields_are_ignored(send: Send, org: Org) -> None:
    event = as_json(make_event(org, client_id=None))
    snake = {
        "event_id": str(uuid.uuid4()),
        "org_id": str(org.pk),
        "model_id": event["modelId"],
        "occurred_at": event["occurredAt"],
        "latency_ms": 1,
        "status": "success",
        "input_tokens": 7,
        "output_tokens": 8,
        "client_id": "gateway",
    }
    answer = send([snake, event | {"region": "eu"}])
    assert answer.json()["accepted"] == 2
    assert UsageEvent.objects.get(event_id=snake["event_id"]).client_id == "gateway"


def test_a_key_of_an_org_makes_no_stub_and_loses_no_event(send: Send, org: Org) -> None:
    assert send([as_json(make_event(org, model_id=uuid.uuid4()))]).json()["accepted"] == 1
    assert not ServedModel.objects.exists()


def test_a_key_of_the_platform_makes_stubs(api: APIClient) -> None:
    org_id, model_id = uuid.uuid4(), uuid.uuid4()
    answer = api.post(
        f"/analytics/v1/orgs/{org_id}/events",
        [as_json(make_event(org_id, model_id=model_id))],
        format="json",
        headers={"X-API-Key": make_key(None)},
    )
    assert answer.json()["accepted"] == 1
    assert Org.objects.get(pk=org_id).is_stub
    assert ServedModel.objects.get(pk=model_id).is_stub


def validate(api: APIClient, body: Any, token: str) -> Any:
    return api.post("/analytics/v1/events/validate", body, format="json", headers={"X-API-Key": token})


def test_validate_says_yes(api: APIClient, org: Org) -> None:
    answer = validate(api, as_json(make_event(org)), make_key(org, Scope.EVENTS_WRITE))
    assert answer.status_code == 204
    assert stored() == 0


def test_validate_names_every_field_that_is_wrong_or_unknown(api: APIClient, org: Org) -> None:
    document = as_json(make_event(org), status="fine", region="eu")
    del document["modelId"]
    answer = validate(api, document, make_key(org, Scope.EVENTS_WRITE))
    assert answer.status_code == 400
    assert {error["field"] for error in answer.json()["errors"]} == {"status", "region", "modelId"}
    # A field that is unknown hides no rule between those that are known.
    document = as_json(make_event(org), errorCode="x", region="eu")
    answer = validate(api, document, make_key(org, Scope.EVENTS_WRITE))
    assert {error["field"] for error in answer.json()["errors"]} == {"errorCode", "region"}


def test_validate_needs_the_scope(api: APIClient, org: Org) -> None:
    assert validate(api, {}, make_key(org, Scope.USAGE_READ)).status_code == 403
    assert validate(api, {}, "ak_none_x").status_code == 401


def test_a_session_writes_with_a_csrf_token_alone(org: Org) -> None:
    browser = APIClient(enforce_csrf_checks=True)
    browser.force_login(make_user(org=org))
    answer = browser.post(f"/analytics/v1/orgs/{org.pk}/events", [as_json(make_event(org))], format="json")
    assert answer.status_code == 403
    assert stored() == 0
