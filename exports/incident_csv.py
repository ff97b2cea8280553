"""The raw events of an incident as CSV, streamed. Columns, query and lines are those of `datasets.incident_events`."""

from collections.abc import Iterator

from orgs.tenancy import DatabaseRole, assumed

from .datasets import snapshot
from .datasets.incident_events import Incident, copied


def file(incident: Incident) -> Iterator[bytes]:
    """The file, some lines at a time."""
    with snapshot(), assumed(DatabaseRole.TENANT, incident.org_id):
        for _, chunk in copied(incident):
            yield chunk
