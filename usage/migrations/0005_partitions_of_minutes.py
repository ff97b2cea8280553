"""Minutes by day, clients and outcomes by month. The tables are new and empty: locks nothing.

They hold what is rolled up from now on; what came before is in them once its days have been rebuilt. Until then it is not told.
"""

from datetime import UTC, datetime, timedelta

from django.db import migrations

KEYS = {
    "usage_minutes": "org_id, bucket_start, model_id",
    "usage_clients": "org_id, bucket_start, model_id, client_id",
    "usage_outcomes": "org_id, bucket_start, model_id, status, error_code",
}


def made_anew(table: str, how: str) -> str:
    return f"""
        ALTER TABLE {table} RENAME TO {table}_old;
        ALTER INDEX {table}_pkey RENAME TO {table}_old_pkey;
        CREATE TABLE {table} (LIKE {table}_old, CONSTRAINT {table}_pkey PRIMARY KEY ({KEYS[table]})){how};
        DROP TABLE {table}_old;
    """


def note_since(apps: object, schema_editor: object) -> None:
    """Today's events are in them in part: whole days begin tomorrow, or when `rebuild` has made today again."""
    hours = apps.get_model("usage", "HourlyUsage").objects  # type: ignore[attr-defined]
    if hours.exists():
        tomorrow = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        apps.get_model("usage", "GroupsKept").objects.create(since=tomorrow)  # type: ignore[attr-defined]


class Migration(migrations.Migration):
    dependencies = [("usage", "0004_minutes_clients_outcomes")]

    operations = [
        migrations.RunSQL(made_anew(table, " PARTITION BY RANGE (bucket_start)"), made_anew(table, ""))
        for table in KEYS
    ] + [migrations.RunPython(note_since, migrations.RunPython.noop)]
