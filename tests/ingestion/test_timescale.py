"""The tests of storage, dedupe, rollups and retention, on a server that has TimescaleDB."""

import os
import re
import subprocess
import sys

import psycopg
import pytest
from django.conf import settings

from ingestion.storage import timescale

from ..processes import environment

FILES = (
    "tests/ingestion/test_storage.py", "tests/ingestion/test_writing.py", "tests/ingestion/test_concurrency.py",
    "tests/ingestion/test_quarantine.py", "tests/analytics_site/test_migrations.py", "tests/usage/test_rollups.py",
    "tests/usage/test_properties.py", "tests/usage/test_verification.py", "tests/usage/test_retention.py",
    "tests/usage/test_plans.py", "tests/usage/test_api.py", "tests/usage/test_closing.py",
    "tests/reliability/test_watching.py",
)  # fmt: skip


@pytest.mark.engine("PostgreSQL")
def test_all_that_touches_storage_passes_on_timescaledb() -> None:
    url = os.environ.get("TIMESCALE_DATABASE_URL")
    if not url:
        pytest.skip("TIMESCALE_DATABASE_URL names no server: set it to a database on one that has TimescaleDB")
    with psycopg.connect(url) as server:
        assert timescale.is_available(server.cursor()), "that server has no TimescaleDB"  # type: ignore[arg-type]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=--strict-markers",
            *FILES,
        ],
        cwd=settings.BASE_DIR,
        env=environment(DATABASE_URL=url),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    counts = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"\d+ passed", counts)
    assert "skipped" not in counts
