"""The usage page."""

import dataclasses

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from orgs.models import Org, Scope
from orgs.pages import frame, org_page

from .filters import GRANULARITIES, MEASURES, RANGES, Filters
from .report import build
from .series import Unanswerable


@org_page(Scope.USAGE_READ)
def usage_page(request: HttpRequest, org: Org) -> HttpResponse:
    """Spend, invocations and tokens of an org: the query string says of when and of what."""
    filters = Filters.read(request.GET, org, timezone.now())
    report = None
    if not filters.errors:
        try:
            report = build(filters)
        except Unanswerable as error:
            filters = dataclasses.replace(filters, errors={error.field: str(error)})
    context = frame(request, org, "usage") | {
        "filters": filters,
        "report": report,
        "ranges": RANGES.items(),
        "measures": MEASURES.items(),
        "granularities": GRANULARITIES.items(),
        "public_url": settings.PUBLIC_URL,
        "csv_link": filters.link(page=""),
    }
    return render(request, "usage/usage.html", context, status=400 if filters.errors else 200)
