"""Native range partitions of a table, one per UTC day or month: made ahead or on demand, dropped one by one.

There is never a default partition: a row without a partition of its own is refused, and its writer makes the partition.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

from django.db import connection, transaction
from psycopg import sql

from orgs.tenancy import DatabaseRole, acting_as

from .locks import Lock, take

_FORMATS = {"day": "%Y%m%d", "month": "%Y%m"}  # of what a partition's name ends with
# What a comment on a partition says of it. Who detached a partition for a purpose of his own finds it left alone.
_SETTLED = "settled"
_DROPPING = "past its retention: to be dropped"
MADE_AT_ONCE = 30  # partitions of one transaction: each holds locks, and the server's table of them is finite


def midnight(day: date) -> datetime:
    """When a UTC day begins."""
    return datetime.combine(day, time(), UTC)


class Unit(StrEnum):
    DAY = "day"
    MONTH = "month"

    def start(self, day: date) -> date:
        """The first day of the partition that a day lies in."""
        return day if self is Unit.DAY else day.replace(day=1)

    def end(self, start: date) -> date:
        """The first day behind a partition."""
        return start + timedelta(days=1) if self is Unit.DAY else (start + timedelta(days=31)).replace(day=1)


@dataclass(frozen=True)
class Partition:
    """A part of a table that holds [start, end), both at midnight UTC; what it takes on disk, in bytes."""

    name: str
    start: date
    end: date
    table_bytes: int
    index_bytes: int
    is_settled: bool = False  # brought into its cheapest form
    is_detached: bool = False  # left over by a drop that broke off

    @property
    def start_at(self) -> datetime:
        return midnight(self.start)

    @property
    def end_at(self) -> datetime:
        return midnight(self.end)

    @property
    def bytes(self) -> int:
        return self.table_bytes + self.index_bytes


@dataclass(frozen=True)
class Partitioned:
    """A table that is partitioned by a column of days or moments."""

    table: str
    unit: Unit
    of_moments: bool = True  # whether the column is a timestamptz; else it is a date
    # Partitions that this process knows to exist, by their first day. Positive knowledge only.
    _known: set[date] = field(default_factory=set, compare=False)

    def knows(self, days: Iterable[date]) -> bool:
        """Whether this process knows that all these days have a partition."""
        return self._known.issuperset(map(self.unit.start, days))

    def forget(self) -> None:
        """Drop what this process believes about partitions."""
        self._known.clear()

    def ensure(self, days: Iterable[date]) -> None:
        """Make the partitions of these days where they are missing.

        A partition is made beside the table and then attached: ATTACH takes SHARE UPDATE EXCLUSIVE on the parent, so that
        writers and readers go on; CREATE … PARTITION OF would lock them all out.
        """
        missing = sorted({self.unit.start(day) for day in days} - self._known)
        for first in range(0, len(missing), MADE_AT_ONCE):
            self._make(missing[first : first + MADE_AT_ONCE])

    def _make(self, starts: list[date]) -> None:
        with acting_as(DatabaseRole.TASKS), connection.cursor() as cursor:
            take(cursor, Lock.PARTITIONS)
            for start in starts:
                # A function of the owner's: whoever writes events owns nothing. One that is there already has been
                # detached, to be dropped: what it holds comes back.
                cursor.execute(
                    "SELECT ingestion_make_partition(%s, %s, %s, %s)",
                    [self.table, self.name_of(start), self._bound(start), self._bound(self.unit.end(start))],
                )
            transaction.on_commit(lambda: self._known.update(starts))

    def partitions(self) -> list[Partition]:
        """All there are, by time; those too that a drop has detached and not yet removed."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid),"
                " i.inhrelid IS NOT NULL AND NOT i.inhdetachpending, coalesce(obj_description(c.oid, 'pg_class'), '')"
                " FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = %(table)s::regclass"
                " WHERE c.relkind = 'r' AND c.relname ~ %(names)s"
                " AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = %(table)s::regclass) ORDER BY c.relname",
                {"table": self.table, "names": f"^{self.table}_p[0-9]+$"},
            )
            rows = cursor.fetchall()
        found = []
        for name, table_bytes, index_bytes, is_attached, mark in rows:
            if is_attached or mark == _DROPPING:
                start = self._start_of(name)
                end = self.unit.end(start)
                found.append(Partition(name, start, end, table_bytes, index_bytes, mark == _SETTLED, not is_attached))
        return found

    def mark_settled(self, partition: Partition) -> None:
        self._mark(partition, _SETTLED)

    def _mark(self, partition: Partition, mark: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(partition.name), sql.Literal(mark))
            )

    def drop(self, partition: Partition, may_go: Callable[[], bool] = lambda: True) -> int:
        """Remove a partition and all it holds, where `may_go` still says so once it is detached; returns the bytes that frees.

        Readers and writers of the others go on. One that breaks off is taken up by the next: the mark says what is to go. Not
        inside a transaction.
        """
        table, name = sql.Identifier(self.table), sql.Identifier(partition.name)
        with connection.cursor() as cursor:
            if not partition.is_detached:
                self._mark(partition, _DROPPING)
                cursor.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {} CONCURRENTLY").format(table, name))
            elif self._is_attached(partition):  # half detached
                cursor.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {} FINALIZE").format(table, name))
        self._known.discard(partition.start)
        with transaction.atomic(), connection.cursor() as cursor:
            take(cursor, Lock.PARTITIONS)
            if self._is_attached(partition):  # a late event has brought it back
                return 0
            if may_go():
                cursor.execute(sql.SQL("DROP TABLE {}").format(name))
                return partition.bytes
        self.ensure([partition.start])
        return 0

    def _is_attached(self, partition: Partition) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT FROM pg_inherits WHERE inhparent = %s::regclass AND inhrelid = %s::regclass",
                [self.table, partition.name],
            )
            return bool(cursor.rowcount > 0)

    def name_of(self, start: date) -> str:
        return f"{self.table}_p{start:{_FORMATS[self.unit]}}"

    def _start_of(self, name: str) -> date:
        digits = name.rpartition("_p")[2]
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:] or 1))

    def _bound(self, day: date) -> str:
        return (midnight(day) if self.of_moments else day).isoformat()
