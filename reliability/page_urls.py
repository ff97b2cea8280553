from django.urls import path

from . import pages

urlpatterns = [
    path("orgs/<slug:slug>/reliability/", pages.reliability, name="reliability"),
]
