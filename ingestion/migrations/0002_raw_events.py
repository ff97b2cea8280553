"""The raw events and the dedupe ledger. New tables: locks nothing, costs nothing."""

from django.db import migrations

# Columns in the order that packs without padding. Keys contain org_id, so that the table can be distributed by org.
EVENTS = """
CREATE TABLE usage_events (
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
) PARTITION BY RANGE (occurred_at);

-- Finds the events of a batch: the rollup and the admin. Batches come in order, so a few bytes per 32 pages do.
CREATE INDEX usage_events_batch ON usage_events USING brin (batch_id) WITH (pages_per_range = 32);
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


class Migration(migrations.Migration):
    dependencies = [("ingestion", "0001_initial")]

    operations = [
        migrations.RunSQL(EVENTS, "DROP TABLE usage_events"),
        migrations.RunSQL(
            LEDGER, "DELETE FROM ingestion_ledger; DROP TABLE ingestion_claims_0; DROP TABLE ingestion_claims_1"
        ),
    ]
