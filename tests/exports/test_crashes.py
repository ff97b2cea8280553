"""Exports where something dies in the middle: a worker, the database, the disk. Real processes and servers, really killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, InterfaceError, OperationalError, connection
from django.utils import timezone
from kombu import Connection

from analytics_site.embedded import Servers
from analytics_site.rig import own_servers, pointed_at
from exports import jobs, making, tasks, upkeep
from exports.contents import dataset_of
from exports.datasets import snapshot
from exports.jobs import ROOT
from exports.models import ExportJob, Kind, State
from exports.writers import Format
from ingestion import storage
from ingestion.models import Batch, Door
from orgs.limits import EXPORT_LEASE, EXPORT_ROWS_AT_ONCE, MAX_OPEN_EXPORTS
from orgs.models import Org
from usage.aggregation import ROLLUPS
from usage.rollups import roll_up
from usage.windows import HOUR, Window

from ..factories import MODEL, NOON, make_org
from ..processes import database_url, environment, eventually

_OTHERS = ("pymp-", "analytics-worker-metrics-")  # the pool's, and those of the metrics of a worker that was killed
pytestmark = pytest.mark.django_db(transaction=True)

WINDOW = Window(NOON, NOON + HOUR)
MANY = 6 * EXPORT_ROWS_AT_ONCE  # as XLSX they take some seconds
START = 60  # seconds that a worker has to be ready, on a busy machine
SOON = 60  # seconds for what is done at once
DONE = 120  # seconds for a file of many rows, on a busy machine

_FILL = """
INSERT INTO usage_events (occurred_at, received_at, batch_id, latency_ms, input_tokens, output_tokens, cached_input_tokens,
    cache_creation_input_tokens, status, org_id, event_id, model_id, client_id, cost_estimate_cents)
SELECT %(start)s + n * %(step)s, now(), %(batch)s, n %% 5000, n %% 6000, n %% 600, 0, 0, 0, %(org)s, gen_random_uuid(),
    %(model)s, 'client-' || n %% 20, (n %% 100000) / 10000.0
FROM generate_series(0, %(rows)s - 1) n
"""


def filled(rows: int) -> Org:
    """An org with so many calls within the window, all of them counted."""
    org = make_org()
    storage.ensure_days([NOON.date()])
    now = timezone.now()
    batch = Batch.objects.create(
        door=Door.TRACE, received=rows, accepted=rows, org_ids=[org.pk], first_occurred_at=WINDOW.start,
        last_occurred_at=WINDOW.end, started_at=now, completed_at=now,
    )  # fmt: skip
    step = (WINDOW.end - WINDOW.start) / rows
    with connection.cursor() as cursor:
        cursor.execute(
            _FILL,
            {"batch": batch.pk, "org": org.pk, "model": MODEL, "start": WINDOW.start, "step": step, "rows": rows},
        )
    assert roll_up().events == rows
    return org


def asked(org: Org, kind: Format = Format.XLSX, **wish: Any) -> ExportJob:
    wanted: dict[str, Any] = {"window": WINDOW, "dataset": Kind.INCIDENT_EVENTS, "format": kind}
    return jobs.ask(jobs.Wanted(org=org, **wanted | wish), "user:fin@example.com")


class Worker:
    """A Celery worker with one child, in a process group of its own."""

    def __init__(self, log: Path, **variables: str) -> None:
        self.log = log
        command = ("celery", "-A", "analytics_site", "worker", "-c", "1", "-n", f"{log.stem}@%h")
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command, "--without-gossip", "--without-mingle"],
                cwd=settings.BASE_DIR,
                env=environment(LOG_LEVEL="INFO", LOG_FORMAT="json", **variables),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return " ready" in self.log.read_text(errors="replace")

    def said(self, *events: str) -> list[dict[str, Any]]:
        """What it logged of these kinds."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line[:1] + line[-1:] == "{}"]
        return [line for line in map(json.loads, lines) if line["event"] in events]

    def signal_all(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.signal_all(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DONE)


class Site:
    """A broker, the workers that listen to it, and the folder that they put files into."""

    def __init__(self, servers: Servers, folder: Path, logs: Path) -> None:
        self.broker, self.folder, self.logs = servers.redis_url, folder, logs
        self.temporary = logs / "tmp"
        self.temporary.mkdir()
        self.workers: list[Worker] = []

    def start(self) -> Worker:
        name = f"worker{len(self.workers) + 1}"
        self.workers.append(
            Worker(
                self.logs / f"{name}.log",
                REDIS_URL=self.broker,
                EXPORT_FOLDER=str(self.folder),
                TMPDIR=str(self.temporary),
            )
        )
        eventually(lambda: self.workers[-1].is_ready, START, f"{name} is ready")
        return self.workers[-1]

    def send(self, task: Any, *arguments: str) -> None:
        url = self.broker.replace("unix://", "redis+socket://").replace("db=", "virtual_host=")
        with Connection(url) as broker:
            task.apply_async(arguments, connection=broker)

    def run(self, job: ExportJob) -> None:
        self.send(tasks.run, str(job.pk))

    def recover(self, job: ExportJob) -> None:
        """What beat brings about in half a minute: who gives no sign of life is dead, then it is tried again."""
        this = ExportJob.objects.filter(pk=job.pk)
        this.filter(status=State.RUNNING).update(heartbeat_at=timezone.now() - EXPORT_LEASE - timedelta(seconds=1))
        self.send(tasks.tend)
        eventually(this.filter(failures=1).exists, SOON, "it is noticed")
        this.filter(status=State.PENDING).update(next_send_at=timezone.now(), not_before=timezone.now())
        self.send(tasks.tend)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        with redis.Redis.from_url(self.broker) as client:
            client.flushall()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with own_servers() as found:
        yield found


@pytest.fixture
def site(servers: Servers, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(servers, folder, tmp_path_factory.mktemp("logs"))
    yield site
    site.close()


@pytest.fixture
def own_database(servers: Servers, transactional_db: None) -> Iterator[None]:
    """Meanwhile Django's connection means a database on a server that may be killed."""
    forget_partitions()
    try:
        with pointed_at(servers):
            call_command("migrate", verbosity=0)
            yield
    finally:
        forget_partitions()


def forget_partitions() -> None:
    """What this process believes about those of one database is not so in another."""
    storage.forget()
    for rollup in ROLLUPS:
        rollup.partitions.forget()


def half_made(job: ExportJob) -> Callable[[], bool]:
    return ExportJob.objects.filter(pk=job.pk, status=State.RUNNING, rows_written__gt=0).exists


def ended(job: ExportJob) -> Callable[[], bool]:
    return ExportJob.objects.filter(pk=job.pk, completed_at__isnull=False).exists


def left(folder: Path) -> set[str]:
    """All there is, but for the folders that keys lead into."""
    found = (path for path in folder.rglob("*") if not path.is_dir() or path.parent.name == ".made")
    return {str(path.relative_to(folder)) for path in found}


def assert_made(job: ExportJob, folder: Path, *, attempts: int, failures: int = 0, rows: int = MANY) -> None:
    """It is there, whole, with its manifest, and nothing beside."""
    job.refresh_from_db()
    assert (job.status, job.error, job.row_count) == (State.SUCCEEDED, "", rows)
    assert (job.attempts, job.failures) == (attempts, failures)
    assert left(folder) == {job.key, job.manifest_key}
    content = (folder / job.key).read_bytes()
    assert (job.checksum, job.byte_count) == (hashlib.sha256(content).hexdigest(), len(content))
    manifest = json.loads((folder / job.manifest_key).read_bytes())
    assert (manifest["checksum"]["value"], manifest["rowCount"]) == (job.checksum, rows)


# ── Workers ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_what_a_killed_worker_had_half_made_another_makes_once(site: Site, folder: Path) -> None:
    job = asked(filled(MANY))
    first = site.start()
    site.run(job)
    eventually(half_made(job), SOON, "it is half made")
    first.kill()
    assert not ended(job)()
    assert left(folder), "it died in the middle"
    assert all(name.startswith(f".made/{job.pk}.1.") for name in left(folder)), "nobody sees what it had made"
    second = site.start()
    site.recover(job)
    eventually(ended(job), DONE, "it is made")
    assert second.stop() == 0
    assert_made(job, folder, attempts=2, failures=1)
    assert not [left for left in site.temporary.iterdir() if not left.name.startswith(_OTHERS)]


def test_a_worker_that_is_told_to_end_finishes_its_file_first(site: Site, folder: Path) -> None:
    job = asked(filled(MANY))
    worker = site.start()
    site.run(job)
    eventually(half_made(job), SOON, "it is half made")
    assert worker.stop() == 0
    assert_made(job, folder, attempts=1)


def test_two_workers_make_each_of_ten_files_once(site: Site, folder: Path) -> None:
    kinds = list(Format) + [Format.CSV] * MAX_OPEN_EXPORTS
    wishes = [
        asked(org, kinds[number], row_limit=100 + number) for org in (filled(200), filled(200)) for number in range(5)
    ]
    workers = [site.start(), site.start()]
    for _ in range(2):  # a task may come twice
        for job in wishes:
            site.run(job)
    eventually(lambda: all(ended(job)() for job in wishes), DONE, "all are made")
    assert [worker.stop() for worker in workers] == [0, 0]
    done = [len(worker.said("export_succeeded")) for worker in workers]
    assert sum(done) == len(wishes)
    assert all(done), "both were at work"
    assert {(job.status, job.attempts, job.failures) for job in ExportJob.objects.all()} == {(State.SUCCEEDED, 1, 0)}
    assert left(folder) == {key for job in wishes for key in (job.key, job.manifest_key)}


@pytest.mark.parametrize("wakes_early", [True, False], ids=["while_another_makes_it", "once_another_has_made_it"])
def test_a_worker_that_wakes_after_its_lease_changes_nothing(site: Site, folder: Path, wakes_early: bool) -> None:
    job = asked(filled(MANY))
    first = site.start()
    site.run(job)
    eventually(half_made(job), SOON, "it is half made")
    first.signal_all(signal.SIGSTOP)
    second = site.start()
    site.recover(job)
    if wakes_early:
        eventually(lambda: half_made(job)() and ExportJob.objects.get().attempts == 2, SOON, "another makes it")
        first.signal_all(signal.SIGCONT)
    eventually(ended(job), DONE, "it is made")
    assert_made(job, folder, attempts=2, failures=1)
    made = ExportJob.objects.values().get()
    first.signal_all(signal.SIGCONT)
    eventually(lambda: bool(first.said("export_superseded")), SOON, "it hears that it is late")
    assert (first.stop(), second.stop()) == (0, 0)
    assert ExportJob.objects.values().get() == made
    assert_made(job, folder, attempts=2, failures=1)
    assert len(second.said("export_succeeded")) == 1
    assert not first.said("export_succeeded", "export_failed", "export_attempt_failed", "export_broke")


# ── The database ─────────────────────────────────────────────────────────────────────────────────────────────────
def restart_database(how: signal.Signals) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int, pg_postmaster_start_time()")
        pid, before = cursor.fetchone()
    connection.close()
    os.kill(pid, how)

    def is_back() -> bool:
        with suppress(DatabaseError, InterfaceError), connection.cursor() as cursor:
            cursor.execute("SELECT pg_postmaster_start_time()")
            return bool(cursor.fetchone()[0] != before)
        connection.close()
        return False

    eventually(is_back, SOON, "the database is back")


@pytest.mark.usefixtures("own_database")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_a_file_is_made_once_although_the_database_goes_down_meanwhile(
    site: Site, folder: Path, how: signal.Signals
) -> None:
    job = asked(filled(MANY))
    worker = site.start()
    site.run(job)
    eventually(half_made(job), SOON, "it is half made")
    restart_database(how)
    # Said on the job, where the database is back by then.
    eventually(lambda: bool(worker.said("export_attempt_failed", "export_failure_not_noted")), SOON, "it notices")
    (noticed,) = worker.said("export_attempt_failed", "export_failure_not_noted")
    assert noticed["error"] == "The database did not answer."
    assert left(folder) == set()
    site.recover(job)
    eventually(ended(job), DONE, "it is made")
    assert worker.stop() == 0
    assert_made(job, folder, attempts=2, failures=1)
    assert len(worker.said("export_succeeded")) == 1


@pytest.mark.parametrize("way", ["rows", "lines"])
def test_a_connection_that_breaks_while_rows_are_read_is_the_databases_failure(way: str) -> None:
    dataset = dataset_of(asked(filled(2 * EXPORT_ROWS_AT_ONCE)))
    assert dataset.copied is not None
    found = dataset.rows if way == "rows" else dataset.copied.chunks()
    with snapshot():
        next(found)
        with psycopg.connect(database_url()) as other, connection.cursor() as cursor:
            backend = cursor.connection.info.backend_pid
            other.execute("SELECT pg_terminate_backend(%s)", [backend])
        with pytest.raises((OperationalError, InterfaceError)):
            list(found)
        connection.close()


# ── The disk ─────────────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Of 256 KB. Raises where this process may not mount."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def may_mount() -> bool:
    with (
        suppress(OSError, subprocess.CalledProcessError),
        tempfile.TemporaryDirectory() as place,
        small_disk(Path(place)),
    ):
        return True
    return False


@pytest.mark.parametrize("disk", ["full_file", *(["full_disk"] if may_mount() else [])])
@pytest.mark.parametrize("kind", Format)
def test_a_full_disk_is_told_and_nothing_stays_on_it(folder: Path, kind: Format, disk: str) -> None:
    job = asked(filled(2 * EXPORT_ROWS_AT_ONCE), kind)

    def attempt() -> None:
        making.attempt(str(job.pk))
        job.refresh_from_db()
        assert (job.status, job.attempts) == (State.FAILED, 1)
        assert job.error == "The disk that exports are written to is full. Make room there, then run the export again."
        assert left(folder) == set()

    if disk == "full_disk":
        with small_disk(folder):
            attempt()
    else:  # whatever is written to the file, there is no room for it
        (folder / ".made").mkdir()
        (folder / ".made" / f"{job.pk}.1.{kind}").symlink_to("/dev/full")
        attempt()


def test_what_nobody_goes_on_with_is_swept_a_day_later(folder: Path) -> None:
    made = folder / ".made"
    (made / "a.1.xlsx.rows").mkdir(parents=True)
    for path in (
        made / "a.1.xlsx",
        made / "a.1.xlsx.rows" / "sheet",
        folder / ROOT / "org" / ".staged",
        folder / ROOT / "org" / "a.csv",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    upkeep.expire()
    assert left(folder) == {
        ".made/a.1.xlsx",
        ".made/a.1.xlsx.rows",
        ".made/a.1.xlsx.rows/sheet",
        f"{ROOT}/org/.staged",
        f"{ROOT}/org/a.csv",
    }
    upkeep.expire(timezone.now() + timedelta(days=1, seconds=1))
    assert left(folder) == {f"{ROOT}/org/a.csv"}
    assert made.is_dir()
