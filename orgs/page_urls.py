from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from . import pages

urlpatterns = [
    path("", pages.home, name="home"),
    path("login/", LoginView.as_view(template_name="login.html", redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("invitations/<str:token>/", pages.invitation, name="invitation"),
    path("orgs/", pages.org_list, name="orgs"),
    path("orgs/<slug:slug>/settings/", pages.settings_page, name="settings"),
]
