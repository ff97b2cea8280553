"""Export jobs, from the wish to the file, and the memory of who makes them.

Files of a kind are made in a process of its own, as a worker makes them, so that its peak is that of nothing else.
"""

import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from unittest.mock import patch

from django.conf import settings
from django.db import connection
from django.utils import timezone

from exports import jobs, making
from exports.datasets.usage import Grain
from exports.delivery import store_of
from exports.models import ExportJob, Kind, State
from exports.writers import Format
from orgs.limits import MAX_EXPORT_DAYS
from orgs.models import Org
from usage.windows import DAY, HOUR, Window, floor_hour

from .measuring import Line, timed
from .measuring_reliability import CSV_ROWS, copy_events
from .rig import environment

ROUNDS = {Format.CSV: 5, Format.PARQUET: 5, Format.XLSX: 3}  # of 31 days by the hour
LONG_ROUNDS = 3  # of a million calls

_CHILD = "import django; django.setup(); from analytics_site.measuring_exports import make; make()"


@dataclass(frozen=True)
class Made:
    """A file that was made, and the memory of who made it: before, and at most so far. MB."""

    seconds: float
    rows: int
    started_mb: float
    peak_mb: float


def measure_exports(busiest: Org, models: int, called: Org) -> tuple[list[Line], dict[str, float]]:
    """31 days by the hour of an org that calls so many models in every hour; the newest calls of another, up to a million."""
    with tempfile.TemporaryDirectory(prefix="analytics-exports-") as folder:
        hourly = {kind: _by_the_hour(folder, busiest, kind) for kind in ROUNDS}
        calls, copied = _calls(folder, called)
    hours = MAX_EXPORT_DAYS * 24 * models
    assert all(one.rows == hours for made in hourly.values() for one in made), hourly
    rows, copy_rate = calls[Format.CSV][0].rows, calls[Format.CSV][0].rows / median(copied)
    seconds = {kind: _seconds(made) for kind, made in hourly.items()}
    rates = {kind: rows / _seconds(made) for kind, made in calls.items()}
    ratio = rates[Format.CSV] / copy_rate
    peaks = {f"31 days by hour, {kind}": made[-1] for kind, made in hourly.items()}
    peaks |= {f"{rows:,} calls, {kind}": made[-1] for kind, made in calls.items()}
    lines = [
        Line(
            f"export, 31 days by hour, {kind}", f"{taken:.2f} s", "", f"{hours:,} rows", "",
            "≤ 5 s" if kind is Format.CSV else "",
        )
        for kind, taken in seconds.items()
    ]  # fmt: skip
    lines += [
        Line(
            f"export, {rows:,} calls, {kind}", f"{rate:,.0f}/s", "COPY (SELECT * …) TO STDOUT (FORMAT CSV)",
            f"{copy_rate:,.0f}/s", f"{rate / copy_rate:.2f}", "≥ 0.5" if kind is Format.CSV else "",
        )
        for kind, rate in rates.items()
    ]  # fmt: skip
    lines += [
        Line(
            f"memory, {what}", f"{made.peak_mb:.0f} MB", "the same process before the first file",
            f"{made.started_mb:.0f} MB", f"{made.peak_mb / made.started_mb:.2f}", "",
        )
        for what, made in peaks.items()
    ]  # fmt: skip
    return lines, {
        "export_31d_hourly_s": round(seconds[Format.CSV], 2),
        "export_incident_csv_vs_copy": round(ratio, 2),
        "export_incident_parquet_rows_per_s": round(rates[Format.PARQUET]),
        "export_peak_rss_mb": round(max(made.peak_mb for made in peaks.values()), 1),
    }


def _seconds(made: Sequence[Made]) -> float:
    return median(one.seconds for one in made)


def _by_the_hour(folder: str, org: Org, kind: Format) -> list[Made]:
    """Every round another window."""
    end = floor_hour(timezone.now())
    windows = [Window(end - MAX_EXPORT_DAYS * DAY - n * HOUR, end - n * HOUR) for n in range(ROUNDS[kind])]
    return _made(folder, org, Kind.USAGE, kind, windows)


def _calls(folder: str, org: Org) -> tuple[dict[Format, list[Made]], list[float]]:
    """Files of calls, and the seconds that COPY takes, in turns with those of CSV."""
    rows, window = _newest(org.pk, CSV_ROWS)
    csv, copied = [], []
    for _ in range(LONG_ROUNDS):
        csv += _made(folder, org, Kind.INCIDENT_EVENTS, Format.CSV, [window])
        copied.append(timed(copy_events, org.pk, rows))
    parquet = _made(folder, org, Kind.INCIDENT_EVENTS, Format.PARQUET, [window])
    assert all(one.rows == rows for one in (*csv, *parquet)), (rows, csv, parquet)
    return {Format.CSV: csv, Format.PARQUET: parquet}, copied


def _newest(org_id: uuid.UUID, most: int) -> tuple[int, Window]:
    """How many calls, and a window with just these: a file that no limit cuts is held against the rollups."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), min(occurred_at) FROM (SELECT occurred_at FROM usage_events WHERE org_id = %s"
            " ORDER BY org_id DESC, occurred_at DESC, event_id DESC LIMIT %s) newest",
            [org_id, most],
        )
        rows, start = cursor.fetchone()
    return rows, Window(start, floor_hour(timezone.now()) + HOUR)


# ── A process that makes files ───────────────────────────────────────────────────────────────────────────────────


def _made(folder: str, org: Org, dataset: Kind, kind: Format, windows: Sequence[Window]) -> list[Made]:
    """Files of these windows, one after another."""
    wish = [str(org.pk), dataset, kind, [(window.start.isoformat(), window.end.isoformat()) for window in windows]]
    answer = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(wish)], cwd=settings.BASE_DIR, check=True, stdout=subprocess.PIPE,
        env=environment(EXPORT_FOLDER=folder, S3_BUCKET=""),
    )  # fmt: skip
    return [Made(**made) for made in json.loads(answer.stdout)]


def make() -> None:
    """What runs in that process."""
    org_id, dataset, kind, windows = json.loads(sys.argv[1])
    org, started_mb = Org.objects.get(pk=org_id), _peak_mb()
    made = []
    for bounds in windows:
        window = Window(*map(datetime.fromisoformat, bounds))
        wanted = jobs.Wanted(org, window, Kind(dataset), Format(kind), Grain.HOURLY)
        started = time.perf_counter()
        with patch.object(jobs, "send"):  # no worker is told: the file is made here
            job = jobs.ask(wanted, by="bench:" + uuid.uuid4().hex)  # somebody else each time, so it is another job
        making.attempt(str(job.pk))
        seconds = time.perf_counter() - started
        job = ExportJob.objects.get(pk=job.pk, status=State.SUCCEEDED)
        made.append(asdict(Made(seconds, job.row_count or 0, started_mb, _peak_mb())))
        for key in (job.key, job.manifest_key):
            store_of(job.bucket).delete(key)
    sys.stdout.write(json.dumps(made))


def _peak_mb() -> float:
    """Resident, at most so far. What getrusage says includes the process that started this one."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
