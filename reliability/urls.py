from django.urls import path

from orgs import converters  # noqa: F401  registers anyuuid

from .views import IncidentsView, ReliabilityView

urlpatterns = [
    path("orgs/<anyuuid:org_id>/reliability", ReliabilityView.as_view(), name="api-reliability"),
    path("orgs/<anyuuid:org_id>/reliability/incidents", IncidentsView.as_view(), name="api-incidents"),
]
