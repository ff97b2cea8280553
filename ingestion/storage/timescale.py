"""Raw events on TimescaleDB: a hypertable of daily chunks, the older ones in the columnstore.

Chunks are made, compressed and dropped by this service's own tasks: one schedule and one log for both engines. The policies
of the extension are not used.
"""

from collections.abc import Callable, Iterable
from datetime import date, timedelta

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from ingestion.locks import LOCK_TIMEOUT, Lock, take
from ingestion.partitioning import Partition, midnight

from .engine import INDEX, TABLE

# What is asked of old events is asked of one org and a span of time. Measured against others: see ARCHITECTURE.md.
SEGMENT_BY = "org_id"
ORDER_BY = "occurred_at, event_id"

OLDEST = "{2,29}"  # version whose catalog is read here
_COMPRESSED = 1  # of a chunk's status, in the extension's catalog
_HAS_ROWS_BESIDE = 8  # compressed, and written to since


def is_available(cursor: CursorWrapper) -> bool:
    """Whether the server has the extension, loaded, new enough, and with the columnstore, which its Apache edition lacks.

    Its loader has a setting, which anybody may read; `shared_preload_libraries` may be read by few. The licence is known only to
    a database that has the extension already; elsewhere it is taken for the default.
    """
    cursor.execute(
        "SELECT current_setting('timescaledb.disable_load', true) IS NOT NULL"
        " AND coalesce(current_setting('timescaledb.license', true), 'timescale') = 'timescale'"
        " AND EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb'"
        f" AND string_to_array(substring(default_version FROM '^[0-9.]+'), '.')::int[] >= '{OLDEST}')"
    )
    return bool(cursor.fetchone()[0])


class Timescale:
    name = "TimescaleDB"
    makes_days_ahead = False

    def create(self, cursor: CursorWrapper, columns: str) -> None:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        cursor.execute(f"CREATE TABLE {TABLE} ({columns})")
        cursor.execute(INDEX)
        self.adopt(cursor, TABLE)

    def adopt(self, cursor: CursorWrapper, table: str) -> None:
        """Make an empty table a hypertable."""
        cursor.execute(
            "SELECT create_hypertable(%s, by_range('occurred_at', INTERVAL '1 day'), create_default_indexes => false)",
            [table],
        )
        cursor.execute(
            f"ALTER TABLE {table} SET (timescaledb.enable_columnstore, timescaledb.segmentby = '{SEGMENT_BY}',"
            f" timescaledb.orderby = '{ORDER_BY}')"
        )

    def ensure_days(self, days: Iterable[date]) -> None:
        """Nothing: the extension makes a chunk with its first row."""

    def summarise(self, cursor: CursorWrapper, first: date, last: date) -> None:
        cursor.execute(
            "SELECT ingestion_summarise(index.oid) FROM timescaledb_information.chunks c"
            " JOIN pg_index x ON x.indrelid = format('%%I.%%I', c.chunk_schema, c.chunk_name)::regclass"
            " JOIN pg_class index ON index.oid = x.indexrelid JOIN pg_am am ON am.oid = index.relam AND am.amname = 'brin'"
            " WHERE c.hypertable_name = %s AND c.range_start <= %s AND c.range_end > %s",
            [TABLE, midnight(last), midnight(first)],
        )

    def parts(self) -> list[Partition]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT format('%%I.%%I', c.chunk_schema, c.chunk_name), (c.range_start AT TIME ZONE 'UTC')::date,"
                " (c.range_end AT TIME ZONE 'UTC')::date, s.table_bytes + coalesce(s.toast_bytes, 0), s.index_bytes,"
                " k.status & %s <> 0 AND k.status & %s = 0"
                " FROM timescaledb_information.chunks c"
                " JOIN chunks_detailed_size(%s) s USING (chunk_schema, chunk_name)"
                " JOIN _timescaledb_catalog.chunk k ON k.relid = format('%%I.%%I', c.chunk_schema, c.chunk_name)::regclass"
                " WHERE c.hypertable_name = %s ORDER BY c.range_start",
                [_COMPRESSED, _HAS_ROWS_BESIDE, TABLE, TABLE],
            )
            return [
                Partition(name, start, end, table_bytes, index_bytes, is_settled=is_settled)
                for name, start, end, table_bytes, index_bytes, is_settled in cursor.fetchall()
            ]

    def settle(self, part: Partition) -> int:
        """Into the columnstore; rows that came late, too."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT compress_chunk(%s::regclass)", [part.name])
            cursor.execute(
                "SELECT total_bytes FROM chunks_detailed_size(%s) WHERE format('%%I.%%I', chunk_schema, chunk_name) = %s",
                [TABLE, part.name],
            )
            (size,) = cursor.fetchone()
        return part.bytes - int(size)

    def drop(self, part: Partition, may_go: Callable[[], bool]) -> int:
        with transaction.atomic(), connection.cursor() as cursor:
            take(cursor, Lock.LEDGER, seconds=LOCK_TIMEOUT)  # no batch is being written
            if not may_go():
                return 0
            cursor.execute(
                "SELECT drop_chunks(%s::regclass, older_than => %s, newer_than => %s)",
                [TABLE, part.end_at, part.start_at - timedelta(microseconds=1)],
            )
        return part.bytes
