"""The single writer of the rollups: adds new batches, rebuilds windows, follows an org's time zone.

Every function takes `Lock.ROLLUP` and does its work in transactions that leave the rollups equal to the events of the
batches marked as rolled up. So each can be killed anywhere, run twice, or run by two workers.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import structlog
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import F, Q
from django.utils import timezone

from ingestion import spans, storage
from ingestion.locks import Lock, take, try_take
from ingestion.models import Batch, UsageEvent
from orgs.limits import MAX_EVENTS_PER_ROLLUP
from orgs.models import Org

from . import closing, freshness, metrics
from .aggregation import (
    CLIENTS,
    COLUMNS,
    DAILY_LOCAL,
    OUTCOMES,
    ROLLED_UP,
    ROLLUPS,
    Kept,
    LocalDay,
    Rollup,
    collect,
    local_days,
    zones_in_force,
)
from .models import DailyUsage, GroupsKept, ZoneInForce
from .retention import minutes_horizon, moments_horizon, rebuild_horizon
from .windows import DAY, UTC_ZONE, Window, midnight

logger = structlog.get_logger(__name__)

CHUNK = timedelta(days=7)  # of a rebuild or a verification: bounds a transaction
_MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True)
class Run:
    """What one run added."""

    batches: int
    events: int


def roll_up() -> Run:
    """Add every batch that is not in the rollups yet. Returns at once where another writer is at work."""
    batches = 0
    with metrics.timed_rollup() as timed:
        adopt_zones()
        try:
            while (run := _roll_up_some()).batches:
                batches += run.batches
                timed.events += run.events
        except IntegrityError:
            _forget_partitions()
            raise
    return Run(batches, timed.events)


def _roll_up_some() -> Run:
    """One transaction of at most `MAX_EVENTS_PER_ROLLUP` events, or a single batch that is larger."""
    with ExitStack() as traced, transaction.atomic(), connection.cursor() as cursor:
        if not try_take(cursor, Lock.ROLLUP):
            return Run(0, 0)
        batches = list(_next_batches())
        if not batches:  # mostly: no span
            return Run(0, 0)
        links = [batch.traceparent for batch in batches if batch.traceparent]
        told = traced.enter_context(spans.span("roll up", links, is_root=True, batches=len(batches)))
        ids = [batch.pk for batch in batches]
        times = [t for b in batches for t in (b.first_occurred_at, b.last_occurred_at) if t is not None]
        touched: set[uuid.UUID] = set()
        if times:
            span = Window(min(times), max(times) + _MOMENT)
            _make_room(span)  # before anything else is locked: the order of locks
            storage.summarise(cursor, span.start, span.end)
            # Reads the touched days by the BRIN index on batch_id.
            days = local_days(span, zones_in_force())
            collect(
                cursor, span, "e.batch_id = ANY(%(batches)s)", {"batches": ids}, days, minutes_horizon(timezone.now())
            )
            for rollup in ROLLUPS:
                if rollup.kept is Kept.DAYS:
                    cursor.execute(rollup.add())
                else:  # what came later than hours are kept is in its day alone
                    cursor.execute(rollup.add(f"{rollup.bucket} >= %s"), [moments_horizon(rollup, timezone.now())])
            closing.reopen(cursor)
            touched = freshness.note(cursor)
        Batch.objects.filter(pk__in=ids).update(rolled_up_at=timezone.now())
        transaction.on_commit(lambda: freshness.refresh_cache(touched))
        run = Run(len(batches), sum(batch.accepted for batch in batches))
        told.set(events=run.events, orgs=len(touched), first_batch_id=ids[0], last_batch_id=ids[-1])
        transaction.on_commit(lambda: _log(run, ids))
    return run


def _log(run: Run, ids: Sequence[int]) -> None:
    """What was added; a batch beyond one run is never between its first and its last."""
    logger.info("rolled_up", batches=run.batches, events=run.events, first_batch_id=ids[0], last_batch_id=ids[-1])


def _next_batches() -> Iterator[Batch]:
    """The oldest batches that are not rolled up, as many as fit one run. Uses batches_not_rolled_up."""
    events = 0
    waiting = Batch.objects.filter(rolled_up_at=None).order_by("id")
    for batch in waiting.only("id", "accepted", "first_occurred_at", "last_occurred_at", "traceparent")[:1000]:
        events += batch.accepted
        if events > MAX_EVENTS_PER_ROLLUP and events != batch.accepted:
            return
        yield batch


def _make_room(span: Window) -> None:
    """Partitions for the rows that events of a span can have: hours as far back as they are kept, and days of any zone."""
    for rollup in ROLLUPS:
        if rollup.kept is Kept.DAYS:
            rollup.partitions.ensure(Window(span.start - DAY, span.end + DAY).days(UTC_ZONE))
        else:
            rollup.partitions.ensure(span.after(moments_horizon(rollup, timezone.now())).days(UTC_ZONE))


def _forget_partitions() -> None:
    """One may be gone that this process remembers: the next run looks."""
    for rollup in ROLLUPS:
        rollup.partitions.forget()


def rebuild(window: Window, org_id: uuid.UUID | None = None) -> Window:
    """Make the rollups of a window again from raw events; returns what was made again: whole UTC days.

    Not the days before `rebuild_horizon`: what their figures were made of is gone, or goes. Batches that are not rolled up
    yet stay so: the next run adds them.
    """
    widened = window.whole_days().after(rebuild_horizon(timezone.now()))
    for chunk in widened.pieces(CHUNK):
        with transaction.atomic(), connection.cursor() as cursor:
            take(cursor, Lock.ROLLUP)
            _make_room(chunk)
            collect_window(cursor, chunk, zones_in_force(), org_id)
            for rollup in ROLLUPS:
                _replace(cursor, rollup, chunk, org_id)
            closing.reopen(cursor, chunk)
    if org_id is None:
        GroupsKept.objects.filter(since__gt=widened.start, since__lte=widened.end).update(since=widened.start)
    return widened


def collect_window(
    cursor: CursorWrapper, window: Window, zones: Mapping[uuid.UUID, ZoneInfo], org_id: uuid.UUID | None
) -> None:
    """Fill `usage_delta` from all events that rollup rows of a window of whole UTC days can hold.

    A day of a zone begins up to 14 h from the UTC day of its date: hence a day more on both sides.
    """
    condition = f"{ROLLED_UP} AND (%(org_id)s::uuid IS NULL OR e.org_id = %(org_id)s)"
    span = Window(window.start - DAY, window.end + DAY)
    days = local_days(span, zones)
    collect(cursor, span, condition, {"org_id": org_id}, days, minutes_horizon(timezone.now()))


def rows_of(rollup: Rollup, window: Window, org_id: uuid.UUID | None) -> tuple[str, list[Any]]:
    """The condition, and its parameters, that picks a rollup's rows of a window of whole UTC days, as far as they are kept."""
    if rollup.kept is Kept.DAYS:
        bounds: list[Any] = [window.start.date(), window.end.date()]
    else:
        kept = window.after(moments_horizon(rollup, timezone.now()))
        bounds = [kept.start, kept.end]
    condition = f"{rollup.bucket} >= %s AND {rollup.bucket} < %s"
    if rollup.kept is Kept.DAYS:
        condition += " AND time_zone <> 'UTC'" if rollup is DAILY_LOCAL else " AND time_zone = 'UTC'"
    if org_id is not None:
        condition += " AND org_id = %s"
        bounds.append(org_id)
    return condition, bounds


def _replace(cursor: CursorWrapper, rollup: Rollup, window: Window, org_id: uuid.UUID | None) -> None:
    condition, parameters = rows_of(rollup, window, org_id)
    cursor.execute(f"DELETE FROM {rollup.table} WHERE {condition}", parameters)
    cursor.execute(f"INSERT INTO {rollup.table} ({rollup.columns}) {rollup.rows_of_delta(condition)}", parameters)


def adopt_zones() -> None:
    """Where an org's time zone is no longer the one its daily rows are kept in, make them again for the new one.

    As far back as raw events reach. Days before that stay as they are, under the new zone's name: no figure is lost, and one
    day takes what lies between them and the first that is made again.
    """
    changed = (
        Org.objects.annotate(in_force=F("zone_in_force__time_zone"))
        .filter(Q(in_force=None) & ~Q(time_zone="UTC") | ~Q(in_force=None) & ~Q(in_force=F("time_zone")))
        .order_by("pk")
    )
    for org in changed:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                if not try_take(cursor, Lock.ROLLUP):
                    return
                _adopt(cursor, org)
        except (DatabaseError, ValueError):  # one org's zone holds up nobody's figures
            _forget_partitions()
            logger.exception("zone_not_adopted", org_id=str(org.pk), time_zone=org.time_zone)
        else:
            logger.info("zone_adopted", org_id=str(org.pk), time_zone=org.time_zone)


def _adopt(cursor: CursorWrapper, org: Org) -> None:
    rows = DailyUsage.objects.filter(org_id=org.pk)
    ours = rows.exclude(time_zone="UTC")
    if org.time_zone == "UTC":  # its days are there
        ours.delete()
        ZoneInForce.objects.filter(org=org).delete()
        # Hours in which its days began have two rows each.
        horizon = max(rebuild_horizon(timezone.now()), moments_horizon(CLIENTS, timezone.now()))
        if (span := _extent(org.pk, horizon)) is not None:
            _make_room(span.after(horizon))
            _remake(cursor, org.pk, span.after(horizon), {}, (CLIENTS, OUTCOMES))
        return
    first_day = (rebuild_horizon(timezone.now()) - DAY).date()  # the first that is made again as it should be
    final_day = first_day - 2 * DAY  # zones lie up to 26 hours apart: two days are made of what lies between
    before = ZoneInForce.objects.filter(org=org).first()
    old = UTC_ZONE if before is None else ZoneInfo(before.time_zone)
    final_at = midnight(final_day, old)
    if before is not None and before.final_at is not None and before.final_day is not None:
        was_changed_lately = before.final_day <= final_day < before.final_day + 2 * DAY
        final_at = before.final_at if was_changed_lately else final_at  # then no row ends at a midnight of the old zone
    ours.filter(day__gte=final_day).delete()
    if before is None:
        columns = ", ".join(("org_id", "day", "model_id", *COLUMNS))
        cursor.execute(
            f"INSERT INTO usage_daily (time_zone, {columns}) SELECT %s, {columns} FROM usage_daily"
            " WHERE org_id = %s AND time_zone = 'UTC' AND day < %s",
            [org.time_zone, org.pk, final_day],
        )
    else:
        ours.update(time_zone=org.time_zone)
    ZoneInForce.objects.update_or_create(
        org=org, defaults={"time_zone": org.time_zone, "final_day": final_day, "final_at": final_at}
    )
    span = _extent(org.pk, final_at)
    if span is None:
        return
    _make_room(Window(final_at, span.end))
    first = midnight(first_day, UTC_ZONE)
    _remake(cursor, org.pk, span.after(first), {org.pk: org.zone}, (DAILY_LOCAL, CLIENTS, OUTCOMES))
    between = LocalDay(org.pk, org.time_zone, first_day - DAY, final_at, midnight(first_day, org.zone))
    condition = f"{ROLLED_UP} AND e.org_id = %(org_id)s"
    span = Window(between.start, between.end)
    collect(cursor, span, condition, {"org_id": org.pk}, [between], minutes_horizon(timezone.now()))
    cursor.execute(f"INSERT INTO usage_daily ({DAILY_LOCAL.columns}) {DAILY_LOCAL.rows_of_delta()}")


def _extent(org_id: uuid.UUID, since: datetime) -> Window | None:
    """Whole UTC days around the org's events since a moment, and one more on both sides: a day of a zone can bear the date
    before or after that of its UTC days. By primary key.
    """
    events = UsageEvent.objects.filter(org_id=org_id, occurred_at__gte=since)
    first = events.order_by("occurred_at").values_list("occurred_at", flat=True).first()
    last = events.order_by("-occurred_at").values_list("occurred_at", flat=True).first()
    return None if first is None or last is None else Window(first - DAY, last + DAY).whole_days()


def _remake(
    cursor: CursorWrapper,
    org_id: uuid.UUID,
    span: Window,
    zones: Mapping[uuid.UUID, ZoneInfo],
    rollups: Sequence[Rollup],
) -> None:
    """Make an org's rows of some rollups again."""
    for chunk in span.pieces(CHUNK):
        collect_window(cursor, chunk, zones, org_id)
        for rollup in rollups:
            _replace(cursor, rollup, chunk, org_id)
        closing.reopen(cursor, chunk)
