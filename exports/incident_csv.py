"""The raw events of an incident as CSV, streamed. Columns, query and lines are those of `datasets.incident_events`."""

from collections.abc import Iterator

from .datasets.incident_events import Incident, copied


def file(incident: Incident) -> Iterator[bytes]:
    """The file, some lines at a time."""
    return (chunk for _, chunk in copied(incident))
