"""Row-level security on the rollups: a tenant sees its own. Locks each table for a moment."""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from orgs.row_security import close_partitions, expose, grant, protect
from orgs.tenancy import DatabaseRole

TABLES = (
    "usage_hourly",
    "usage_daily",
    "usage_minutes",
    "usage_clients",
    "usage_outcomes",
    "usage_open_hours",
    "usage_zones",
    "usage_freshness",
)


def forwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        for table in TABLES:
            protect(cursor, table, tenant="SELECT")
        grant(cursor, DatabaseRole.TENANT, "SELECT", "usage_groups_kept")
        close_partitions(cursor)


def backwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        for table in TABLES:
            expose(cursor, table)


class Migration(migrations.Migration):
    dependencies = [
        ("usage", "0005_partitions_of_minutes"),
        ("orgs", "0007_row_security"),
    ]

    operations = [
        migrations.RunPython(forwards, backwards),
    ]
