"""What Prometheus is told: counters of all web processes together, and the state that stands in the database."""

import os

import structlog
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from exports.metrics import ExportState
from ingestion.metrics import StreamState
from orgs.tenancy import DatabaseRole, acting_as
from reliability.metrics import ReliabilityState

logger = structlog.get_logger(__name__)

_STATE = CollectorRegistry(auto_describe=False)
_STATE.register(StreamState())
_STATE.register(ReliabilityState())
_STATE.register(ExportState())


def export(request: HttpRequest) -> HttpResponse:
    """Prometheus text. With the database away, the counters alone."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        counters = CollectorRegistry()
        MultiProcessCollector(counters)  # type: ignore[no-untyped-call]
    else:
        counters = REGISTRY
    text = generate_latest(counters)
    try:
        with acting_as(DatabaseRole.TASKS):
            text += generate_latest(_STATE)
    except (DatabaseError, InterfaceError) as error:
        logger.warning("metrics_without_state", error=error)
    return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)
