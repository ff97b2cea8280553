"""Every advisory lock of the service, in one place: no two have one number. All last for the transaction,
except those of a stream's readers, of maintenance and of the watch, which last for their sessions."""

import enum

from django.db import connection
from django.db.backends.utils import CursorWrapper

_NAMESPACE = 0x616E6C  # "anl": the first key of each lock
LOCK_TIMEOUT = 5.0  # seconds that all batches may wait for somebody who wants a lock alone, and can try again later


class Lock(enum.IntEnum):
    PARTITIONS = 1  # who makes or drops partitions
    LEDGER = 2  # batches take it shared, the rotation of the dedupe ledger takes it alone
    ROLLUP = 3  # the single writer of the rollups
    STREAM = 4  # who reads a stream, by its name
    STREAM_WORKER = 5  # shared by the workers that are there to read a stream, by its name
    MAINTENANCE = 6  # who settles and drops what is old
    WATCH = 7  # who looks for incidents
    EXPORT = 8  # who asks for an export, by the org
    EXPORT_CLAIM = 9  # who takes a job to make its file


def take(cursor: CursorWrapper, lock: Lock, *, shared: bool = False, seconds: float | None = None) -> None:
    """Wait for the lock; at most so many seconds, then raise `OperationalError`: who waits holds up all who come later."""
    if seconds is not None:
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{seconds:.0f}s"])
    cursor.execute(f"SELECT pg_advisory_xact_lock{'_shared' if shared else ''}(%s, %s)", [_NAMESPACE, lock])


def take_named(cursor: CursorWrapper, lock: Lock, name: str) -> None:
    """Wait for the lock of a name."""
    cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_NAMESPACE + lock, name])


def try_take(cursor: CursorWrapper, lock: Lock) -> bool:
    """Take the lock if nobody holds it."""
    cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [_NAMESPACE, lock])
    (taken,) = cursor.fetchone()
    return bool(taken)


def hold_for_session(lock: Lock, name: str, *, shared: bool = False) -> bool:
    """Take a lock of a name if nobody is in the way, for as long as this connection lasts."""
    function = "pg_try_advisory_lock_shared" if shared else "pg_try_advisory_lock"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {function}(%s, hashtext(%s))", [_NAMESPACE + lock, name])
        (taken,) = cursor.fetchone()
    return bool(taken)


def let_go_for_session(lock: Lock, name: str) -> None:
    """Give a lock back that this session holds."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", [_NAMESPACE + lock, name])


def count_holders(lock: Lock, name: str) -> int:
    """How many sessions hold a lock of a name."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid::bigint = %s"
            " AND objid::bigint = hashtext(%s)::bigint & 4294967295"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            [_NAMESPACE + lock, name],
        )
        (holders,) = cursor.fetchone()
    return int(holders)
