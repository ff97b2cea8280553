"""Typed settings from the environment.

A wrong variable never raises here: it is noted as a `Problem`, which `analytics_site.checks` turns into a system check
and `stop_if_wrong` into one line on standard error, so that a process with wrong settings does not start.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict

T = TypeVar("T")

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
NotNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Lifetime = Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400)]
ClockSkew = Annotated[int, msgspec.Meta(ge=0, le=300)]
SessionHours = Annotated[int, msgspec.Meta(ge=1, le=14 * 24)]
AuditDays = Annotated[int, msgspec.Meta(ge=30)]  # orgs.limits.AUDIT_KEPT_AT_LEAST: the database keeps that in any case
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


@dataclass(frozen=True)
class Problem:
    """One variable that is missing or malformed, and what it should hold."""

    variable: str
    wrong: str
    expected: str

    def __str__(self) -> str:
        return f"{self.variable} {self.wrong}; it should hold {self.expected}"


class Environment:
    """Reads variables, remembers what was wrong with them."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.problems: list[Problem] = []

    def read(self, name: str, kind: Any, default: T, expected: str) -> T:
        """The variable converted to `kind`; `default` where it is not set, or is wrong (which is noted)."""
        text = self.variables.get(name, "").strip()
        if not text:
            return default
        try:
            converted: T = msgspec.convert(text, kind, strict=False)
        except msgspec.ValidationError:
            self.problems.append(Problem(name, "is malformed", expected))
            return default
        return converted

    def pairs(self, name: str, allowed: Sequence[str], expected: str) -> dict[str, str]:
        """The variable as `theirs=ours,…`, where each of ours is `allowed`; not set (or wrong, which is noted), ours alone."""
        text = self.variables.get(name, "").strip()
        split = [part.rpartition("=") for part in text.split(",")] if text else [(ours, "=", ours) for ours in allowed]
        found = {theirs.strip(): ours.strip() for theirs, _, ours in split}
        if "" not in found and set(found.values()) <= set(allowed):
            return found
        self.problems.append(Problem(name, "is malformed", expected))
        return {ours: ours for ours in allowed}

    def url(self, name: str, expected: str, valid: Callable[[str], bool], default: str | None = None) -> str:
        """The variable as it stands, where `valid` says so; without a default the variable is required."""
        text = self.variables.get(name, "").strip()
        if not text and default is not None:
            return default
        if not text:
            self.problems.append(Problem(name, "is not set", expected))
        elif not valid(text):
            self.problems.append(Problem(name, "is malformed", expected))
        return text


def is_postgres_url(text: str) -> bool:
    try:
        is_postgres = urlsplit(text).scheme in {"postgres", "postgresql"}
        return is_postgres and bool(conninfo_to_dict(text).get("dbname"))
    except (ValueError, psycopg.ProgrammingError):
        return False


def has_scheme(*schemes: str) -> Callable[[str], bool]:
    """A check that a URL has one of these schemes and names a host, or a path for a Unix socket."""

    def valid(text: str) -> bool:
        try:
            parts = urlsplit(text)
            _ = parts.port  # raises where it is none
        except ValueError:
            return False
        return parts.scheme in schemes and bool(parts.hostname or parts.path)

    return valid


ENVIRONMENT = Environment(os.environ)


def stop_if_wrong() -> None:
    """End the process with one line per wrong variable. Called by every entry point, before any work."""
    from django.conf import settings

    _ = settings.DATABASES  # reads the settings, and with them the environment
    if ENVIRONMENT.problems:
        sys.exit("\n".join(str(problem) for problem in ENVIRONMENT.problems))
