"""The servers and the processes of the service, and how each is restarted."""

import contextlib
import os
import signal
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import redis
from django.conf import settings
from django.db import DatabaseError, connection

from analytics_site.rig import UNLIMITED, Broker, Process, celery, environment, free_port, wait_for, web

from .figures import Restart
from .plan import Clock

SERVERS = ("postgresql", "valkey", "rabbitmq")
PROCESSES = ("web", "worker", "exporter", "beat", "ingestion")
STOPS_WITHIN = {
    "web": 30.0,
    "worker": 60.0,
    "exporter": 300.0,
    "beat": 10.0,
    "ingestion": 20.0,
}  # seconds, as deploy/ has it
REVIVED_AFTER = 2.0  # seconds, as by systemd's units


class Service:
    """The processes of docs/operating.md, with its commands and the limits of production, on loopback."""

    def __init__(self, broker: Broker, folder: Path, logs: Path) -> None:
        self.broker, self.port = broker, free_port()
        self.metrics = {name: free_port() for name in ("worker", "exporter", "ingestion")}
        shared = environment(
            RABBITMQ_URL=broker.url,
            HTTP_PORT=str(self.port),
            EXPORT_FOLDER=str(folder / "exports"),
            SECRET_KEY=settings.SECRET_KEY,
            EMBEDDED_SERVERS="1",  # both are named, so none is started; metrics are served on loopback alone
            LOG_FORMAT="json",
        )
        for name in UNLIMITED:
            shared.pop(name)
        of = {name: shared | {"METRICS_PORT": str(port)} for name, port in self.metrics.items()}
        self.processes = {
            "web": web(shared),
            "worker": celery(of["worker"], "-c", "3", "-Q", "celery", "-n", "worker@%h"),
            "exporter": celery(of["exporter"], "-c", "2", "-Q", "exports", "-n", "exporter@%h"),
            "beat": Process(("celery", "-A", "analytics_site", "beat", "--pidfile="), shared),
            "ingestion": celery(
                of["ingestion"], "--read-stream", "-P", "solo", "-Q", "stream", "--without-mingle", "-n", "ingestion@%h"
            ),
        }
        self.ended: Counter[str] = Counter()  # how often a process ended that nobody told to
        self.killed: Counter[str] = Counter()  # how often one did not end in its time at SIGTERM
        self._tended = {name: threading.Lock() for name in PROCESSES}
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        for name, process in self.processes.items():
            process.log = logs / f"{name}.log"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        try:
            for process in self.processes.values():
                process.start()
            for name in self.processes:
                self._wait(name)
            self._supervisor.start()
            yield
        finally:
            self.stop()

    def _supervise(self) -> None:
        """Start again what ended, as whoever runs the service has it done."""
        while not self._stopping.wait(REVIVED_AFTER):
            for name, process in self.processes.items():
                with self._tended[name]:
                    if process.running and process.running.poll() is not None:
                        self.ended[name] += 1
                        process.kill()  # its children
                        process.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for name in reversed(self.processes):
            self._end(name)

    def _end(self, name: str) -> None:
        """By SIGTERM; whoever has not ended in its time is killed, and counted."""
        process = self.processes[name]
        if (running := process.running) is not None:
            process.stop(STOPS_WITHIN[name])
            self.killed[name] += int(running.returncode == -signal.SIGKILL)

    def pids(self) -> dict[str, int]:
        """Of the main process of each server and of each process that runs."""
        found = {name: running.pid for name, process in self.processes.items() if (running := process.running)}
        if self.broker.running:
            found["rabbitmq"] = self.broker.running.pid
        with suppress(DatabaseError):
            found["postgresql"] = database_pid()
        with suppress(redis.RedisError):
            found["valkey"] = cache_pid()
        return found

    def restart(self, name: str, clock: Clock, *, by_kill: bool) -> Restart:
        began = clock.now()
        if name == "postgresql":
            _again(database_pid, signal.SIGKILL if by_kill else signal.SIGINT)  # a fast shutdown
        elif name == "valkey":
            _again(cache_pid, signal.SIGKILL if by_kill else signal.SIGTERM)
        elif name == "rabbitmq":
            if by_kill:
                self.broker.kill()
            else:
                self.broker.stop()
            self.broker.start()
        else:
            process = self.processes[name]
            with self._tended[name]:
                if by_kill:
                    process.kill()
                else:
                    self._end(name)
                process.start()
            self._wait(name)
        return Restart(name, began, clock.now())

    def _wait(self, name: str) -> None:
        """Until it is at work, as far as it can be seen; beat shows nothing."""
        if name == "web":
            wait_for(self._is_ready, "web does not start", pause=0.2)
        elif name in self.metrics:
            wait_for(lambda: listens(self.metrics[name]), f"{name} does not start", pause=0.2)

    def _is_ready(self) -> bool:
        with suppress(OSError):
            address = f"http://127.0.0.1:{self.port}/analytics/v1/status/readyz"
            with urllib.request.urlopen(address, timeout=5) as answer:
                return bool(answer.status == 200)
        return False


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def database_pid() -> int:
    """Of the server, over a connection of its own."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int")
            return int(cursor.fetchone()[0])
    finally:
        connection.close()  # the next is perhaps another server


def cache_pid() -> int:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        return int(client.info("server")["process_id"])


def _again(pid_of: Callable[[], int], how: signal.Signals) -> None:
    """End a server that its keeper starts again, and wait until the new one answers."""
    before = pid_of()

    def is_back() -> bool:
        with suppress(DatabaseError, redis.RedisError):
            return pid_of() != before
        return False

    os.kill(before, how)
    wait_for(is_back, "a server does not come back", pause=0.2)
