"""Raw events on plain PostgreSQL: a table natively partitioned by UTC day."""

from datetime import date

from django.db import connection
from django.db.backends.utils import CursorWrapper
from psycopg import sql

from ingestion.partitioning import Partition, Partitioned, Unit

from .engine import INDEX, TABLE


class Plain:
    name = "PostgreSQL"

    def __init__(self) -> None:
        self._days = Partitioned(TABLE, Unit.DAY)
        self.forget, self.ensure_days = self._days.forget, self._days.ensure
        self.parts, self.drop = self._days.partitions, self._days.drop

    def create(self, cursor: CursorWrapper, columns: str) -> None:
        cursor.execute(f"CREATE TABLE {TABLE} ({columns}) PARTITION BY RANGE (occurred_at)")
        cursor.execute(INDEX)

    def summarise(self, cursor: CursorWrapper, first: date, last: date) -> None:
        cursor.execute(
            "SELECT brin_summarize_new_values(index.oid) FROM pg_inherits i"
            " JOIN pg_class partition ON partition.oid = i.inhrelid"
            " JOIN pg_index x ON x.indrelid = partition.oid JOIN pg_class index ON index.oid = x.indexrelid"
            " JOIN pg_am am ON am.oid = index.relam AND am.amname = 'brin'"
            " WHERE i.inhparent = %s::regclass AND partition.relname BETWEEN %s AND %s",
            [TABLE, self._days.name_of(first), self._days.name_of(last)],
        )

    def settle(self, part: Partition) -> int:
        """Build its indexes anew, without the room that B-trees keep for what comes in between, and freeze its rows, so that no
        later vacuum has to read it. Writers go on."""
        name = sql.Identifier(part.name)
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("REINDEX TABLE CONCURRENTLY {}").format(name))
            cursor.execute(sql.SQL("VACUUM (FREEZE, ANALYZE) {}").format(name))
            cursor.execute("SELECT pg_total_relation_size(%s::regclass)", [part.name])
            (size,) = cursor.fetchone()
        self._days.mark_settled(part)
        return part.bytes - int(size)
