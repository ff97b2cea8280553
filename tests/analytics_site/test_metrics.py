"""What Prometheus gets from real processes: all of what their children counted, and state that no fault of a part takes away."""

import json
import os
import re
import signal
import time
import urllib.request
import uuid
from pathlib import Path

import psutil
import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from analytics_site.celery import app
from analytics_site.metrics import PARTS
from analytics_site.rig import redis_url
from ingestion.models import Door, QuarantinedMessage, StreamGap, StreamReader
from ingestion.schema import Fault, Invalid
from ingestion.writing import Delivery, store
from reliability.watching import watch

from ..deploy import stack
from ..factories import MODEL, NOON, as_json, ingest, make_event, make_key, make_org
from ..processes import DATABASE_AWAY, NOWHERE, celery, database_url, eventually, gunicorn

ROLL_UP = "usage.tasks.roll_up"


def scrape(address: str, **headers: str) -> dict[str, Metric]:
    """Families by the name that their samples have, a histogram's by its own."""
    with urllib.request.urlopen(urllib.request.Request(f"{address}/metrics", headers=headers), timeout=15) as answer:
        return families(answer.read().decode())


def families(text: str) -> dict[str, Metric]:
    return {name_of(family): family for family in text_string_to_metric_families(text)}


def name_of(family: Metric) -> str:
    return family.name + ("_total" if family.type == "counter" else "")


def value(found: dict[str, Metric], name: str, **labels: str) -> float | None:
    base = re.sub("_(sum|count|bucket)$", "", name)
    samples = found[name if name in found else base].samples if name in found or base in found else []
    chosen = [sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]
    return sum(chosen) if chosen else None


def parts(found: dict[str, Metric]) -> dict[str, float]:
    return {sample.labels["part"]: sample.value for sample in found["analytics_state_read"].samples}


def send(task: str, queue: str, broker: dict[str, str]) -> None:
    with app.connection_for_write(
        broker["REDIS_URL"].replace("unix://", "redis+socket://").replace("db=", "virtual_host=")
    ) as link:
        app.send_task(task, queue=queue, connection=link, ignore_result=True)


@pytest.fixture
def broker() -> dict[str, str]:
    return {"REDIS_URL": redis_url(9)}


# ── Workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.django_db(transaction=True)
def test_what_the_children_of_a_worker_count_is_told_by_their_parent(broker: dict[str, str], tmp_path: Path) -> None:
    queue = f"test-{uuid.uuid4().hex[:8]}"
    org = make_org()
    for _ in range(3):
        ingest([make_event(org)])
    with celery(tmp_path / "log", "-c", "3", "-Q", queue, TMPDIR=str(tmp_path), **broker) as port:
        address = f"http://127.0.0.1:{port}"
        assert value(scrape(address), "analytics_rollup_runs_total", outcome="added") == 0, (
            "it is there before it rises"
        )
        with psycopg.connect(database_url()) as other:
            # The first runs wait, so that all three children are at work.
            other.execute("LOCK TABLE usage_zones IN ACCESS EXCLUSIVE MODE")
            for _ in range(30):
                send(ROLL_UP, queue, broker)
            time.sleep(2)
        labels = {"task": ROLL_UP, "state": "success"}
        eventually(lambda: value(scrape(address), "analytics_task_runs_total", **labels) == 30, 30, "all are counted")
        found = scrape(address)
        files = tmp_path.glob("analytics-worker-metrics-*/counter_*.db")
        files_of_children = [file for file in files if ROLL_UP.encode() in file.read_bytes()]
        assert len(files_of_children) == 3, "one child ran them all"
        assert value(found, "analytics_task_seconds_count", task=ROLL_UP) == 30
        assert value(found, "analytics_rollup_events_total") == 3
        assert value(found, "analytics_worker_processes_total") == 3
    assert not list(tmp_path.glob("analytics-worker-metrics-*")), "nothing is left"
    with gunicorn(tmp_path / "web", **broker) as address:
        last = value(scrape(address), "analytics_task_last_success_timestamp_seconds", task=ROLL_UP)
    assert last is not None
    assert 0 <= time.time() - last < 120


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_process_dies_is_counted_as_lost(broker: dict[str, str], tmp_path: Path) -> None:
    queue = f"test-{uuid.uuid4().hex[:8]}"
    with celery(tmp_path / "log", "-c", "1", "-Q", queue, **broker) as port:
        address = f"http://127.0.0.1:{port}"
        with psycopg.connect(database_url()) as other:
            other.execute("LOCK TABLE usage_zones IN ACCESS EXCLUSIVE MODE")
            send(ROLL_UP, queue, broker)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'usage_zones'::regclass"
            eventually(lambda: other.execute(waiting).fetchone() == (1,), 20, "it is at work")
            (parent,) = [p for p in psutil.process_iter() if _listens(p, port)]
            for child in parent.children():
                os.kill(child.pid, signal.SIGKILL)
            eventually(
                lambda: value(scrape(address), "analytics_task_runs_total", task=ROLL_UP, state="lost") == 1,
                20,
                "counted",
            )


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(c.status == "LISTEN" and c.laddr.port == port for c in process.net_connections())
    except psutil.Error:
        return False


@pytest.mark.django_db(transaction=True)
def test_a_port_that_is_taken_keeps_no_worker_from_its_work(broker: dict[str, str], tmp_path: Path) -> None:
    queues = [f"test-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    with (
        celery(tmp_path / "one", "-c", "1", "-Q", queues[0], **broker) as port,
        celery(tmp_path / "two", "-c", "1", "-Q", queues[1], METRICS_PORT=str(port), **broker),
    ):
        assert "metrics_not_served" in (tmp_path / "two").read_text()
        send(ROLL_UP, queues[0], broker)
        address = f"http://127.0.0.1:{port}"
        eventually(
            lambda: value(scrape(address), "analytics_task_runs_total", task=ROLL_UP) == 1, 20, "the first tells"
        )


# ── State ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.django_db
def test_without_a_database_the_scrape_has_the_counters_and_says_what_is_missing(tmp_path: Path) -> None:
    with gunicorn(tmp_path / "log", **DATABASE_AWAY) as address:
        found = scrape(address)
    assert parts(found) == dict.fromkeys(PARTS, 0.0) | {"tasks": 1.0}
    assert value(found, "analytics_ingestion_events_total", door="http", outcome="accepted") == 0
    assert value(found, "analytics_celery_queue_messages", queue="celery") is not None


@pytest.mark.django_db
def test_without_redis_the_scrape_has_what_the_database_knows(tmp_path: Path) -> None:
    with gunicorn(tmp_path / "log", REDIS_URL=f"redis://{NOWHERE}/0") as address:
        found = scrape(address)
    assert parts(found) == dict.fromkeys(PARTS, 1.0) | {"tasks": 0.0}


@pytest.mark.django_db(transaction=True)
def test_a_part_that_hangs_ends_by_its_time_out_and_takes_no_other_with_it(tmp_path: Path) -> None:
    with gunicorn(tmp_path / "log") as address, psycopg.connect(database_url()) as other:
        other.execute("LOCK TABLE exports_exportjob IN ACCESS EXCLUSIVE MODE")
        found = scrape(address)
        other.rollback()
        again = scrape(address)
    # Sizes take a lock that lasts no longer than they do, so the tables' part waits for it too.
    assert {part for part, read in parts(found).items() if not read} == {"exports", "database"}
    assert 2 <= (value(found, "analytics_state_read_seconds") or 0) < 8
    assert set(parts(again).values()) == {1.0}


@pytest.mark.django_db
def test_prometheus_may_name_web_by_any_address_and_nobody_else_may(client: Client) -> None:
    for path in ("/metrics", "/analytics/v1/status/healthz", "/analytics/v1/status/readyz"):
        assert client.get(path, headers={"Host": "10.0.3.7:8084"}).status_code == 200, path
    for path in ("/", "/login/", "/analytics/v1/schema", "/metrics/"):
        assert client.get(path, headers={"Host": "10.0.3.7:8084"}).status_code == 400, path


def state() -> dict[str, Metric]:
    return families(Client().get("/metrics").content.decode())


@pytest.mark.django_db
def test_what_waits_for_the_rollup_and_how_far_each_quantile_of_orgs_trails() -> None:
    found = state()
    assert value(found, "analytics_rollup_lag_seconds") == 0
    assert value(found, "analytics_freshness_lag_across_orgs_seconds", quantile="1.0") == 0
    org = make_org()
    batch = ingest([make_event(org) for _ in range(3)])
    batch.completed_at -= NOON - NOON.replace(hour=11, minute=50)  # ten minutes
    batch.save()
    ingest([make_event(make_org())])
    found = state()
    assert value(found, "analytics_rollup_waiting_batches") == 2
    assert value(found, "analytics_rollup_waiting_events") == 4
    assert value(found, "analytics_rollup_lag_seconds") == pytest.approx(600, abs=30)
    spread = {s.labels["quantile"]: s.value for s in found["analytics_freshness_lag_across_orgs_seconds"].samples}
    assert spread["0.5"] < 60
    assert spread["0.95"] == spread["1.0"] == pytest.approx(600, abs=30)


@pytest.mark.django_db
def test_quarantine_streams_and_storage() -> None:
    found = state()
    assert value(found, "analytics_quarantine_oldest_age_seconds") == 0
    store(Delivery(Door.STREAM, [], quarantined=[Invalid(None, [Fault("", "is not valid JSON")], b"nonsense")]))
    QuarantinedMessage.objects.update(received_at=NOON)
    StreamReader.objects.create(stream="read", caught_up_at=NOON, backlog=7)
    StreamGap.objects.create(stream="broken", first_missing=1)
    found = state()
    assert value(found, "analytics_quarantine_waiting_messages") == 1
    assert (value(found, "analytics_quarantine_oldest_age_seconds") or 0) > 6 * 86_400
    gaps = {sample.labels["stream"]: sample.value for sample in found["analytics_stream_gaps"].samples}
    assert gaps == {"read": 0, "broken": 1}
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_total_relation_size('orgs_org')")
        (size,) = cursor.fetchone()
    assert value(found, "analytics_table_bytes", table="orgs_org") == size
    tables = {sample.labels["table"] for sample in found["analytics_table_bytes"].samples}
    assert {"usage_events", "usage_hourly", "ingestion_batches"} <= tables
    assert (value(found, "analytics_database_connections") or 0) >= 1


@pytest.mark.engine("PostgreSQL")
@pytest.mark.django_db
def test_days_ahead_are_those_that_are_made_ahead() -> None:
    from ingestion.storage import DAYS_AHEAD
    from ingestion.tasks import prepare_storage

    prepare_storage()
    assert value(state(), "analytics_partition_days_ahead") == DAYS_AHEAD


# ── Names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROW = re.compile(r"^\| `([a-z0-9_]+)` \| (counter|gauge|histogram)(, state)? \|([^|]*)\|", re.MULTILINE)
DOCUMENTED = {
    name: (kind, bool(is_state), tuple(filter(None, labels.strip().split(", "))))
    for name, kind, is_state, labels in ROW.findall((stack.ROOT / "docs/metrics.md").read_text())
}
SWITCHED_OFF = ("django_migrations_", "django_model_")  # of django-prometheus, in the registry and never told


@pytest.mark.django_db(transaction=True)
def test_names_in_the_page_and_in_the_rules_are_those_that_an_instance_exports(
    broker: dict[str, str], tmp_path: Path
) -> None:
    call_command("migrate", verbosity=0)  # the schedule: a test before may have emptied the tables
    watch()
    state()  # django-prometheus defines its metrics with the first request
    org = make_org()
    with (
        gunicorn(tmp_path / "web", **broker) as address,
        celery(tmp_path / "log", "-B", "-c", "2", **broker) as port,
    ):
        event = as_json(make_event(org, model_id=MODEL))
        for body in ([event], [event], [event | {"latencyMs": -1}]):
            _post(f"{address}/analytics/v1/orgs/{org.pk}/events", make_key(org), body)
        worker = f"http://127.0.0.1:{port}"
        eventually(lambda: value(scrape(worker), "analytics_rollup_events_total") == 1, 30, "the event is rolled up")
        exported = scrape(address) | scrape(worker)
    ours = {name for name in exported if name.startswith(("analytics_", "django_"))}
    assert ours == exported.keys(), "something else is told"
    assert ours - DOCUMENTED.keys() == set()
    defined = {name_of(family): family for family in REGISTRY.collect()}
    counted = {name for name, (_, is_state, _) in DOCUMENTED.items() if not is_state}
    assert counted == {
        name for name in defined if name.startswith(("analytics_", "django_")) and not name.startswith(SWITCHED_OFF)
    }
    told = {name for name, (_, is_state, _) in DOCUMENTED.items() if is_state}
    on_hypertables_none = {"analytics_partition_days_ahead"}
    assert told - on_hypertables_none <= exported.keys()
    for name, family in exported.items():
        assert family.type == DOCUMENTED[name][0], name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(DOCUMENTED[name][2]), name

    rules = (stack.ROOT / "deploy/prometheus/alerts.yaml").read_text()
    expressions = re.sub(r"^\s*#.*$|^\s+(summary|description|runbook_url):.*$", "", rules, flags=re.MULTILINE)
    used = set(re.findall(r"(?<![:\w])(analytics_\w+)(?!\w*:)", expressions))
    assert len(used) > 15
    assert used - on_hypertables_none <= exported.keys()


def _post(address: str, key: str, body: object) -> None:
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers), timeout=15).close()


def test_names_follow_the_conventions() -> None:
    for name, (kind, _, _) in DOCUMENTED.items():
        if name.startswith("analytics_"):
            assert name.endswith("_total") == (kind == "counter"), name
            assert not re.search(r"_(ms|minutes|hours|kb|mb|percent)(_|$)", name), name
