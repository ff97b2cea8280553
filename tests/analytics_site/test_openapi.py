"""Schemathesis holds the service to its OpenAPI document: all that it allows is taken, all that it does not is refused, and every
answer is one that it names. What is left out of its checks stands in schemathesis.toml and tests/fuzzing.py, with the reason.

`make fuzz` runs it with many more cases.
"""

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import LazySettings
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer

from analytics_site.celery import app
from exports.jobs import Wanted
from exports.models import ExportJob, State
from orgs.models import AuditRecord
from reliability.detection import Measure
from reliability.models import Incident
from usage.rollups import roll_up
from usage.windows import Window

from ..factories import MODEL, OTHER_MODEL, at, ingest, make_event, make_key, make_org

BASE_DIR = Path(__file__).parents[2]
# For each operation and phase; `make fuzz` asks for more. How many cases there are at least follows from it.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
AT_LEAST = int(os.environ.get("FUZZ_CASES", "2000"))
SEED = os.environ.get("FUZZ_SEED", "1")


def an_org_with_data(folder: Path) -> tuple[str, str]:
    """The id of an org of which every operation has something to tell, and that of a file of it."""
    org = make_org()
    outcomes = ("success", "error", "timeout", "throttled")
    ingest(
        [
            make_event(
                org, model_id=model, status=status, client_id=client, occurred_at=at(hour, 7),
                error_code=None if status == "success" else "E1",
            )
            for model in (MODEL, OTHER_MODEL) for status in outcomes for client in (None, "app") for hour in (1, 12)
        ]
    )  # fmt: skip
    roll_up()
    (folder / "file.csv").write_bytes(b"a\n")
    for status in State:
        job = Wanted(org=org, window=Window(at(0), at(1))).job("somebody")
        job.status, job.key, job.expires_at = status, "file.csv", timezone.now() + timedelta(days=1)
        job.checksum, job.row_count, job.completed_at = "0" * 64, 1, timezone.now()
        job.save()
    job = ExportJob.objects.get(status=State.SUCCEEDED)
    Incident.objects.create(
        org=org, measure=Measure.P95, started_at=at(1), ended_at=at(2), observed=9, normal=1, score=9, invocations=1, failures=1
    )  # fmt: skip
    AuditRecord.objects.create(org=org, actor="user:somebody@example.com", action="invited", target="somebody")
    return str(org.pk), str(job.pk)


@pytest.mark.django_db(transaction=True)
def test_what_is_asked_and_answered_is_what_the_document_says(
    live_server: LiveServer, tmp_path: Path, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EXPORT_FOLDER = str(tmp_path)
    settings.PUBLIC_URL = live_server.url
    org_id, job_id = an_org_with_data(tmp_path)
    monkeypatch.setattr("exports.jobs.MAX_OPEN_EXPORTS", 10**9)  # nobody makes the files that are asked for
    asked = run(live_server.url, ORG_ID=org_id, JOB_ID=job_id, API_KEY=make_key(None))
    with app.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_purge("exports")
    print(asked.stdout)  # noqa: T201  pytest shows it where the test fails
    assert asked.returncode == 0, asked.stderr[-2_000:]
    assert cases_of(asked.stdout) >= AT_LEAST


def run(url: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--no-color", "run", f"{url}/analytics/v1/schema?format=json",
        "--checks", "all", "--max-examples", str(EXAMPLES), "--seed", SEED,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=BASE_DIR, env=os.environ | variables, capture_output=True, text=True, check=False
    )


def cases_of(told: str) -> int:
    """How many requests were made and judged."""
    found = re.search(r"([\d,]+) generated", told)
    assert found, told[-2_000:]
    return int(found[1].replace(",", ""))
