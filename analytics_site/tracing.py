"""Traces by OpenTelemetry, where an OTLP endpoint is set. This module imports nothing of it otherwise.

Instrumentations see much more than a trace may hold, and what they take along changes with their versions. So what
leaves is a list of attributes that are known to be harmless; everything else is dropped.
"""

import atexit
import os
import re
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings

from ingestion import spans

from .schedule import entries

logger = structlog.get_logger(__name__)

FLUSH_TIMEOUT = 2.0  # seconds at the end of a process: the reader of streams has three left of its ten
LOG_INTERVAL = 60.0  # seconds between lines that say that traces do not arrive
# What the clock starts more often than this is no trace: it mostly finds nothing to do. What it does find begins its own.
SELDOM = timedelta(hours=1)
MAX_STATEMENT = 2_000  # characters of SQL
_AFTER = "analytics_site.middleware.RequestLogMiddleware"
# Asked by machinery all the time.
_UNTRACED = "/status/healthz$,/status/readyz$,/metrics$,/static/"

KEPT = frozenset({
    "http.method", "http.request.method", "http.route", "http.status_code", "http.response.status_code", "http.scheme",
    "url.scheme", "http.flavor", "network.protocol.version", "error.type",
    "db.system", "db.system.name", "db.name", "db.namespace", "db.operation", "db.operation.name",
    "db.redis.database_index",
    "celery.task_name", "celery.action", "celery.state", "celery.retries", "messaging.message.id",
    "messaging.message_id", "messaging.destination", "messaging.destination.name", "exception.type",
})  # fmt: skip
_STATEMENTS = ("db.statement", "db.query.text")
_LITERAL = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)

_started_in: int | None = None  # the process
_provider: Any = None
_exporter: Any = None


def start() -> None:
    """Trace this process from here on, where an endpoint is set. Called in each process after it was forked."""
    global _started_in, _provider, _exporter  # noqa: PLW0603
    if not settings.TRACES_ENDPOINT or _started_in == os.getpid():
        return
    _started_in = os.getpid()
    os.environ.setdefault("OTEL_SERVICE_NAME", "analytics-service")
    os.environ.setdefault("OTEL_PROPAGATORS", "tracecontext")  # baggage is whatever a stranger writes into it
    os.environ.setdefault("OTEL_SPAN_LINK_COUNT_LIMIT", str(spans.MAX_LINKS))
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    instance = {"service.instance.id": f"{socket.gethostname()}:{os.getpid()}"}
    _provider = TracerProvider(resource=Resource.create(instance), shutdown_on_exit=False)
    _provider.sampler = _sampler(_provider.sampler)  # around what OTEL_TRACES_SAMPLER says
    _exporter = _harmless(OTLPSpanExporter(endpoint=settings.TRACES_ENDPOINT))
    _provider.add_span_processor(BatchSpanProcessor(_exporter))
    trace.set_tracer_provider(_provider)
    _instrument()
    spans.tell(_provider.get_tracer("analytics"))
    atexit.register(finish)


def finish() -> None:
    """Send what is left, and give it up where that takes longer than `FLUSH_TIMEOUT`."""
    global _provider
    if _provider is None or _started_in != os.getpid():
        return
    provider, _provider = _provider, None
    last = threading.Thread(target=provider.shutdown, name="last traces", daemon=True)
    last.start()
    last.join(FLUSH_TIMEOUT)


def _instrument() -> None:
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.instrumentation.django import DjangoInstrumentor
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.instrumentation.redis import RedisInstrumentor

    # Within the request log: it asks for the request's host, and a wrong one is refused, and logged, like any other time.
    position = settings.MIDDLEWARE.index(_AFTER) + 1
    DjangoInstrumentor().instrument(
        middleware_position=position,
        excluded_urls=_UNTRACED,
        request_hook=_note_request,
        is_sql_commentor_enabled=False,
    )
    PsycopgInstrumentor().instrument()
    RedisInstrumentor().instrument()
    CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]


def _note_request(span: Any, request: Any) -> None:
    """Trace and request know of each other; the request's last line is written when its span is over."""
    spans.annotate(request_id=request.META["HTTP_X_REQUEST_ID"])
    if trace_id := spans.trace_id():
        structlog.contextvars.bind_contextvars(trace_id=trace_id)


def _sampler(asked: Any) -> Any:
    """The sampler that was asked for, of what is a request, a batch or a task's work; not of what polls."""
    from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
    from opentelemetry.trace import SpanKind, get_current_span

    ticks = {f"run/{entry.task}" for entry in entries() if entry.every < SELDOM}

    class Worthwhile(Sampler):
        def should_sample(
            self,
            parent_context: Any,
            trace_id: int,
            name: str,
            kind: SpanKind | None = None,
            attributes: Any = None,
            links: Any = None,
            trace_state: Any = None,
        ) -> SamplingResult:
            parent = get_current_span(parent_context).get_span_context()
            if parent.is_valid:
                is_dropped = not parent.is_remote and not parent.trace_flags.sampled  # whatever the sampler: it was
            else:
                is_dropped = kind in (SpanKind.CLIENT, SpanKind.PRODUCER) or name in ticks
            if is_dropped:
                return SamplingResult(Decision.DROP)
            found: SamplingResult = asked.should_sample(
                parent_context, trace_id, name, kind, attributes, links, trace_state
            )
            return found

        def get_description(self) -> str:
            return f"Worthwhile{{{asked.get_description()}}}"

    return Worthwhile()


def _harmless(exporter: Any) -> Any:
    """An exporter that lets through what a trace may hold."""
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Status

    class Harmless(SpanExporter):
        said = float("-inf")

        def export(self, batch: Any) -> SpanExportResult:
            result: SpanExportResult = exporter.export([_without_secrets(span) for span in batch])
            if result is not SpanExportResult.SUCCESS and time.monotonic() - self.said >= LOG_INTERVAL:
                self.said = time.monotonic()
                logger.warning("traces_not_exported", spans=len(batch))
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return True

    def _without_secrets(span: ReadableSpan) -> ReadableSpan:
        events = [Event(event.name, kept(event.attributes), event.timestamp) for event in span.events]
        return ReadableSpan(
            span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=kept(span.attributes),
            events=events,
            links=span.links,
            kind=span.kind,
            status=Status(span.status.status_code),  # its words are an exception's
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    return Harmless()


def kept(attributes: Any) -> dict[str, Any]:
    """Those that a trace may hold; SQL without its literals."""
    found = {name: value for name, value in (attributes or {}).items() if name in KEPT or name.startswith("analytics.")}
    # Statements of PostgreSQL have placeholders where values go. Redis's hold keys, and would hold values.
    if (attributes or {}).get("db.system", (attributes or {}).get("db.system.name")) == "postgresql":
        for name in _STATEMENTS:
            if name in attributes:
                found[name] = _LITERAL.sub("?", str(attributes[name]))[:MAX_STATEMENT]
    return found
