from django.urls import path

from . import pages

urlpatterns = [
    path("orgs/<slug:slug>/usage/", pages.usage, name="usage"),
]
