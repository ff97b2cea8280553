"""What heavy checks stand on: a database and a broker of their own, and the service's real processes beside them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection
from django.test import override_settings
from kombu.connection import Connection
from psycopg.conninfo import conninfo_to_dict

from analytics_site.embedded import Servers

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # Debian's; the wrapper in sbin would change the user
START_TIMEOUT = 90.0  # seconds
UNLIMITED = {
    "RATE_LIMIT_REQUESTS": 0,
    "RATE_LIMIT_EVENTS": 0,
    "RATE_LIMIT_STRANGERS": 0,
    "SIGN_IN_LIMITS": 0,
    "ORG_CONCURRENCY": 0,
}
SCRATCH_REDIS = 9  # a Redis database that nobody else's workers listen to


@contextlib.contextmanager
def scratch_database() -> Iterator[None]:
    """An empty, migrated database that Django's connection now means; gone at the end."""
    name = connection.settings_dict["NAME"]
    connection.settings_dict["TEST"]["NAME"] = f"scratch_{uuid.uuid4().hex[:12]}"
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        yield
    finally:
        with contextlib.closing(connection):
            connection.creation.destroy_test_db(name, verbosity=0)


_USER = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from analytics_site import embedded

print(json.dumps(asdict(embedded.attach(Path(sys.argv[1])))), flush=True)
sys.stdin.read()
embedded.detach()
"""


@contextlib.contextmanager
def own_servers() -> Iterator[Servers]:
    """A PostgreSQL and a Valkey that nobody else uses. They may be killed: their keeper starts them again."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # for root they run as nobody
        with subprocess.Popen(
            [sys.executable, "-c", _USER, folder],
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt is for who started it
        ) as user:  # ends when its standard input does, and the servers with it
            assert user.stdout is not None
            yield Servers(**json.loads(user.stdout.readline()))


@contextlib.contextmanager
def pointed_at(servers: Servers) -> Iterator[None]:
    """Meanwhile Django's connection, its cache, and the settings that `environment` reads mean these servers."""
    found = conninfo_to_dict(servers.database_url)
    before = dict(connection.settings_dict)
    connection.close()
    connection.settings_dict.update(
        {
            "NAME": found["dbname"],
            **{key.upper(): str(found.get(key, "")) for key in ("user", "password", "host", "port")},
        }
    )
    caches = {"default": settings.CACHES["default"] | {"LOCATION": servers.redis_url}}
    try:
        with override_settings(DATABASE_URL=servers.database_url, REDIS_URL=servers.redis_url, CACHES=caches):
            yield
    finally:
        connection.close()
        connection.settings_dict.update(before)


def environment(**variables: str) -> dict[str, str]:
    """Of a process that works in the scratch database."""
    database = urlsplit(settings.DATABASE_URL)._replace(path=f"/{connection.settings_dict['NAME']}")
    scratch = {
        "DATABASE_URL": _unsplit(database),
        "REDIS_URL": redis_url(SCRATCH_REDIS),
        "BROKER_URL": "",
        "EMBEDDED_SERVERS": "0",
        "LOG_LEVEL": "WARNING",
        "METRICS_PORT": str(free_port()),
        "PYTHONWARNINGS": "ignore",  # of being root
        **{name: str(value) for name, value in UNLIMITED.items()},  # what is measured asks more often than anybody may
    }
    return os.environ | scratch | variables


def redis_url(number: int) -> str:
    """One of the numbered databases of the Redis of the settings."""
    parts = urlsplit(settings.REDIS_URL)
    if parts.scheme == "unix":
        return f"unix://{parts.path}?{urlencode(dict(parse_qsl(parts.query)) | {'db': number})}"
    return urlunsplit(parts._replace(path=f"/{number}"))


def _unsplit(parts: object) -> str:
    # urlunsplit leaves out the slashes of an empty host where it does not know the scheme.
    text: str = urlunsplit(parts)  # type: ignore[call-overload]
    return text if "://" in text else text.replace(":", "://", 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A process of the service in a session of its own, started, killed and started again."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    running: subprocess.Popen[bytes] | None = None
    log: Path | None = None  # what it says, of all its lives; else it says it to whoever looks at this one

    def start(self) -> None:
        with contextlib.ExitStack() as opened:
            self.running = subprocess.Popen(
                [sys.executable, "-m", *self.arguments],
                cwd=settings.BASE_DIR,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=opened.enter_context(self.log.open("ab")) if self.log else None,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    def signal_all(self, number: signal.Signals) -> None:
        """To the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        if self.running is not None:
            self.signal_all(signal.SIGKILL)
            self.running.wait()
            self.running = None

    def stop(self, timeout: float = 15.0) -> None:
        if self.running is not None:
            self.running.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.running.wait(timeout)
            self.kill()


def web(environment: dict[str, str], *arguments: str) -> Process:
    """gunicorn as in production, on loopback at the environment's port."""
    address = f"127.0.0.1:{environment['HTTP_PORT']}"
    command = ("gunicorn", "-c", "deploy/gunicorn.conf.py", "-b", address, "--no-control-socket", *arguments)
    return Process((*command, "analytics_site.wsgi"), environment)


def celery(environment: dict[str, str], *arguments: str) -> Process:
    return Process(("celery", "-A", "analytics_site", "worker", *arguments), environment)


def stream_worker(environment: dict[str, str]) -> Process:
    return celery(environment, "--read-stream", "-P", "solo", "-Q", "stream", "-n", "stream@%h", "--without-mingle")


def rollup_worker(environment: dict[str, str]) -> Process:
    return celery(environment, "-B", "-c", "1", "-n", "rollup@%h", "--without-mingle", "-s", os.devnull)


@dataclass
class Broker:
    """A RabbitMQ node of its own, that may be killed."""

    folder: Path
    port: int = field(default_factory=free_port)
    running: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        distribution = free_port()
        environment = os.environ | {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"scratch{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self.running = subprocess.Popen(
            [RABBITMQ], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(self.answers, "the broker does not start")

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(probe.recv(8))
        return False

    def stop(self) -> None:
        """In an orderly way: everything is written down."""
        assert self.running is not None
        self.running.terminate()
        self.running.wait(START_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()
            self.running = None


@contextlib.contextmanager
def scratch_broker() -> Iterator[Broker]:
    if not RABBITMQ.exists():
        raise CommandError(f"{RABBITMQ} is missing; on Debian: apt-get install rabbitmq-server")
    with tempfile.TemporaryDirectory(prefix="analytics-broker-", ignore_cleanup_errors=True) as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            # A node that is killed within minutes after its very first stream was declared can't restart its streams (3.10):
            # it has not yet written down that it has a coordinator of them. An orderly end writes it.
            with Connection(broker.url) as connection:
                connection.channel().queue_declare(
                    "first", durable=True, arguments={"x-queue-type": "stream"}, auto_delete=False
                )
            broker.stop()
            broker.start()
            yield broker
        finally:
            broker.kill()


def wait_for(holds: Callable[[], bool], complaint: str, timeout: float = START_TIMEOUT, pause: float = 0.05) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            raise CommandError(complaint)
        time.sleep(pause)


def offsets_of(url: str, stream: str) -> list[int]:
    """The offset of every message that a stream holds, read by a consumer of its own."""
    with Connection(url) as broker:
        channel = broker.channel()
        found: list[int] = []

        def take(message: Any) -> None:
            found.append(int(message.headers["x-stream-offset"]))
            if len(found) % 100 == 0:
                channel.basic_ack(message.delivery_tag, multiple=True)

        channel.basic_qos(0, 1_000, False)
        channel.basic_consume(stream, callback=take, arguments={"x-stream-offset": "first"})
        with contextlib.suppress(TimeoutError):
            while True:
                broker.drain_events(timeout=2)
    return found
