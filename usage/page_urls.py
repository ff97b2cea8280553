from django.urls import path

from .pages import usage_page

urlpatterns = [path("orgs/<slug:slug>/usage/", usage_page, name="usage")]
