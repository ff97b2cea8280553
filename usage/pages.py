"""The usage page."""

import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_safe

from orgs.management.commands.create_org import first_event
from orgs.models import Org, Scope
from orgs.pages import frame, org_page
from orgs.templatetags.moments import moment_text

from . import display, filters, freshness, overview
from .charts import HEIGHT
from .series import Unanswerable, zone_of


@org_page(Scope.USAGE_READ)
@require_safe
def usage(request: HttpRequest, org: Org) -> HttpResponse:
    """What an org used and spent; the query string is the state."""
    asked = filters.read(request.GET, zone_of(org), timezone.now())
    context = frame(request, org, "usage") | around(org, asked) | _choices(asked)
    if asked.errors:
        return _refused(request, context | refusal(org, asked.errors))
    try:
        found = overview.read(org, asked)
    except Unanswerable as error:
        return _refused(request, context | refusal(org, {error.field: str(error)}))
    return render(request, "usage/usage.html", context | _figures(found))


def around(org: Org, asked: filters.Filters) -> dict[str, Any]:
    """What a page of figures shows whether or not the question has an answer."""
    entry = freshness.overall(org.pk)
    return {
        "filters": asked,
        "carried": asked.carried,
        "ranges": filters.RANGES,
        "granularities": filters.GRANULARITIES,
        "span": display.span_text(asked.window, asked),
        "zone": display.zone_text(asked),
        "freshness": display.freshness_note(entry, asked),
        "is_new": entry.last_event_at is None,
        "last_event": moment_text(entry.last_event_at, asked.zone) if entry.last_event_at else "",
        "month_link": asked.link(range="30d", exact=""),
    }


def named(names: dict[uuid.UUID, str], asked: filters.Filters) -> dict[str, Any]:
    """The models to choose from, and the one that was chosen."""
    return {
        "models": by_name(names),
        "model_name": names[asked.model] if asked.model else "",
        "clear_model": asked.link(model=None),
    }


def refusal(org: Org, errors: Mapping[str, str]) -> dict[str, Any]:
    """The models, so that the form stands again, and what is wrong beside it."""
    names = {"start": "The start", "end": "The end", "model": "The model"}
    said = [f"{names.get(field, field.capitalize())} {message}." for field, message in errors.items()]
    return {"models": by_name(overview.names_of(overview.models_of(org))), "errors": said}


def _choices(asked: filters.Filters) -> dict[str, Any]:
    """What else the usage page can show, and what its form keeps of that."""
    return {
        "measures": [(asked.link(measure=key), name, key) for key, name in filters.MEASURES.items()],
        "kinds": [(asked.link(group=key, sort="-spend"), name, key) for key, name in filters.KINDS.items()],
        "groups": [(asked.link(group=key), name, key) for key, name in _groups(asked)],
        "kept": [("measure", asked.measure), ("group", asked.group), ("sort", asked.sort)],
    }


def _groups(asked: filters.Filters) -> list[tuple[str, str]]:
    """What the rows of the series can be."""
    kind = "client" if asked.group == "client" else "model"
    return [(kind, filters.GROUPS[kind]), ("none", filters.GROUPS["none"])]


def _figures(found: overview.Overview) -> dict[str, Any]:
    asked = found.filters
    links = named(found.names, asked)
    if not found.points:
        return links | {"first_event": first_event(found.org, "YOUR_API_KEY")}
    chart, colours, is_coarser = display.chart(found)
    return links | {
        "has_figures": True,
        "totals": display.totals(found, overview.read_before(found.org, asked)),
        "unpriced": display.unpriced_notes(found),
        "span_before": display.span_text(asked.window_before, asked),
        "csv_link": reverse("usage-csv", args=[found.org.slug]) + asked.link(),
        "export_link": reverse("exports", args=[found.org.slug]) + _begun_with(asked),
        "chart": chart,
        "chart_height": HEIGHT,
        "chart_is_coarser": is_coarser,
        "unit": display.UNITS[asked.measure],
        "noun": "Client" if found.is_by_client else "Model",
        "columns": display.part_columns(asked),
        "rows": display.part_rows(found, colours),
        "table": display.series_table(found),
    }


def _begun_with(asked: filters.Filters) -> str:
    """The query string that the exports page's form begins with: the same figures."""
    said = {
        "range": asked.range,
        "granularity": asked.grain,
        "model": asked.model,
        "start": asked.start,
        "end": asked.end,
    }
    return "?" + urlencode({name: value for name, value in said.items() if value})


def by_name(names: dict[uuid.UUID, str]) -> list[tuple[uuid.UUID, str]]:
    """Models as a list to choose from has them."""
    return sorted(names.items(), key=lambda item: item[1].casefold())


def _refused(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    return render(request, "usage/usage.html", context, status=400)
