from django.urls import path

from .pages import usage_csv

urlpatterns = [path("orgs/<slug:slug>/usage.csv", usage_csv, name="usage-csv")]
