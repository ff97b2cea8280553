"""Row-level security on the incidents: a tenant sees its own. Locks each table for a moment."""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from orgs.row_security import expose, protect


def forwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        protect(cursor, "reliability_incidents", tenant="SELECT")


def backwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        expose(cursor, "reliability_incidents")


class Migration(migrations.Migration):
    dependencies = [
        ("reliability", "0001_incidents"),
        ("orgs", "0007_row_security"),
    ]

    operations = [
        migrations.RunPython(forwards, backwards),
    ]
