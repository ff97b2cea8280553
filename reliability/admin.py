"""Incidents in the admin. All is read: `watching` alone writes."""

from django.contrib import admin

from orgs.admin_base import BaseAdmin, ReadOnly

from .models import Incident


@admin.register(Incident)
class IncidentAdmin(ReadOnly, BaseAdmin):
    """A few for each org and month."""

    list_display = ("org", "measure", "started_at", "ended_at", "is_open", "observed", "normal", "failures")
    list_select_related = ("org",)
    list_filter = ("is_open", "measure")
    search_fields = ("org__name", "org__slug", "=org__id")
    search_help_text = "A part of the name of an org, or its whole id."
    ordering = ("-ended_at",)
    sortable_by = ()
