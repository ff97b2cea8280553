"""An org's audit trail as CSV, streamed."""

from collections.abc import Iterator

from orgs import audit
from orgs.models import Org

from .csv_writer import lines

HEADER = ("id", "at", "actor", "action", "outcome", "target", "address", "request_id")
ROWS_AT_ONCE = 2_000


def file(org: Org, actor: str = "", action: str = "") -> Iterator[str]:
    """The lines of the file, newest first, within memory that does not grow."""
    found = audit.trail_of(org, actor, action).iterator(chunk_size=ROWS_AT_ONCE)
    told = (audit.as_told_to_org(record) for record in found)
    return lines(HEADER, ((r.pk, r.at.isoformat(), *(getattr(r, name) for name in HEADER[2:])) for r in told))
