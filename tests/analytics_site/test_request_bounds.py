"""What one request may cost: bodies are small and flat, statements end."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import LazySettings
from django.db import connections
from rest_framework.test import APIClient

from analytics_site import web_database
from exports.datasets import snapshot
from orgs.limits import MAX_JSON_BYTES, MAX_JSON_DEPTH, RETRY_AFTER_SECONDS
from orgs.models import Org

from ..factories import at, ingest, make_event, make_key, make_org
from ..processes import database_url, gunicorn, run

ROOT = "/analytics/v1"


@pytest.fixture
def org() -> Org:
    return make_org()


# ── Bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────


def ask_for_export(org: Org, body: bytes) -> Any:
    client = APIClient(raise_request_exception=False, headers={"X-API-Key": make_key(org)})
    return client.post(f"{ROOT}/orgs/{org.pk}/exports", body, content_type="application/json")


@pytest.mark.django_db
def test_a_body_that_is_too_large_is_said_to_be(org: Org) -> None:
    answer = ask_for_export(org, b'{"models": "' + b"x" * MAX_JSON_BYTES + b'"}')
    assert (answer.status_code, answer["Content-Type"]) == (413, "application/problem+json")
    assert "65,536 bytes" in answer.json()["detail"]
    assert ask_for_export(org, b" " * (MAX_JSON_BYTES - 2) + b"{}").status_code == 400, "as large as it may be"


@pytest.mark.django_db
@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 2, 500, 30_000])
@pytest.mark.parametrize("opening", ["[", '{"models":'])
def test_a_body_that_is_nested_deeply_is_a_mistake_of_its_sender(org: Org, depth: int, opening: str) -> None:
    depth = min(depth, MAX_JSON_BYTES // (len(opening) + 1) - 2)
    answer = ask_for_export(org, (opening * depth + "1" + {"[": "]"}.get(opening, "}") * depth).encode())
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert "nested deeper than 16 levels" in answer.json()["detail"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "body", [b"[" * 60_000, b"\xff\xfe", b"1" * 60_000, b"NaN", b'{"a": Infinity}', b'"\\ud800"', b"null"]
)
def test_no_body_is_a_failure_of_the_service(org: Org, body: bytes) -> None:
    assert ask_for_export(org, body).status_code == 400


@pytest.mark.django_db
def test_as_many_models_as_may_be_named_fit() -> None:
    models = ["0191d5b2-8f5e-7c1a-9f0e-3d4c5b6a7988"] * 1_000
    assert len(json.dumps({"models": models})) < MAX_JSON_BYTES


# ── Statements ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_operator_says_of_the_connection_holds(settings: LazySettings) -> None:
    options = connections["default"].settings_dict["OPTIONS"]
    before = dict(options)
    try:
        options["options"] = "-c statement_timeout=5s"
        web_database.bound_statements()
        assert options["options"] == "-c statement_timeout=30s -c statement_timeout=5s"
        del options["options"]
        settings.WEB_STATEMENT_TIMEOUT = 0
        web_database.bound_statements()
        assert "options" not in options
    finally:
        options.clear()
        options.update(before)


_TIMEOUT = (
    "from django.db import connection as c; cursor = c.cursor();"
    "cursor.execute('SHOW statement_timeout'); print(cursor.fetchone()[0])"
)


@pytest.mark.django_db
def test_web_processes_have_a_time_out_and_nobody_else() -> None:
    assert run("-c", f"import analytics_site.wsgi; {_TIMEOUT}").stdout == "30s\n"
    assert run("-c", f"import analytics_site.wsgi; {_TIMEOUT}", WEB_STATEMENT_TIMEOUT="7").stdout == "7s\n"
    assert run("manage.py", "shell", "-v0", "-c", _TIMEOUT).stdout == "0\n"
    assert run("-c", f"import analytics_site.celery, django; django.setup(); {_TIMEOUT}").stdout == "0\n"


def fetch(address: str, **headers: str) -> tuple[int, Message, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


@pytest.fixture
def locked() -> Iterator[psycopg.Connection[Any]]:
    """Somebody holds a table, for as long as a statement that waits for it may take."""
    with psycopg.connect(database_url()) as holder:
        yield holder
        holder.rollback()


@pytest.mark.django_db(transaction=True)
def test_a_statement_that_takes_too_long_is_answered_in_words(
    org: Org, tmp_path: Path, locked: psycopg.Connection[Any]
) -> None:
    ingest([make_event(org)])
    key = {"X-API-Key": make_key(org)}
    query = f"start={at(0):%Y-%m-%dT%H:%M:%SZ}&end={at(20):%Y-%m-%dT%H:%M:%SZ}"
    path = f"{ROOT}/orgs/{org.pk}/usage?{query}"
    with gunicorn(tmp_path / "log", WEB_STATEMENT_TIMEOUT="1") as address:
        assert fetch(address + path, **key)[0] == 200
        locked.execute("LOCK TABLE usage_events, usage_hourly, usage_daily")
        start = time.monotonic()
        status, headers, body = fetch(address + path, **key)
        assert (status, headers["Content-Type"]) == (503, "application/problem+json")
        assert time.monotonic() - start < 10
        assert headers["Retry-After"] == str(RETRY_AFTER_SECONDS)
        assert "took the database too long" in json.loads(body)["detail"]
        locked.rollback()
        locked.execute("LOCK TABLE django_session, orgs_user")
        status, headers, body = fetch(f"{address}/orgs/{org.slug}/usage/", Cookie="sessionid=" + "x" * 32)
        assert (status, headers.get_content_type()) == (503, "text/html")
        assert "This took the database too long" in body
        locked.rollback()
        assert fetch(address + path, **key)[0] == 200


@pytest.mark.django_db(transaction=True)
def test_a_file_that_is_streamed_is_not_cut(settings: LazySettings) -> None:
    connection = connections["default"]
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '200ms'")
        try:
            with snapshot():
                cursor.execute("SELECT pg_sleep(0.5)")
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("200ms",)
        finally:
            cursor.execute("RESET statement_timeout")
