"""Folding the clients and error codes of hours that are over: those that count most by name, the rest together.

Until then all are there by name, so that adding to them is exact. An hour that is added to once it was folded is made again
from raw events: what it holds follows from its events alone, in whatever order and batches they came.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from ingestion.horizon import complete_since
from ingestion.locks import LOCK_TIMEOUT, Lock, take
from orgs.limits import HOUR_CLOSES_AFTER

from .aggregation import ROLLED_UP, ROLLUPS, Rollup, collect, local_days, zones_in_force
from .models import REST, OpenHour
from .windows import HOUR, Window, floor_hour

# A trickle of late events has their hour made again this often at most: that reads all of its events.
REMADE_AT_MOST_EVERY = timedelta(minutes=5)
CLOSING_TAKES_AT_MOST = 30.0  # seconds, and one hour more
CROWDED = tuple(rollup for rollup in ROLLUPS if rollup.crowd is not None)


def reopen(cursor: CursorWrapper, window: Window | None = None) -> None:
    """Remember which hours, of a window, what is in `usage_delta` was added to. In the rollup's transaction."""
    condition, bounds = ("true", []) if window is None else ("hour >= %s AND hour < %s", [window.start, window.end])
    cursor.execute(
        "INSERT INTO usage_open_hours (hour, org_id, opened_at) SELECT DISTINCT hour, org_id, %s::timestamptz"
        f" FROM usage_delta WHERE {condition} ON CONFLICT DO NOTHING",
        [timezone.now(), *bounds],
    )


def close_hours(rest: timedelta = REMADE_AT_MOST_EVERY) -> int:
    """Fold the hours that are over and were opened a while ago; returns how many orgs' hours that were.

    One org's hour a transaction, so that the rollup gets its turn; those that are left are the next run's. Can be killed
    anywhere, and run twice.
    """
    now = timezone.now()
    over = OpenHour.objects.filter(hour__lt=floor_hour(now - HOUR_CLOSES_AFTER), opened_at__lte=now - rest)
    closed, deadline = 0, time.monotonic() + CLOSING_TAKES_AT_MOST
    for open_hour in over.order_by("hour", "org_id").iterator():
        closed += _close(open_hour)
        if time.monotonic() > deadline:
            break
    return closed


# The rows of one org and hour, by primary key.
_ROWS = "org_id = %s AND bucket_start >= %s AND bucket_start < %s"


def _close(open_hour: OpenHour) -> bool:
    """Raw events are read where an hour that was folded has been added to, and then once for all that is made of them."""
    org_id, window = open_hour.org_id, Window(open_hour.hour, open_hour.hour + HOUR)
    bounds: list[Any] = [org_id, window.start, window.end]
    with transaction.atomic(), connection.cursor() as cursor:
        take(cursor, Lock.ROLLUP, seconds=LOCK_TIMEOUT)
        folded = [rollup for rollup in CROWDED if _was_folded(cursor, rollup, bounds)]
        if folded and window.start >= complete_since(timezone.now()):
            days = local_days(window, {org: zone for org, zone in zones_in_force().items() if org == org_id})
            condition = f"{ROLLED_UP} AND e.org_id = %(org_id)s"
            collect(cursor, window, condition, {"org_id": org_id}, days, window.end)
            for rollup in folded:
                cursor.execute(f"DELETE FROM {rollup.table} WHERE {_ROWS}", bounds)
                cursor.execute(f"INSERT INTO {rollup.table} ({rollup.columns}) {rollup.folded(rollup.rows_of_delta())}")
        for rollup in CROWDED:
            _fold(cursor, rollup, bounds)
        deleted, _ = OpenHour.objects.filter(pk=open_hour.pk).delete()
    return bool(deleted)


def _was_folded(cursor: CursorWrapper, rollup: Rollup, bounds: Sequence[Any]) -> bool:
    assert rollup.crowd is not None
    cursor.execute(
        f"SELECT EXISTS (SELECT FROM {rollup.table} WHERE {_ROWS} AND {rollup.crowd.name} = %s)", [*bounds, REST]
    )
    return bool(cursor.fetchone()[0])


def _fold(cursor: CursorWrapper, rollup: Rollup, bounds: Sequence[Any]) -> None:
    """Where there are more names than are kept."""
    assert rollup.crowd is not None
    cursor.execute(f"SELECT count(DISTINCT {rollup.crowd.name}) FROM {rollup.table} WHERE {_ROWS}", bounds)
    if cursor.fetchone()[0] > rollup.crowd.keeps:
        gone = f"WITH gone AS (DELETE FROM {rollup.table} WHERE {_ROWS} RETURNING *)"
        rows = rollup.folded("SELECT * FROM gone")
        cursor.execute(f"{gone} INSERT INTO {rollup.table} ({rollup.columns}) {rows}", bounds)
