"""Workers that read streams, as processes: how they end, how they share, and what they tell."""

import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from django.conf import LazySettings, settings

from analytics_site.rig import free_port, redis_url
from ingestion.models import Batch, StreamReader, UsageEvent
from ingestion.stream.connecting import declare
from ingestion.stream.partitions import stream_of, streams
from ingestion.stream.publishing import Publisher, grouped

from ...factories import make_event
from ...processes import NOWHERE, database_url, environment, eventually
from .conftest import RABBITMQ, Publish, committed, encoded

pytestmark = pytest.mark.django_db(transaction=True)

START = 40  # seconds that a worker has to read, on a busy machine
STOP = 10  # seconds that it may take to end


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    log: Path
    metrics_port: int

    def stop(self) -> float:
        """SIGTERM; returns how long it took to end."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()
        return time.monotonic() - started

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())


@contextmanager
def worker(log: Path, **variables: str) -> Iterator[Worker]:
    port = free_port()
    name = f"stream-{uuid.uuid4().hex[:8]}"
    own = environment(
        REDIS_URL=redis_url(9),
        RABBITMQ_URL=RABBITMQ,
        RABBITMQ_STREAM=settings.RABBITMQ_STREAM,
        METRICS_PORT=str(port),
        LOG_LEVEL="INFO",
        LOG_FORMAT="text",
        **variables,
    )
    command = ["-m", "celery", "-A", "analytics_site", "worker", "--read-stream", "-P", "solo", "--without-mingle"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command, "-Q", name, "-n", f"{name}@%h"],
            cwd=settings.BASE_DIR,
            env=own,
            stdout=file,
            stderr=file,
        )
    try:
        yield Worker(process, log, port)
    finally:
        process.kill()
        process.wait()


def stored() -> int:
    return UsageEvent.objects.count()


def test_sigterm_commits_the_open_batch(stream: str, publish: Publish, tmp_path: Path) -> None:
    with worker(tmp_path / "log", INGESTION_BATCH_TIMEOUT="3600") as running:
        publish(*(make_event() for _ in range(30)))
        eventually(lambda: bool(StreamReader.objects.filter(pk=stream, reader__isnull=False)), START, "it reads")
        time.sleep(1)
        assert stored() == 0, "the batch is open"
        assert running.stop() < STOP
    assert stored() == 30
    assert committed(stream) == 29


def test_sigterm_leaves_a_batch_unread_that_cannot_be_committed(stream: str, publish: Publish, tmp_path: Path) -> None:
    with worker(tmp_path / "log", INGESTION_BATCH_TIMEOUT="0.1") as running:
        publish(make_event())
        eventually(lambda: stored() == 1, START, "it reads")
        with psycopg.connect(database_url()) as other:
            other.execute("SELECT FROM ingestion_stream_readers FOR UPDATE")
            publish(*(make_event() for _ in range(10)))
            time.sleep(1)
            assert running.stop() < STOP
    assert (stored(), committed(stream)) == (1, 0)
    with worker(tmp_path / "log", INGESTION_BATCH_TIMEOUT="0.1"):
        eventually(lambda: stored() == 11, START, "another reads them")
    assert committed(stream) == 10


def test_it_reads_while_redis_is_away_and_ends_when_told(stream: str, publish: Publish, tmp_path: Path) -> None:
    publish(*(make_event() for _ in range(5)))
    log = tmp_path / "log"
    with worker(log, BROKER_URL=f"redis://{NOWHERE}/0") as running:
        eventually(lambda: stored() == 5, START, "it reads")
        started = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(60)
        assert time.monotonic() - started < STOP + 5, log.read_text()


def test_a_worker_that_forks_does_not_start() -> None:
    command = [sys.executable, "-m", "celery", "-A", "analytics_site", "worker", "--read-stream", "-c", "1"]
    done = subprocess.run(
        command, cwd=settings.BASE_DIR, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "-P solo" in done.stderr


def test_it_tells_how_reading_goes(stream: str, publish: Publish, tmp_path: Path) -> None:
    again = make_event()
    with worker(tmp_path / "log") as running:
        publish([again, make_event()], b"nonsense")
        eventually(lambda: committed(stream) == 1, START, "it reads")
        publish(again)
        eventually(lambda: committed(stream) == 2, START, "it reads on")
        eventually(lambda: 'outcome="duplicates"} 1.0' in running.metrics(), 5, "it has counted")
        text = running.metrics()
    for line in (
        'analytics_ingestion_events_total{door="stream",outcome="accepted"} 2.0',
        'analytics_ingestion_events_total{door="stream",outcome="quarantined"} 1.0',
        'analytics_ingestion_quarantined_total{reason="unreadable"} 1.0',
        'analytics_ingestion_commit_seconds_count{door="stream"}',
        'analytics_ingestion_batch_events_sum{door="stream"} 4.0',
    ):
        assert line in text, line


# ── Partitions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def partitions(stream: str, settings: LazySettings, delete: Callable[[str], None]) -> Iterator[list[str]]:
    settings.RABBITMQ_STREAM_PARTITIONS = 4
    names = streams()
    for name in names:
        declare(RABBITMQ, name)
    yield names
    for name in names:
        delete(name)


def publish_each(names: list[str]) -> None:
    with Publisher() as publisher:
        for name in names:
            publisher.publish(name, encoded(make_event()))


def test_workers_share_partitions_and_take_over_those_of_the_dead(partitions: list[str], tmp_path: Path) -> None:
    def taken_by(one: Worker) -> int:
        """How many streams a worker ever took, as its log tells."""
        lines = [line for line in one.log.read_text().splitlines() if "stream_taken" in line]
        return sum(any(name in line for line in lines) for name in partitions)

    with worker(tmp_path / "one", RABBITMQ_STREAM_PARTITIONS="4") as one:
        eventually(lambda: taken_by(one) == 4, START, "the first reads all")
        with worker(tmp_path / "two", RABBITMQ_STREAM_PARTITIONS="4") as two:
            eventually(lambda: taken_by(two) == 2, START, "the second has its part")
            publish_each(partitions)
            eventually(lambda: stored() == 4, START, "all are read")
            one.process.kill()
            one.process.wait()
            publish_each(partitions)
            eventually(lambda: taken_by(two) == 4, START, "the second takes over")
            eventually(lambda: stored() == 8, START, "all are read")
    assert {batch.stream for batch in Batch.objects.all()} == set(partitions)


def test_an_org_stays_in_one_partition(partitions: list[str]) -> None:
    orgs = [uuid.uuid4() for _ in range(50)]
    events = [encoded(make_event(org)) for _ in range(4) for org in orgs]
    found: dict[str, set[str]] = {}
    for name, body, _ in grouped(iter(events), 10):
        for org in orgs:
            if str(org).encode() in body:
                found.setdefault(str(org), set()).add(name)
    assert found == {str(org): {stream_of(org)} for org in orgs}
    assert len({name for names in found.values() for name in names}) > 1
