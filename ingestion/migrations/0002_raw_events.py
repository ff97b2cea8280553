"""The raw events and the dedupe ledger. New tables: locks nothing, costs nothing."""

from django.db import migrations

from ingestion import storage

# Columns in the order that packs without padding. Keys contain org_id, so that the table can be distributed by org.
EVENTS = """
occurred_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    latency_ms integer NOT NULL,
    input_tokens integer NOT NULL,
    output_tokens integer NOT NULL,
    cached_input_tokens integer NOT NULL,
    cache_creation_input_tokens integer NOT NULL,
    status smallint NOT NULL,
    org_id uuid NOT NULL,
    event_id uuid NOT NULL,
    model_id uuid NOT NULL,
    actor_id uuid,
    client_id text,
    error_code text,
    cost_estimate_cents numeric(18, 4),
    metadata jsonb,
    -- Counts each event once, and reads an org's events by time: edge fragments of a range, the events of an incident.
    PRIMARY KEY (org_id, occurred_at, event_id)
"""

LEDGER = """
CREATE TABLE ingestion_claims_0 (
    org_id uuid NOT NULL,
    event_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, event_id)
);
CREATE TABLE ingestion_claims_1 (LIKE ingestion_claims_0 INCLUDING ALL);
INSERT INTO ingestion_ledger (id, current, rotated_at, previous_since) VALUES (1, 0, now(), now());
"""


def create(apps: object, schema_editor: object) -> None:
    storage.create(EVENTS)


def destroy(apps: object, schema_editor: object) -> None:
    storage.destroy()


class Migration(migrations.Migration):
    dependencies = [("ingestion", "0001_initial")]

    operations = [
        migrations.RunPython(create, destroy),
        migrations.RunSQL(
            LEDGER, "DELETE FROM ingestion_ledger; DROP TABLE ingestion_claims_0; DROP TABLE ingestion_claims_1"
        ),
    ]
