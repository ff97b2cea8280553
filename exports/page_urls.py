from django.urls import path

from . import pages

urlpatterns = [
    path("orgs/<slug:slug>/usage.csv", pages.usage_csv, name="usage-csv"),
]
