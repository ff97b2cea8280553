from django.urls import path

from orgs import converters  # noqa: F401  registers anyuuid

from . import job_views
from .views import AuditCsvView, IncidentView

_EXPORTS = "orgs/<anyuuid:org_id>/exports"
_EXPORT = f"{_EXPORTS}/<anyuuid:job_id>"

urlpatterns = [
    path("orgs/<anyuuid:org_id>/reliability/incident.csv", IncidentView.as_view(), name="api-incident-csv"),
    path("orgs/<anyuuid:org_id>/audit.csv", AuditCsvView.as_view(), name="api-audit-csv"),
    path("exports/datasets", job_views.DatasetsView.as_view(), name="api-export-datasets"),
    path(_EXPORTS, job_views.ExportsView.as_view(), name="api-exports"),
    path(_EXPORT, job_views.ExportView.as_view(), name="api-export"),
    path(f"{_EXPORT}/download", job_views.DownloadView.as_view(), name="api-export-download"),
    path(f"{_EXPORT}/cancel", job_views.CancelView.as_view(), name="api-export-cancel"),
    path(f"{_EXPORT}/rerun", job_views.RerunView.as_view(), name="api-export-rerun"),
]
