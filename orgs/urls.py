from django.urls import path

from . import converters  # noqa: F401  registers anyuuid
from .audit_views import AuditView

urlpatterns = [
    path("orgs/<anyuuid:org_id>/audit", AuditView.as_view(), name="api-audit"),
]
