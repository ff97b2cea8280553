"""What every test stands on: real servers, tables that are clean, an API client."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core.handlers.base import BaseHandler
from django.db import DatabaseError, connection
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.test import Client
from django.utils import timezone
from psycopg.pq import TransactionStatus
from pytest_django.plugin import DjangoDbBlocker
from rest_framework.test import APIClient

from analytics_site.env import ENVIRONMENT
from analytics_site.rig import UNLIMITED
from ingestion import storage
from ingestion.dedupe import CLAIMS
from ingestion.models import Ledger
from ingestion.storage import timescale
from orgs.tenancy import DatabaseRole
from tests.factories import make_user


def pytest_sessionstart() -> None:
    """With wrong settings no test runs: it would run on whatever server answers."""
    if ENVIRONMENT.problems:
        pytest.exit("\n".join(map(str, ENVIRONMENT.problems)), returncode=2)


def pytest_configure(config: pytest.Config) -> None:
    # Right passwords are slow to check, which no test is about: those that are use processes of their own.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    config.addinivalue_line("markers", "engine(name): only where raw events are stored on this engine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of another engine than the server's are left out."""
    with psycopg.connect(settings.DATABASE_URL) as server:
        name = "TimescaleDB" if timescale.is_available(server.cursor()) else "PostgreSQL"
    others = [item for item in items if any(name not in mark.args for mark in item.iter_markers("engine"))]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Tests that commit truncate all tables afterwards, which the audit trail refuses: here it does not, until a test says so."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE orgs_auditrecord DISABLE TRIGGER audit_keeps_all")


@pytest.fixture(autouse=True, scope="session")
def as_web_processes() -> Iterator[None]:
    """Requests of a test act in the role that web processes have; the test itself owns the database.

    Beside Django's cursors, so that no test counts it.
    """
    get_response = BaseHandler.get_response

    def as_web(self: BaseHandler, request: HttpRequest) -> HttpResponseBase:
        with suppress(RuntimeError, DatabaseError):  # no test of the database; one that is away
            connection.ensure_connection()
        role = "SELECT set_config('role', %s, false)"
        used = connection.connection
        if used is not None and not used.closed:
            used.execute(role, [DatabaseRole.WEB])
        try:
            return get_response(self, request)
        finally:
            if used is not None and not used.closed and used.info.transaction_status != TransactionStatus.INERROR:
                used.execute(role, ["none"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseHandler, "get_response", as_web)
        yield


@pytest.fixture(autouse=True)
def raw_tables(request: pytest.FixtureRequest) -> None:
    """Tables without a managed model, emptied where a test commits. Partitions of a test that rolls back go with it."""
    storage.forget()
    marker = request.node.get_closest_marker("django_db")
    commits = marker is not None and marker.kwargs.get("transaction")
    if commits or {"transactional_db", "live_server"} & set(request.fixturenames):
        request.getfixturevalue("transactional_db")
        with connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE usage_events, {', '.join(CLAIMS)}")
        Ledger.objects.get_or_create(defaults={"rotated_at": timezone.now(), "previous_since": timezone.now()})


@pytest.fixture(autouse=True)
def without_limits(settings: Any) -> None:
    """A suite asks more often than anybody may. Tests of limits set those that they are about."""
    for name, value in UNLIMITED.items():
        setattr(settings, name, value)


@pytest.fixture
def boss(client: Client) -> Client:
    """A browser in which a superuser is signed in."""
    client.force_login(make_user("boss@example.com", is_staff=True, is_superuser=True))
    return client


@pytest.fixture
def api() -> APIClient:
    return APIClient(raise_request_exception=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a test that was skipped is a failure: what it needs is installed there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    # TimescaleDB is in no registry: only a server of one's own has it.
    if os.environ.get("CI") == "true" and any("TIMESCALE_DATABASE_URL" not in str(r.longrepr) for r in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
