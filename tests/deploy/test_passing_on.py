"""Every setting that docs/operating.md lists can be changed where the service is deployed, and means the same there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import kubernetes, stack

DOCUMENT = (stack.ROOT / "docs/operating.md").read_text()
SYSTEMD = kubernetes.environment_file((stack.ROOT / "deploy/systemd/environment.example").read_text())

DEVELOPMENT = {"DEBUG": "never in production", "EMBEDDED_SERVERS": "for development alone"}
# What an operator can't change there, and why.
FIXED = {
    "compose": {
        "DATABASE_URL": "made of the stack's own server and POSTGRES_PASSWORD",
        "REDIS_URL": "the stack's own server",
        "RABBITMQ_URL": "made of the stack's own server and RABBITMQ_PASSWORD",
        "HTTP_PORT": "published",
        "METRICS_PORT": "published",
        "EXPORT_FOLDER": "a volume",
    },
    "kubernetes": {},
    "systemd": {
        "HTTP_PORT": "analytics-web.socket has the address",
        "METRICS_PORT": "each unit has its own",
    },
}
# Where a deployment begins with another value than the service by itself.
OTHER = {
    "compose": {
        "RABBITMQ_STREAM_MAX_BYTES": "a small machine",
        "EXPORT_FOLDER": "a volume",
    },
    "kubernetes": {
        "PUBLIC_URL": "an example",
        "TRUSTED_PROXIES": "an ingress is in front",
        "S3_BUCKET": "pods share no folder",
        "EXPORT_FOLDER": "a volume",
    },
    "systemd": {
        "PUBLIC_URL": "an example",
        "TRUSTED_PROXIES": "a proxy is in front",
        "EXPORT_FOLDER": "a state directory",
    },
}
OF_SERVERS = {"DATABASE_URL", "REDIS_URL", "BROKER_URL", "RABBITMQ_URL", "SECRET_KEY", "S3_ACCESS_KEY", "S3_SECRET_KEY"}


def documented() -> list[str]:
    """The first column of the table of settings; `…_BURST` goes on from the name before it."""
    table = DOCUMENT.split("## Settings")[1].split("\n## ")[0]
    names: list[str] = []
    for first in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE):
        for name in re.findall(r"`(…?[A-Z0-9_]+)`", first):
            names.append(names[-1] + name[1:] if name.startswith("…") else name)
    return names


PASSED_ON = {
    "compose": stack.REQUIRED | stack.DEFAULTS.keys(),
    "kubernetes": kubernetes.SETTINGS.keys() | kubernetes.SECRETS.keys(),
    "systemd": SYSTEMD.keys(),
}
ENVIRONMENTS = {
    "compose": stack.variables_of("web"),
    "kubernetes": kubernetes.variables_of("web"),
    "systemd": SYSTEMD | {"SECRET_KEY": "x" * 50, "DATABASE_URL": "postgresql:///analytics"},
}


def test_the_table_is_read_as_people_read_it() -> None:
    assert {"DATABASE_URL", "OIDC_ROLES_CLAIM", "RATE_LIMIT_EVENTS", "RATE_LIMIT_EVENTS_BURST", "S3_SECRET_KEY"} <= set(
        documented()
    )


@pytest.mark.parametrize("where", PASSED_ON)
def test_every_documented_setting_is_passed_on_or_fixed_for_a_reason(where: str) -> None:
    wanted = set(documented()) - DEVELOPMENT.keys() - FIXED[where].keys()
    assert wanted - PASSED_ON[where] == set()
    assert not FIXED[where].keys() & PASSED_ON[where], "it can be changed after all"
    own = {"POSTGRES_PASSWORD", "RABBITMQ_PASSWORD", "READONLY_PASSWORD", "GRAFANA_PASSWORD"}  # of compose's servers
    assert PASSED_ON[where] - own <= set(documented()), "nobody says what it holds"


TELL = """
import json
from analytics_site.env import stop_if_wrong
from django.conf import settings
stop_if_wrong()
print(json.dumps({name: getattr(settings, name) for name in NAMES if hasattr(settings, name)}))
"""


def told(variables: dict[str, str]) -> dict[str, object]:
    """What a process with this environment takes each documented setting for."""
    needed = {
        "DJANGO_SETTINGS_MODULE": "analytics_site.settings",
        "PYTHONPATH": str(stack.ROOT),
        "PATH": str(Path(sys.executable).parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", TELL.replace("NAMES", repr(documented()))],
        cwd="/",
        env=needed | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_what_nobody_changed_is_the_services_own_default(where: str) -> None:
    bare = told({"DATABASE_URL": "postgresql:///analytics", "REDIS_URL": "redis://localhost", "SECRET_KEY": "x" * 50})
    here = told(ENVIRONMENTS[where])
    assert len(here) > 30
    different = {name for name in here if here[name] != bare[name]}
    assert different - OF_SERVERS == OTHER[where].keys()
