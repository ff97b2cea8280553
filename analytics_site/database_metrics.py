"""What Prometheus is told of the database: sizes, connections, and how far ahead there is room for events."""

from collections.abc import Iterator

from django.db import connection
from django.utils import timezone
from prometheus_client.core import GaugeMetricFamily

from ingestion import storage
from ingestion.storage.engine import TABLE

# Partitions count for the table that they are parts of. Rows of the catalog alone, and the sizes of their files.
_SIZES = """
SELECT coalesce(parent.relname, c.relname), sum(pg_total_relation_size(c.oid))::bigint
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = current_schema()::regnamespace GROUP BY 1
"""
_CONNECTIONS = """
SELECT coalesce(state, 'unknown'), count(*), current_setting('max_connections')::int
FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1
"""


class DatabaseState:
    """Gauges; collected by the web process's registry."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        engine = storage.engine()
        parts = engine.parts()
        sizes = {TABLE: sum(part.bytes for part in parts)}
        with connection.cursor() as cursor:
            cursor.execute(_SIZES)
            sizes = {table: int(size) for table, size in cursor.fetchall()} | sizes
            cursor.execute("SELECT pg_database_size(current_database())")
            (total,) = cursor.fetchone()
            cursor.execute(_CONNECTIONS)
            states = cursor.fetchall()
        tables = GaugeMetricFamily(
            "analytics_table_bytes", "Of a table on disk, indexes included", labels=("table", "engine")
        )
        for table, size in sizes.items():
            tables.add_metric((table, engine.name if table == TABLE else "PostgreSQL"), size)
        yield tables
        yield GaugeMetricFamily("analytics_database_bytes", "Of the database on disk", value=total)
        if engine.makes_days_ahead:
            today = storage.day_of(timezone.now())
            ahead = max((part.end - today).days - 1 for part in parts) if parts else -1
            yield GaugeMetricFamily(
                "analytics_partition_days_ahead", "Days after today that have a partition of raw events", value=ahead
            )
        connections = GaugeMetricFamily(
            "analytics_database_connections", "Connections to the database, of whoever", labels=("state",)
        )
        for state, number, _ in states:
            connections.add_metric((state,), number)
        yield connections
        yield GaugeMetricFamily(
            "analytics_database_max_connections", "Connections that the server allows", value=states[0][2]
        )
