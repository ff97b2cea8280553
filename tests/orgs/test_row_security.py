"""Row-level security: in the transaction of an org there is nothing of another, whatever the query says or forgets."""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.core.cache import cache
from django.db import DatabaseError, ProgrammingError, close_old_connections, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from psycopg import sql
from rest_framework.test import APIClient

from exports.datasets.incident_events import Incident as IncidentFile
from exports.jobs import Wanted
from exports.models import ExportBucket
from orgs import audit, row_security
from orgs.actions import Action
from orgs.models import ApiKey, AuditRecord, Invitation, Org, User
from orgs.tenancy import DatabaseRole, _take_own_role, act_always_as, acting_as, assumed, one_org
from reliability.detection import Measure
from reliability.models import Incident
from usage.models import OpenHour, ZoneInForce
from usage.rollups import roll_up
from usage.windows import Window

from ..factories import MODEL, OTHER_MODEL, at, ingest, make_event, make_key, make_model, make_org, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def two_orgs() -> tuple[Org, Org]:
    """Each has something in every table that has orgs in it; what the other has is larger."""
    make_model()
    make_model(OTHER_MODEL, "Fir Small")
    orgs = make_org("Acme", time_zone="Asia/Kolkata"), make_org("Zenith", time_zone="Asia/Kolkata")
    for n, org in enumerate(orgs, start=1):
        person = make_user(f"admin-of-{org.slug}@example.com", org)
        make_key(org)
        Invitation.issue(org, f"guest-of-{org.slug}@example.com", "viewer", person)
        audit.record_command("test", Action.ORG_CHANGED, org.pk, f"of {org.slug}")
        ZoneInForce.objects.update_or_create(org=org, defaults={"time_zone": org.time_zone})
        recent = timezone.now() - timedelta(minutes=5)
        ingest(
            [
                make_event(org, occurred_at=moment, model_id=model, latency_ms=100 * n, client_id=f"client of {org.slug}",
                           status="error" if n == 2 else "success", error_code=f"code of {org.slug}" if n == 2 else None)
                for moment in (at(10, 30), at(11, 30), recent)
                for model in (MODEL, OTHER_MODEL)
                for _ in range(n)
            ]
        )  # fmt: skip
        bucket = ExportBucket.objects.create(org=org, bucket=f"bucket-of-{org.slug}")
        job = Wanted(org, Window(at(0), at(23)), bucket=bucket.bucket).job(f"user:{person.email}")
        job.save()
        OpenHour.objects.create(org_id=org.pk, hour=at(10), opened_at=timezone.now())
        Incident.objects.create(
            org=org, model_id=MODEL, measure=Measure.ERROR_RATE, started_at=at(10), ended_at=at(11), is_open=False,
            observed=0.5, normal=0.01, score=9.0, invocations=10, failures=5, failed_tokens=1, failed_cost_cents=1,
            causes={"models": [], "clients": [], "errorCodes": []}, conditions=[],
        )  # fmt: skip
    ingest([make_event(orgs[0])])
    resend = make_event(orgs[1])
    ingest([resend])
    roll_up()
    ingest([make_event(orgs[1], event_id=resend.event_id, latency_ms=7)])  # says something else: a conflict
    return orgs


def tables() -> dict[str, str]:
    """Tables with rows of orgs, and the column that says whose; `org_ids` are several."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace"
            " AND (a.attname IN ('org_id', 'org_ids') OR c.relname = 'orgs_org' AND a.attname = 'id')"
            " AND NOT c.relname LIKE '\\_%%'"
        )
        return dict(cursor.fetchall())


def rows_of(table: str, whose: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT {} FROM {}").format(sql.Identifier(whose), sql.Identifier(table)))
        return [row[0] for row in cursor.fetchall()]


OUT_OF_REACH = {"ingestion_claims_0", "ingestion_claims_1", "ingestion_conflicts"}


def test_within_an_org_every_table_has_rows_of_it_and_of_no_other(two_orgs: tuple[Org, Org]) -> None:
    mine, other = two_orgs
    found = tables()
    assert len(found) > 15
    for table, whose in found.items():
        everything = rows_of(table, whose)
        owners = {pk for row in everything for pk in (row if isinstance(row, list) else [row])}
        with one_org(mine.pk):
            if table in OUT_OF_REACH:
                with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
                    rows_of(table, whose)
                continue
            seen = rows_of(table, whose)
        assert other.pk in owners, f"{table} shows nothing: it has no row of the other"
        assert seen, table
        assert len(seen) < len(everything), table
        assert all(mine.pk in row if isinstance(row, list) else row == mine.pk for row in seen), table


def test_people_of_other_orgs_are_not_seen(two_orgs: tuple[Org, Org]) -> None:
    mine, _ = two_orgs
    staff = make_user("staff@example.com", is_staff=True)
    ApiKey.issue(org=mine, name="made by staff", scopes=[], created_by=staff)
    with one_org(mine.pk):
        seen = set(User.objects.values_list("email", flat=True))
    assert seen == {f"admin-of-{mine.slug}@example.com", "staff@example.com"}


def test_without_an_org_a_tenant_sees_nothing(two_orgs: tuple[Org, Org]) -> None:
    with acting_as(DatabaseRole.TENANT):
        for table, whose in tables().items():
            if table not in OUT_OF_REACH:
                assert rows_of(table, whose) == [], table


def test_web_processes_see_no_figures_outside_an_org(two_orgs: tuple[Org, Org]) -> None:
    allowed = {"orgs_org", "orgs_membership", "orgs_invitation", "orgs_apikey"}
    for table, whose in tables().items():
        with acting_as(DatabaseRole.WEB):
            if table in allowed:
                assert rows_of(table, whose)
            else:
                with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
                    rows_of(table, whose)


@pytest.mark.parametrize("role", [DatabaseRole.STAFF, DatabaseRole.TASKS])
def test_staff_and_tasks_see_all(role: DatabaseRole, two_orgs: tuple[Org, Org]) -> None:
    for table, whose in tables().items():
        everything = rows_of(table, whose)
        with acting_as(role):
            assert len(rows_of(table, whose)) == len(everything), table


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_org_writes_nothing_for_another(two_orgs: tuple[Org, Org]) -> None:
    mine, other = two_orgs
    with one_org(mine.pk):
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            ApiKey.issue(org=other, name="intruder", scopes=[])
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            AuditRecord.objects.create(actor="user:x", action=Action.ORG_CHANGED, org=other)
        key = ApiKey.objects.get()
        key.org = other
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            key.save()
        assert ApiKey.objects.filter(org_id=other.pk).update(name="mine now") == 0
        assert Org.objects.filter(pk=other.pk).update(name="mine now") == 0
        assert Invitation.objects.filter(org_id=other.pk).delete() == (0, {})


def test_an_org_changes_no_figures_not_even_its_own(two_orgs: tuple[Org, Org]) -> None:
    for table in ("usage_events", "usage_hourly", "usage_daily", "reliability_incidents", "ingestion_batches"):
        for statement in ("DELETE FROM {}", "UPDATE {} SET id = id" if "_" not in table else "TRUNCATE {}"):
            with (
                one_org(two_orgs[0].pk),
                connection.cursor() as cursor,
                pytest.raises(DatabaseError, match=r"denied|cannot|is not a table"),
                transaction.atomic(),
            ):
                cursor.execute(statement.format(table))


def test_nobody_but_its_function_takes_from_the_audit_trail(two_orgs: tuple[Org, Org]) -> None:
    for role in DatabaseRole:
        for statement in ("DELETE FROM orgs_auditrecord", "UPDATE orgs_auditrecord SET actor = 'x'"):
            with (
                acting_as(role),
                connection.cursor() as cursor,
                pytest.raises(ProgrammingError, match="permission denied"),
                transaction.atomic(),
            ):
                cursor.execute(statement)


# ── The role of a transaction ────────────────────────────────────────────────────────────────────────────────────
def current() -> tuple[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user, coalesce(current_setting('analytics.org', true), '')")
        found: tuple[str, str] = cursor.fetchone()
        return found


@pytest.mark.django_db(transaction=True)
def test_a_connection_remembers_neither_role_nor_org() -> None:
    before = current()
    with one_org(uuid.uuid4()):
        assert current()[0] == DatabaseRole.TENANT
    assert current() == before
    with pytest.raises(ZeroDivisionError), one_org(uuid.uuid4()):
        raise ZeroDivisionError
    assert current() == before


def test_within_another_transaction_they_end_with_the_block() -> None:
    org = uuid.uuid4()
    before = current()
    with one_org(org):
        with acting_as(DatabaseRole.WEB):
            assert current() == (DatabaseRole.WEB, "")
        assert current() == (DatabaseRole.TENANT, str(org))
        with pytest.raises(ZeroDivisionError), acting_as(DatabaseRole.STAFF):
            raise ZeroDivisionError
        assert current() == (DatabaseRole.TENANT, str(org))
    assert current() == before


@pytest.mark.django_db(transaction=True)
def test_an_org_is_never_that_of_a_connection() -> None:
    with pytest.raises(transaction.TransactionManagementError), assumed(DatabaseRole.TENANT, uuid.uuid4()):
        pass


@pytest.mark.django_db(transaction=True)
def test_a_process_takes_its_role_with_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orgs.tenancy._own", None)
    try:
        act_always_as(DatabaseRole.WEB)
        for _ in range(2):
            connection.close()
            assert current()[0] == DatabaseRole.WEB
    finally:
        from django.db.backends.signals import connection_created

        connection_created.disconnect(dispatch_uid="orgs.tenancy")
        connection.close()
    assert current()[0] not in list(DatabaseRole)


@pytest.mark.django_db(transaction=True)
def test_a_connection_from_before_the_roles_were_made_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    monkeypatch.setattr("orgs.tenancy._own", "analytics_to_come")
    _take_own_role(connection)
    assert connection.connection is not None
    close_old_connections()
    assert connection.connection is None


# ── Figures, with the org filter taken out of every query ────────────────────────────────────────────────────────
_FILTER = re.compile(r"""("?\w+"?\.)?"?org_id"? = (%\(\w+\)s|%s|'[0-9a-f-]{32,36}'(::uuid)?)""")


class WithoutFilter:
    """Takes `org_id = …` out of whatever a tenant's transaction asks; counts how often it did."""

    def __init__(self, *, also_without_security: bool = False) -> None:
        self.removed = 0
        self.is_tenant = False
        self.also_without_security = also_without_security

    def __call__(self, execute: Callable[..., Any], query: Any, params: Any, many: bool, context: Any) -> Any:
        text = query if isinstance(query, str) else query.as_string(connection.connection)
        if "set_config('role'" in text:
            instead = DatabaseRole.STAFF if self.also_without_security else DatabaseRole.TENANT
            self.is_tenant = params[0] in (DatabaseRole.TENANT, instead)
            if self.is_tenant:
                params = [instead, params[1]]
        elif self.is_tenant:
            query, removed = _FILTER.subn(self._always, text)
            self.removed += removed
        return execute(query, params, many, context)

    @staticmethod
    def _always(found: re.Match[str]) -> str:
        return f"{found.group(2)}{'' if found.group(3) else '::uuid'} IS NOT NULL"


@contextmanager
def without_filter(**options: bool) -> Iterator[WithoutFilter]:
    remover = WithoutFilter(**options)
    with connection.execute_wrapper(remover):
        yield remover


def normal(body: bytes) -> str:
    """Without what differs from one request to the next."""
    text = re.sub(r'csrfmiddlewaretoken" value="[^"]+"', "", body.decode())
    return re.sub(r'"lagSeconds":\d+|\d+ (seconds?|s) ago|\d\d:\d\d:\d\d', "", text)


def body_of(response: Any) -> bytes:
    return b"".join(response.streaming_content) if response.streaming else response.content


RANGE = {"start": at(10).isoformat(), "end": at(12).isoformat()}
# With fragments of hours, so that raw events are read as well.
CUT = {"start": at(10, 15).isoformat(), "end": at(11, 45).isoformat(), "granularity": "hour"}
API = [
    ("usage", RANGE),
    ("usage", CUT),
    ("usage", RANGE | {"granularity": "hour", "groupBy": "client"}),
    ("freshness", {}),
    ("reliability", CUT),
    ("reliability", RANGE | {"granularity": "hour", "groupBy": "errorCode"}),
    ("reliability", RANGE | {"granularity": "hour", "groupBy": "status"}),
    ("reliability/incidents", RANGE),
    ("exports", {}),
    ("audit", {}),
    ("audit.csv", {}),
]


@pytest.mark.parametrize(("path", "parameters"), API, ids=str)
def test_api_answers_without_the_filter_hold_nothing_of_another_org(
    path: str, parameters: dict[str, str], two_orgs: tuple[Org, Org], api: APIClient
) -> None:
    mine, _ = two_orgs
    headers = {"X-API-Key": make_key(mine)}
    address = f"/analytics/v1/orgs/{mine.pk}/{path}"

    def ask() -> str:
        cache.delete(f"freshness:{mine.pk}")
        response = api.get(address, parameters, headers=headers)
        assert response.status_code == 200, response.content
        return normal(body_of(response))

    right = ask()
    with without_filter() as remover:
        assert ask() == right
    assert remover.removed, "nothing was taken out: this shows nothing"
    with without_filter(also_without_security=True):
        assert ask() != right, "without security it is the same: this shows nothing"


@pytest.mark.parametrize("name", ["usage", "reliability", "exports", "settings", "audit", "usage-csv"])
def test_pages_without_the_filter_hold_nothing_of_another_org(
    name: str, two_orgs: tuple[Org, Org], client: Client
) -> None:
    mine, other = two_orgs
    client.force_login(User.objects.get(email=f"admin-of-{mine.slug}@example.com"))
    address = reverse(name, args=[mine.slug])

    def ask() -> str:
        response = client.get(address, {"range": "30d"})
        assert response.status_code == 200, response.content
        return normal(body_of(response))

    right = ask()
    assert other.slug not in right
    with without_filter() as remover:
        assert ask().splitlines() == right.splitlines()
    assert remover.removed
    with without_filter(also_without_security=True):
        assert ask() != right


def test_the_incident_file_without_the_filter_has_no_call_of_another_org(
    two_orgs: tuple[Org, Org], api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, _ = two_orgs
    everybodys = IncidentFile(mine.pk, Window(at(9), at(12)), 100)
    query = _FILTER.sub(WithoutFilter._always, everybodys._unordered.as_string(connection.connection))
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) {query}")
        (all_calls,) = cursor.fetchone()
    monkeypatch.setattr(IncidentFile, "_unordered", property(lambda self: sql.SQL(query)))
    asked = {"start": at(9).isoformat(), "end": at(12).isoformat()}
    response = api.get(
        f"/analytics/v1/orgs/{mine.pk}/reliability/incident.csv", asked, headers={"X-API-Key": make_key(mine)}
    )
    lines = body_of(response).decode().splitlines()[1:]
    assert 0 < len(lines) < all_calls
    assert all(str(mine.pk) in line for line in lines)


def test_one_job_is_not_found_through_another_org(two_orgs: tuple[Org, Org], api: APIClient) -> None:
    mine, other = two_orgs
    job = (
        other.export_jobs.get() if hasattr(other, "export_jobs") else Wanted
    )  # the name of the relation is not the point
    del job
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM exports_exportjob WHERE org_id = %s", [other.pk])
        (pk,) = cursor.fetchone()
    with without_filter() as remover:
        response = api.get(f"/analytics/v1/orgs/{mine.pk}/exports/{pk}", headers={"X-API-Key": make_key(mine)})
    assert response.status_code == 404
    assert remover.removed


# ── What is not guarded is found ─────────────────────────────────────────────────────────────────────────────────
def gaps() -> list[str]:
    with connection.cursor() as cursor:
        return row_security.gaps(cursor, unguarded=frozenset({"usage_events"}))


def test_nothing_stands_open() -> None:
    assert gaps() == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("CREATE TABLE usage_new (org_id uuid)", "usage_new has rows of orgs"),
        ("CREATE TABLE usage_new (org_ids uuid[])", "usage_new has rows of orgs"),
        ("ALTER TABLE usage_hourly DISABLE ROW LEVEL SECURITY", "usage_hourly has rows of orgs"),
        ("ALTER TABLE usage_hourly NO FORCE ROW LEVEL SECURITY", "usage_hourly has rows of orgs"),
        ("GRANT SELECT ON usage_events TO analytics_tenant", "analytics_tenant has rights on usage_events"),
        ("GRANT SELECT (latency_ms) ON usage_events TO analytics_web", "analytics_web has rights on usage_events"),
        (
            """
            CREATE TABLE usage_daily_p190001 PARTITION OF usage_daily FOR VALUES FROM ('1900-01-01') TO ('1900-02-01');
            REVOKE ALL ON usage_daily_p190001 FROM analytics_staff, analytics_tasks;
            GRANT SELECT ON usage_daily_p190001 TO analytics_tenant
            """,
            "analytics_tenant has rights on usage_daily_p190001",
        ),
        (
            """
            CREATE TABLE usage_daily_p190001 PARTITION OF usage_daily FOR VALUES FROM ('1900-01-01') TO ('1900-02-01');
            REVOKE ALL ON usage_daily_p190001 FROM analytics_tasks
            """,
            "analytics_staff has rights on usage_daily_p190001",
        ),
        ("ALTER FUNCTION ingestion_summarise(oid) RESET search_path", "The function ingestion_summarise looks in"),
    ],
)
def test_a_table_without_a_guard_is_found(change: str, found: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(change)
    (gap,) = gaps()
    assert gap.startswith(found)


def test_a_partition_is_reached_through_its_table_alone_and_not_at_all_once_it_is_detached() -> None:
    name = "usage_daily_p190001"
    with acting_as(DatabaseRole.TASKS), connection.cursor() as cursor:
        cursor.execute("SELECT ingestion_make_partition('usage_daily', %s, '1900-01-01', '1900-02-01')", [name])
    for role in DatabaseRole:
        with (
            acting_as(role),
            connection.cursor() as cursor,
            pytest.raises(ProgrammingError, match=f"denied for table {name}"),
            transaction.atomic(),
        ):
            cursor.execute(f"UPDATE {name} SET invocations = 0")
    assert gaps() == []
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE usage_daily DETACH PARTITION {name}")
    assert gaps() == []


@pytest.mark.parametrize(
    ("catalog", "columns", "call"),
    [
        (
            "pg_class",
            "oid, 'p'::\"char\" AS relkind, pg_temp.whoever()::oid AS relowner",
            "ingestion_make_partition('usage_daily', 'usage_daily_p190001', '1900-01-01', '1900-02-01')",
        ),
        ("orgs_auditrecord", "id, at, pg_temp.whoever() AS actor", "orgs_audit_forget(now(), 1)"),
    ],
)
def test_a_function_of_the_owner_runs_nothing_of_its_caller(catalog: str, columns: str, call: str) -> None:
    """A temporary view that is named as what the function reads: what it calls would be called as the owner."""
    schema = "pg_catalog" if catalog.startswith("pg_") else "public"
    AuditRecord.objects.create(actor="user:x", action=Action.SIGNED_IN)
    with connection.cursor() as cursor:
        with acting_as(DatabaseRole.TASKS):
            cursor.execute(
                "CREATE FUNCTION pg_temp.whoever() RETURNS text LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'called as %', current_user; END $$"
            )
            cursor.execute(f"CREATE TEMPORARY VIEW {catalog} AS SELECT {columns} FROM {schema}.{catalog}")
            cursor.execute(f"GRANT ALL ON pg_temp.{catalog} TO PUBLIC")
            cursor.execute(f"SELECT {call}")
        cursor.execute(f"DROP VIEW pg_temp.{catalog}; DROP FUNCTION pg_temp.whoever()")


def test_what_only_an_owner_may_do_is_done_by_functions_for_tasks_alone() -> None:
    for role in (DatabaseRole.WEB, DatabaseRole.TENANT, DatabaseRole.STAFF):
        for call in (
            "ingestion_make_partition('usage_events', 'usage_events_p19000101', '1900-01-01', '1900-01-02')",
            "ingestion_summarise('usage_events_batch'::regclass)",
            "orgs_audit_forget(now(), 1)",
        ):
            with (
                acting_as(role),
                connection.cursor() as cursor,
                pytest.raises(ProgrammingError, match="permission denied"),
                transaction.atomic(),
            ):
                cursor.execute(f"SELECT {call}")


@pytest.mark.parametrize(
    ("table", "partition"),
    [("orgs_user", "orgs_user_p20260101"), ("usage_daily", "anything"), ("nothing", "nothing_p202601")],
)
def test_nothing_but_a_partition_is_made(table: str, partition: str) -> None:
    with (
        acting_as(DatabaseRole.TASKS),
        connection.cursor() as cursor,
        pytest.raises(DatabaseError) as error,
        transaction.atomic(),
    ):
        cursor.execute("SELECT ingestion_make_partition(%s, %s, '2026-01-01', '2026-02-01')", [table, partition])
    assert isinstance(error.value.__cause__, psycopg.errors.RaiseException)
