"""Messages from a file or a generator, through the same code as any door."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from django.conf import settings
from django.utils import timezone

from .models import Door, QuarantinedMessage
from .schema import Invalid, UsageEvent, read_message, split
from .writing import Delivery, store


@dataclass
class Tally:
    """What became of the messages of a replay."""

    events: int = 0
    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0


def replay(messages: Iterable[bytes], door: Door) -> Tally:
    """Store messages in batches of `INGESTION_BATCH_SIZE`. A message that is in quarantine already is a duplicate."""
    tally = Tally()
    for read in map(_read, _chunks(messages, settings.INGESTION_BATCH_SIZE)):
        events, invalid = split(read)
        payloads = {item.payload for item in invalid}
        known = set(
            map(bytes, QuarantinedMessage.objects.filter(payload__in=payloads).values_list("payload", flat=True))
        )
        fresh = [item for item in invalid if item.payload not in known]
        tally.events += len(events) + len(invalid)
        tally.duplicates += len(invalid) - len(fresh)
        if not events and not fresh:
            continue
        batch = store(Delivery(door, events, quarantined=fresh, registers=True))
        tally.accepted += batch.accepted
        tally.duplicates += batch.duplicates
        tally.quarantined += batch.quarantined
    return tally


def _read(messages: list[bytes]) -> list[UsageEvent | Invalid]:
    now = timezone.now()
    return [item for message in messages for item in read_message(message, now)]


def _chunks(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
