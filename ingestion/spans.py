"""Spans of what becomes of events. Nobody is told of them until `analytics_site.tracing` names a tracer.

Without one, a span costs some microseconds, and OpenTelemetry is not imported.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

MAX_LINKS = 1_000  # of a span: as many batches as one rollup takes, about 50 bytes each
TRACEPARENT_LENGTH = 55  # characters of https://www.w3.org/TR/trace-context/, version 00

Value = str | int | bool


class Span:
    """A span that nobody is told of."""

    traceparent: str | None = None

    def set(self, **attributes: Value) -> None:
        """Say more about what is done. Never what is in an event, or whose secret it is."""


_NOBODY = Span()
_tracer: Any = None


class _Told(Span):
    def __init__(self, span: Any) -> None:
        self._span = span
        context = span.get_span_context()
        if context.trace_flags.sampled:
            self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, **attributes: Value) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(f"analytics.{name}", value)


def tell(tracer: Any) -> None:
    """From now on spans are this OpenTelemetry tracer's; nobody's with None."""
    global _tracer  # noqa: PLW0603
    _tracer = tracer


@contextmanager
def span(name: str, links: Iterable[str] = (), *, is_root: bool = False, **attributes: Value) -> Iterator[Span]:
    """What is done within is one span, a child of the one it stands in unless it `is_root`.

    `links` are the traceparents of spans whose work is taken up here; what is none is left out.
    """
    if _tracer is None:
        yield _NOBODY
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind

    linked = [Link(context) for context in map(_context_of, islice(links, MAX_LINKS)) if context.is_valid]
    with _tracer.start_as_current_span(
        name,
        context=Context() if is_root else None,
        links=linked,
        kind=SpanKind.CONSUMER if is_root else SpanKind.INTERNAL,
    ) as begun:
        told = _Told(begun)
        told.set(**attributes)
        yield told


def annotate(**attributes: Value) -> None:
    """Say more about the span that this stands in, whoever began it."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        _Told(get_current_span()).set(**attributes)


def trace_id() -> str:
    """Of the span that this stands in; empty where nobody is told of it."""
    if _tracer is None:
        return ""
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""


def _context_of(traceparent: str) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
    return get_current_span(found).get_span_context()
