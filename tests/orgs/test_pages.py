"""Signing in, invitations, the list of orgs, settings: who may do what, what is shown once, what is recorded."""

import re
import uuid

import pytest
from django.conf import LazySettings
from django.test import Client
from django.urls import reverse

from orgs.models import ApiKey, AuditRecord, Invitation, Membership, Org, Role, Scope, User
from tests.factories import make_org, make_user

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse"


def visit(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def org() -> Org:
    return make_org()


@pytest.fixture
def owner(org: Org) -> User:
    return make_user("owner@example.com", org)


def actions(org: Org) -> list[str]:
    return list(AuditRecord.objects.filter(org=org).order_by("id").values_list("action", flat=True))


def settings_of(org: Org, name: str = "settings", *args: int) -> str:
    return reverse(name, args=[org.slug, *args])


# ── Signing in ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_sign_in_leads_to_the_usage_of_ones_org_and_out_again(org: Org, owner: User) -> None:
    client = Client()
    answer = client.post("/login/", {"username": "Owner@example.com", "password": PASSWORD}, follow=True)
    assert answer.redirect_chain[-1][0] == f"/orgs/{org.slug}/usage/"
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/")["Location"] == "/login/"


def test_a_wrong_password_is_said_in_words(owner: User) -> None:
    answer = Client().post("/login/", {"username": owner.email, "password": "wrong"})
    assert "do not belong together" in answer.content.decode()


def test_the_next_page_is_never_another_host(owner: User) -> None:
    answer = Client().post("/login/?next=//evil.example/", {"username": owner.email, "password": PASSWORD})
    assert answer["Location"] == "/"


def test_home_knows_where_one_belongs() -> None:
    assert visit(make_user(is_staff=True)).get("/")["Location"] == "/orgs/"
    assert "not in an organisation yet" in visit(make_user()).get("/").content.decode()
    assert Client().get("/")["Location"] == "/login/?next=/"


# ── The list ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_list_has_the_orgs_that_one_may_see(org: Org, owner: User) -> None:
    make_org("Other")
    assert re.findall(r'<a href="/orgs/[^"]+">([^<]+)</a>', visit(owner).get("/orgs/").content.decode()) == ["Acme"]
    found = visit(make_user(is_staff=True)).get("/orgs/", {"q": "oth\0"}).content.decode()
    assert ">Other</a>" in found.split("<main")[1]
    assert ">Acme</a>" not in found.split("<main")[1]


def test_more_than_ten_orgs_are_searched_and_a_list_is_bounded() -> None:
    for number in range(52):
        make_org(f"Org {number:02}")
    html = visit(make_user(is_staff=True)).get("/orgs/").content.decode()
    assert "Find an organisation" in html
    assert html.split("<main")[1].count('<a href="/orgs/') == 50
    assert "The first 50 are listed" in html


# ── Invitations ──────────────────────────────────────────────────────────────────────────────────────────────────


def invited(org: Org, email: str, role: str = Role.ENGINEER) -> str:
    _, token = Invitation.issue(org, email, role, make_user())
    return reverse("invitation", args=[token])


def test_somebody_new_sets_a_password_and_is_in(org: Org) -> None:
    link, client = invited(org, "new@example.com"), Client()
    assert "Set password and join" in client.get(link).content.decode()
    assert client.post(link, {"password": "12345678", "again": "12345678"}).status_code == 400
    assert client.post(link, {"password": "sunny meadow", "again": "rainy meadow"}).status_code == 400
    answer = client.post(link, {"password": "sunny meadow", "again": "sunny meadow"}, follow=True)
    assert answer.redirect_chain[-1][0] == f"/orgs/{org.slug}/usage/"
    assert Membership.objects.get(org=org, user__email="new@example.com").role == Role.ENGINEER
    assert actions(org) == ["accepted invitation"]
    assert Client().get(link).status_code == 404


def test_somebody_known_signs_in_and_joins(org: Org) -> None:
    link, known = invited(org, "known@example.com"), make_user("known@example.com")
    assert f"/login/?next={link}" in Client().get(link).content.decode()
    client = visit(known)
    assert "without an account" not in client.get(link).content.decode()
    session = client.session.session_key
    client.post(link)
    assert Membership.objects.get(org=org).user == known
    assert client.session.session_key == session  # it is the one that they signed in with, and ends when that does


def test_an_invitation_looks_the_same_whether_or_not_its_address_has_an_account(org: Org) -> None:
    make_user("known@example.com")
    pages = []
    for email in ("known@example.com", "other@example.com"):
        link = invited(org, email)
        html = Client().get(link).content.decode().replace(link, "LINK").replace(email, "EMAIL")
        pages.append(re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", html))
        wrong = Client().post(link, {"password": "sunny meadow", "again": "rainy meadow"})
        assert wrong.status_code == 400
        assert "not the same" in wrong.content.decode()
        assert "for <strong" in visit(make_user()).get(link).content.decode()
    assert pages[0] == pages[1]


def test_an_invitation_changes_nothing_of_an_account_and_asking_is_recorded(org: Org) -> None:
    link, known = invited(org, "known@example.com"), make_user("known@example.com")
    client = Client()
    answer = client.post(link, {"password": "sunny meadow", "again": "sunny meadow"})
    assert answer.status_code == 409
    assert "Sign in with it to join" in answer.content.decode()
    known.refresh_from_db()
    assert known.check_password(PASSWORD)
    assert "_auth_user_id" not in client.session
    assert not Membership.objects.filter(org=org).exists()
    assert actions(org) == ["invitation met an account"]
    assert Client().get(link).status_code == 200


def test_asking_by_invitations_is_slow(org: Org, settings: LazySettings) -> None:
    settings.SIGN_IN_LIMITS = True
    known = make_user()  # what an account has used up outlives a test
    link, client = invited(org, known.email), Client(REMOTE_ADDR=f"2001:db8:{uuid.uuid4().hex[:4]}::1")
    fields = {"password": "sunny meadow", "again": "sunny meadow"}
    assert [client.post(link, fields).status_code for _ in range(12)] == [409] * 10 + [429] * 2
    assert int(client.post(link, fields)["Retry-After"]) > 0


def test_an_account_made_by_an_invitation_confirms_no_address(org: Org) -> None:
    fields = {"password": "sunny meadow", "again": "sunny meadow"}
    Client().post(invited(org, "new@example.com"), fields)
    assert not User.objects.get(email="new@example.com").email_confirmed


def test_without_passwords_an_invitation_makes_no_account(org: Org, settings: LazySettings) -> None:
    settings.SIGN_IN_PASSWORD = False
    link = invited(org, "new@example.com")
    assert "password" not in Client().get(link).content.decode()
    Client().post(link, {"password": "sunny meadow", "again": "sunny meadow"})
    assert not User.objects.filter(email="new@example.com").exists()


def test_nobody_joins_with_an_invitation_for_another(org: Org) -> None:
    make_user("known@example.com")
    for email in ("known@example.com", "new@example.com"):
        link = invited(org, email)
        assert "you are signed in as" in visit(make_user()).post(link).content.decode()
    assert not Membership.objects.filter(org=org).exists()


def test_who_is_a_member_keeps_the_role(org: Org, owner: User) -> None:
    visit(owner).post(invited(org, owner.email, Role.VIEWER))
    assert Membership.objects.get(org=org).role == Role.ORG_ADMIN


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────

CHANGES = ["change-org", "invite", "create-key"]


@pytest.mark.parametrize("role", [Role.ENGINEER, Role.FINANCE, Role.VIEWER])
def test_settings_are_for_admins_of_the_org(org: Org, role: str) -> None:
    client = visit(make_user(org=org, role=role))
    assert client.get(settings_of(org)).status_code == 403
    assert [client.post(settings_of(org, name)).status_code for name in CHANGES] == [403, 403, 403]


def test_settings_are_not_for_staff_nor_strangers(org: Org) -> None:
    for client in (visit(make_user(is_staff=True)), visit(make_user(org=make_org("Other")))):
        assert client.get(settings_of(org)).status_code == 403
        assert [client.post(settings_of(org, name)).status_code for name in CHANGES] == [403, 403, 403]
    assert Client().post(settings_of(org, "create-key"))["Location"] == "/login/?next=/"


def test_a_change_without_its_token_is_refused_in_words(org: Org, owner: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    answer = client.post(settings_of(org, "create-key"))
    assert answer.status_code == 403
    assert "The form was too old" in answer.content.decode()


def test_the_org_is_changed_and_checked(org: Org, owner: User) -> None:
    client = visit(owner)
    fields = {"name": "<i>Acme</i>", "billing_contact": "pay@example.com", "time_zone": "Europe/Berlin"}
    assert client.post(settings_of(org, "change-org"), fields).status_code == 302
    org.refresh_from_db()
    assert (org.name, org.billing_contact, org.time_zone) == tuple(fields.values())
    wrong = client.post(settings_of(org, "change-org"), fields | {"time_zone": "Mars/Olympus", "name": ""})
    assert wrong.status_code == 400
    assert "&lt;i&gt;Acme" in wrong.content.decode()
    assert actions(org) == ["changed organisation"]


def test_a_key_is_shown_once(org: Org, owner: User) -> None:
    client = visit(owner)
    fields = {"name": "sync", "scopes": [Scope.USAGE_READ, Scope.EVENTS_WRITE], "lifetime": "30"}
    shown = client.post(settings_of(org, "create-key"), fields, follow=True)
    token = re.findall(r"ak_[0-9a-f]{8}_[\w-]+", shown.content.decode())[0]
    key = ApiKey.find(token)
    assert key is not None
    assert (key.org, key.scopes, key.created_by) == (org, fields["scopes"], owner)
    assert key.expires_at is not None
    assert "no-store" in shown["Cache-Control"]
    assert token not in client.get(settings_of(org)).content.decode()
    assert actions(org) == ["key made"]


def test_a_key_needs_a_scope(org: Org, owner: User) -> None:
    answer = visit(owner).post(settings_of(org, "create-key"), {"name": "sync"})
    assert answer.status_code == 400
    assert "Choose at least one" in answer.content.decode()


def test_a_key_is_revoked_and_only_by_its_org(org: Org, owner: User) -> None:
    key, token = ApiKey.issue(org=org, name="old", scopes=[Scope.ADMIN])
    other = make_org("Other")
    assert visit(make_user(org=other)).post(settings_of(other, "revoke-key", key.pk)).status_code == 404
    assert ApiKey.find(token) is not None
    client = visit(owner)
    client.post(settings_of(org, "revoke-key", key.pk))
    client.post(settings_of(org, "revoke-key", key.pk))
    assert ApiKey.find(token) is None
    assert actions(org) == ["key revoked"]


def test_an_invitation_is_a_link_shown_once(org: Org, owner: User) -> None:
    client = visit(owner)
    shown = client.post(settings_of(org, "invite"), {"email": "New@example.com", "role": "viewer"}, follow=True)
    link = re.findall(r"/invitations/[\w-]+/", shown.content.decode())[0]
    assert Client().get(link).status_code == 200
    assert link not in client.get(settings_of(org)).content.decode()
    client.post(settings_of(org, "withdraw", Invitation.objects.get().pk))
    assert Client().get(link).status_code == 404
    assert actions(org) == ["invited", "withdrew invitation"]


def test_a_member_is_not_invited_again(org: Org, owner: User) -> None:
    answer = visit(owner).post(settings_of(org, "invite"), {"email": owner.email, "role": "viewer"})
    assert answer.status_code == 400
    assert "member already" in answer.content.decode()


def test_roles_change_and_members_leave(org: Org, owner: User) -> None:
    member = Membership.objects.get(user=make_user(org=org, role=Role.VIEWER))
    client = visit(owner)
    client.post(settings_of(org, "change-role", member.pk), {"role": "finance"})
    member.refresh_from_db()
    assert member.role == Role.FINANCE
    client.post(settings_of(org, "change-role", member.pk), {"role": "emperor"})
    client.post(settings_of(org, "remove-member", member.pk))
    assert not Membership.objects.filter(pk=member.pk).exists()
    assert actions(org) == ["role changed", "member removed"]


def test_the_last_admin_stays(org: Org, owner: User) -> None:
    member, client = Membership.objects.get(user=owner), visit(owner)
    for name in ("change-role", "remove-member"):
        said = client.post(settings_of(org, name, member.pk), {"role": "viewer"}, follow=True).content.decode()
        assert "last admin" in said
    member.refresh_from_db()
    assert member.role == Role.ORG_ADMIN
    assert actions(org) == []


def test_an_admin_may_leave_where_another_stays(org: Org, owner: User) -> None:
    make_user(org=org)
    answer = visit(owner).post(settings_of(org, "remove-member", Membership.objects.get(user=owner).pk))
    assert answer["Location"] == "/"


def test_a_foreign_member_is_not_to_be_found(org: Org, owner: User) -> None:
    foreign = Membership.objects.get(user=make_user(org=make_org("Other")))
    for name in ("change-role", "remove-member"):
        assert visit(owner).post(settings_of(org, name, foreign.pk), {"role": "viewer"}).status_code == 404
