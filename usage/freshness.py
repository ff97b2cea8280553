"""How far the figures of an org trail the events that were sent.

What was counted last is stored per org and model, and cached; how much waits is asked of the ledger of batches and of the
readers of streams each time, so that a stopped rollup or a stopped reader is not called fresh.
"""

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import structlog
from django.conf import settings
from django.core.cache import cache
from django.db.backends.utils import CursorWrapper
from django.db.models import F, Func, Min
from django.utils import timezone
from redis.exceptions import RedisError

from ingestion.models import Batch
from ingestion.stream.position import read_up_to

from .models import Freshness

logger = structlog.get_logger(__name__)

FRESH_UP_TO = timedelta(seconds=300)
STALE_UP_TO = timedelta(seconds=600)
ACTIVE = timedelta(days=1)  # since its last call: an org that is long idle has no lag, and would hide that of others


class Status(StrEnum):
    FRESH = "fresh"
    STALE = "stale"
    DELAYED = "delayed"

    @classmethod
    def of(cls, lag: timedelta) -> "Status":
        if lag <= FRESH_UP_TO:
            return cls.FRESH
        return cls.STALE if lag <= STALE_UP_TO else cls.DELAYED


@dataclass(frozen=True)
class Entry:
    """The freshness of an org, of one model of it or of all; Nones where nothing was ever counted."""

    model_id: uuid.UUID | None
    last_event_at: datetime | None
    last_rollup_at: datetime | None
    lag_seconds: int | None
    status: Status


Stored = list[tuple[uuid.UUID, datetime, datetime]]

# From what was just collected; one row per org and model.
_NOTE = """
INSERT INTO usage_freshness AS kept (org_id, model_id, last_event_at, last_rollup_at)
SELECT org_id, model_id, max(last_event_at), clock_timestamp() FROM usage_delta GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (org_id, model_id) DO UPDATE SET
    last_event_at = greatest(kept.last_event_at, excluded.last_event_at), last_rollup_at = excluded.last_rollup_at
RETURNING org_id
"""


def note(cursor: CursorWrapper) -> set[uuid.UUID]:
    """Store the freshness of what `usage_delta` holds, in the rollup's transaction; returns the orgs it touched."""
    cursor.execute(_NOTE)
    return {org_id for (org_id,) in cursor.fetchall()}


def _key(org_id: uuid.UUID) -> str:
    return f"freshness:{org_id}"


def _read(org_id: uuid.UUID) -> Stored:
    rows = Freshness.objects.filter(org_id=org_id).order_by("model_id")
    return list(rows.values_list("model_id", "last_event_at", "last_rollup_at"))


def refresh_cache(org_ids: Iterable[uuid.UUID]) -> None:
    """Put what was committed into the cache. Called by the rollup, after its transaction."""
    try:
        cache.set_many({_key(org_id): _read(org_id) for org_id in org_ids}, settings.FRESHNESS_CACHE_TTL)
    except (RedisError, OSError) as error:
        logger.warning("cache_unavailable", error=error)


def _stored(org_id: uuid.UUID) -> Stored:
    """From the cache, or from the database where the cache has nothing or does not answer."""
    try:
        cached: Stored | None = cache.get(_key(org_id))
        if cached is None:
            cached = _read(org_id)
            # add: a rollup that committed meanwhile has put something newer there.
            cache.add(_key(org_id), cached, settings.FRESHNESS_CACHE_TTL)
    except (RedisError, OSError) as error:
        logger.warning("cache_unavailable", error=error)
        return _read(org_id)
    return cached


def complete_up_to(now: datetime) -> datetime:
    """Up to when all that was sent is counted, of every org. Uses batches_not_rolled_up."""
    oldest: datetime | None = Batch.objects.filter(rolled_up_at=None).aggregate(oldest=Min("completed_at"))["oldest"]
    return min([now, *(at for at in (oldest, read_up_to()) if at is not None)])


def lags(org_ids: Collection[uuid.UUID], now: datetime) -> dict[uuid.UUID, timedelta]:
    """The lag of each of some orgs. Uses batches_not_rolled_up.

    Whose events wait on a stream nobody knows before they are read: that backlog is every org's.
    """
    waiting = Batch.objects.filter(rolled_up_at=None, org_ids__overlap=list(org_ids))
    by_org = waiting.annotate(org=Func(F("org_ids"), function="unnest")).order_by().values_list("org")
    since = dict(by_org.annotate(oldest=Min("completed_at")))
    everyone = read_up_to()
    oldest = {org_id: [at for at in (since.get(org_id), everyone) if at is not None] for org_id in org_ids}
    return {org_id: max(timedelta(), now - min(found)) if found else timedelta() for org_id, found in oldest.items()}


def lags_of_active(now: datetime) -> list[timedelta]:
    """The lag of each org that had a call lately or whose events wait, the shortest first. Uses batches_not_rolled_up.

    Where there is no such org, one that says how far the streams are behind: whose events those are nobody knows yet.
    """
    called = set(Freshness.objects.filter(last_event_at__gte=now - ACTIVE).values_list("org_id", flat=True))
    waiting = Batch.objects.filter(rolled_up_at=None).annotate(org=Func(F("org_ids"), function="unnest")).order_by()
    found = lags(called | set(waiting.values_list("org", flat=True).distinct()), now)
    return sorted(found.values()) or [max(timedelta(), now - (read_up_to() or now))]


def entries(org_id: uuid.UUID, model_id: uuid.UUID | None = None) -> list[Entry]:
    """The freshness of each model of an org that was ever counted, or of one."""
    lag = lags((org_id,), timezone.now())[org_id]
    return [
        Entry(model, last_event_at, last_rollup_at, int(lag.total_seconds()), Status.of(lag))
        for model, last_event_at, last_rollup_at in _stored(org_id)
        if model_id in (None, model)
    ]


def overall(org_id: uuid.UUID, model_id: uuid.UUID | None = None) -> Entry:
    """The freshness of an org, or of one model of it, as one entry."""
    found = entries(org_id, model_id)
    if not found:
        return Entry(model_id, None, None, None, Status.DELAYED)
    return Entry(
        model_id,
        max(entry.last_event_at for entry in found if entry.last_event_at),
        max(entry.last_rollup_at for entry in found if entry.last_rollup_at),
        found[0].lag_seconds,
        found[0].status,
    )
