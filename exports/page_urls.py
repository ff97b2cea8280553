from django.urls import path

from . import pages

_EXPORTS = "orgs/<slug:slug>/exports/"

urlpatterns = [
    path("orgs/<slug:slug>/usage.csv", pages.usage_csv, name="usage-csv"),
    path(_EXPORTS, pages.exports, name="exports"),
    path(f"{_EXPORTS}new", pages.create, name="export-create"),
    path(f"{_EXPORTS}<uuid:job_id>/cancel", pages.cancel, name="export-cancel"),
    path(f"{_EXPORTS}<uuid:job_id>/rerun", pages.rerun, name="export-rerun"),
    path(f"{_EXPORTS}<uuid:job_id>/download", pages.download, name="export-download"),
    path("exports/files/<str:token>", pages.signed_file, name="export-file"),
]
