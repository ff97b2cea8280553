"""What staff can do to orgs, people and keys in the admin, and what nobody can."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core.paginator import Paginator
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from orgs import admin_base
from orgs.admin_base import CappedCount, CappedPaginator, spell
from orgs.models import ApiKey, AuditRecord, Invitation, Membership, Org, Scope, ServedModel, User

from ..factories import make_model, make_org, make_user

pytestmark = pytest.mark.django_db


def page(name: str, *args: object) -> str:
    return reverse(f"admin:{name}", args=args)


def audited() -> list[tuple[str, str]]:
    return list(AuditRecord.objects.order_by("id").values_list("action", "target"))


def messages_of(response: Any) -> str:
    return " ".join(str(message) for message in response.context["messages"])


def members_form(**fields: object) -> dict[str, object]:
    """An org's page, or a person's, without changes to members and identities."""
    return {
        "identities-TOTAL_FORMS": 0,
        "identities-INITIAL_FORMS": 0,
        "memberships-TOTAL_FORMS": 0,
        "memberships-INITIAL_FORMS": 0,
        "memberships-MIN_NUM_FORMS": 0,
        "memberships-MAX_NUM_FORMS": 1000,
    } | fields


def rows_for_every_model() -> None:
    org = make_org()
    user = make_user("member@example.com", org)
    make_model()
    Invitation.issue(org, "guest@example.com", "viewer", user)
    ApiKey.issue(org=org, name="key", scopes=[Scope.ADMIN])
    AuditRecord.objects.create(actor="user:x", action="looked", org=org)


# ── Who gets in ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_page_of_every_registered_model_opens_for_a_superuser(boss: Client) -> None:
    rows_for_every_model()
    opened = set()
    for model, owner in admin.site._registry.items():
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        assert boss.get(page(f"{name}_changelist")).status_code == 200, name
        assert boss.get(page(f"{name}_changelist"), {"q": "zz"}).status_code == 200, name
        adds = boss.get(page(f"{name}_add")).status_code
        assert adds in (200, 403), name
        row = owner.model._default_manager.first()
        if row is not None:
            opened.add(name)
            assert boss.get(page(f"{name}_change", row.pk)).status_code == 200, name
            assert boss.get(page(f"{name}_history", row.pk)).status_code == 200, name
    assert opened >= {"orgs_org", "orgs_apikey", "orgs_membership", "orgs_invitation", "orgs_auditrecord"}
    assert opened >= {"django_celery_beat_periodictask", "django_celery_beat_intervalschedule"}


def test_people_who_are_not_staff_are_sent_to_sign_in(client: Client) -> None:
    client.force_login(make_user(org=make_org()))
    for model in admin.site._registry:
        response = client.get(page(f"{model._meta.app_label}_{model._meta.model_name}_changelist"))
        assert (response.status_code, response["Location"].split("?")[0]) == (302, page("login"))


def test_support_sees_every_table_and_changes_nothing(client: Client) -> None:
    rows_for_every_model()
    client.force_login(make_user(is_staff=True))
    assert client.get(page("index")).status_code == 200
    for model, owner in admin.site._registry.items():
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        assert client.get(page(f"{name}_changelist")).status_code == 200, name
        assert client.get(page(f"{name}_add")).status_code == 403, name
        row = owner.model._default_manager.first()
        if row is not None:
            assert client.get(page(f"{name}_change", row.pk)).status_code == 200, name
            assert client.post(page(f"{name}_change", row.pk), {}).status_code == 403, name
            assert client.post(page(f"{name}_delete", row.pk), {"post": "yes"}).status_code == 403, name


def test_support_sees_no_part_of_a_password(client: Client) -> None:
    user = make_user()
    client.force_login(make_user(is_staff=True))
    html = client.get(page("orgs_user_change", user.pk)).content.decode()
    assert user.email in html
    assert not any(part in html for part in user.password.split("$"))


def test_no_page_carries_an_inline_script_or_style(boss: Client) -> None:
    rows_for_every_model()
    urls = [page("index")]
    for model, owner in admin.site._registry.items():
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        row = owner.model._default_manager.first()
        urls += [page(f"{name}_changelist"), *([page(f"{name}_change", row.pk)] if row else [])]
    for url in urls:
        html = boss.get(url).content.decode()
        inline = [
            tag for tag in re.findall(r"<script[^>]*>", html) if "src=" not in tag and "application/json" not in tag
        ]
        assert inline == [], url
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=\"", html), url


# ── Counting ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_count_stops_at_the_limit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_base, "MAX_ADMIN_COUNT", 3)
    AuditRecord.objects.bulk_create(AuditRecord(actor="x", action="y") for _ in range(5))
    pages: Paginator[Any] = CappedPaginator(AuditRecord.objects.order_by("-id"), 2)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert (pages.count, str(pages.count), f"{pages.count:,}") == (3, "3+", "3+")
    assert re.search(r"FROM \(SELECT .* LIMIT 4\)", queries[0]["sql"])
    assert [len(pages.page(number)) for number in pages.page_range] == [2, 1]


def test_a_small_table_is_counted_exactly(boss: Client) -> None:
    AuditRecord.objects.bulk_create(AuditRecord(actor="x", action="y") for _ in range(5))
    assert "5 audit records" in " ".join(boss.get(page("orgs_auditrecord_changelist")).content.decode().split())
    assert str(CappedCount(10_000)) == "10,000+"


# ── Orgs and models ──────────────────────────────────────────────────────────────────────────────────────────────
def test_a_stub_is_completed_by_naming_it_and_unticking(boss: Client) -> None:
    org = make_org("Unregistered", is_stub=True)
    listed = boss.get(page("orgs_org_changelist"), {"is_stub__exact": 1}).content.decode()
    assert "Unregistered" in listed
    form = members_form(name="Acme", slug="acme", billing_contact="", time_zone="Europe/Berlin")
    assert boss.post(page("orgs_org_change", org.pk), form).status_code == 302
    org.refresh_from_db()
    assert (org.name, org.slug, org.time_zone, org.is_stub) == ("Acme", "acme", "Europe/Berlin", False)
    assert LogEntry.objects.get().object_id == str(org.pk)


@pytest.mark.parametrize(("field", "value"), [("time_zone", "Mars/Olympus"), ("slug", "no slug!"), ("slug", "taken")])
def test_a_zone_or_slug_that_does_not_do_is_refused(boss: Client, field: str, value: str) -> None:
    make_org("Other", slug="taken")
    org = make_org("Acme", slug="acme")
    form = members_form(name="Acme", slug="acme", time_zone="UTC") | {field: value}
    response = boss.post(page("orgs_org_change", org.pk), form)
    assert list(response.context["adminform"].form.errors) == [field]


def test_orgs_models_people_and_keys_cannot_be_deleted(boss: Client) -> None:
    rows_for_every_model()
    for model in (Org, ServedModel, User, ApiKey, AuditRecord, Invitation):
        name = f"orgs_{model._meta.model_name}"
        row = model._default_manager.order_by("pk")[0]
        assert boss.post(page(f"{name}_delete", row.pk), {"post": "yes"}).status_code == 403
        boss.post(page(f"{name}_changelist"), {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"})
        assert model._default_manager.filter(pk=row.pk).exists()


def test_a_model_gets_dated_prices_and_no_negative_ones(boss: Client) -> None:
    model = make_model()
    form = {
        "display_name": "Cedar",
        "prices-TOTAL_FORMS": 1,
        "prices-INITIAL_FORMS": 0,
        "prices-0-model": model.pk,
        "prices-0-effective_from_0": "2026-01-01",
        "prices-0-effective_from_1": "00:00:00",
        "prices-0-input_tokens": "300",
        "prices-0-cached_input_tokens": "30",
        "prices-0-cache_creation_input_tokens": "375",
        "prices-0-output_tokens": "-1",
    }
    assert boss.post(page("orgs_servedmodel_change", model.pk), form).status_code == 200
    assert model.prices.count() == 0
    boss.post(page("orgs_servedmodel_change", model.pk), form | {"prices-0-output_tokens": "1500"})
    assert model.prices.get().output_tokens == 1500


# ── Members and people ───────────────────────────────────────────────────────────────────────────────────────────
def test_members_come_change_and_go_with_an_audit_record(boss: Client) -> None:
    org, user = make_org(), make_user("ada@example.com")
    boss.post(page("orgs_membership_add"), {"org": org.pk, "user": user.pk, "role": "viewer"})
    member = Membership.objects.get()
    boss.post(page("orgs_membership_change", member.pk), {"role": "finance"})
    boss.post(page("orgs_membership_delete", member.pk), {"post": "yes"})
    assert not Membership.objects.exists()
    assert audited() == [
        ("member added", "ada@example.com as viewer"),
        ("role changed", "ada@example.com as finance"),
        ("member removed", "ada@example.com as finance"),
    ]
    assert set(AuditRecord.objects.values_list("actor", "org_id")) == {("user:boss@example.com", org.pk)}


def test_members_on_an_orgs_page_are_audited_too(boss: Client) -> None:
    org, user = make_org(slug="acme"), make_user("ada@example.com")
    form = members_form(name="Acme", slug="acme", time_zone="UTC") | {
        "memberships-TOTAL_FORMS": 1,
        "memberships-0-org": org.pk,
        "memberships-0-user": user.pk,
        "memberships-0-role": "engineer",
    }
    assert boss.post(page("orgs_org_change", org.pk), form).status_code == 302
    assert audited() == [("member added", "ada@example.com as engineer")]


def test_a_person_is_added_by_address_in_lower_case(boss: Client) -> None:
    form = {
        "email": "New.Person@Example.com",
        "usable_password": "true",
        "password1": "a good long phrase",
        "password2": "a good long phrase",
    }
    assert boss.post(page("orgs_user_add"), form).status_code == 302
    user = User.objects.get(email="new.person@example.com")
    assert user.check_password("a good long phrase")
    assert not user.is_staff


def test_staff_cannot_give_rights_that_they_lack_nor_take_over_a_superuser(client: Client) -> None:
    staff = make_user("staff@example.com", is_staff=True)
    staff.user_permissions.set(Permission.objects.filter(codename__in=("view_user", "change_user")))
    superuser = make_user("root@example.com", is_staff=True, is_superuser=True)
    client.force_login(staff)
    form = members_form(email="staff@example.com", is_active="on", is_staff="on", is_superuser="on")
    assert client.post(page("orgs_user_change", staff.pk), form).status_code == 302
    staff.refresh_from_db()
    assert not staff.is_superuser
    assert client.post(page("orgs_user_change", superuser.pk), form).status_code == 403
    taken = {"usable_password": "true", "password1": "a good long phrase", "password2": "a good long phrase"}
    assert client.post(page("auth_user_password_change", superuser.pk), taken).status_code == 403


# ── Keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_keys_token_is_shown_once_and_never_its_hash(boss: Client) -> None:
    org = make_org()
    form = {"org": org.pk, "name": "collector", "scopes": [Scope.EVENTS_WRITE]}
    response = boss.post(page("orgs_apikey_add"), form, follow=True)
    key = ApiKey.objects.get()
    (token,) = re.findall(rf"{key.prefix}_[\w-]+", response.content.decode())
    assert ApiKey.find(token) == key
    assert (key.org, key.scopes, key.created_by) == (org, [Scope.EVENTS_WRITE], User.objects.get())
    for url in (
        page("orgs_apikey_changelist"),
        page("orgs_apikey_change", key.pk),
        page("orgs_apikey_history", key.pk),
    ):
        html = boss.get(url).content.decode()
        assert token not in html
        assert key.key_hash not in html
    assert audited() == [("key made", f"{key.prefix}: analytics:events:write")]
    assert token not in LogEntry.objects.get().change_message


def test_a_key_without_an_org_is_the_platforms(boss: Client) -> None:
    boss.post(page("orgs_apikey_add"), {"org": "", "name": "collector", "scopes": [Scope.EVENTS_WRITE]})
    assert ApiKey.objects.get().org is None


def test_a_key_that_is_expired_from_the_start_or_has_no_scope_is_refused(boss: Client) -> None:
    form = {"name": "old", "expires_at_0": "2020-01-01", "expires_at_1": "00:00:00"}
    errors = boss.post(page("orgs_apikey_add"), form).context["adminform"].form.errors
    assert set(errors) == {"scopes", "expires_at"}
    assert not ApiKey.objects.exists()


def test_a_key_cannot_be_edited(boss: Client) -> None:
    key, _ = ApiKey.issue(org=None, name="key", scopes=[Scope.USAGE_READ])
    form = {"name": "mine", "prefix": "ak_mine", "key_hash": "0" * 64, "scopes": [Scope.ADMIN]}
    assert boss.post(page("orgs_apikey_change", key.pk), form).status_code == 403
    again = ApiKey.objects.get()
    assert (again.name, again.prefix, again.key_hash, again.scopes) == (key.name, key.prefix, key.key_hash, key.scopes)


def test_revoking_asks_first_and_is_audited(boss: Client) -> None:
    key, token = ApiKey.issue(org=make_org(), name="key", scopes=[Scope.USAGE_READ])
    asked = boss.post(page("orgs_apikey_changelist"), {"action": "revoke", "_selected_action": key.pk})
    assert "Revoke 1 API key?" in asked.content.decode()
    assert boss.get(page("orgs_apikey_revoke"), {"ids": key.pk}).context["question"].ids == str(key.pk)
    assert ApiKey.find(token) is not None
    response = boss.post(page("orgs_apikey_revoke"), {"ids": key.pk}, follow=True)
    assert ApiKey.find(token) is None
    assert str(key) in messages_of(response)
    assert audited() == [("key revoked", key.prefix)]
    assert LogEntry.objects.get().object_id == str(key.pk)
    boss.post(page("orgs_apikey_revoke"), {"ids": key.pk})
    assert len(audited()) == 1


def test_staff_who_may_only_look_cannot_revoke(client: Client) -> None:
    key, token = ApiKey.issue(org=None, name="key", scopes=[Scope.USAGE_READ])
    staff = make_user(is_staff=True)
    staff.user_permissions.set(Permission.objects.filter(codename="view_apikey"))
    client.force_login(staff)
    assert client.get(page("orgs_apikey_change", key.pk)).status_code == 200
    assert client.post(page("orgs_apikey_revoke"), {"ids": key.pk}).status_code == 403
    assert client.get(page("orgs_apikey_add")).status_code == 403
    assert ApiKey.find(token) is not None


# ── The trail ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_trail_is_read_and_never_written(boss: Client) -> None:
    org = make_org()
    record = AuditRecord.objects.create(actor="user:ada@example.com", action="looked", org=org)
    AuditRecord.objects.create(actor="key:ak_1", action="sent", at=timezone.now() - timedelta(days=1))
    assert boss.post(page("orgs_auditrecord_change", record.pk), {"action": "nothing"}).status_code == 403
    assert boss.post(page("orgs_auditrecord_add"), {"action": "nothing"}).status_code == 403
    for term in (str(org.pk), "ada@example.com", "user:ada@example.com"):
        found = boss.get(page("orgs_auditrecord_changelist"), {"q": term}).context["cl"].result_list
        assert [row.pk for row in found] == [record.pk]


def test_the_schedules_actions_are_logged(boss: Client) -> None:
    from django_celery_beat.models import PeriodicTask

    task = PeriodicTask.objects.get(name="Rotate the dedupe ledger")
    form = {"action": "disable_tasks", "_selected_action": task.pk}
    boss.post(page("django_celery_beat_periodictask_changelist"), form)
    task.refresh_from_db()
    assert not task.enabled
    assert (LogEntry.objects.get().object_id, LogEntry.objects.get().change_message) == (str(task.pk), "Disable tasks.")


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(milliseconds=12), "12 ms"),
        (timedelta(seconds=4.25), "4.2 s"),
        (timedelta(minutes=61), "1 h 1 min"),
        (timedelta(days=3, hours=4), "3 days 4 h"),
    ],
)
def test_durations_are_spelled_in_two_units(span: timedelta, words: str) -> None:
    assert spell(span) == words
