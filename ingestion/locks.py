"""Every advisory lock of the service, in one place: no two have one number. All last for the transaction."""

import enum

from django.db.backends.utils import CursorWrapper

_NAMESPACE = 0x616E6C  # "anl": the first key of each lock


class Lock(enum.IntEnum):
    PARTITIONS = 1  # who makes or drops partitions
    LEDGER = 2  # batches take it shared, the rotation of the dedupe ledger takes it alone
    ROLLUP = 3  # the single writer of the rollups


def take(cursor: CursorWrapper, lock: Lock, *, shared: bool = False) -> None:
    """Wait for the lock."""
    cursor.execute(f"SELECT pg_advisory_xact_lock{'_shared' if shared else ''}(%s, %s)", [_NAMESPACE, lock])


def try_take(cursor: CursorWrapper, lock: Lock) -> bool:
    """Take the lock if nobody holds it."""
    cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [_NAMESPACE, lock])
    (taken,) = cursor.fetchone()
    return bool(taken)
