"""The audit trail: each action leaves one record with all it should say, nobody changes one, an org reads its own alone."""

import csv
import io
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from ingestion import retention
from ingestion.maintenance import carry_out
from orgs import audit
from orgs.actions import Action
from orgs.models import ApiKey, AuditRecord, Invitation, Membership, Org, Role, Scope, StaffRole, User
from orgs.pages import MAX_AUDIT_ROWS

from ..factories import make_key, make_model, make_org, make_user

pytestmark = pytest.mark.django_db

ADDRESS = "203.0.113.7"
REQUEST = {"REMOTE_ADDR": ADDRESS, "HTTP_X_REQUEST_ID": "request-1"}


@pytest.fixture
def org() -> Org:
    return make_org(slug="acme")


def browser(user: User) -> Client:
    client = Client(**REQUEST)
    client.force_login(user)
    return client


def owner(org: Org) -> User:
    return make_user("owner@example.com", org)


# ── One record for each action ───────────────────────────────────────────────────────────────────────────────────
def settings_of(org: Org, name: str, *args: object) -> str:
    return reverse(name, args=[org.slug, *args])


def make_a_key(org: Org) -> str:
    fields = {"name": "sync", "scopes": [Scope.USAGE_READ], "lifetime": "30"}
    browser(owner(org)).post(settings_of(org, "create-key"), fields)
    return f"{ApiKey.objects.get().prefix}: analytics:usage:read"


def revoke_a_key(org: Org) -> str:
    key, _ = ApiKey.issue(org=org, name="old", scopes=[Scope.ADMIN])
    browser(owner(org)).post(settings_of(org, "revoke-key", key.pk))
    return key.prefix


def invite(org: Org) -> str:
    browser(owner(org)).post(settings_of(org, "invite"), {"email": "new@example.com", "role": "viewer"})
    return "new@example.com as viewer"


def withdraw(org: Org) -> str:
    user = owner(org)
    invited, _ = Invitation.issue(org, "new@example.com", Role.VIEWER, user)
    browser(user).post(settings_of(org, "withdraw", invited.pk))
    return "new@example.com"


def change_settings(org: Org) -> str:
    fields = {"name": "Acme & Co", "billing_contact": "", "time_zone": "UTC"}
    browser(owner(org)).post(settings_of(org, "change-org"), fields)
    return "name"


def change_a_role(org: Org) -> str:
    member = Membership.objects.get(user=make_user("m@example.com", org, Role.VIEWER))
    browser(owner(org)).post(settings_of(org, "change-role", member.pk), {"role": "finance"})
    return "m@example.com as finance"


def remove_a_member(org: Org) -> str:
    member = Membership.objects.get(user=make_user("m@example.com", org, Role.VIEWER))
    browser(owner(org)).post(settings_of(org, "remove-member", member.pk))
    return "m@example.com as viewer"


def in_the_admin(name: str, *args: object) -> str:
    return reverse(f"admin:{name}", args=args)


def boss() -> Client:
    return browser(make_user("owner@example.com", is_staff=True, staff_role=StaffRole.ADMIN))


def add_a_member_in_the_admin(org: Org) -> str:
    user = make_user("m@example.com")
    boss().post(in_the_admin("orgs_membership_add"), {"org": org.pk, "user": user.pk, "role": "viewer"})
    return "m@example.com as viewer"


def change_an_org_in_the_admin(org: Org) -> str:
    numbers = {"TOTAL_FORMS": 0, "INITIAL_FORMS": 0, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 1000}
    form = {f"memberships-{name}": number for name, number in numbers.items()}
    form |= {"name": "Globex", "slug": "acme", "time_zone": "UTC"}
    boss().post(in_the_admin("orgs_org_change", org.pk), form)
    return f"orgs.org {org.pk} Globex: Changed Name."


def add_a_price_in_the_admin(org: Org) -> str:
    model = make_model()
    numbers = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 0, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 1000}
    form: dict[str, object] = {f"prices-{name}": number for name, number in numbers.items()}
    form |= {"display_name": model.display_name, "prices-0-model": model.pk}
    form |= {"prices-0-effective_from_0": "2026-01-01", "prices-0-effective_from_1": "00:00:00"}
    form |= {f"prices-0-{kind}_tokens": "3" for kind in ("input", "cached_input", "cache_creation_input", "output")}
    boss().post(in_the_admin("orgs_servedmodel_change", model.pk), form)
    return f"orgs.servedmodel {model.pk} Cedar Large: Added model price “Cedar Large from 2026-01-01”."


def pause_the_schedule(org: Org) -> str:
    from django_celery_beat.models import PeriodicTask

    task = PeriodicTask.objects.get(name="Rotate the dedupe ledger")
    form = {"action": "disable_tasks", "_selected_action": task.pk}
    boss().post(in_the_admin("django_celery_beat_periodictask_changelist"), form)
    return f"django_celery_beat.periodictask {task.pk} {task}: Disable tasks."


def delete_an_interval(org: Org) -> str:
    from django_celery_beat.models import IntervalSchedule

    row = IntervalSchedule.objects.create(every=77, period="days")
    boss().post(in_the_admin("django_celery_beat_intervalschedule_delete", row.pk), {"post": "yes"})
    return f"django_celery_beat.intervalschedule {row.pk} every 77 days: Deleted."


def sign_in(org: Org) -> str:
    owner(org)
    Client(**REQUEST).post("/login/", {"username": "Owner@example.com", "password": "correct horse"})
    return "/login/"


def be_refused(org: Org) -> str:
    browser(make_user("owner@example.com", org, Role.VIEWER)).get(f"/analytics/v1/orgs/{org.pk}/audit")
    return f"admin: GET /analytics/v1/orgs/{org.pk}/audit"


def be_refused_on_a_page(org: Org) -> str:
    browser(make_user("owner@example.com", org, Role.VIEWER)).post(settings_of(org, "create-key"))
    return "admin: POST /orgs/acme/settings/keys"


def be_refused_in_the_admin(org: Org) -> str:
    browser(make_user("owner@example.com", is_staff=True)).post(in_the_admin("orgs_org_change", org.pk), {})
    return f"admin page: POST /admin/orgs/org/{org.pk}/change/"


CASES: list[tuple[Callable[[Org], str], Action, bool]] = [
    (make_a_key, Action.KEY_MADE, True),
    (revoke_a_key, Action.KEY_REVOKED, True),
    (invite, Action.INVITED, True),
    (withdraw, Action.INVITATION_WITHDRAWN, True),
    (change_settings, Action.ORG_CHANGED, True),
    (change_a_role, Action.ROLE_CHANGED, True),
    (remove_a_member, Action.MEMBER_REMOVED, True),
    (add_a_member_in_the_admin, Action.MEMBER_ADDED, True),
    (change_an_org_in_the_admin, Action.ADMIN_CHANGED, True),
    (add_a_price_in_the_admin, Action.ADMIN_CHANGED, False),
    (pause_the_schedule, Action.ADMIN_CHANGED, False),
    (delete_an_interval, Action.ADMIN_DELETED, False),
    (sign_in, Action.SIGNED_IN, False),
    (be_refused, Action.REFUSED, True),
    (be_refused_on_a_page, Action.REFUSED, True),
    (be_refused_in_the_admin, Action.REFUSED, False),
]


@pytest.mark.parametrize(("act", "action", "is_of_org"), CASES, ids=[act.__name__ for act, *_ in CASES])
def test_an_action_leaves_one_record_that_says_all(
    org: Org, act: Callable[[Org], str], action: Action, is_of_org: bool
) -> None:
    before = timezone.now()
    target = act(org)
    found = AuditRecord.objects.get()
    assert (found.actor, found.action, found.target) == ("user:owner@example.com", action, target)
    assert found.org_id == (org.pk if is_of_org else None)
    assert (found.address, found.request_id) == (ADDRESS, "request-1")
    assert found.outcome == ("denied" if action is Action.REFUSED else "done")
    assert before <= found.at <= timezone.now()


def test_a_failed_sign_in_names_the_account_and_no_password() -> None:
    name = "x" * 200 + "@example.com"
    Client(**REQUEST).post("/login/", {"username": "ada@example.com", "password": "open sesame"})
    Client(**REQUEST).post("/admin/login/", {"username": name, "password": "open sesame"})
    found = AuditRecord.objects.order_by("id")
    assert [(r.actor, r.action, r.outcome, r.address) for r in found] == [
        ("user:anonymous", "sign-in failed", "denied", ADDRESS)
    ] * 2
    assert [r.target for r in found] == ["ada@example.com", name[:100]]
    assert "sesame" not in str(list(AuditRecord.objects.values()))


def test_a_new_org_says_who_made_it() -> None:
    from django.core.management import call_command

    call_command("create_org", "Acme", stdout=io.StringIO())
    found = AuditRecord.objects.order_by("id").values_list("actor", "action", "org")
    pk = Org.objects.get().pk
    assert list(found) == [("command:create_org", "member added", pk), ("command:create_org", "key made", pk)]


# ── Nobody changes it ────────────────────────────────────────────────────────────────────────────────────────────
def record(org: Org | None = None, **fields: Any) -> AuditRecord:
    made = {"actor": "user:ada@example.com", "action": Action.KEY_MADE, "org": org} | fields
    return AuditRecord.objects.create(**made)


TAMPERINGS = {
    "save": lambda found: found.save(),
    "update": lambda found: AuditRecord.objects.update(actor="user:nobody"),
    "delete": lambda found: found.delete(),
    "delete all": lambda found: AuditRecord.objects.all().delete(),
    "raw delete": lambda found: run("DELETE FROM orgs_auditrecord"),
    "with the word that retention says": lambda found: run(
        "SET LOCAL analytics.audit_forgets = 'on'; DELETE FROM orgs_auditrecord"
    ),
    "as a replica": lambda found: run("SET LOCAL session_replication_role = replica; DELETE FROM orgs_auditrecord"),
    "truncate": lambda found: run("TRUNCATE orgs_auditrecord"),
}


def run(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.parametrize("way", TAMPERINGS)
def test_a_record_is_never_changed_nor_deleted(org: Org, way: str) -> None:
    if way == "truncate":  # off in tests: those that commit truncate all tables. Back on until this one is rolled back
        run("ALTER TABLE orgs_auditrecord ENABLE ALWAYS TRIGGER audit_keeps_all")
    found = record(org)
    with pytest.raises(IntegrityError, match="kept as they were written"), transaction.atomic():
        TAMPERINGS[way](found)
    assert list(AuditRecord.objects.values_list("actor", flat=True)) == ["user:ada@example.com"]


def test_an_org_that_is_deleted_leaves_its_trail(org: Org) -> None:
    pk = org.pk
    record(org)
    org.delete()
    assert AuditRecord.objects.get().org_id == pk
    client = Client()
    client.force_login(make_user(is_staff=True))
    assert client.get(reverse("admin:orgs_auditrecord_changelist"), {"q": str(pk)}).status_code == 200


# ── Floods ───────────────────────────────────────────────────────────────────────────────────────────────────────
START = datetime.fromisoformat("2026-05-04T10:00:01+00:00")


def test_refusals_are_recorded_once_a_minute(org: Org) -> None:
    other, user = make_org("Globex"), make_user("viewer@example.com", org, Role.VIEWER)
    client = APIClient()
    client.force_login(user)

    def knock() -> None:
        for pk in (org.pk, other.pk):
            for _ in range(5):
                assert client.get(f"/analytics/v1/orgs/{pk}/audit").status_code == 403
        for _ in range(5):  # ids that are made up share one record
            assert client.get(f"/analytics/v1/orgs/{uuid.uuid4()}/audit").status_code == 403

    with time_machine.travel(START, tick=False):
        knock()
        assert sorted(map(str, AuditRecord.objects.values_list("org", flat=True))) == sorted(
            [str(org.pk), str(other.pk), "None"]
        )
    with time_machine.travel(START + timedelta(minutes=1), tick=False):
        knock()
    assert AuditRecord.objects.count() == 6


def test_failed_sign_ins_are_bounded_whatever_names_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_FAILED_SIGN_INS_RECORDED", 3)
    client = Client(REMOTE_ADDR="2001:db8::1")
    with time_machine.travel(START, tick=False):
        for number in range(20):
            client.post(
                "/login/",
                {"username": f"{number}@example.com", "password": "x"},
                REMOTE_ADDR=f"2001:db8::{number + 1:x}",  # one client has all of a /64
            )
    assert AuditRecord.objects.count() == 3


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
def read(org: Org, user: User, **query: object) -> list[dict[str, Any]]:
    client = APIClient()
    client.force_login(user)
    answer = client.get(f"/analytics/v1/orgs/{org.pk}/audit", query)
    assert answer.status_code == 200, answer.content
    return list(answer.json()["items"])


def test_an_org_reads_its_own_trail_alone(org: Org) -> None:
    other = make_org("Globex")
    mine, _, _ = record(org, target="mine"), record(other, target="theirs"), record(None, target="nobody's")
    admins = {place: make_user(org=place) for place in (org, other)}
    assert [found["target"] for found in read(org, admins[org])] == ["mine"]
    assert [found["target"] for found in read(other, admins[other])] == ["theirs"]
    html = browser(admins[other]).get(reverse("audit", args=[other.slug])).content.decode()
    assert "theirs" in html
    assert "mine" not in html.split("<main")[1]
    text = APIClient().get(f"/analytics/v1/orgs/{org.pk}/audit.csv", headers={"X-API-Key": make_key(org, Scope.ADMIN)})
    rows = list(csv.DictReader(io.StringIO(b"".join(text.streaming_content).decode())))
    assert [(row["id"], row["target"]) for row in rows] == [(str(mine.pk), "mine")]
    assert browser(admins[other]).get(reverse("audit", args=[org.slug])).status_code == 403


def test_pages_of_the_api_go_back_without_a_gap(org: Org) -> None:
    made = [record(org).pk for _ in range(7)]
    client = APIClient()
    client.force_login(make_user(org=org))
    address, found = f"/analytics/v1/orgs/{org.pk}/audit?limit=3", []
    while address:
        record(org)  # what comes meanwhile moves nothing
        answer = client.get(address).json()
        found += [item["id"] for item in answer["items"]]
        address = answer["next"]
    assert found[1:] == made[::-1]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "cD1hYmM="}, "cursor"),
        ({"action": "danced"}, "action"),
        ({"actor": "a\0b"}, "actor"),
        ({"actors": "a"}, "actors"),
    ],
)
def test_a_question_that_is_wrong_is_answered_in_words(org: Org, query: dict[str, str], field: str) -> None:
    client = APIClient()
    client.force_login(make_user(org=org))
    answer = client.get(f"/analytics/v1/orgs/{org.pk}/audit", query)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_the_trail_is_filtered_by_actor_and_action(org: Org) -> None:
    record(org, target="a")
    record(org, target="b", actor="key:ak_1", action=Action.EXPORT_ASKED_FOR)
    user = make_user(org=org)
    assert [r["target"] for r in read(org, user, actor="ada@example.com")] == ["a"]
    assert [r["target"] for r in read(org, user, actor="key:ak_1")] == ["b"]
    assert [r["target"] for r in read(org, user, action=Action.EXPORT_ASKED_FOR)] == ["b"]
    html = browser(user).get(reverse("audit", args=[org.slug]), {"actor": "ak_1"}).content.decode()
    assert "key:ak_1" in html
    assert "ada@example.com" not in html.split("<main")[1]


def test_an_org_learns_that_a_stranger_was_refused_and_not_who(org: Org) -> None:
    spy = make_user("spy@globex.example", make_org("Globex"))
    assert browser(spy).get(reverse("audit", args=[org.slug])).status_code == 403
    user = make_user(org=org)
    (found,) = read(org, user)
    assert (found["actor"], found["address"], found["outcome"]) == (audit.STRANGER, None, "denied")
    assert read(org, user, actor="spy@globex.example") == []
    assert len(read(org, user, actor=audit.STRANGER)) == 1
    assert AuditRecord.objects.get(org=org).actor == "user:spy@globex.example"  # staff see who


def test_the_page_goes_back_page_by_page(org: Org) -> None:
    AuditRecord.objects.bulk_create(
        AuditRecord(actor="key:ak_1", action=Action.KEY_MADE, org=org, target=f"no {n}.")
        for n in range(MAX_AUDIT_ROWS + 1)
    )
    client = browser(make_user(org=org))
    first = client.get(reverse("audit", args=[org.slug]))
    assert "no 1." in first.content.decode()
    assert "no 0." not in first.content.decode()
    second = client.get(reverse("audit", args=[org.slug]), {"before": first.context["older"]}).content.decode()
    assert "no 0." in second
    assert "no 1." not in second
    assert client.get(reverse("audit", args=[org.slug]), {"before": "x\0", "action": "?"}).status_code == 200


@pytest.mark.parametrize("role", [Role.ENGINEER, Role.FINANCE, Role.VIEWER])
def test_the_page_is_for_admins_of_the_org(org: Org, role: str) -> None:
    assert browser(make_user(org=org, role=role)).get(reverse("audit", args=[org.slug])).status_code == 403


# ── Retention ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_retention_forgets_what_is_old_and_nothing_else(org: Org) -> None:
    limit = timezone.now() - timedelta(days=settings.AUDIT_RETENTION_DAYS)
    record(org, at=limit - timedelta(minutes=1), target="old")
    record(org, at=limit + timedelta(minutes=1), target="kept")
    record(org, target="new")
    done = [str(step) for step, _ in carry_out(retention.steps(timezone.now())) if "audit" in step.subject]
    assert len(done) == 1
    assert set(AuditRecord.objects.values_list("target", flat=True)) == {"kept", "new"}


def test_what_is_younger_than_thirty_days_is_never_forgotten() -> None:
    record(at=timezone.now() - timedelta(days=29))
    record(at=timezone.now() - timedelta(days=31))
    assert audit.forget(timezone.now() + timedelta(days=1)) == 1
    assert AuditRecord.objects.count() == 1
