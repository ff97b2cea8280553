from django.urls import path

from orgs import converters  # noqa: F401  registers anyuuid

from .views import FreshnessView, UsageView

urlpatterns = [
    path("orgs/<anyuuid:org_id>/usage", UsageView.as_view(), name="api-usage"),
    path("orgs/<anyuuid:org_id>/freshness", FreshnessView.as_view(), name="api-freshness"),
]
