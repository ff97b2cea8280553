"""Incidents in the admin. All is read: `watching` alone writes."""

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest

from orgs.admin_base import BaseAdmin, ReadOnly
from orgs.models import ServedModel
from usage.formatting import latency

from .detection import Measure
from .models import Incident


def _told(incident: Incident, value: float) -> str:
    return latency(value) if incident.measure == Measure.P95 else f"{value:.1%}"


@admin.register(Incident)
class IncidentAdmin(ReadOnly, BaseAdmin):
    """A few for each org and month."""

    list_display = ("org", "whose", "measure", "started_at", "ended_at", "state", "seen", "usual", "failures")
    list_select_related = ("org",)
    list_filter = ("is_open", "measure")
    search_fields = ("org__name", "org__slug", "=org__id")
    search_help_text = "A part of the name of an org, or its whole id."
    ordering = ("-ended_at",)
    sortable_by = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Incident]:
        name = ServedModel.objects.filter(pk=OuterRef("model_id")).values("display_name")[:1]
        found: QuerySet[Incident] = super().get_queryset(request)
        return found.annotate(model_name=Subquery(name))

    @admin.display(description="model")
    def whose(self, incident: Incident) -> str:
        name: str | None = getattr(incident, "model_name", None)
        return name or ("all together" if incident.model_id is None else str(incident.model_id))

    @admin.display(description="state")
    def state(self, incident: Incident) -> str:
        return "ongoing" if incident.is_open else "over"

    @admin.display(description="observed")
    def seen(self, incident: Incident) -> str:
        return _told(incident, incident.observed)

    @admin.display(description="normal")
    def usual(self, incident: Incident) -> str:
        return _told(incident, incident.normal)
