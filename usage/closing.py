"""Folding the clients and error codes of hours that are over: those that count most by name, the rest together.

Until then all are there by name, so that adding to them is exact. An hour that is added to once it was folded is made again
from raw events: what it holds follows from its events alone, in whatever order and batches they came.
"""

import time
import uuid
from datetime import datetime, timedelta
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


def _close(open_hour: OpenHour) -> bool:
    with transaction.atomic(), connection.cursor() as cursor:
        take(cursor, Lock.ROLLUP, seconds=LOCK_TIMEOUT)
        for rollup in CROWDED:
            _fold(cursor, rollup, open_hour.org_id, open_hour.hour)
        deleted, _ = OpenHour.objects.filter(pk=open_hour.pk).delete()
    return bool(deleted)


def _fold(cursor: CursorWrapper, rollup: Rollup, org_id: uuid.UUID, hour: datetime) -> None:
    """By primary key: the rows of one org and hour."""
    assert rollup.crowd is not None
    name, keeps = rollup.crowd.name, rollup.crowd.keeps
    rows = "org_id = %s AND bucket_start >= %s AND bucket_start < %s"
    bounds: list[Any] = [org_id, hour, hour + HOUR]
    cursor.execute(
        f"SELECT count(DISTINCT {name}), coalesce(bool_or({name} = %s), false) FROM {rollup.table} WHERE {rows}",
        [REST, *bounds],
    )
    names, was_folded = cursor.fetchone()
    if not was_folded and names <= keeps:
        return
    window = Window(hour, hour + HOUR)
    if was_folded and hour >= complete_since(timezone.now()):
        collect(
            cursor,
            window,
            f"{ROLLED_UP} AND e.org_id = %(org_id)s",
            {"org_id": org_id},
            local_days(window, {org: zone for org, zone in zones_in_force().items() if org == org_id}),
            window.end,
        )
        cursor.execute(f"DELETE FROM {rollup.table} WHERE {rows}", bounds)
        cursor.execute(f"INSERT INTO {rollup.table} ({rollup.columns}) {rollup.folded(rollup.rows_of_delta())}")
    else:  # all are there by name; or what they were made of is gone
        gone = f"WITH gone AS (DELETE FROM {rollup.table} WHERE {rows} RETURNING *)"
        cursor.execute(
            f"{gone} INSERT INTO {rollup.table} ({rollup.columns}) {rollup.folded('SELECT * FROM gone')}", bounds
        )
