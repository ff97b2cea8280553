"""Celery for real: a worker with its beat, as a process, against the brokers that are supported."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import redis
from django.conf import settings
from django.core.management import call_command
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from kombu import Connection

from analytics_site import rig
from analytics_site.rig import own_servers, redis_url
from analytics_site.schedule import entries
from ingestion.models import Batch
from usage.models import HourlyUsage
from usage.tasks import roll_up

from ..factories import ingest, make_event, make_org
from ..processes import connected, environment, eventually

RABBITMQ = os.environ.get("TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
START = 30  # seconds that a worker has to be ready, on a busy machine
SLACK = 5  # seconds beyond the interval that a rollup may take


@dataclass(frozen=True)
class Worker:
    """A worker with its beat, and what it logs."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def worker(log: Path, queue: str, **broker: str) -> Iterator[Worker]:
    command = [
        "-m",
        "celery",
        "-A",
        "analytics_site",
        "worker",
        "-B",
        "-c",
        "1",
        "--without-gossip",
        "--without-mingle",
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command, "-Q", queue, "-n", f"{queue}@%h"],
            cwd=settings.BASE_DIR,
            env=environment(REDIS_URL=redis_url(9), LOG_LEVEL="INFO", LOG_FORMAT="text", **broker),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    found = Worker(process, log)
    try:
        eventually(lambda: " ready" in found.said or process.poll() is not None, START, "the worker is ready")
        assert process.poll() is None, found.said
        yield found
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def queue(worker_id: str) -> str:
    """A queue that no other worker reads, and all that is scheduled goes to it."""
    name = f"test-{worker_id}-{uuid.uuid4().hex[:8]}"
    call_command("migrate", verbosity=0)  # a test before may have emptied the tables
    PeriodicTask.objects.update(queue=name)
    return name


@pytest.fixture(params=["redis", "amqp"])
def broker(request: pytest.FixtureRequest, queue: str) -> Iterator[dict[str, str]]:
    if request.param == "redis":  # without BROKER_URL, REDIS_URL is the broker
        variables, address = {}, redis_url(9).replace("unix://", "redis+socket://").replace("db=", "virtual_host=")
    else:
        variables, address = {"BROKER_URL": RABBITMQ}, RABBITMQ
    with connected(address) as connection:
        yield variables
        with connection.channel() as channel:
            channel.queue_delete(queue)


@pytest.mark.django_db(transaction=True)
def test_a_batch_is_rolled_up_within_the_interval_and_sigterm_ends_the_worker(
    queue: str, broker: dict[str, str], tmp_path: Path
) -> None:
    org = make_org()
    with worker(tmp_path / "worker.log", queue, **broker) as running:
        for size in (3, 4):
            stored = ingest([make_event(org) for _ in range(size)])
            eventually(
                lambda pk=stored.pk: not Batch.objects.filter(pk=pk, rolled_up_at=None).exists(),  # type: ignore[misc]
                settings.ROLLUP_INTERVAL + SLACK,
                f"the batch is rolled up\n{running.said}",
            )
        assert HourlyUsage.objects.get().invocations == 7
        assert running.stop() == 0
    assert "Traceback" not in running.said
    assert "rolled_up" in running.said


@pytest.mark.django_db(transaction=True)
def test_an_edit_of_the_schedule_is_followed_while_beat_runs(queue: str, tmp_path: Path) -> None:
    rollup = PeriodicTask.objects.get(task="usage.tasks.roll_up")
    rollup.enabled = False
    rollup.save()
    org = make_org()
    with worker(tmp_path / "worker.log", queue) as running:
        ingest([make_event(org)])
        time.sleep(settings.ROLLUP_INTERVAL + 2)
        assert not HourlyUsage.objects.exists(), "it was switched off"
        rollup.enabled = True
        rollup.interval = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)[0]
        rollup.save()
        eventually(HourlyUsage.objects.exists, 1 + SLACK, f"it was switched on\n{running.said}")
        assert running.stop() == 0


@pytest.mark.django_db
def test_everything_periodic_is_in_the_schedule() -> None:
    call_command("migrate", verbosity=0)
    found = {
        task.task: timedelta(**{task.interval.period: task.interval.every})
        for task in PeriodicTask.objects.select_related("interval").exclude(interval=None)
    }
    assert found == {
        "usage.tasks.roll_up": timedelta(seconds=settings.ROLLUP_INTERVAL),
        "usage.tasks.close_hours": timedelta(minutes=1),
        "reliability.tasks.watch": timedelta(minutes=1),
        "reliability.tasks.forget_incidents": timedelta(days=1),
        "usage.tasks.verify": timedelta(days=1),
        "ingestion.tasks.prepare_storage": timedelta(hours=6),
        "ingestion.tasks.rotate_ledger": timedelta(hours=1),
        "usage.tasks.maintain": timedelta(days=1),
        "exports.tasks.tend": timedelta(seconds=10),
        "exports.tasks.ask_for_months": timedelta(hours=1),
        "exports.tasks.expire": timedelta(hours=1),
    }
    assert all(PeriodicTask.objects.values_list("enabled", flat=True))


@pytest.mark.django_db
def test_every_task_of_the_schedule_exists_and_can_be_run_twice() -> None:
    from analytics_site.celery import app

    org = make_org()
    ingest([make_event(org)])
    app.loader.import_default_modules()
    for _ in range(2):
        for entry in entries():
            app.tasks[entry.task].apply(throw=True)
    assert HourlyUsage.objects.get().invocations == 1


@pytest.mark.django_db
def test_what_staff_changed_survives_a_migrate_and_what_is_missing_comes_back() -> None:
    call_command("migrate", verbosity=0)
    rollup = PeriodicTask.objects.get(task="usage.tasks.roll_up")
    rollup.interval = IntervalSchedule.objects.create(every=17, period=IntervalSchedule.SECONDS)
    rollup.enabled = False
    rollup.save()
    PeriodicTask.objects.get(task="usage.tasks.verify").delete()
    call_command("migrate", verbosity=0)
    rollup.refresh_from_db()
    assert (rollup.interval.every, rollup.interval.period, rollup.enabled) == (17, "seconds", False)
    assert PeriodicTask.objects.filter(task="usage.tasks.verify", enabled=True).count() == 1
    assert PeriodicTask.objects.count() == len(entries())


@pytest.mark.django_db(transaction=True)
def test_a_worker_outlives_a_redis_that_goes_while_a_task_is_under_way(tmp_path: Path) -> None:
    with own_servers() as servers, redis.Redis.from_url(servers.redis_url) as client:
        address = servers.redis_url.replace("unix://", "redis+socket://").replace("db=", "virtual_host=")
        keeper = psutil.Process(client.info("server")["process_id"]).parent()
        assert keeper is not None
        # One process is at work and one waits, so the worker waits for tasks.
        running = rig.celery(environment(REDIS_URL=servers.redis_url, LOG_LEVEL="INFO"), "-c", "2", "-Q", "celery")
        running.log = tmp_path / "worker.log"
        running.start()
        try:
            eventually(lambda: " ready" in said(running), START, "the worker is ready")
            children = psutil.Process(running.pid).children()
            for child in children:
                child.suspend()
            send(address)
            eventually(lambda: client.hlen("unacked") == 1, 10, "the task is under way")
            keeper.suspend()
            psutil.Process(client.info("server")["process_id"]).kill()
            eventually(lambda: "Cannot connect" in said(running), 30, f"it looks for Redis\n{said(running)}")
            for child in children:
                child.resume()
            keeper.resume()
            eventually(lambda: is_answered(client), 30, "Redis is back")
            send(address)
            eventually(lambda: client.llen("celery") == 0, 30, f"it takes a task\n{said(running)}")
        finally:
            keeper.resume()
            running.kill()


def said(process: rig.Process) -> str:
    assert process.log is not None
    return process.log.read_text(errors="replace")


def send(address: str) -> None:
    with Connection(address) as broker:
        roll_up.apply_async((), connection=broker)


def is_answered(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False
