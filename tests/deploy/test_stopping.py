"""SIGTERM while there is work: what was taken is answered, what was answered is stored, and nobody outstays the grace period."""

import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from django.db import connection

from analytics_site.rig import free_port
from ingestion.models import Batch, UsageEvent
from tests.factories import as_json, make_event, make_key, make_org

from ..analytics_site.test_celery import queue, worker  # noqa: F401  # a fixture
from ..processes import database_url, eventually, wait_for_web, web_process
from . import stack

pytestmark = pytest.mark.django_db(transaction=True)

SOON = 30  # seconds, on a busy machine
WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = 'analytics-service'
"""


def grace(name: str) -> int:
    return int(stack.OURS[name]["stop_grace_period"].removesuffix("s"))


def sender() -> Callable[[str], int]:
    """Sends one new event to an address, over a connection of its own; answers how many were accepted."""
    org = make_org()
    headers = {"X-API-Key": make_key(org), "Content-Type": "application/json"}

    def send(address: str) -> int:
        body = json.dumps([as_json(make_event(org))]).encode()
        request = urllib.request.Request(f"{address}/analytics/v1/orgs/{org.pk}/events", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(json.load(answer)["accepted"])

    return send


def waiting() -> int:
    with connection.cursor() as cursor:
        cursor.execute(WAITING)
        return int(cursor.fetchone()[0])


def is_refused(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except (urllib.error.URLError, OSError):
        return True
    return False


def test_web_answers_what_it_has_taken_before_it_ends(tmp_path: Path) -> None:
    """Requests in the middle of their transaction, as many as one process has threads."""
    port, log, send, number = free_port(), tmp_path / "log", sender(), 8
    address = f"http://127.0.0.1:{port}"
    with ThreadPoolExecutor(number) as pool, web_process(log, HTTP_PORT=str(port), WEB_CONCURRENCY="2") as web:
        wait_for_web(address, web, log)
        with psycopg.connect(database_url()) as other:
            other.execute("LOCK TABLE ingestion_batches IN ACCESS EXCLUSIVE MODE")
            asked: list[Future[int]] = [pool.submit(send, address) for _ in range(number)]
            eventually(lambda: waiting() == number, SOON, "all of them are under way")
            web.send_signal(signal.SIGTERM)
            eventually(lambda: is_refused(f"{address}/analytics/v1/status/healthz"), SOON, "it takes no more")
            assert not any(request.done() for request in asked)
            assert web.poll() is None
        assert [request.result() for request in asked] == [1] * number
        assert web.wait(grace("web")) == 0, log.read_text()
    assert UsageEvent.objects.count() == number


def test_web_is_started_anew_under_load_and_no_caller_notices(tmp_path: Path) -> None:
    """With the socket held by another, as systemd does for one server: who calls meanwhile waits for the next process."""
    log, send, accepted, stop = tmp_path / "log", sender(), [0] * 8, threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener, ExitStack() as processes:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        first = processes.enter_context(web_process(log, listener.fileno()))
        wait_for_web(address, first, log)

        def call(number: int) -> None:
            while not stop.is_set():
                accepted[number] += send(address)

        with ThreadPoolExecutor(len(accepted)) as pool:
            callers = [pool.submit(call, number) for number in range(len(accepted))]
            try:
                eventually(lambda: min(accepted) > 5, SOON, "all of them call")
                first.send_signal(signal.SIGTERM)
                assert first.wait(grace("web")) == 0, log.read_text()
                before = list(accepted)
                processes.enter_context(web_process(log, listener.fileno()))
                eventually(
                    lambda: all(now > then + 5 for now, then in zip(accepted, before, strict=True)),
                    SOON,
                    "the next one answers them",
                )
            finally:
                stop.set()
            for caller in callers:
                caller.result()
    assert UsageEvent.objects.count() == sum(accepted)


def test_a_worker_ends_its_task_first(queue: str, tmp_path: Path) -> None:  # noqa: F811
    """A rollup in the middle of its transaction is committed, and the process ends in time."""
    send = sender()
    port, log = free_port(), tmp_path / "web.log"
    with web_process(log, HTTP_PORT=str(port)) as web:
        wait_for_web(f"http://127.0.0.1:{port}", web, log)
        send(f"http://127.0.0.1:{port}")
    with psycopg.connect(database_url()) as other:
        other.execute("LOCK TABLE usage_hourly IN ACCESS EXCLUSIVE MODE")
        with worker(tmp_path / "log", queue) as running:
            eventually(lambda: waiting() == 1, SOON, "the rollup is under way")
            running.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert running.process.poll() is None
            other.rollback()
            assert running.process.wait(grace("worker")) == 0, running.said
    assert not Batch.objects.filter(rolled_up_at=None).exists()
