"""Raw events are out of tenants' reach but for a view, and the rest of ingestion is nobody's but staff's and tasks'.

What only the owner of a table may do, and every batch and every rollup needs, becomes two functions of the owner's: to make a
partition, and to have an index of batches summarised. Locks each table for a moment.
"""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from psycopg import sql

from ingestion.storage import guarding
from orgs.row_security import close_partitions, expose, grant, pin, protect, revoke
from orgs.tenancy import DatabaseRole

FUNCTIONS = """
-- One partition of one of this service's tables: made beside it and attached, or one that was detached is attached again.
CREATE FUNCTION ingestion_make_partition(parent text, partition text, lower_bound text, upper_bound text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    is_attached boolean;
    is_pending boolean;
BEGIN
    IF partition !~ ('^' || parent || '_p[0-9]{6,8}$') OR NOT EXISTS (
        SELECT FROM pg_class WHERE oid = to_regclass(quote_ident(parent)) AND relkind = 'p'
            AND relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
    ) THEN
        RAISE EXCEPTION '% is no partition of a table of this service', partition;
    END IF;
    SELECT i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false) INTO is_attached, is_pending
        FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = quote_ident(parent)::regclass
        WHERE c.oid = to_regclass(quote_ident(partition));
    IF is_attached AND NOT is_pending THEN
        RETURN;
    END IF;
    IF is_attached IS NULL THEN
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition, parent);
        -- Reached through its table alone, whatever the schema gives of new tables.
        EXECUTE format('REVOKE ALL ON %I FROM analytics_staff, analytics_tasks', partition);
    END IF;
    IF is_pending THEN
        EXECUTE format('ALTER TABLE %I DETACH PARTITION %I FINALIZE', parent, partition);
    END IF;
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        parent, partition, lower_bound, upper_bound);
    EXECUTE format('COMMENT ON TABLE %I IS NULL', partition);
END $$;

-- PostgreSQL lets nobody but the owner of an index summarise it.
CREATE FUNCTION ingestion_summarise(index oid) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    AS $$ SELECT brin_summarize_new_values(index::regclass) $$;

REVOKE ALL ON FUNCTION ingestion_make_partition(text, text, text, text), ingestion_summarise(oid) FROM PUBLIC;
"""
TABLES = ("ingestion_batches", "ingestion_conflicts", "ingestion_claims_0", "ingestion_claims_1")


def forwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(FUNCTIONS)
        pin(cursor, "ingestion_make_partition(text, text, text, text)")
        pin(cursor, "ingestion_summarise(oid)")
        cursor.execute(
            "GRANT EXECUTE ON FUNCTION ingestion_make_partition(text, text, text, text), ingestion_summarise(oid)"
            f" TO {DatabaseRole.TASKS}"
        )
        guarding.guard(cursor)
        # A batch may hold events of several orgs; of it a tenant sees what tells how fresh its figures are.
        protect(
            cursor,
            "ingestion_batches",
            tenant="SELECT (id, org_ids, completed_at, rolled_up_at)",
            mine=sql.SQL("orgs_tenant() = ANY (org_ids)"),
        )
        for table in TABLES[1:]:
            protect(cursor, table)
        for table in TABLES[2:]:
            revoke(cursor, DatabaseRole.STAFF, "INSERT, UPDATE, DELETE", table)
            grant(cursor, DatabaseRole.TASKS, "TRUNCATE", table)
        for table in ("ingestion_stream_readers", "ingestion_ledger"):
            grant(cursor, DatabaseRole.TENANT, "SELECT", table)
        close_partitions(cursor)


def backwards(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        guarding.end(cursor)
        for table in TABLES:
            expose(cursor, table)
        cursor.execute("DROP FUNCTION ingestion_make_partition(text, text, text, text), ingestion_summarise(oid)")


class Migration(migrations.Migration):
    dependencies = [
        ("ingestion", "0005_batch_trace"),
        ("orgs", "0007_row_security"),
    ]

    operations = [
        migrations.RunPython(forwards, backwards),
    ]
