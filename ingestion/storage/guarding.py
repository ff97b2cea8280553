"""Who may read raw events: staff and tasks all of them, a tenant its own through a view, nobody else.

The view stands in a schema that is named as the tenant's role is, which comes first on its search path: the same statement
reads the table in one role and the view in the other.
"""

from django.db.backends.utils import CursorWrapper
from psycopg import sql

from orgs.row_security import grant, revoke
from orgs.tenancy import DatabaseRole

from .engine import TABLE

_TENANT = sql.Identifier(DatabaseRole.TENANT)
_VIEW = sql.Identifier(DatabaseRole.TENANT, TABLE)


def guard(cursor: CursorWrapper) -> None:
    """Of the table as it is now: a new one needs it again."""
    for role, what in ((DatabaseRole.STAFF, "SELECT"), (DatabaseRole.TASKS, "SELECT, INSERT")):
        revoke(cursor, role, "ALL", TABLE)  # what the schema gives of every table
        grant(cursor, role, what, TABLE)
    cursor.execute(
        sql.SQL(
            "CREATE SCHEMA IF NOT EXISTS {tenant}; GRANT USAGE ON SCHEMA {tenant} TO {tenant};"
            " CREATE VIEW {view} WITH (security_barrier) AS SELECT * FROM {table} WHERE org_id = orgs_tenant();"
            " GRANT SELECT ON {view} TO {tenant}"
        ).format(tenant=_TENANT, view=_VIEW, table=sql.Identifier(TABLE))
    )


def unguard(cursor: CursorWrapper) -> None:
    """Before the table can go."""
    cursor.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(_VIEW))


def end(cursor: CursorWrapper) -> None:
    unguard(cursor)
    cursor.execute(sql.SQL("DROP SCHEMA IF EXISTS {}").format(_TENANT))
