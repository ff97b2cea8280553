"""What row-level security costs: the usage endpoint as it is, and without the transaction of the org, in an order by lot.

Not in turns: Python collects its garbage every so many objects, and would charge it to one of the two.
"""

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from statistics import median
from urllib.parse import urlencode

from django.test import Client
from django.utils import timezone

from orgs import api
from orgs.tenancy import one_org
from usage.windows import floor_hour

from .measuring import Line, door_client, timed

REQUESTS = {"an hour": (timedelta(hours=1), 400), "7 days by hour": (timedelta(days=7), 60)}  # of each; as many without
WARM_UP = 5  # of each


def measure_row_security(org_id: uuid.UUID) -> tuple[list[Line], dict[str, float]]:
    """Middleware to middleware, medians. Without, the queries run as the tables' owner, whom no policy binds."""
    client = door_client(org_id)
    end = floor_hour(timezone.now())
    lines, figures = [], {}
    for name, (length, requests) in REQUESTS.items():
        query = urlencode({"start": (end - length).isoformat(), "end": end.isoformat(), "granularity": "hour"})
        address = f"/analytics/v1/orgs/{org_id}/usage?{query}"
        seconds: dict[bool, list[float]] = {True: [], False: []}
        order = [True, False] * requests
        random.Random(length.days).shuffle(order)
        for number, is_guarded in enumerate([True, False] * WARM_UP + order):
            with nullcontext() if is_guarded else _without():
                took = timed(_ask, client, address)
            if number >= 2 * WARM_UP:
                seconds[is_guarded].append(took)
        guarded, bare = (1000 * median(seconds[is_guarded]) for is_guarded in (True, False))
        lines.append(
            Line(
                f"usage API, {name}, with row security", f"{guarded:.2f} ms", "without",
                f"{bare:.2f} ms", f"{guarded / bare:.2f}", "≤ 1.05",
            )
        )  # fmt: skip
        figures[f"row_security_cost_{'hour' if name == 'an hour' else '7d'}"] = round(guarded / bare, 3)
    return lines, figures


@contextmanager
def _without() -> Iterator[None]:
    guard = one_org
    setattr(api, "one_org", _unguarded)  # noqa: B010  a name that is imported there
    try:
        yield
    finally:
        setattr(api, "one_org", guard)  # noqa: B010


def _unguarded(org_id: uuid.UUID) -> Callable[[Callable[..., object]], Callable[..., object]]:
    return lambda handler: handler


def _ask(client: Client, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 200, answer.content
