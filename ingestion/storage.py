"""The one module that knows how raw events are laid out: a table partitioned by UTC day of `occurred_at`.

Nothing else names a partition or an index of `usage_events`.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from django.db import connection, transaction
from psycopg import sql

from .locks import Lock, take

DAYS_AHEAD = 3  # partitions that stand ready: an event may lie 5 minutes ahead, a task may miss a day or two

DAYS_AT_ONCE = 30  # partitions of one transaction

# Days this process knows to have a partition. Positive knowledge only; `forget` where the database says otherwise.
_known: set[date] = set()


def day_of(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


def _partition(day: date) -> str:
    return f"usage_events_p{day:%Y%m%d}"


def ensure_days(days: Iterable[date]) -> None:
    """Make the partitions of these days where they are missing.

    A partition is made beside the table and then attached: ATTACH takes SHARE UPDATE EXCLUSIVE on the parent, so that
    writers and readers go on; CREATE … PARTITION OF would lock them all out.
    """
    missing = sorted(set(days) - _known)
    # Some at a time: each holds locks until its transaction ends, and the server's table of them is finite.
    for first in range(0, len(missing), DAYS_AT_ONCE):
        _make(missing[first : first + DAYS_AT_ONCE])


def _make(missing: list[date]) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        take(cursor, Lock.PARTITIONS)
        names = {_partition(day): day for day in missing}
        cursor.execute(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'usage_events'::regclass AND c.relname = ANY(%s)",
            [list(names)],
        )
        existing = {name for (name,) in cursor.fetchall()}
        for name in sorted(names.keys() - existing):
            start = datetime.combine(names[name], datetime.min.time(), UTC)
            cursor.execute(
                sql.SQL(
                    "CREATE TABLE {partition} (LIKE usage_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS);"
                    "ALTER TABLE usage_events ATTACH PARTITION {partition} FOR VALUES FROM ({start}) TO ({end})"
                ).format(partition=sql.Identifier(name), start=start, end=start + timedelta(days=1))
            )
    _known.update(missing)


def forget() -> None:
    """Drop what this process believes about partitions."""
    _known.clear()


def summarise(cursor: object, first: datetime, last: datetime) -> None:
    """Tell the BRIN index on `batch_id` about pages written since it was last told, in the days of this span.

    BRIN reads every page that it has no summary of: without this, a look-up of the newest batches would read the whole
    partition. The cost follows the new pages.
    """
    cursor.execute(  # type: ignore[attr-defined]
        "SELECT brin_summarize_new_values(index.oid) FROM pg_inherits i"
        " JOIN pg_class partition ON partition.oid = i.inhrelid"
        " JOIN pg_index x ON x.indrelid = partition.oid JOIN pg_class index ON index.oid = x.indexrelid"
        " JOIN pg_am am ON am.oid = index.relam AND am.amname = 'brin'"
        " WHERE i.inhparent = 'usage_events'::regclass AND partition.relname BETWEEN %s AND %s",
        [_partition(day_of(first)), _partition(day_of(last))],
    )
