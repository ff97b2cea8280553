"""What one org's flood of heavy questions costs another org: its p95 alone and beside the flood, with a bound and without."""

import http.client
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from statistics import quantiles
from urllib.parse import urlencode

from django.utils import timezone

from orgs.models import ApiKey, Org, Scope
from usage.windows import floor_hour

from .measuring import Line, timed
from .rig import Process, environment, free_port, wait_for

CLIENTS = 32  # of the org that floods, each with a key: twice the threads of two processes
PAUSE = 0.1  # seconds after each answer: as often as the limit of a key allows for long
BOUND = 4  # `ORG_CONCURRENCY` as it is by itself
REQUESTS = 40  # of the other org, of each figure
AT_ONCE = 4  # of these


def measure_fairness(flooding: uuid.UUID, other: uuid.UUID) -> tuple[list[Line], dict[str, float]]:
    """gunicorn as in production, two processes of eight threads, on the machine's own cores as all else is."""
    flood_path, keys = _path(flooding, timedelta(days=30)), [_key(flooding) for _ in range(CLIENTS)]
    path, key = _path(other, timedelta(days=7)), _key(other)
    lines: list[Line] = []
    figures: dict[str, float] = {}
    for name, bound in (("bound", BOUND), ("unbound", 0)):
        with _gunicorn(bound) as port:
            alone = _p95(port, path, key)
            with _flood(port, flood_path, keys):
                beside = _p95(port, path, key)
        what = f"usage API beside a flood, bound {bound or 'off'}"
        lines.append(Line(what, f"{beside:,.0f} ms", "alone, p95", f"{alone:,.0f} ms", f"{beside / alone:.1f}", ""))
        figures[f"beside_flood_{name}_p95_ms"] = round(beside)
        figures[f"beside_flood_{name}_ratio"] = round(beside / alone, 1)
    return lines, figures


def _key(org_id: uuid.UUID) -> str:
    return ApiKey.issue(org=Org.objects.get(pk=org_id), name="flood", scopes=[Scope.ADMIN])[1]


def _path(org_id: uuid.UUID, span: timedelta) -> str:
    end = floor_hour(timezone.now())
    query = {"start": (end - span).isoformat(), "end": end.isoformat(), "granularity": "hour"}
    return f"/analytics/v1/orgs/{org_id}/usage?{urlencode(query)}"


@contextmanager
def _gunicorn(bound: int) -> Iterator[int]:
    port = free_port()
    variables = environment(HTTP_PORT=str(port), WEB_CONCURRENCY="2", ORG_CONCURRENCY=str(bound), LOG_LEVEL="ERROR")
    web = Process(
        ("gunicorn", "-c", "deploy/gunicorn.conf.py", "--no-control-socket", "analytics_site.wsgi"), variables
    )
    web.start()
    try:
        wait_for(lambda: _answers(port), "gunicorn does not answer")
        yield port
    finally:
        web.stop(timeout=40)


def _answers(port: int) -> bool:
    with suppress(OSError):
        return _status(port, "/analytics/v1/status/healthz") == 200
    return False


def _status(port: int, path: str, key: str = "") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", path, headers={"X-API-Key": key} if key else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _p95(port: int, path: str, key: str) -> float:
    """Milliseconds, of answers that are right."""

    def ask() -> None:
        status = _status(port, path, key)
        if status != 200:
            raise AssertionError(f"the other organisation was answered {status}")

    with ThreadPoolExecutor(AT_ONCE) as clients:
        seconds = list(clients.map(lambda _: timed(ask), range(AT_ONCE + REQUESTS)))
    return 1000 * quantiles(seconds[AT_ONCE:], n=20)[-1]  # without what first answers load


@contextmanager
def _flood(port: int, path: str, keys: list[str]) -> Iterator[None]:
    over = threading.Event()

    def client(key: str) -> None:
        while not over.wait(PAUSE):
            with suppress(OSError, http.client.HTTPException):
                _status(port, path, key)

    clients = [threading.Thread(target=client, args=[key]) for key in keys]
    for each in clients:
        each.start()
    time.sleep(3)  # it is in full flow
    try:
        yield
    finally:
        over.set()
        for each in clients:
            each.join()
