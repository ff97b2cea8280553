"""The dedupe ledger: which (org, event id) was stored lately, whatever time the event claims.

The primary key of `usage_events` refuses a resend for as long as the event is kept, but must contain `occurred_at`; a
resend with another time gets past it. So every event also claims its identity in a ledger without time: two tables, the
current one and the one before. A batch claims in the current one and probes the other; every `LEDGER_ROTATION` the
older is emptied and becomes the current one. A claim is thus kept for one to two rotations. Claims are written in the
transaction of the events themselves, never before.
"""

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from orgs.limits import LEDGER_ROTATION

from .locks import Lock, take
from .models import Ledger

CLAIMS = ("ingestion_claims_0", "ingestion_claims_1")


def claim_tables(cursor: CursorWrapper) -> tuple[str, str]:
    """The current table and the one before, held in place until the transaction ends."""
    take(cursor, Lock.LEDGER, shared=True)
    cursor.execute("SELECT current FROM ingestion_ledger")
    (current,) = cursor.fetchone()
    return CLAIMS[current], CLAIMS[1 - current]


def rotate(*, force: bool = False) -> bool:
    """Begin a new claim table where the current one is `LEDGER_ROTATION` old. Says whether it did."""
    with transaction.atomic(), connection.cursor() as cursor:
        take(cursor, Lock.LEDGER)
        ledger = Ledger.objects.get()
        now = timezone.now()
        if not force and now - ledger.rotated_at < LEDGER_ROTATION:
            return False
        ledger.current = 1 - ledger.current
        ledger.rotated_at = now
        ledger.save()
        cursor.execute(f"TRUNCATE {CLAIMS[ledger.current]}")
    return True
