"""Every address of the service: pages at the root, the API below /analytics/v1, operations."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView

from . import health, metrics
from .schema import DocsView

handler400 = "analytics_site.problems.bad_request"
handler403 = "analytics_site.problems.forbidden"
handler404 = "analytics_site.problems.not_found"
handler500 = "analytics_site.problems.server_error"

api: list[URLPattern | URLResolver] = [
    path("", include("orgs.urls")),
    path("", include("ingestion.urls")),
    path("", include("usage.urls")),
    path("", include("reliability.urls")),
    path("", include("exports.urls")),
    path("status/healthz", health.healthz, name="healthz"),
    path("status/readyz", health.readyz, name="readyz"),
    path("schema", SpectacularAPIView.as_view(), name="schema"),
    path("docs", DocsView.as_view(), name="docs"),
]

urlpatterns = [
    path("analytics/v1/", include(api)),
    path("admin/", admin.site.urls),
    path("metrics", metrics.export, name="metrics"),
    path("", include("orgs.page_urls")),
    path("", include("usage.page_urls")),
    path("", include("reliability.page_urls")),
    path("", include("exports.page_urls")),
]
