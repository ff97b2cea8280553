"""Whose rows the database shows: the roles that this service acts in, and the org of a transaction.

A process connects as whoever `DATABASE_URL` names, and acts in one of four roles of PostgreSQL (`row_security` says what each
may do). Its own role is set once for each connection; another one, and the org, for the length of a transaction: a
connection that goes on to somebody else remembers neither.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created


class DatabaseRole(StrEnum):
    """None owns anything, and only the last two see more than one org."""

    WEB = "analytics_web"  # finds out who calls and what they may do; no figures of anybody
    TENANT = "analytics_tenant"  # one org's rows
    STAFF = "analytics_staff"  # the admin
    TASKS = "analytics_tasks"  # doors, rollups, exports, the watch


# The role of this process; none of a command at the shell, which acts as whoever it connects as.
_own: DatabaseRole | None = None


def act_always_as(role: DatabaseRole) -> None:
    """Every connection that this process makes from now on acts in a role, where nothing else is said."""
    global _own  # noqa: PLW0603
    _own = role
    connection_created.connect(_take_own_role, dispatch_uid="orgs.tenancy")


def _take_own_role(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('role', rolname, false) FROM pg_roles WHERE rolname = %s", [_own])
            if not cursor.rowcount:  # not migrated so far: another connection looks again
                connection.close_at = time.monotonic()
    except Exception:
        connection.close()  # Django would go on with it, as whoever it connects as
        raise


@contextmanager
def one_org(org_id: uuid.UUID) -> Iterator[None]:
    """A transaction that sees, and changes, rows of one org alone, and the names of models."""
    with _acting(DatabaseRole.TENANT, org_id):
        yield


@contextmanager
def acting_as(role: DatabaseRole) -> Iterator[None]:
    """A transaction in another role than the process's own."""
    with _acting(role, None):
        yield


@contextmanager
def _acting(role: DatabaseRole, org_id: uuid.UUID | None) -> Iterator[None]:
    is_within = connection.in_atomic_block
    with transaction.atomic():
        if is_within:
            with assumed(role, org_id):
                yield
        else:  # the transaction's end brings back what was
            _set(role, org_id)
            yield


@contextmanager
def assumed(role: DatabaseRole, org_id: uuid.UUID | None = None) -> Iterator[None]:
    """Act in a role, for an org, within the transaction under way. After an error it is as it was once that is rolled back."""
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("the org is that of a transaction, and there is none")
    before = _set(role, org_id)
    yield
    _set(*before)


def _set(role: str, org_id: uuid.UUID | str | None) -> tuple[str, str]:
    """Until the transaction ends; returns what to go back to."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('role'), coalesce(current_setting('analytics.org', true), ''),"
            " set_config('role', %s, true), set_config('analytics.org', %s, true)",
            [role, str(org_id or "")],
        )
        old_role, old_org, _, _ = cursor.fetchone()
    return old_role, old_org


@contextmanager
def owning(table: str) -> Iterator[None]:
    """Act as the owner of a table, for work that no other role may do and no transaction can hold. Not inside a transaction.

    Raises `django.db.ProgrammingError` where this process's login may not: it says so, and names the role.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('role')")
        (before,) = cursor.fetchone()
        cursor.execute(
            "SELECT set_config('role', pg_get_userbyid(relowner), false) FROM pg_class WHERE oid = %s::regclass",
            [table],
        )
    try:
        yield
    finally:
        if connection.connection is not None and not connection.connection.closed:
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('role', %s, false)", [before])
