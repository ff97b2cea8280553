"""The reliability page."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from orgs.management.commands.create_org import first_event
from orgs.models import Org, Scope
from orgs.pages import frame, org_page
from usage import filters
from usage.charts import HEIGHT
from usage.display import span_text
from usage.pages import around, named, refusal
from usage.series import Group, Unanswerable, zone_of
from usage.windows import DAY

from . import display, exact, overview

CLIENTS_AT_ONCE = DAY


@org_page(Scope.RELIABILITY_READ)
@require_safe
def reliability(request: HttpRequest, org: Org) -> HttpResponse:
    """How calls of an org ended and how long they took; the query string is the state."""
    asked = filters.read(request.GET, zone_of(org), timezone.now())
    context = frame(request, org, "reliability") | around(org, asked)
    if asked.errors:
        return _refused(request, context | refusal(org, asked.errors))
    try:
        found = overview.read(org, asked)
    except Unanswerable as error:
        return _refused(request, context | refusal(org, {error.field: str(error)}))
    return render(request, "reliability/reliability.html", context | _figures(found))


def _figures(found: overview.Overview) -> dict[str, Any]:
    asked = found.filters
    links = named(found.names, asked)
    if not found.parts:
        return links | {"first_event": first_event(found.org, "YOUR_API_KEY")}
    rate_chart, latency_chart = display.charts(found)
    return (
        links
        | {
            "has_figures": True,
            "totals": display.totals(found, overview.read_before(found.org, asked)),
            "span_before": span_text(asked.window_before, asked),
            "rate_chart": rate_chart,
            "latency_chart": latency_chart,
            "chart_height": HEIGHT,
            "chart_is_coarser": found.timeline.is_coarser,
            "incidents": display.incident_rows(found),
            "more_incidents": display.more_incidents(found),
            "statuses": display.statuses(found),
            "models_listed": display.model_rows(found),
            "step": display.step_name(found),
            "table": display.series_table(found),
        }
        | _exactly(found)
        | _kept_by_the_hour(found)
    )


def _exactly(found: overview.Overview) -> dict[str, Any]:
    """The way to exact percentiles, or back, and what they are where they are asked for."""
    if found.window.end - found.window.start > exact.LONGEST:
        return {}
    values = overview.read_exact(found)
    link = found.filters.link(exact="" if found.filters.exact else "1")
    return {"exact_link": link, "exact": display.exact_percentiles(found, values) if values else []}


def _kept_by_the_hour(found: overview.Overview) -> dict[str, Any]:
    """Clients of a long range come after the rest of the page: there are many rows of them."""
    codes = overview.read_group(found, Group.ERROR_CODE)
    listed = {"codes": None if codes is None else display.code_rows(codes)}
    if found.window.end - found.window.start > CLIENTS_AT_ONCE and not found.filters.clients:
        return listed | {"clients_link": found.filters.link(clients="1")}
    clients = overview.read_group(found, Group.CLIENT)
    return listed | {"clients": None if clients is None else display.client_rows(clients)}


def _refused(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    return render(request, "reliability/reliability.html", context, status=400)
