"""Folding the clients and error codes of hours that are over: those that count most by name, the rest together.

Until then all are there by name, so that adding to them is exact. An hour that is added to once it was folded is made again
from raw events: what it holds follows from its events alone, in whatever order and batches they came.
"""

import uuid
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from ingestion.horizon import complete_since
from ingestion.locks import Lock, take
from orgs.limits import HOUR_CLOSES_AFTER, HOURS_CLOSED_AT_ONCE

from .aggregation import ROLLED_UP, ROLLUPS, Rollup, collect, local_days, zones_in_force
from .models import REST, OpenHour
from .windows import HOUR, Window, floor_hour

CROWDED = tuple(rollup for rollup in ROLLUPS if rollup.crowd is not None)


def reopen(cursor: CursorWrapper) -> None:
    """Remember which hours what is in `usage_delta` was added to. In the rollup's transaction."""
    cursor.execute(
        "INSERT INTO usage_open_hours (hour, org_id)"
        " SELECT DISTINCT hour, org_id FROM usage_delta ON CONFLICT DO NOTHING"
    )


def close_hours() -> int:
    """Fold the hours that are over; returns how many orgs' hours that were. Can be killed anywhere, and run twice."""
    closed = 0
    while count := _close_some(floor_hour(timezone.now() - HOUR_CLOSES_AFTER)):
        closed += count
    return closed


def _close_some(before: datetime) -> int:
    with transaction.atomic(), connection.cursor() as cursor:
        take(cursor, Lock.ROLLUP)
        found = list(OpenHour.objects.filter(hour__lt=before).order_by("hour", "org_id")[:HOURS_CLOSED_AT_ONCE])
        for open_hour in found:
            for rollup in CROWDED:
                _fold(cursor, rollup, open_hour.org_id, open_hour.hour)
        OpenHour.objects.filter(pk__in=[open_hour.pk for open_hour in found]).delete()
    return len(found)


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
            [day for day in local_days(window, zones_in_force()) if day.org_id == org_id],
            window.end,
        )
        cursor.execute(f"DELETE FROM {rollup.table} WHERE {rows}", bounds)
        cursor.execute(f"INSERT INTO {rollup.table} ({rollup.columns}) {rollup.folded(rollup.rows_of_delta())}")
    else:  # all are there by name; or what they were made of is gone
        gone = f"WITH gone AS (DELETE FROM {rollup.table} WHERE {rows} RETURNING *)"
        cursor.execute(
            f"{gone} INSERT INTO {rollup.table} ({rollup.columns}) {rollup.folded('SELECT * FROM gone')}", bounds
        )
