from django.urls import path

from orgs import converters  # noqa: F401  registers anyuuid

from .views import EventsView, ValidateView

urlpatterns = [
    path("events/validate", ValidateView.as_view(), name="validate-event"),
    path("orgs/<anyuuid:org_id>/events", EventsView.as_view(), name="send-events"),
]
