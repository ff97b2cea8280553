"""Processes of the service as an operator starts them, on the servers and the database of the tests."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.db import connection
from kombu import Connection
from kombu.exceptions import OperationalError

from analytics_site.rig import UNLIMITED, free_port, redis_url, wait_for

NOWHERE = "127.0.0.1:1"  # nothing listens there
DATABASE_AWAY = {"DATABASE_URL": f"postgresql://nobody@{NOWHERE}/none"}
# Of this process, not of the service's settings.
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


def database_url(name: str = "") -> str:
    """A database on the server of the tests; the one of this test process where none is named."""
    parameters = connection.get_connection_params()
    options = {key: parameters[key] for key in ("host", "port", "user", "password") if parameters.get(key)}
    return f"postgresql:///{name or connection.settings_dict['NAME']}?{urlencode(options)}"


def environment(**variables: str | None) -> dict[str, str]:
    """What a process needs, with some of it changed, or taken away by None."""
    mine = {name: os.environ[name] for name in KEPT if name in os.environ}
    right = {"DATABASE_URL": database_url(), "REDIS_URL": redis_url(0), "SECRET_KEY": "x" * 50}
    unlimited = {name: str(value) for name, value in UNLIMITED.items()}  # processes of several tests share a Redis
    wanted = mine | right | unlimited | {"DJANGO_SETTINGS_MODULE": "analytics_site.settings"} | variables
    return {name: value for name, value in wanted.items() if value is not None}


def run(*arguments: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=settings.BASE_DIR,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_for_web(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/analytics/v1/status/healthz", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)


@contextmanager
def gunicorn(log: Path, **variables: str) -> Iterator[str]:
    """The address of a gunicorn that runs as it does in production; its standard error goes to a file."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with web_process(log, HTTP_PORT=str(port), **variables) as process:
        wait_for_web(address, process, log)
        yield address


@contextmanager
def web_process(log: Path, listener: int | None = None, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A gunicorn, told to stop in the end. A listener is one that it is handed, as systemd does it."""
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-c",
        "deploy/gunicorn.conf.py",
        "--no-control-socket",
        "analytics_site.wsgi",
    ]
    if listener is not None:
        command = ["bash", "-c", f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&{listener}', "bash", *command]
    with log.open("a") as stderr:
        process = subprocess.Popen(
            command,
            cwd=settings.BASE_DIR,
            env=environment(**variables),
            stderr=stderr,
            pass_fds=() if listener is None else (listener,),
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def celery(log: Path, *arguments: str, **variables: str) -> Iterator[int]:
    """The port of the metrics of a Celery worker that is ready; what it says goes to a file."""
    port = free_port()
    variables = {"REDIS_URL": redis_url(9), "LOG_FORMAT": "text", "METRICS_PORT": str(port)} | variables
    command = [sys.executable, "-m", "celery", "-A", "analytics_site", "worker", "--without-mingle", *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "-n", f"test{port}@%h"],
            cwd=settings.BASE_DIR,
            env=environment(**variables),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        eventually(lambda: " ready" in log.read_text() or process.poll() is not None, 60, "the worker is ready")
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def connected(url: str) -> Connection:
    """A connection to a broker. Where none answers the test is skipped, in CI it fails."""
    broker = Connection(url, connect_timeout=2)
    try:
        broker.connect()
    except (OperationalError, *broker.connection_errors):
        if os.environ.get("CI") == "true":
            pytest.fail(f"no broker answers at {url}")
        pytest.skip("no RabbitMQ answers: docker run -d -p 127.0.0.1:5672:5672 rabbitmq:4, or name one in RABBITMQ_URL")
    return broker


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> None:
    wait_for(holds, f"not within {seconds} s: {what}", seconds)
