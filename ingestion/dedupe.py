"""The dedupe ledger: which (org, event id) was stored lately, whatever time the event claims.

The primary key of `usage_events` refuses a resend for as long as the event is kept, but must contain `occurred_at`; a
resend with another time gets past it. So every event also claims its identity in a ledger without time: two tables, the
current one and the one before. A batch claims in the current one and probes the other; every `DEDUPE_WINDOW_HOURS` the
older is emptied and becomes the current one. A claim is thus kept for one to two rotations. Claims are written in the
transaction of the events themselves, never before.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.utils import timezone
from psycopg import sql

from orgs.limits import MAX_CLOCK_SKEW

from .copying import copy_in
from .locks import LOCK_TIMEOUT, Lock, take
from .models import Ledger
from .rows import Identity, span_of

CLAIMS = ("ingestion_claims_0", "ingestion_claims_1")
# How far the clocks of this service's own processes may lie apart.
_CLOCKS = timedelta(hours=1)

_STAGE = """
CREATE TEMPORARY TABLE IF NOT EXISTS ingestion_identities (
    position integer, org_id uuid, event_id uuid, occurred_at timestamptz
) ON COMMIT DELETE ROWS
"""
_STAGED = {"position": "int4", "org_id": "bytea", "event_id": "bytea", "occurred_at": "int8"}

# Each look-up is a subquery with a LIMIT: the planner can't turn it into a join, so it is one probe of a primary key per
# row, whatever the planner knows of the tables.
_PROBE = "(SELECT true FROM {table} c WHERE c.org_id = i.org_id AND c.event_id = i.event_id LIMIT 1)"

# In the order of the identities, which is that of the key: two batches with the same events wait for each other instead
# of deadlocking. Not ON CONFLICT: its speculative insertion takes twice the time.
_CLAIM = f"""
INSERT INTO {{current}} (org_id, event_id, occurred_at)
SELECT org_id, event_id, occurred_at FROM ingestion_identities i WHERE position <> ALL(%(taken)s) AND {_PROBE} IS NULL
"""
_CLAIMED = f"SELECT position FROM ingestion_identities i WHERE {_PROBE}"

# Events whose claim is gone and which are still stored. The bounds let the planner leave out all other partitions; each
# row is one probe of the primary key of `usage_events`.
_STORED = """
SELECT position FROM ingestion_identities i WHERE occurred_at < %(horizon)s AND (
    SELECT true FROM usage_events u
    WHERE u.org_id = i.org_id AND u.occurred_at = i.occurred_at AND u.event_id = i.event_id
        AND u.occurred_at >= %(first)s AND u.occurred_at < %(horizon)s
    LIMIT 1
)
"""


def hold(cursor: CursorWrapper, *, alone: bool = False) -> Ledger:
    """The ledger, held in place until the transaction ends; with `alone`, no other batch is written meanwhile."""
    take(cursor, Lock.LEDGER, shared=not alone)
    return Ledger.objects.get()


def claim(cursor: CursorWrapper, ledger: Ledger, identities: Sequence[Identity]) -> set[int]:
    """Claim identities, all different and in order; returns the positions of those that were taken already.

    Raises `IntegrityError` where another batch claims one of them at this moment: to be repeated, with the ledger held
    alone. Once this has returned, nobody else can store the events that were claimed: who tries waits for this
    transaction. So what was not found in `usage_events` can be written there without looking again.
    """
    current, previous = ledger.claim_tables(CLAIMS)
    cursor.execute(_STAGE)
    cursor.execute("DELETE FROM ingestion_identities")  # empty, but where a caller's transaction holds two batches
    staged = ((position, key[:16], key[16:], moment) for position, (key, moment) in enumerate(identities))
    copy_in(cursor, "ingestion_identities", _STAGED, staged)

    def found(query: str, table: str = "", **parameters: datetime) -> set[int]:
        cursor.execute(sql.SQL(query).format(table=sql.Identifier(table)), parameters)
        return {position for (position,) in cursor.fetchall()}

    insert = sql.SQL(_CLAIM).format(current=sql.Identifier(current), table=sql.Identifier(previous))
    taken: set[int] = set()
    try:
        with transaction.atomic():
            cursor.execute(insert, {"taken": []})
    except IntegrityError:  # some are resends. It ended at the first of them, so that little was done in vain
        taken = found(_CLAIMED, current)
        cursor.execute(insert, {"taken": list(taken)})
    if cursor.rowcount + len(taken) < len(identities):
        taken |= found(_CLAIMED, previous)
    # What was stored before the older table of claims began had occurred by then, but for wrong clocks.
    horizon = ledger.previous_since + MAX_CLOCK_SKEW + _CLOCKS
    first, _ = span_of(identities)
    if first is not None and first < horizon:
        taken |= found(_STORED, first=first, horizon=horizon)
    return taken


def window() -> timedelta:
    """A claim is kept for at least this and at most twice this."""
    return timedelta(hours=settings.DEDUPE_WINDOW_HOURS)


def rotate(*, force: bool = False) -> bool:
    """Begin a new claim table where the current one is `DEDUPE_WINDOW_HOURS` old. Says whether it did.

    Raises `OperationalError` where a batch takes so long that all others would have to wait: to be tried again.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        take(cursor, Lock.LEDGER, seconds=LOCK_TIMEOUT)
        ledger = Ledger.objects.get()
        now = timezone.now()
        if not force and now - ledger.rotated_at < window():
            return False
        ledger.current = 1 - ledger.current
        ledger.previous_since, ledger.rotated_at = ledger.rotated_at, now
        ledger.save()
        cursor.execute(f"TRUNCATE {CLAIMS[ledger.current]}")
    return True
