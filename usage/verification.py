"""Whether the rollups equal what the events say: computed again from raw events, compared row by row."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from ingestion.models import Batch

from .aggregation import COLUMNS, ROLLUPS, Rollup, hour_of, zones_in_force
from .models import REST, DailyUsage, HourlyUsage
from .retention import groups_horizon, rebuild_horizon
from .rollups import CHUNK, collect_window, rows_of
from .windows import DAY, UTC_ZONE, Window, midnight

MAX_FINDINGS = 1000  # told of; one is enough to act on


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: which row or batch, and how."""

    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.detail}"


def verify(window: Window | None = None, grace: timedelta = timedelta()) -> list[Finding]:
    """Everything in a window (default: all that raw events are kept of) that does not agree with the raw events.

    Batches that came in before this call and are not rolled up after `grace` are findings too. Each chunk is compared on
    one snapshot, so that figures that change meanwhile are not.
    """
    findings = [*_not_rolled_up(grace)]
    extent = window.whole_days() if window else _extent()
    if extent is not None:  # what came before was made of events that are gone, or go
        extent = extent.after(rebuild_horizon(timezone.now()))
    for chunk in extent.pieces(CHUNK) if extent else ():
        own_transaction = not connection.in_atomic_block  # else the caller's snapshots count
        with transaction.atomic(), connection.cursor() as cursor:
            if own_transaction:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            collect_window(cursor, chunk, zones_in_force(), None)
            for rollup in ROLLUPS:
                findings += _compare(cursor, rollup, chunk)
            findings += _missing_events(cursor, chunk)
        if len(findings) >= MAX_FINDINGS:
            break
    return findings[:MAX_FINDINGS]


def _extent() -> Window | None:
    """From the first to the last day that any event, batch or rollup row lies in."""
    moments = []
    for order in ("", "-"):
        batch = Batch.objects.exclude(first_occurred_at=None).order_by(f"{order}first_occurred_at").first()
        hour = HourlyUsage.objects.order_by(f"{order}bucket_start").first()
        day = DailyUsage.objects.order_by(f"{order}day").first()
        moments += [batch.first_occurred_at, batch.last_occurred_at] if batch else []
        moments += [hour.bucket_start] if hour else []
        moments += [midnight(day.day, UTC_ZONE)] if day else []
    times = [moment for moment in moments if moment is not None]
    # A day more on both sides: there days of zones bear dates that no UTC day here has.
    return Window(min(times) - DAY, max(times) + DAY).whole_days() if times else None


def _not_rolled_up(grace: timedelta) -> Iterator[Finding]:
    asked_at = timezone.now()
    waiting = Batch.objects.filter(rolled_up_at=None, completed_at__lte=asked_at).order_by("id")
    while waiting.exists() and timezone.now() < asked_at + grace:
        time.sleep(0.2)
    for batch in waiting[:MAX_FINDINGS]:
        yield Finding(
            f"batch {batch.pk} ({batch.public_id})",
            f"{batch.accepted} events accepted at {batch.completed_at:%Y-%m-%d %H:%M:%S} UTC are not rolled up",
        )


def _compare(cursor: CursorWrapper, rollup: Rollup, window: Window) -> Iterator[Finding]:
    """Rows of one rollup that differ, are missing or are too many; both sides as if all hours were over."""
    if rollup.crowd is not None:
        since = groups_horizon()
        window = window if since is None else window.after(since)
    condition, parameters = rows_of(rollup, window, None)
    key = ", ".join(rollup.key)
    pairs = ", ".join(f"expected.{name}, actual.{name}" for name in COLUMNS)
    cursor.execute(
        f"""
        WITH expected AS ({rollup.folded(rollup.rows_of_delta(condition), _waits(rollup))}),
            actual AS ({rollup.folded(f"SELECT * FROM {rollup.table} WHERE {condition}", _waits(rollup))})
        SELECT {key}, {pairs} FROM expected FULL JOIN actual USING ({key})
        WHERE row({", ".join(f"expected.{name}" for name in COLUMNS)})
            IS DISTINCT FROM row({", ".join(f"actual.{name}" for name in COLUMNS)})
        ORDER BY {key} LIMIT {MAX_FINDINGS}
        """,
        [*parameters, *parameters],
    )
    for row in cursor.fetchall():
        names = dict(zip(rollup.key, row, strict=False))
        values = row[len(rollup.key) :]
        differing = [
            f"{name} is {_told(actual)}, the events say {_told(expected)}"
            for name, expected, actual in zip(COLUMNS, values[::2], values[1::2], strict=True)
            if expected != actual
        ]
        yield Finding(
            f"{rollup.table} " + " ".join(f"{name}={value}" for name, value in names.items()), "; ".join(differing)
        )


def _waits(rollup: Rollup) -> str:
    """Of a row: whether its hour was added to once it was folded, and waits to be made again (see `closing`)."""
    if rollup.crowd is None:
        return "false"
    return f"""
        (found.org_id, {hour_of(f"found.{rollup.bucket}")}) IN (
            SELECT o.org_id, o.hour FROM usage_open_hours o WHERE EXISTS (
                SELECT FROM {rollup.table} t WHERE t.org_id = o.org_id AND t.bucket_start >= o.hour
                    AND t.bucket_start < o.hour + interval '1 hour' AND t.{rollup.crowd.name} = '{REST}'
            )
        )
    """


def _told(value: object) -> str:
    return "missing" if value is None else str(value)


def _missing_events(cursor: CursorWrapper, window: Window) -> Iterator[Finding]:
    """Batches that begin in a window and whose events are not all there."""
    cursor.execute(
        """
        WITH batches AS (
            SELECT * FROM ingestion_batches WHERE first_occurred_at >= %(start)s AND first_occurred_at < %(end)s
        )
        SELECT b.id, b.public_id, b.accepted, count(e.batch_id)
        FROM batches b
        LEFT JOIN usage_events e ON e.batch_id = b.id AND e.occurred_at >= %(start)s
            AND e.occurred_at <= (SELECT max(last_occurred_at) FROM batches)
        GROUP BY b.id, b.public_id, b.accepted HAVING count(e.batch_id) <> b.accepted ORDER BY b.id
        """,
        {"start": window.start, "end": window.end},
    )
    for batch_id, public_id, accepted, stored in cursor.fetchall():
        yield Finding(f"batch {batch_id} ({public_id})", f"accepted {accepted} events, {stored} are stored")
