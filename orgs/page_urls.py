from django.contrib.auth.views import LogoutView
from django.urls import path

from . import pages

urlpatterns = [
    path("", pages.home, name="home"),
    path("login/", pages.SignInView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("invitations/<str:token>/", pages.invitation, name="invitation"),
    path("orgs/", pages.org_list, name="orgs"),
    path("orgs/<slug:slug>/settings/", pages.org_settings, name="settings"),
    path("orgs/<slug:slug>/settings/audit/", pages.audit_trail, name="audit"),
    path("orgs/<slug:slug>/settings/organisation", pages.change_org, name="change-org"),
    path("orgs/<slug:slug>/settings/members/<int:membership_id>/role", pages.change_role, name="change-role"),
    path("orgs/<slug:slug>/settings/members/<int:membership_id>/remove", pages.remove_member, name="remove-member"),
    path("orgs/<slug:slug>/settings/invitations", pages.invite, name="invite"),
    path("orgs/<slug:slug>/settings/invitations/<int:invitation_id>/withdraw", pages.withdraw, name="withdraw"),
    path("orgs/<slug:slug>/settings/keys", pages.create_key, name="create-key"),
    path("orgs/<slug:slug>/settings/keys/<int:key_id>/revoke", pages.revoke_key, name="revoke-key"),
]
