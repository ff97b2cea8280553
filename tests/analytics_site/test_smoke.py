"""The smoke test, against an instance as an operator runs it, and against ones that are broken."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from ..factories import make_key, make_org
from ..processes import DATABASE_AWAY, NOWHERE, celery, gunicorn

pytestmark = pytest.mark.django_db(transaction=True)

CHECKS = ["health", "readiness", "metrics", "refusal", "problem", "event in", "figure out", "resend"]


def smoke(url: str, key: str, org_id: object) -> tuple[int, list[str], dict[str, object]]:
    """Exit code, lines but the last, and the last: through make, as an operator runs it."""
    done = subprocess.run(
        ["make", "--silent", "smoke", f"URL={url}", f"ORG={org_id}"],
        cwd=settings.BASE_DIR,
        env={"PATH": "/usr/bin:/bin", "SMOKE_KEY": key},  # it needs no server of its own
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    *lines, last = done.stdout.splitlines() or ["{}"]
    return done.returncode, lines, json.loads(last)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with gunicorn(tmp_path / "web.log") as address:
        yield address


def test_all_is_well_where_web_and_worker_run(address: str, tmp_path: Path) -> None:
    call_command("migrate", verbosity=0)  # the schedule: a test before may have emptied the tables
    org = make_org()
    key = make_key(org)
    with celery(tmp_path / "worker.log", "-B", "-c", "1"):
        for _ in range(2):  # it can be run again
            code, lines, last = smoke(address, key, org.pk)
            assert (code, last["ok"], last["url"]) == (0, True, address), lines
            assert [check["check"] for check in last["checks"]] == CHECKS  # type: ignore[attr-defined]
            assert len(lines) == len(CHECKS)


def test_without_a_worker_it_says_that_the_figure_does_not_come(address: str) -> None:
    org = make_org()
    code, lines, last = smoke(address, make_key(org), org.pk)
    assert (code, last["ok"]) == (2, False)  # make's own
    assert lines[-1].startswith("failed figure out")
    assert "does the rollup run?" in lines[-1]


def test_a_key_that_may_not_stops_it(address: str) -> None:
    code, lines, _ = smoke(address, make_key(make_org()), make_org().pk)
    assert code != 0
    assert "403" in lines[-1]


def test_an_instance_without_its_database_is_not_ready(tmp_path: Path) -> None:
    with gunicorn(tmp_path / "web.log", **DATABASE_AWAY) as address:
        code, lines, _ = smoke(address, "a key", make_org_id())
    assert code != 0
    assert [line.split()[:2] for line in lines] == [["ok", "health"], ["failed", "readiness"]]
    assert "PostgreSQL does not answer" in lines[-1]


def test_nobody_there() -> None:
    code, lines, _ = smoke(f"http://{NOWHERE}", "a key", make_org_id())
    assert code != 0
    assert lines[0].startswith("failed health")


def make_org_id() -> str:
    return "00000000-0000-4000-8000-000000000001"
