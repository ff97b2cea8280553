"""The units of a single server, as far as they can be tried without systemd running."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import stack

FOLDER = stack.ROOT / "deploy/systemd"
PROGRAMS = "/opt/analytics/current/venv/bin/"
PROCESSES = ("web", "worker", "exporter", "beat", "ingestion")
CONFINED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "CapabilityBoundingSet": "",
    "User": "analytics",
    "EnvironmentFile": "/etc/analytics/environment",
    "KillMode": "mixed",
}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / name).read_text())
    return parser


def command(name: str) -> list[str]:
    words = shlex.split(unit(f"analytics-{name}.service")["Service"]["ExecStart"].replace("%%", "%"))
    assert words[0].startswith(PROGRAMS)
    return [words[0].removeprefix(PROGRAMS), *words[1:]]


def test_systemd_takes_every_unit(tmp_path: Path) -> None:
    """With the programs beside the Python that runs the tests; where there is no systemd, the units are read alone."""
    for file in FOLDER.rglob("*"):
        if file.is_file():
            new = tmp_path / file.relative_to(FOLDER)
            new.parent.mkdir(exist_ok=True)
            new.write_text(file.read_text().replace(PROGRAMS, f"{Path(sys.executable).parent}/"))
    units = [file for file in tmp_path.iterdir() if file.suffix in (".service", ".socket", ".target")]
    assert {file.name for file in units} == {
        "analytics.target",
        "analytics-web.socket",
        "analytics-migrate.service",
        *(f"analytics-{name}.service" for name in PROCESSES),
    }
    if not shutil.which("systemd-analyze"):
        return
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name in PROCESSES:
        # 0 is confined in every way that it knows, 10 in none; in tenths.
        judge = [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--threshold=20",
            "--no-pager",
            tmp_path / f"analytics-{name}.service",
        ]
        done = subprocess.run(judge, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", PROCESSES)
def test_commands_are_those_of_compose(name: str) -> None:
    """Workers have names of their own here: they share a host."""
    words = command(name)
    if "-n" in words:
        at = words.index("-n")
        assert words[at + 1] == f"{name}@%h"
        del words[at : at + 2]
    of_image = re.findall(r'"([^"]+)"', stack.instructions("CMD")[0])
    assert words == stack.OURS[name].get("command", of_image)


def test_migrations_come_before_all_processes() -> None:
    assert command("migrate") == stack.OURS["migrate"]["command"]
    for name in PROCESSES:
        assert "analytics-migrate.service" in unit(f"analytics-{name}.service")["Unit"]["After"].split()


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_is_started_again_and_has_its_time_to_end(name: str) -> None:
    service = unit(f"analytics-{name}.service")["Service"]
    assert service["Restart"] == "always"
    assert int(service["TimeoutStopSec"]) >= int(stack.OURS[name]["stop_grace_period"].removesuffix("s"))
    assert service["MemoryMax"].lower() == stack.OURS[name]["mem_limit"]


def test_the_target_starts_one_of_each_but_the_reader() -> None:
    wanted = unit("analytics.target")["Unit"]["Wants"].split()
    assert sorted(wanted) == sorted(
        ["analytics-web.socket", *(f"analytics-{name}.service" for name in PROCESSES if name != "ingestion")]
    )


def test_all_are_confined_alike() -> None:
    """systemd reads the drop-in for each unit with the prefix, so no unit can forget it."""
    common = unit("analytics-.service.d/common.conf")
    assert CONFINED.items() <= dict(common["Service"]).items()
    assert common["Unit"]["PartOf"] == "analytics.target"
    for file in FOLDER.glob("*.service"):
        assert not CONFINED.keys() & dict(unit(file.name)["Service"]).keys(), f"{file.name} undoes what is common"


def test_what_is_installed_is_what_the_image_holds() -> None:
    told = re.findall(r"requirements/\w+\.txt", (stack.ROOT / "docs/systemd.md").read_text())
    assert told == [source for source, _ in stack.copies() if source.startswith("requirements/")]


def test_the_folder_of_exports_is_one_that_the_units_may_write_to() -> None:
    folders = unit("analytics-.service.d/common.conf")["Service"]["StateDirectory"].split()
    example = dict(
        line.split("=", 1)
        for line in (FOLDER / "environment.example").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert example["EXPORT_FOLDER"] in [f"/var/lib/{folder}" for folder in folders]
