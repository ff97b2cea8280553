"""Resends whose content differs from the event that was stored first: told from mere repeats, and listed."""

from collections.abc import Iterable

from django.db.backends.utils import CursorWrapper
from psycopg import sql

from .dedupe import CLAIMS
from .models import Batch, Ledger
from .pricing import PriceBook
from .rows import CONTENT, Identity, copy_events
from .schema import UsageEvent

_STAGE = "CREATE TEMPORARY TABLE IF NOT EXISTS ingestion_resends (LIKE usage_events) ON COMMIT DELETE ROWS"

# The stored twin is found through its claim, then by primary key: each look-up is one probe.
_NOTE = """
INSERT INTO ingestion_conflicts (batch_id, org_id, event_id, first_occurred_at, payload, received_at)
SELECT s.batch_id, s.org_id, s.event_id, e.occurred_at, to_jsonb(s) - 'batch_id' - 'received_at', s.received_at
FROM ingestion_resends s
CROSS JOIN LATERAL (
    SELECT occurred_at FROM {current} c WHERE c.org_id = s.org_id AND c.event_id = s.event_id
    UNION ALL
    SELECT occurred_at FROM {previous} p WHERE p.org_id = s.org_id AND p.event_id = s.event_id
    LIMIT 1
) claim
CROSS JOIN LATERAL (
    SELECT * FROM usage_events u
    WHERE u.org_id = s.org_id AND u.occurred_at = claim.occurred_at AND u.event_id = s.event_id LIMIT 1
) e
WHERE ({resent}) IS DISTINCT FROM ({stored})
"""


def note(
    cursor: CursorWrapper,
    batch: Batch,
    ledger: Ledger,
    resent: Iterable[tuple[Identity, UsageEvent]],
    prices: PriceBook,
) -> int:
    """List those of these events that differ from what is stored; returns how many. Called once all else is stored."""
    current, previous = ledger.claim_tables(CLAIMS)
    cursor.execute(_STAGE)
    cursor.execute("DELETE FROM ingestion_resends")  # empty, but where a caller's transaction holds two batches
    copy_events(cursor, "ingestion_resends", batch, resent, prices)
    cursor.execute(
        sql.SQL(_NOTE).format(
            current=sql.Identifier(current),
            previous=sql.Identifier(previous),
            resent=sql.SQL(", ".join(f"s.{name}" for name in CONTENT)),
            stored=sql.SQL(", ".join(f"e.{name}" for name in CONTENT)),
        )
    )
    return int(cursor.rowcount)
