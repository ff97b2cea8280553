"""What processes say on standard error: one JSON object a line, and nothing in it that is somebody's secret."""

import ast
import json
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import LazySettings, settings
from django.db import DataError, connection, transaction

from analytics_site.logs import _own_secrets, hide_secrets, words

from ..factories import as_json, ingest, make_event, make_key, make_org
from ..processes import DATABASE_AWAY, NOWHERE, eventually, gunicorn, run
from .test_tracing import ROOT, worker

pytestmark = pytest.mark.django_db(transaction=True)

CANARY = "canary-client"
HIDDEN = "canary-hidden"


def ask(address: str, path: str, body: Any = None, **headers: str) -> int:
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", sent, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def lines(log: Path) -> list[dict[str, Any]]:
    """Those that are no warning of Python's own, such as of being root."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


@contextmanager
def refused(table: str) -> Iterator[None]:
    """PostgreSQL refuses rows of the canary, and quotes them."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT no_canary CHECK (client_id <> '{CANARY}') NOT VALID")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT no_canary")


def test_a_request_that_fails_leaves_a_traceback_without_rows_or_credentials(tmp_path: Path) -> None:
    org = make_org()
    key = make_key(org)
    event = make_event(org)
    log = tmp_path / "log"
    with refused("usage_events"), gunicorn(log, S3_SECRET_KEY=HIDDEN) as address:
        headers = {"X-API-Key": key, "X-Request-ID": "look-for-me", "Cookie": "sessionid=canary-cookie"}
        body = [as_json(event, clientId=CANARY, metadata={"prompt": "canary-payload"})]
        assert ask(address, f"{ROOT}/orgs/{org.pk}/events?q=canary-query", body, **headers) == 500
    mine = [line for line in lines(log) if line.get("request_id") == "look-for-me"]
    assert [line["event"] for line in mine] == ["batch_repeated"] * 4 + ["request_failed"]
    failed = mine[-1]
    assert (failed["level"], failed["code"], failed["request"]) == ("error", 500, f"POST {ROOT}/orgs/{org.pk}/events")
    assert "copy_events" in failed["exception"]
    assert "IntegrityError" in failed["exception"]
    assert 'violates check constraint "no_canary"' in failed["exception"]
    for secret in (
        "canary-c",
        "canary-p",
        "canary-q",
        HIDDEN,
        "canary-cookie",
        key,
        str(event.event_id),
        "Failing row",
        "CONTEXT",
    ):
        assert secret not in log.read_text(), secret


def test_a_task_that_fails_leaves_one_line_without_rows(tmp_path: Path) -> None:
    ingest([make_event(make_org(), client_id=CANARY)])
    log = tmp_path / "log"
    with refused("usage_clients"), worker(log) as (sender, queue):
        sender.send_task("usage.tasks.roll_up", queue=queue)
        eventually(lambda: "task_failed" in log.read_text(), 30, "the task fails")
    found = [line for line in lines(log) if "task_id" in line]
    (failed,) = [line for line in found if line["level"] == "error"]
    assert failed["event"] == "task_failed"
    assert failed["error"].startswith("IntegrityError: ")
    assert 'violates check constraint "no_canary"' in failed["exception"]
    for secret in (CANARY, "Failing row"):
        assert secret not in log.read_text(), secret


def test_with_the_database_away_a_request_is_logged_as_it_was_answered(tmp_path: Path) -> None:
    log = tmp_path / "log"
    away = {"DATABASE_URL": f"postgresql://nobody:{HIDDEN}@{NOWHERE}/none"}
    with gunicorn(log, **away) as address:
        assert (
            ask(
                address,
                f"{ROOT}/orgs/{uuid.uuid4()}/usage",
                **{"X-API-Key": "ak_00000000_wrong", "X-Request-ID": "look-for-me"},
            )
            == 503
        )
    (line,) = [line for line in lines(log) if line.get("request_id") == "look-for-me"]
    assert (line["event"], line["level"], line["code"]) == ("request_finished", "error", 503)
    assert line["error"].startswith("OperationalError: ")
    assert "exception" not in line
    assert HIDDEN not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_wrong_host_is_one_warning(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with gunicorn(log) as address:
        assert ask(address, f"{ROOT}/nothing", Host="evil.example.com", **{"X-Request-ID": "look-for-me"}) == 400
    warnings = [line for line in lines(log) if line["level"] != "info"]
    assert [(each["event"], each["level"], each["code"], each["reason"], each["host"]) for each in warnings] == [
        ("request_finished", "warning", 400, "host not allowed", "evil.example.com")
    ]
    assert warnings[0]["request_id"] == "look-for-me"
    assert "Traceback" not in log.read_text()


def test_a_request_with_events_names_its_batch(tmp_path: Path) -> None:
    org = make_org()
    log = tmp_path / "log"
    with gunicorn(log) as address:
        headers = {"X-API-Key": make_key(org), "X-Request-ID": "look-for-me"}
        assert ask(address, f"{ROOT}/orgs/{org.pk}/events", [as_json(make_event(org))], **headers) == 200
    stored, finished = [line for line in lines(log) if line.get("request_id") == "look-for-me"]
    assert (stored["event"], finished["event"]) == ("batch_stored", "request_finished")
    assert stored["batch_id"] == finished["batch_id"] > 0


FAILS = """
import django; django.setup()
import structlog
payload = "canary-" + "local"
try:
    raise ValueError(f"cannot read: '{payload}'")
except ValueError:
    structlog.get_logger("here").exception("went_wrong")
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_shows_no_variables(form: str) -> None:
    said = run("-c", FAILS, LOG_FORMAT=form).stderr
    assert "went_wrong" in said
    assert "ValueError: cannot read: " in said
    assert "canary-local" not in said


# ── Words ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://guest:" + HIDDEN + "@broker:5672//", "amqp://…@broker:5672//"),
        ("host=db password=" + HIDDEN + " user=x", "host=db password=… user=x"),
        ("key ak_0123abcd_Zm9vYmFy-_x is gone", "key ak_0123abcd_… is gone"),
        ("Bearer eyJhbGciOi.eyJzdWIi.c2ln", "Bearer …"),
        ("GET /invitations/Zm9vYmFy/", "GET /invitations/…/"),
        ("sessionid=abc; csrftoken=def", "sessionid=…; csrftoken=…"),
        ("for ada.lovelace+x@example.com now", "for …@… now"),
        ("duplicate key\nDETAIL:  Key (email)=(x) already exists.", "duplicate key"),
        (r"IntegrityError('duplicate key\nDETAIL:  Key (email)=(x)", "IntegrityError('duplicate key"),
        ("celery@host.example.com ready.", "celery@host.example.com ready."),
        ('connection to server at "127.0.0.1", port 1 failed', 'connection to server at "127.0.0.1", port 1 failed'),
        (f"signed with {settings.SECRET_KEY}", "signed with …"),
    ],
)
def test_texts_of_a_line_show_no_secret(text: str, shown: str) -> None:
    assert hide_secrets(None, "info", {"note": text}) == {"note": shown}


@pytest.mark.parametrize("name", ["SECRET_KEY", "S3_ACCESS_KEY", "S3_SECRET_KEY", "OIDC_CLIENT_SECRET"])
def test_what_this_installation_was_told_stands_in_no_line(name: str, settings: LazySettings) -> None:
    setattr(settings, name, HIDDEN)
    _own_secrets.cache_clear()
    try:
        assert hide_secrets(None, "info", {"note": f"invalid_client: {HIDDEN}"}) == {"note": "invalid_client: …"}
    finally:
        _own_secrets.cache_clear()


def test_errors_do_not_quote_what_they_are_about() -> None:
    assert (
        words(ValueError("invalid literal for int() with base 10: 'canary'"))
        == "invalid literal for int() with base 10: …"
    )
    assert words(KeyError("canary")) == "…"
    with pytest.raises(DataError) as found, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT %s::uuid", ["canary"])
    assert words(found.value) == "invalid input syntax for type uuid: …"
    with pytest.raises(psycopg.OperationalError) as away:
        psycopg.connect(DATABASE_AWAY["DATABASE_URL"])
    assert 'connection to server at "127.0.0.1", port 1 failed' in words(away.value)


# ── The page ─────────────────────────────────────────────────────────────────────────────────────────────────────
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", re.MULTILINE)
_APPS = ("analytics_site", "exports", "ingestion", "orgs", "reliability", "usage")


def said_by_the_code() -> Iterator[tuple[str, str, frozenset[str]]]:
    """Event, level and keys of each call of a module's `logger`."""
    for app in _APPS:
        for file in (settings.BASE_DIR / app).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name("logger"), attr=method), args=[name], keywords=given
                    ):
                        keys = frozenset(each.arg or "**" for each in given)
                        level = "error" if method == "exception" else method
                        for event in (name.body, name.orelse) if isinstance(name, ast.IfExp) else (name,):
                            assert isinstance(event, ast.Constant), ast.unparse(node)
                            yield str(event.value), level, keys


def test_the_page_lists_every_event_with_its_level_and_keys() -> None:
    page = (settings.BASE_DIR / "docs/logs.md").read_text().partition("## Events of libraries")[0]
    told = {(event, level, frozenset(re.findall(r"`(\w+)`", keys))) for event, level, keys in _ROW.findall(page)}
    assert told == set(said_by_the_code())
