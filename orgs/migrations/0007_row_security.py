"""Roles of the database, and row-level security on the tables of orgs, people and the audit trail.

Each statement locks its table for a moment and reads no row. Staff and tasks get their rights in all tables that there are and
will be; what web processes and tenants may do is said of each table by the app that has it.
"""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from psycopg import sql

from orgs import row_security
from orgs.row_security import ALL, expose, grant, pin, protect, revoke
from orgs.tenancy import DatabaseRole

# Who signs in, and what Django itself has to look up for that.
OF_WEB = {
    "django_session": ALL,
    "django_migrations": "SELECT",
    "django_content_type": "SELECT",
    "orgs_provideridentity": ALL,
    "auth_group": "SELECT",
    "auth_group_permissions": "SELECT",
    "auth_permission": "SELECT",
    "orgs_user_groups": "SELECT",
    "orgs_user_user_permissions": "SELECT",
}
TABLES = ("orgs_org", "orgs_membership", "orgs_invitation", "orgs_apikey", "orgs_user", "orgs_auditrecord")
# Members, and whoever made what a settings page lists: staff, and people who have left.
ONES_OWN_PEOPLE = sql.SQL(
    "EXISTS (SELECT FROM orgs_membership m WHERE m.user_id = orgs_user.id)"
    " OR EXISTS (SELECT FROM orgs_apikey k WHERE k.created_by_id = orgs_user.id)"
    " OR EXISTS (SELECT FROM orgs_invitation i WHERE i.invited_by_id = orgs_user.id)"
)


def forwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        row_security.begin(cursor)
        for table, what in OF_WEB.items():
            grant(cursor, DatabaseRole.WEB, what, table)
        protect(cursor, "orgs_org", tenant="SELECT, UPDATE", web="SELECT", mine=sql.SQL("id = orgs_tenant()"))
        protect(cursor, "orgs_membership", tenant="SELECT, UPDATE, DELETE", web=ALL)
        protect(cursor, "orgs_invitation", tenant=ALL, web="SELECT, UPDATE")
        protect(cursor, "orgs_apikey", tenant="SELECT, INSERT, UPDATE", web="SELECT, UPDATE")
        protect(cursor, "orgs_user", tenant="SELECT", web="SELECT, INSERT, UPDATE", mine=ONES_OWN_PEOPLE)
        # Written by all, read by an org's admins and by staff; what an INSERT returns is read, too.
        protect(cursor, "orgs_auditrecord", tenant="SELECT, INSERT", web="INSERT, SELECT (id, outcome, by_stranger)")
        for role in (DatabaseRole.STAFF, DatabaseRole.TASKS):
            revoke(cursor, role, "UPDATE, DELETE", "orgs_auditrecord")
        grant(cursor, DatabaseRole.TENANT, "SELECT", "orgs_servedmodel")
        pin(cursor, "orgs_audit_forget(timestamptz, integer)")
        cursor.execute(
            f"REVOKE ALL ON FUNCTION orgs_audit_forget(timestamptz, integer) FROM PUBLIC;"
            f" GRANT EXECUTE ON FUNCTION orgs_audit_forget(timestamptz, integer) TO {DatabaseRole.TASKS}"
        )


def backwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        for table in TABLES:
            expose(cursor, table)
        cursor.execute(
            f"REVOKE ALL ON FUNCTION orgs_audit_forget(timestamptz, integer) FROM {DatabaseRole.TASKS};"
            " GRANT EXECUTE ON FUNCTION orgs_audit_forget(timestamptz, integer) TO PUBLIC"
        )
        row_security.end(cursor)


class Migration(migrations.Migration):
    dependencies = [
        ("orgs", "0006_provider_identity"),
        ("sessions", "0001_initial"),
    ]

    operations = [
        migrations.RunPython(forwards, backwards),
    ]
