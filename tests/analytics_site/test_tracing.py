"""Traces: one event from its request to the rollup, as real processes send them; and what they must not cost or show."""

import json
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.conf import settings

from analytics_site.rig import redis_url
from analytics_site.settings import _broker_url
from analytics_site.tracing import kept
from ingestion.models import Batch
from ingestion.spans import span

from ..factories import as_json, make_event, make_key, make_org
from ..otlp import attributes, receiver
from ..processes import NOWHERE, environment, eventually, gunicorn, run

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = "/analytics/v1"
TRACE, PARENT = f"{7:032x}", f"{8:016x}"
BROKER = 8  # a Redis database that nobody else's workers listen to
GRACE = 25  # seconds after which operators kill


def send(address: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status, json.loads(answer.read())


@contextmanager
def worker(log: Path, **variables: str) -> Iterator[tuple[Celery, str]]:
    """A worker with a process of its own for tasks, and how to send it some."""
    queue = f"test-{uuid.uuid4().hex[:8]}"
    command = ["-m", "celery", "-A", "analytics_site", "worker", "-c", "1", "-Q", queue, "--without-mingle"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command, "-n", f"{queue}@%h"],
            cwd=settings.BASE_DIR,
            env=environment(REDIS_URL=redis_url(BROKER), **variables),
            stderr=stderr,
        )
    try:
        eventually(lambda: " ready" in log.read_text() or process.poll() is not None, 40, "the worker is ready")
        with Celery(broker=_broker_url(redis_url(BROKER))) as sender:
            yield sender, queue
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE) == 0, log.read_text()


def test_an_event_can_be_followed_from_its_request_to_the_rollup(tmp_path: Path) -> None:
    org = make_org()
    key = make_key(org)
    event = make_event(org)
    with receiver() as collector:
        with gunicorn(tmp_path / "web.log", **collector.settings) as address:
            status, answer = send(
                address,
                f"{ROOT}/orgs/{org.pk}/events?note=canary-query",
                [as_json(event, clientId="canary-client", metadata={"prompt": "canary-payload"})],
                **{"X-API-Key": key, "X-Request-ID": "look-for-me", "traceparent": f"00-{TRACE}-{PARENT}-01"},
            )
            assert (status, answer["accepted"]) == (200, 1)
            request = collector.wait_for("POST analytics/v1/orgs/<anyuuid:org_id>/events")
            stored = collector.wait_for("store batch")
        batch = Batch.objects.get()
        assert request.trace_id.hex() == stored.trace_id.hex() == TRACE
        assert request.parent_span_id.hex() == PARENT
        assert stored.parent_span_id == request.span_id
        assert batch.traceparent == f"00-{TRACE}-{stored.span_id.hex()}-01"
        assert attributes(request)["analytics.request_id"] == "look-for-me"
        assert {k.removeprefix("analytics."): v for k, v in attributes(stored).items()} == {
            "batch_id": batch.pk, "door": "http", "received": 1, "accepted": 1, "duplicates": 0, "conflicts": 0,
            "rejected": 0, "quarantined": 0, "orgs": 1, "retries": 0,
        }  # fmt: skip
        assert any(span.name == "INSERT" and span.trace_id == stored.trace_id for span in collector.spans)

        with worker(tmp_path / "worker.log", **collector.settings) as (sender, queue):
            for _ in range(3):  # the first has something to do
                sender.send_task("usage.tasks.roll_up", queue=queue)
            rolled_up = collector.wait_for("roll up")
            sender.send_task("ingestion.tasks.rotate_ledger", queue=queue)
            collector.wait_for("run/ingestion.tasks.rotate_ledger")
        (link,) = rolled_up.links
        assert (link.trace_id, link.span_id) == (stored.trace_id, stored.span_id)
        assert rolled_up.trace_id != stored.trace_id
        found = attributes(rolled_up)
        assert (found["analytics.batches"], found["analytics.events"], found["analytics.orgs"]) == (1, 1, 1)
        assert len(collector.named("roll up")) == 1, "runs that found nothing are no traces"
        assert not collector.named("run/usage.tasks.roll_up")
        roots = {span.name for span in collector.spans if not span.parent_span_id}
        assert roots == {"roll up", "run/ingestion.tasks.rotate_ledger"}, "nothing that polls is a trace"
        sent = b"".join(collector.bodies)
    for secret in ("canary", key, key.rsplit("_", 1)[1], str(event.event_id), settings.SECRET_KEY):
        assert secret.encode() not in sent, secret
    lines = [json.loads(line) for line in (tmp_path / "web.log").read_text().splitlines() if "look-for-me" in line]
    assert {line["event"] for line in lines} == {"batch_stored", "request_finished"}
    assert {line["trace_id"] for line in lines} == {TRACE}


def test_a_trace_that_its_beginner_does_not_sample_is_not_recorded(tmp_path: Path) -> None:
    org = make_org()
    with receiver() as collector:
        with gunicorn(tmp_path / "log", **collector.settings) as address:
            headers = {"X-API-Key": make_key(org), "traceparent": f"00-{TRACE}-{PARENT}-00"}
            send(address, f"{ROOT}/orgs/{org.pk}/events", [as_json(make_event(org))], **headers)
        assert not collector.bodies
    assert Batch.objects.get().traceparent is None


def test_a_sampler_that_is_asked_for_decides(tmp_path: Path) -> None:
    org = make_org()
    with receiver() as collector:
        with gunicorn(tmp_path / "log", OTEL_TRACES_SAMPLER="always_off", **collector.settings) as address:
            headers = {"X-API-Key": make_key(org), "traceparent": f"00-{TRACE}-{PARENT}-01"}
            send(address, f"{ROOT}/orgs/{org.pk}/events", [as_json(make_event(org))], **headers)
        assert not collector.bodies


@pytest.mark.parametrize("trouble", ["dead", "hanging", "refusing", "failing"])
def test_a_receiver_in_trouble_costs_no_request_and_no_event(trouble: str, tmp_path: Path) -> None:
    org = make_org()
    key = make_key(org)
    status = {"refusing": 401, "failing": 503}.get(trouble, 200)
    with receiver(status, hangs=trouble == "hanging") as collector:
        variables = collector.settings
        if trouble == "dead":
            variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{NOWHERE}"
        with gunicorn(
            tmp_path / "log", OTEL_BSP_MAX_QUEUE_SIZE="64", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8", **variables
        ) as address:
            for _ in range(20):  # more spans than the queue holds
                body = [as_json(make_event(org))]
                assert send(address, f"{ROOT}/orgs/{org.pk}/events", body, **{"X-API-Key": key})[0] == 200
        # It ended within the grace period, or the block had failed.
        assert trouble == "dead" or collector.bodies
    assert sum(Batch.objects.values_list("accepted", flat=True)) == 20
    assert "Traceback" not in (tmp_path / "log").read_text()
    if trouble == "refusing":
        assert '"traces_not_exported"' in (tmp_path / "log").read_text()


def test_what_is_not_sent_yet_is_sent_when_a_process_ends(tmp_path: Path) -> None:
    org = make_org()
    with receiver() as collector:
        late = collector.settings | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        with gunicorn(tmp_path / "web.log", **late) as address:
            send(address, f"{ROOT}/orgs/{org.pk}/events", [as_json(make_event(org))], **{"X-API-Key": make_key(org)})
            assert not collector.bodies
        assert collector.named("store batch")
        with worker(tmp_path / "worker.log", **late) as (sender, queue):
            sender.send_task("usage.tasks.roll_up", queue=queue)
            eventually(lambda: Batch.objects.get().rolled_up_at is not None, 30, "the batch is rolled up")
            assert not collector.named("roll up")
        assert collector.named("roll up")


# ── Off ──────────────────────────────────────────────────────────────────────────────────────────────────────────
WITHOUT = """
import sys
import analytics_site.wsgi, analytics_site.celery
from django.test import Client
from celery.signals import worker_process_init
from ingestion.models import Door
from ingestion.writing import Delivery, store
from orgs.tenancy import DatabaseRole, acting_as
from usage.rollups import roll_up

worker_process_init.send(sender=None)
assert Client(SERVER_NAME="localhost").get("/analytics/v1/schema").status_code == 200
batch = store(Delivery(Door.TRACE, []))
with acting_as(DatabaseRole.TASKS):  # not web's to do
    assert roll_up().batches
assert batch.traceparent is None
# redis-py looks for the SDK's metrics by itself, wherever they are installed.
traces = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.instrumentation", "opentelemetry.proto")
print(sorted(name for name in sys.modules if name.startswith(traces)))
"""
NOT_INSTALLED = "import sys; sys.modules['opentelemetry'] = None\n"


@pytest.mark.parametrize("code", [WITHOUT, NOT_INSTALLED + WITHOUT], ids=["installed", "not installed"])
@pytest.mark.parametrize(
    "variables", [{}, {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector"}]
)
def test_without_an_endpoint_nothing_that_traces_is_imported(code: str, variables: dict[str, str]) -> None:
    process = run("-c", code, **variables)
    assert (process.returncode, process.stdout) == (0, "[]\n"), process.stderr


def test_a_span_that_nobody_is_told_of_takes_everything() -> None:
    with span("anything", ["not a traceparent"], is_root=True, batch_id=1) as found:
        found.set(orgs=1)
        assert found.traceparent is None


START = "import analytics_site.wsgi"


@pytest.mark.parametrize(
    ("code", "variables", "said"),
    [
        (
            NOT_INSTALLED + START,
            {},
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and what requirements/tracing.txt names is not",
        ),
        (START, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is malformed"),
        (START, {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT is malformed"),
    ],
)
def test_what_stands_in_the_way_of_traces_is_said_at_the_start(code: str, variables: dict[str, str], said: str) -> None:
    process = run("-c", code, **({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"} | variables))
    assert process.returncode == 1
    assert process.stderr.startswith(said)
    assert len(process.stderr.splitlines()) == 1


def test_attributes_that_nobody_looked_at_stay_here() -> None:
    given = {
        "http.url": "http://localhost/invitations/secret/", "http.route": "invitations/<str:token>/",
        "http.request.header.x_api_key": ("ak_1_secret",), "celery.args": "secret", "db.system": "postgresql",
        "db.statement": "SELECT 'a ''secret''', $x$secret$x$, id FROM t WHERE id = %s", "db.user": "secret",
        "exception.message": "secret", "exception.type": "ValueError", "analytics.batch_id": 7,
    }  # fmt: skip
    assert kept(given) == {
        "http.route": "invitations/<str:token>/", "db.system": "postgresql", "exception.type": "ValueError",
        "db.statement": "SELECT ?, ?, id FROM t WHERE id = %s", "analytics.batch_id": 7,
    }  # fmt: skip
    assert kept({"db.system": "redis", "db.statement": "SET secret"}) == {"db.system": "redis"}
