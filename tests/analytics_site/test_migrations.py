"""Migrations: every one can be taken back and done again, with data in the tables, and none is missing."""

import subprocess
import sys
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from psycopg import sql

from ..processes import database_url, environment

OWN = [app.label for app in apps.get_app_configs() if app.path.startswith(str(settings.BASE_DIR)) and app.models_module]
MIGRATED = [label for label in OWN if list(apps.get_app_config(label).get_models())]

FILL = """
import django; django.setup()
from tests.factories import ingest, make_event, make_key, make_org, make_user
from usage.rollups import roll_up
from usage.verification import verify
org = make_org(time_zone="Asia/Kolkata")
make_user(org=org), make_key(org)
ingest([make_event(org) for _ in range(10)])
ingest([make_event()])
roll_up()
assert verify() == []
"""

SHAPE = """
SELECT table_name || '.' || column_name, data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '')
    FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
"""


class Scratch:
    """A database of its own, and this project's commands on it."""

    def __init__(self, name: str) -> None:
        self.url = database_url(name)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=settings.BASE_DIR,
            env=environment(DATABASE_URL=self.url, DJANGO_SETTINGS_MODULE="analytics_site.settings"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shape(self) -> dict[str, str]:
        """Columns, indexes and constraints; not of partitions, which come with the events."""
        with psycopg.connect(self.url) as database:
            rows = database.execute(SHAPE).fetchall()
        return {name: told for name, told in rows if "usage_events_p2" not in name}

    def tables(self) -> set[str]:
        with psycopg.connect(self.url) as database:
            rows = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {name for (name,) in rows}


@pytest.fixture
def scratch(db: None) -> Iterator[Scratch]:
    name = f"scratch_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database_url("postgres"), autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield Scratch(name)
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_the_apps_with_tables_are_those_that_are_known() -> None:
    assert {"orgs", "ingestion", "usage"} <= set(MIGRATED)


def test_every_migration_can_be_taken_back_with_data_and_done_again(scratch: Scratch) -> None:
    scratch.run("manage.py", "migrate")
    shape = scratch.shape()
    scratch.run("-c", FILL)
    for label in reversed(MIGRATED):  # dependents go first; what Django's own apps hang on orgs goes with it
        scratch.run("manage.py", "migrate", label, "zero")
    own = {model._meta.db_table for label in MIGRATED for model in apps.get_app_config(label).get_models()}
    left = scratch.tables()
    assert not left & own
    assert not {name for name in left if name.startswith(tuple(f"{label}_" for label in MIGRATED))}
    scratch.run("manage.py", "migrate")
    assert scratch.shape() == shape
    scratch.run("-c", FILL)


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


@pytest.mark.django_db
def test_migrating_again_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("migrate")
    assert "No migrations to apply." in capsys.readouterr().out
