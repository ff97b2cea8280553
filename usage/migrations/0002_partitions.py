"""Rollups by month: what is past its retention is dropped, not deleted. Moves the rows there are; locks both tables meanwhile."""

from django.db import migrations

KEYS = {
    "usage_hourly": ("bucket_start", "org_id, bucket_start, model_id"),
    "usage_daily": ("day", "org_id, time_zone, day, model_id"),
}


def partition(apps: object, schema_editor: object) -> None:
    from usage.aggregation import DAYS, HOURS

    for table in (HOURS, DAYS):
        column, key = KEYS[table.table]
        _replace(schema_editor, table.table, key, f" PARTITION BY RANGE ({column})")
        table.forget()
        with schema_editor.connection.cursor() as cursor:  # type: ignore[attr-defined]
            cursor.execute(
                f"SELECT DISTINCT date_trunc('month', {column} AT TIME ZONE 'UTC')::date FROM {table.table}_old"
            )
            table.ensure(month for (month,) in cursor.fetchall())
        _move(schema_editor, table.table)


def unite(apps: object, schema_editor: object) -> None:
    for table, (_, key) in KEYS.items():
        _replace(schema_editor, table, key, "")
        _move(schema_editor, table)


def _replace(schema_editor: object, table: str, key: str, how: str) -> None:
    schema_editor.execute(f"ALTER TABLE {table} RENAME TO {table}_old")  # type: ignore[attr-defined]
    schema_editor.execute(f"ALTER INDEX {table}_pkey RENAME TO {table}_old_pkey")  # type: ignore[attr-defined]
    schema_editor.execute(  # type: ignore[attr-defined]
        f"CREATE TABLE {table} (LIKE {table}_old, CONSTRAINT {table}_pkey PRIMARY KEY ({key})){how}"
    )


def _move(schema_editor: object, table: str) -> None:
    schema_editor.execute(f"INSERT INTO {table} SELECT * FROM {table}_old")  # type: ignore[attr-defined]
    schema_editor.execute(f"DROP TABLE {table}_old")  # type: ignore[attr-defined]


class Migration(migrations.Migration):
    dependencies = [("usage", "0001_initial"), ("ingestion", "0003_stream")]

    operations = [migrations.RunPython(partition, unite)]
