from django.urls import path

from . import pages, provider_pages

urlpatterns = [
    path("", pages.home, name="home"),
    path("login/", pages.SignInView.as_view(), name="login"),
    path("login/provider/", provider_pages.begin, name="begin-sign-in"),
    path("login/provider/callback", provider_pages.come_back, name="come-back"),
    path("login/provider/connect/", provider_pages.connect, name="connect"),
    path("logout/", provider_pages.sign_out, name="logout"),
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
