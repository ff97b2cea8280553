"""The demo, as a newcomer runs it: in a checkout of its own, twice, with nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest

from ..processes import eventually

ROOT = Path(__file__).parents[2]
NOT_COPIED = (".git", ".venv", ".embedded", ".hypothesis", ".secret_key", "*_cache", "__pycache__", "*.whl")
# Two rows are no events.
TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-15 23:59:59.9999999,1000,100
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:17:03.9799600,many,55
2023-11-16 18:17:04.0319600,91,-16
2023-11-16 19:00:00.0000000,0,0
2023-11-16 19:00:00.0000001,2000000000,5
"""
COUNTS = [(1000, 100), (374, 44), (374, 44), (396, 109), None, None, (0, 0), (2_000_000_000, 5)]
PRICES = ((300, 1500), (25, 125), (150, 600), (10, 40))  # cents per million tokens, in and out


def expected_cents() -> Decimal:
    """What the trace costs, by the rules that the README states."""
    total = Decimal()
    for number, (line, counts) in enumerate(zip(TRACE.splitlines()[1:], COUNTS, strict=True), start=1):
        if counts is not None:
            price = PRICES[sha256(f"{number}/{line}".encode()).digest()[0] % 4]
            cost = Decimal(counts[0] * price[0] + counts[1] * price[1]) / 1_000_000
            total += cost.quantize(Decimal("0.0001"), ROUND_HALF_EVEN)
    return total.quantize(Decimal(1), ROUND_HALF_EVEN)


@dataclass(frozen=True)
class Clone:
    """A copy of this checkout, and what was run in it."""

    path: Path

    def demo(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        mine = ("DATABASE_URL", "REDIS_URL", "BROKER_URL", "HTTP_PORT", "PYTEST_CURRENT_TEST")
        kept = {name: value for name, value in os.environ.items() if name not in mine}
        return subprocess.run(
            [sys.executable, "manage.py", "demo", *arguments, "--no-serve"],
            cwd=self.path,
            env=kept | {"EMBEDDED_SERVERS": "1", "LOG_LEVEL": "WARNING"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def summary(self, *arguments: str) -> dict[str, Any]:
        done = self.demo(*arguments)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def running(self) -> list[str]:
        """Every process that works in the copy, or was started on it."""
        found = []
        for process in psutil.process_iter(["cwd", "cmdline"]):
            command = " ".join(process.info["cmdline"] or ())
            if str(self.path) in command or Path(process.info["cwd"] or "/").is_relative_to(self.path):
                found.append(command)
        return found


@pytest.fixture
def clone() -> Iterator[Clone]:
    """In a folder that other users reach, as they do not reach tmp_path: the servers do not run as root."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="demo-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "checkout"
        shutil.copytree(ROOT, path, ignore=shutil.ignore_patterns(*NOT_COPIED))
        found = Clone(path)
        yield found
        eventually(lambda: not found.running(), 30, "nothing of the copy runs")


def test_a_trace_is_counted_once_however_often_it_is_run_and_no_server_is_left(clone: Clone) -> None:
    (clone.path / "trace.csv").write_bytes(TRACE.replace("\n", "\r\n").encode())
    totals = {
        "inputTokens": 1000 + 374 + 374 + 396 + 2_000_000_000,
        "outputTokens": 100 + 44 + 44 + 109 + 5,
        "costEstimateCents": int(expected_cents()),
        "invocations": 6,
        "drift": 0,
    }
    first = clone.summary("--trace", "trace.csv")
    assert clone.running() == []
    assert first == {"events": 8, "accepted": 6, "duplicates": 0, "quarantined": 2, **totals}
    again = clone.summary("--trace", "trace.csv")
    assert clone.running() == []
    assert again == {"events": 8, "accepted": 0, "duplicates": 8, "quarantined": 0, **totals}


def test_the_sample_needs_no_file(clone: Clone) -> None:
    first = clone.summary()
    assert clone.running() == []
    assert first["events"] == first["accepted"] == first["invocations"] > 5_000
    assert (first["duplicates"], first["quarantined"], first["drift"]) == (0, 0, 0)


def test_what_is_no_trace_is_told_in_one_line_and_no_server_is_left(clone: Clone) -> None:
    for content, said in ((b"a,b,c\r\n", "the first line must be"), (None, "nowhere.csv")):
        path = clone.path / ("nowhere.csv" if content is None else "trace.csv")
        if content is not None:
            path.write_bytes(content)
        done = clone.demo("--trace", str(path))
        assert done.returncode == 1
        assert said in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    eventually(lambda: not clone.running(), 30, "nothing of the copy runs")
