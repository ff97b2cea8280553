"""Raw events on plain PostgreSQL: a table natively partitioned by UTC day."""

from datetime import date

from django.db import connection
from django.db.backends.utils import CursorWrapper
from psycopg import sql

from ingestion.partitioning import Partition, Partitioned, Unit

from .engine import INDEX, TABLE


class Plain:
    name = "PostgreSQL"
    makes_days_ahead = True

    def __init__(self) -> None:
        self._days = Partitioned(TABLE, Unit.DAY)
        self.knows, self.forget, self.ensure_days = self._days.knows, self._days.forget, self._days.ensure
        self.parts, self.drop = self._days.partitions, self._days.drop

    def create(self, cursor: CursorWrapper, columns: str) -> None:
        cursor.execute(f"CREATE TABLE {TABLE} ({columns}) PARTITION BY RANGE (occurred_at)")
        cursor.execute(INDEX)

    def summarise(self, cursor: CursorWrapper, first: date, last: date) -> None:
        cursor.execute(
            "SELECT ingestion_summarise(index.oid) FROM pg_inherits i"
            " JOIN pg_class partition ON partition.oid = i.inhrelid"
            " JOIN pg_index x ON x.indrelid = partition.oid JOIN pg_class index ON index.oid = x.indexrelid"
            " JOIN pg_am am ON am.oid = index.relam AND am.amname = 'brin'"
            " WHERE i.inhparent = %s::regclass AND partition.relname BETWEEN %s AND %s"
            # Whoever settles this day holds the same lock for long, and waits for us: then it is read without a summary.
            " AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.relation = partition.oid AND l.mode = 'ShareUpdateExclusiveLock')",
            [TABLE, self._days.name_of(first), self._days.name_of(last)],
        )

    def settle(self, part: Partition) -> int:
        """Build its indexes anew, without the room that B-trees keep for what comes in between, and freeze its rows, so that no
        later vacuum has to read it. Writers go on."""
        name = sql.Identifier(part.name)
        with connection.cursor() as cursor:
            self._drop_leftovers(cursor, part)
            cursor.execute(sql.SQL("ALTER INDEX {} SET (fillfactor = 100)").format(sql.Identifier(f"{part.name}_pkey")))
            cursor.execute(sql.SQL("REINDEX TABLE CONCURRENTLY {}").format(name))
            cursor.execute(sql.SQL("VACUUM (FREEZE, ANALYZE) {}").format(name))
            cursor.execute("SELECT pg_total_relation_size(%s::regclass)", [part.name])
            (size,) = cursor.fetchone()
        self._days.mark_settled(part)
        return part.bytes - int(size)

    def _drop_leftovers(self, cursor: CursorWrapper, part: Partition) -> None:
        """Of a settling that broke off: copies of indexes that are no longer, or not yet, of use, and are still written to."""
        cursor.execute(
            "SELECT index.relname FROM pg_index x JOIN pg_class index ON index.oid = x.indexrelid"
            " WHERE x.indrelid = %s::regclass AND NOT x.indisvalid AND index.relname ~ '_cc(new|old)[0-9]*$'",
            [part.name],
        )
        for (name,) in cursor.fetchall():
            cursor.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(name)))
