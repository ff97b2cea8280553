"""Freshness and the rollup rows of an org in the admin. All is read: `rollups` alone writes."""

import uuid
from collections.abc import Iterable

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse

from orgs.admin import OrgAdmin
from orgs.admin_base import BaseAdmin, Column, Link, Listing, ReadOnly, actor, show_listing
from orgs.limits import MAX_PAGE_ROWS
from orgs.models import Org, ServedModel

from .histogram import percentiles
from .models import DailyUsage, Freshness, HourlyUsage, ZoneInForce


@admin.register(Freshness)
class FreshnessAdmin(ReadOnly, BaseAdmin):
    """One row per org and model: tens of thousands, in the order of their key."""

    list_display = ("org", "model", "last_event_at", "last_rollup_at")
    list_select_related = ("org", "model")
    ordering = ("org_id", "model_id")
    sortable_by = ()
    search_fields = ("org__name", "org__slug", "=org__id", "model__display_name", "=model__id")
    search_help_text = "A part of the name of an org or model, or the whole id."
    fields = list_display

    def get_urls(self) -> list[URLPattern]:
        view = self.wrap(self.rollups_view)
        return [path("rollups/<uuid:org_id>/<slug:grain>/", view, name="usage_rollups"), *super().get_urls()]

    def rollups_view(self, request: HttpRequest, org_id: uuid.UUID, grain: str) -> HttpResponse:
        if not _may_look(request):
            raise PermissionDenied
        org = Org.objects.filter(pk=org_id).first()
        listings = {"hourly": hourly, "daily": daily, "daily-local": daily_local}
        if org is None or grain not in listings:
            raise Http404
        return show_listing(request, self, org, listings[grain](org))


# ── Rollup rows ──────────────────────────────────────────────────────────────────────────────────────────────────
_MEASURES = (
    Column("Model"),
    Column("Calls", is_number=True),
    Column("Errors", is_number=True),
    Column("Timeouts", is_number=True),
    Column("Throttled", is_number=True),
    Column("Input tokens", is_number=True),
    Column("Output tokens", is_number=True),
    Column(f"Cost, cents {settings.CURRENCY}", is_number=True),
    Column("Unpriced calls", is_number=True),
    Column("p50, ms", is_number=True),
    Column("p95, ms", is_number=True),
)


def hourly(org: Org) -> Listing:
    """The latest hourly rows: backwards along the primary key, which is why models descend too."""
    rows = HourlyUsage.objects.filter(org_id=org.pk).order_by("-bucket_start", "-model_id")[:MAX_PAGE_ROWS]
    return _listing(org, "Hourly rollups", "One row per UTC hour and model, latest first.", "Hour (UTC)", rows)


def daily(org: Org) -> Listing:
    about = "One row per UTC day and model, latest first."
    return _listing(org, "Daily rollups", about, "Day (UTC)", _days(org, "UTC"))


def daily_local(org: Org) -> Listing:
    in_force = ZoneInForce.objects.filter(org=org).values_list("time_zone", flat=True).first()
    if in_force is None:
        return _listing(org, "Daily rollups in the org's zone", "The org's days are UTC days.", "Day", ())
    about = f"One row per day of {in_force} and model, latest first."
    return _listing(org, "Daily rollups in the org's zone", about, "Day", _days(org, in_force))


def _days(org: Org, zone: str) -> QuerySet[DailyUsage]:
    """The latest rows of a zone, backwards along the primary key."""
    return DailyUsage.objects.filter(org_id=org.pk, time_zone=zone).order_by("-day", "-model_id")[:MAX_PAGE_ROWS]


def _listing(org: Org, title: str, about: str, bucket: str, found: Iterable[HourlyUsage | DailyUsage]) -> Listing:
    rows = list(found)
    names = dict(ServedModel.objects.filter(pk__in={row.model_id for row in rows}).values_list("pk", "display_name"))
    cells = []
    for row in rows:
        start = f"{row.bucket_start:%Y-%m-%d %H:%M}" if isinstance(row, HourlyUsage) else row.day.isoformat()
        numbers = (
            row.invocations,
            row.errors,
            row.timeouts,
            row.throttled,
            row.input_tokens,
            row.output_tokens,
            row.cost_cents,
            row.unpriced_invocations,
            *percentiles((row.latency_buckets, row.latency_counts), (0.5, 0.95)),
        )
        name = names.get(row.model_id, row.model_id)
        cells.append((start, name, *("–" if number is None else f"{number:,}" for number in numbers)))
    return Listing(f"{title} of {org}", about, (Column(bucket), *_MEASURES), cells, _tabs(org))


_GRAINS = (("Hourly rollups", "hourly"), ("Daily rollups", "daily"), ("Daily rollups, org's zone", "daily-local"))


def _tabs(org: Org) -> list[Link]:
    return [
        Link(label, reverse(f"{admin.site.name}:usage_rollups", args=(org.pk, grain)))
        for label, grain in _GRAINS
        if grain != "daily-local" or org.time_zone != "UTC"
    ]


def _may_look(request: HttpRequest) -> bool:
    return actor(request).has_perms(("usage.view_hourlyusage", "usage.view_dailyusage"))


def _links_of_org(request: HttpRequest, org: Org) -> Iterable[Link]:
    return _tabs(org) if _may_look(request) else ()


OrgAdmin.more_links.append(_links_of_org)
