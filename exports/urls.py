from django.urls import path

from orgs import converters  # noqa: F401  registers anyuuid

from .views import IncidentView

urlpatterns = [path("orgs/<anyuuid:org_id>/reliability/incident.csv", IncidentView.as_view(), name="api-incident-csv")]
