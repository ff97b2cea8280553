from django.urls import path

from orgs import converters  # noqa: F401  registers anyuuid

from .views import ReliabilityView

urlpatterns = [path("orgs/<anyuuid:org_id>/reliability", ReliabilityView.as_view(), name="api-reliability")]
