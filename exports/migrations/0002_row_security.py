"""Row-level security on the exports: a tenant sees its own. Locks each table for a moment."""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from orgs.row_security import expose, protect


def forwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        protect(cursor, "exports_exportjob", tenant="SELECT, INSERT, UPDATE")
        protect(cursor, "exports_exportbucket", tenant="SELECT")


def backwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        for table in ("exports_exportjob", "exports_exportbucket"):
            expose(cursor, table)


class Migration(migrations.Migration):
    dependencies = [
        ("exports", "0001_jobs"),
        ("orgs", "0007_row_security"),
    ]

    operations = [
        migrations.RunPython(forwards, backwards),
    ]
