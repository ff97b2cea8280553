"""An org's audit trail as CSV, streamed."""

from collections.abc import Iterator

from orgs import audit
from orgs.models import Org
from orgs.tenancy import one_org

from .csv_writer import lines

HEADER = ("id", "at", "actor", "action", "outcome", "target", "address", "request_id")
ROWS_AT_ONCE = 2_000


def file(org: Org, actor: str = "", action: str = "") -> Iterator[str]:
    """The lines of the file, newest first, within memory that does not grow."""
    return lines(HEADER, _rows(org, actor, action))


def _rows(org: Org, actor: str, action: str) -> Iterator[tuple[object, ...]]:
    with one_org(org.pk):  # read after the view is over
        for record in audit.trail_of(org, actor, action).iterator(chunk_size=ROWS_AT_ONCE):
            told = audit.as_told_to_org(record)
            yield (told.pk, told.at.isoformat(), *(getattr(told, name) for name in HEADER[2:]))
