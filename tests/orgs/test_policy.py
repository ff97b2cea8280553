"""The table of permissions and roles is what docs, scopes and the admin say."""

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import AnonymousUser
from django.test import Client, RequestFactory
from django.urls import reverse

from orgs.models import Role, Scope, StaffRole, User
from orgs.policy import ALL_SCOPES, ROLE_SCOPES, STAFF_SCOPES, TABLE, Duty, StaffBackend, as_markdown

from ..factories import make_user

pytestmark = pytest.mark.django_db


def test_docs_have_the_table() -> None:
    text = (settings.BASE_DIR / "docs" / "access.md").read_text()
    assert as_markdown() in text, "manage.py access_table prints it"


def test_every_permission_has_its_line() -> None:
    assert set(TABLE) == {*Scope, *Duty}


def test_the_scopes_of_roles_are_the_contracts() -> None:
    reads = {Scope.USAGE_READ, Scope.RELIABILITY_READ}
    exports = {Scope.EXPORTS_CREATE, Scope.EXPORTS_READ, Scope.EXPORTS_DOWNLOAD}
    assert {
        Role.ORG_ADMIN: ALL_SCOPES,
        Role.ENGINEER: reads | exports,
        Role.FINANCE: reads | exports,
        Role.VIEWER: reads,
    } == ROLE_SCOPES
    assert reads | {Scope.EXPORTS_READ, Scope.EXPORTS_DOWNLOAD} == STAFF_SCOPES


def changes(user: User) -> set[str]:
    """What somebody may add, change and delete in the admin, by its own pages."""
    request = RequestFactory().get("/admin/")
    request.user = user
    verbs = ("add", "change", "delete")
    return {
        f"{verb} {model._meta.label_lower}"
        for model, owner in admin.site._registry.items()
        for verb in verbs
        if getattr(owner, f"has_{verb}_permission")(request)
    }


def test_staff_admins_change_what_superusers_do_but_for_groups() -> None:
    superuser = make_user(is_staff=True, is_superuser=True)
    staff_admin = make_user(is_staff=True, staff_role=StaffRole.ADMIN)
    groups = {f"{verb} auth.group" for verb in ("add", "change", "delete")}
    assert changes(staff_admin) == changes(superuser) - groups
    assert changes(make_user(is_staff=True)) == set()
    assert changes(make_user(staff_role=StaffRole.ADMIN)) == set()  # a role without being staff


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({}, None),
        ({"staff_role": StaffRole.ADMIN}, None),
        ({"is_staff": True}, StaffRole.SUPPORT),
        ({"is_staff": True, "staff_role": StaffRole.ADMIN}, StaffRole.ADMIN),
        ({"is_staff": True, "is_superuser": True}, StaffRole.ADMIN),
        ({"is_staff": True, "is_active": False}, None),
    ],
)
def test_the_role_that_counts(fields: dict[str, object], held: StaffRole | None) -> None:
    assert make_user(**fields).staff_role_held is held


def test_nobody_has_no_permission() -> None:
    assert StaffBackend().get_all_permissions(AnonymousUser()) == set()


def person_form(user: User, **fields: object) -> dict[str, object]:
    numbers = {"TOTAL_FORMS": 0, "INITIAL_FORMS": 0, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 1000}
    form = {f"{rows}-{name}": number for rows in ("memberships", "identities") for name, number in numbers.items()}
    return form | {"email": user.email, "is_active": "on", "staff_role": user.staff_role} | fields


def test_a_staff_admin_makes_staff_and_never_a_superuser(client: Client) -> None:
    client.force_login(make_user(is_staff=True, staff_role=StaffRole.ADMIN))
    user = make_user("new@example.com")
    form = person_form(user, is_staff="on", staff_role=StaffRole.ADMIN, is_superuser="on")
    assert client.post(reverse("admin:orgs_user_change", args=[user.pk]), form).status_code == 302
    user.refresh_from_db()
    assert (user.staff_role_held, user.is_superuser) == (StaffRole.ADMIN, False)


def test_who_only_has_the_permission_to_change_people_takes_over_no_staff_admin(client: Client) -> None:
    from django.contrib.auth.models import Permission

    support = make_user(is_staff=True)
    support.user_permissions.set(Permission.objects.filter(codename="change_user"))
    client.force_login(support)
    staff_admin = make_user(is_staff=True, staff_role=StaffRole.ADMIN)
    page = reverse("admin:orgs_user_change", args=[staff_admin.pk])
    assert client.post(page, person_form(staff_admin)).status_code == 403
    form = person_form(support, is_staff="on", staff_role=StaffRole.ADMIN)
    client.post(reverse("admin:orgs_user_change", args=[support.pk]), form)
    support.refresh_from_db()
    assert support.staff_role_held is StaffRole.SUPPORT
