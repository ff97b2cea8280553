"""Messages that were kept aside, and their way back in."""

from collections.abc import Iterable

import structlog
from django.db import transaction
from django.utils import timezone

from .models import Batch, Door, QuarantinedMessage
from .schema import Invalid, UsageEvent, read_message, reason_of
from .writing import Delivery, store

logger = structlog.get_logger(__name__)


def replay(message_ids: Iterable[int]) -> Batch | None:
    """Read waiting messages again and store those that are right now, in one batch; None where none is.

    A message is marked replayed in the transaction that stores its events, and only where all of it was right; the
    others go on waiting with the reason they have now. Two replays of one message store its events once.
    """
    now = timezone.now()
    with transaction.atomic():
        messages = (
            QuarantinedMessage.objects.select_for_update()
            .filter(pk__in=list(message_ids), state=QuarantinedMessage.State.WAITING)
            .order_by("pk")
        )
        events: list[UsageEvent] = []
        done: list[int] = []
        for message in messages:
            read = read_message(bytes(message.payload), now)
            faults = [fault for item in read if isinstance(item, Invalid) for fault in item.faults]
            if faults:
                message.reason = reason_of(faults)
                message.detail = "\n".join(map(str, faults))
                message.save(update_fields=("reason", "detail"))
            else:
                events.extend(item for item in read if not isinstance(item, Invalid))
                done.append(message.pk)
        if not done:
            return None
        batch = store(Delivery(Door.QUARANTINE, events, registers=True))
        QuarantinedMessage.objects.filter(pk__in=done).update(
            state=QuarantinedMessage.State.REPLAYED, replay_batch=batch, replayed_at=now
        )
    logger.info("quarantine_replayed", messages=len(done), batch_id=batch.pk)
    return batch
