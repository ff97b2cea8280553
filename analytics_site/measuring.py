"""What every measurement needs: a line of its report, a clock, a client that may do everything in an org."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.test import Client

from orgs.models import ApiKey, Org, Scope


@dataclass(frozen=True)
class Line:
    """One figure and what stands beside it."""

    what: str
    figure: str
    compared_to: str
    compared: str
    ratio: str
    goal: str


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    """Seconds."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def door_client(org_id: uuid.UUID) -> Client:
    _, token = ApiKey.issue(org=Org.objects.get(pk=org_id), name="bench", scopes=[Scope.ADMIN])
    return Client(headers={"X-API-Key": token}, SERVER_NAME="localhost")
