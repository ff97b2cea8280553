"""Processes as they run in production: what they say when a server is away, and metrics of all workers together."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from prometheus_client.parser import text_string_to_metric_families

from ..processes import DATABASE_AWAY, NOWHERE, database_url, gunicorn, run

pytestmark = pytest.mark.django_db
STATUS = "/analytics/v1/status"
ASK = """
import django, json, sys
django.setup()
from django.test import Client
client = Client(raise_request_exception=False, SERVER_NAME="localhost")
answer = client.get(sys.argv[1], headers={"X-API-Key": "ak_00000000_wrong"})
print(json.dumps([answer.status_code, answer.content.decode(), dict(answer.headers)]))
"""


def ask(path: str, **variables: str) -> tuple[int, str, dict[str, str]]:
    """What a process with these settings answers."""
    process: subprocess.CompletedProcess[str] = run("-c", ASK, path, **variables)
    assert process.returncode == 0, process.stderr
    status, body, headers = json.loads(process.stdout)
    return status, body, headers


@pytest.mark.parametrize(
    ("variables", "degraded"),
    [
        ({}, None),
        ({"REDIS_URL": f"redis://{NOWHERE}/0"}, "cache, broker"),
        ({"REDIS_URL": f"redis://{NOWHERE}/0", "BROKER_URL": settings.REDIS_URL}, "cache"),
        ({"BROKER_URL": f"redis://{NOWHERE}/0"}, "broker"),
        ({"BROKER_URL": f"amqp://guest:guest@{NOWHERE}//"}, "broker"),
    ],
)
def test_readyz_names_the_cache_or_broker_that_is_away(variables: dict[str, str], degraded: str | None) -> None:
    status, body, headers = ask(f"{STATUS}/readyz", **variables)
    assert (status, body, headers.get("X-Degraded")) == (200, "OK", degraded)


def test_without_a_database_readyz_names_it_and_healthz_says_ok() -> None:
    status, body, headers = ask(f"{STATUS}/readyz", **DATABASE_AWAY)
    assert (status, body) == (503, "PostgreSQL does not answer")
    assert "X-Degraded" not in headers
    assert ask(f"{STATUS}/healthz", **DATABASE_AWAY)[:2] == (200, "OK")


def test_without_a_database_the_api_answers_with_a_problem() -> None:
    path = f"/analytics/v1/orgs/{uuid.uuid4()}/usage"
    status, body, headers = ask(path, **DATABASE_AWAY)
    assert (status, headers["Content-Type"]) == (503, "application/problem+json")
    assert int(headers["Retry-After"]) > 0
    problem = json.loads(body)
    assert (problem["status"], problem["title"], problem["instance"]) == (503, "Service Unavailable", path)
    assert "database" in problem["detail"]


@pytest.fixture
def empty_database(transactional_db: None) -> Iterator[str]:
    name = f"empty_{uuid.uuid4().hex}"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    yield name
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_readyz_names_a_migration_that_is_missing(empty_database: str) -> None:
    status, body, _ = ask(f"{STATUS}/readyz", DATABASE_URL=database_url(empty_database))
    assert status == 503
    assert re.fullmatch(r"migration missing: \w+\.\d{4}_\w+", body)


# ── gunicorn ─────────────────────────────────────────────────────────────────────────────────────────────────────


def get(address: str, **headers: str) -> tuple[int, str, Any]:
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def counted(address: str, view: str) -> float:
    """How many requests of a view the metrics have counted."""
    families = text_string_to_metric_families(get(f"{address}/metrics")[1])
    samples = [sample for family in families for sample in family.samples]
    name = "django_http_requests_total_by_view_transport_method_total"
    return sum(sample.value for sample in samples if sample.name == name and sample.labels["view"] == view)


def test_metrics_count_the_requests_of_all_workers_together(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "counter_1.db").write_bytes(b"left by an earlier run")
    with gunicorn(tmp_path / "log", WEB_CONCURRENCY="3", PROMETHEUS_MULTIPROC_DIR=str(folder)) as address:
        known = counted(address, "healthz")  # those that waited for the start
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(get, [f"{address}{STATUS}/healthz"] * 300))
        assert {answer[:2] for answer in answers} == {(200, "OK")}
        served = [file for file in folder.glob("counter_*.db") if b"healthz" in file.read_bytes()]
        assert len(served) > 1, "one worker served them all"
        assert {counted(address, "healthz") for _ in range(10)} == {known + 300}


def test_a_request_leaves_one_line_of_json_that_has_its_id(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with gunicorn(log) as address:
        status, body, headers = get(f"{address}/analytics/v1/nothing", **{"X-Request-ID": "look-for-me"})
        assert (status, headers["X-Request-ID"]) == (404, "look-for-me")
        assert json.loads(body)["instance"] == "/analytics/v1/nothing"
    (line,) = [line for line in log.read_text().splitlines() if "look-for-me" in line]
    found = json.loads(line)
    assert found["request_id"] == "look-for-me"
    assert (found["event"], found["code"], found["level"]) == ("request_finished", 404, "warning")


def test_workers_stop_when_they_are_told_to(tmp_path: Path) -> None:
    started = time.monotonic()
    with gunicorn(tmp_path / "log") as address:
        assert get(f"{address}{STATUS}/readyz")[0] == 200
    assert time.monotonic() - started < 30
    assert "Traceback" not in (tmp_path / "log").read_text()
