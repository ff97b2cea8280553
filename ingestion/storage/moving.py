"""A plain table of raw events becomes a hypertable, while readers and writers go on until the last moment."""

from collections.abc import Iterator

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg import sql

from ingestion.locks import Lock, take
from ingestion.partitioning import Partition

from . import guarding
from .engine import INDEX, TABLE
from .plain import Plain
from .timescale import Timescale

NEW = f"{TABLE}_new"


class NotEqual(RuntimeError):
    """The copy does not hold what the table holds; nothing was changed."""


def move() -> Iterator[tuple[Partition, int]]:
    """Copy day by day, each in a transaction of its own, then take what came meanwhile and swap the tables in one.

    Yields each day and how many rows were copied. It may break off anywhere and be run again: what was copied stays. Until the
    swap nobody sees the new table; during it batches and readers wait. Raises `NotEqual`.
    """
    plain = Plain()
    for part in plain.parts():
        if part.is_detached:  # past its retention: no part of the table any more
            plain.drop(part)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NULL", [NEW])
        if cursor.fetchone()[0]:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
            cursor.execute(f"CREATE TABLE {NEW} (LIKE {TABLE} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
            cursor.execute(f"ALTER TABLE {NEW} ADD PRIMARY KEY (org_id, occurred_at, event_id)")
            Timescale().adopt(cursor, NEW)
    for part in plain.parts():
        with transaction.atomic(), connection.cursor() as cursor:
            yield part, 0 if _is_whole(cursor, part) else _copy(cursor, part)
    with transaction.atomic(), connection.cursor() as cursor:
        take(cursor, Lock.PARTITIONS)
        # No batch may wait within its COPY: the extension would not notice that the table is another one by then.
        take(cursor, Lock.LEDGER)
        cursor.execute(f"LOCK TABLE {TABLE}")
        for part in plain.parts():
            if not _is_whole(cursor, part):
                _copy(cursor, part)
                if not _is_whole(cursor, part):
                    raise NotEqual(part.name)
        guarding.unguard(cursor)
        cursor.execute(f"DROP TABLE {TABLE}")
        cursor.execute(f"ALTER TABLE {NEW} RENAME TO {TABLE}")
        cursor.execute(f"ALTER INDEX {NEW}_pkey RENAME TO {TABLE}_pkey")
        cursor.execute(INDEX)
        guarding.guard(cursor)


def _is_whole(cursor: CursorWrapper, part: Partition) -> bool:
    """Whether the new table has as many rows of a day as the old one."""
    cursor.execute(
        sql.SQL(
            "SELECT (SELECT count(*) FROM {}) = (SELECT count(*) FROM {} WHERE occurred_at >= {} AND occurred_at < {})"
        ).format(sql.Identifier(part.name), sql.Identifier(NEW), part.start_at, part.end_at)
    )
    return bool(cursor.fetchone()[0])


def _copy(cursor: CursorWrapper, part: Partition) -> int:
    """Write the rows of a day that the new table does not have yet; returns how many."""
    cursor.execute(
        sql.SQL("INSERT INTO {} SELECT * FROM {} ON CONFLICT DO NOTHING").format(
            sql.Identifier(NEW), sql.Identifier(part.name)
        )
    )
    return int(cursor.rowcount)
