"""What Prometheus is told by web: counters of all of its processes together, and the state that no one process knows.

State is read when it is asked for, part by part, within a time that is bounded. A part that can't be read is left out, and
`analytics_state_read` says so: neither a broken database nor one part of it breaks the scrape.
"""

import os
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import structlog
from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, HttpResponse
from kombu.exceptions import OperationalError as BrokerError
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from redis.exceptions import RedisError

from exports.metrics import ExportState
from ingestion.metrics import IngestionState
from orgs.tenancy import DatabaseRole, acting_as
from reliability.metrics import ReliabilityState
from usage.metrics import RollupState

from .database_metrics import DatabaseState
from .task_metrics import TaskState

logger = structlog.get_logger(__name__)

STATEMENT_TIMEOUT = 2.0  # seconds of one statement
BUDGET = 5.0  # seconds; no part is begun later. Prometheus waits for ten


class Part(Protocol):
    def collect(self) -> Iterator[GaugeMetricFamily]: ...


OF_DATABASE: dict[str, Part] = {
    "ingestion": IngestionState(),
    "rollups": RollupState(),
    "reliability": ReliabilityState(),
    "exports": ExportState(),
    "database": DatabaseState(),
}
PARTS: dict[str, Part] = {"tasks": TaskState(), **OF_DATABASE}  # what the database holds last: it may hang


class State:
    """All parts. One thread of a process reads at a time: a database that hangs costs one, not one a scrape."""

    def __init__(self) -> None:
        self._reading = threading.Lock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        began = time.monotonic()
        read = GaugeMetricFamily(
            "analytics_state_read", "1 where this part of the state was read, 0 where it could not be", labels=("part",)
        )
        is_ours = self._reading.acquire(timeout=BUDGET)
        try:
            for name, part in PARTS.items():
                found = _read(name, part) if is_ours and time.monotonic() - began < BUDGET else None
                read.add_metric((name,), found is not None)
                yield from found or ()
        finally:
            if is_ours:
                self._reading.release()
        yield read
        yield GaugeMetricFamily(
            "analytics_state_read_seconds", "How long reading the state took", value=time.monotonic() - began
        )


def _read(name: str, part: Part) -> list[GaugeMetricFamily] | None:
    try:
        if name not in OF_DATABASE:
            return list(part.collect())
        with acting_as(DatabaseRole.TASKS):  # a transaction
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{STATEMENT_TIMEOUT:.0f}s"])
            return list(part.collect())
    except (DatabaseError, InterfaceError, RedisError, BrokerError, OSError) as error:
        logger.warning("state_not_read", part=name, error=str(error))
        return None


_STATE = CollectorRegistry(auto_describe=False)
_STATE.register(State())


def export(request: HttpRequest) -> HttpResponse:
    """Prometheus text: counters, then state."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        counters = CollectorRegistry()
        MultiProcessCollector(counters)  # type: ignore[no-untyped-call]
    else:
        counters = REGISTRY
    return HttpResponse(generate_latest(counters) + generate_latest(_STATE), content_type=CONTENT_TYPE_LATEST)
