"""The files of `deploy/`, read as Docker and Compose read them."""

import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from django.conf import settings

ROOT: Path = settings.BASE_DIR


def _lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


COMPOSE = "\n".join(_lines("deploy/compose.yaml"))
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
EXAMPLE = dict(line.split("=", 1) for line in _lines("deploy/.env.example"))
VARIABLE = re.compile(r"\$\{(\w+):([-?])([^}]*)\}")
REQUIRED = {name for name, kind, _ in VARIABLE.findall(COMPOSE) if kind == "?"}
DEFAULTS = {name: value for name, kind, value in VARIABLE.findall(COMPOSE) if kind == "-"}
_INSTRUCTIONS = "\n".join(_lines("deploy/Dockerfile")).replace("\\\n", " ").splitlines()
_IGNORED = _lines(".dockerignore")


def variables_of(service: str) -> dict[str, str]:
    """What a container of ours finds in its environment where .env holds the secrets alone."""
    known = DEFAULTS | dict.fromkeys(REQUIRED, "5ec2e7" * 10)
    variables = OURS[service]["environment"].items()
    return {name: VARIABLE.sub(lambda found: known[found[1]], str(value)) for name, value in variables}


def instructions(name: str) -> list[str]:
    """What stands behind each instruction of this name."""
    return [line.removeprefix(f"{name} ").strip() for line in _INSTRUCTIONS if line.startswith(f"{name} ")]


def copies() -> list[tuple[str, str]]:
    """Source in the repository and target in the image, of all stages."""
    split = [rest.split() for rest in instructions("COPY") if not rest.startswith("--from=")]
    return [(source, target) for *sources, target in split for source in sources]


def is_ignored(path: str) -> bool:
    """The last pattern that fits a path, or a folder above it, decides."""
    above = [path, *map(str, Path(path).parents)][:-1]
    fitting = [pattern for pattern in _IGNORED if any(_regex(pattern).fullmatch(one) for one in above)]
    return bool(fitting) and not fitting[-1].startswith("!")


def _regex(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern.removeprefix("!"))
    for glob, expression in ((r"\*\*/", "(.*/)?"), (r"\*", "[^/]*"), (r"\[", "["), (r"\]", "]")):
        text = text.replace(glob, expression)
    return re.compile(text)


def copy_into(image: Path) -> None:
    """Do what the COPY lines do."""
    for source, target in copies():
        found = ROOT / source
        for file in found.rglob("*") if found.is_dir() else [found]:
            if file.is_file() and not is_ignored(str(file.relative_to(ROOT))):
                new = image / target / (file.relative_to(found) if found.is_dir() else file.name)
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, new)
