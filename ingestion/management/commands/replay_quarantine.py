from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db.models import Count

from ingestion.models import QuarantinedMessage
from ingestion.quarantine import replay
from orgs import audit
from orgs.actions import Action

STEP = 500  # messages of one batch


class Command(BaseCommand):
    help = (
        "Try messages of quarantine again, those that came first first, once their cause is mended. What is right now is stored,"
        " once; the others go on waiting with the reason they have now. Ends with what waits, by reason."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--reason", help="those alone that wait for this reason")
        parser.add_argument("--dry-run", action="store_true", help="say what waits, and do nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        waiting = QuarantinedMessage.objects.filter(state=QuarantinedMessage.State.WAITING)
        chosen = waiting.filter(reason=options["reason"]) if options["reason"] else waiting
        if not options["dry_run"]:
            self._replay(sorted(chosen.values_list("pk", flat=True)))
        for reason, count in waiting.order_by("reason").values_list("reason").annotate(count=Count("pk")):
            self.stdout.write(f"waiting for {reason}: {count:,}")

    def _replay(self, ids: list[int]) -> None:
        accepted = duplicates = 0
        for first in range(0, len(ids), STEP):
            batch = replay(ids[first : first + STEP])
            if batch is not None:
                accepted += batch.accepted
                duplicates += batch.duplicates
        done = QuarantinedMessage.objects.filter(pk__in=ids, state=QuarantinedMessage.State.REPLAYED).count()
        outcome = (
            f"{done:,} of {len(ids):,} messages replayed: {accepted:,} events stored, {duplicates:,} stored already"
        )
        audit.record_command("replay_quarantine", Action.QUARANTINE_REPLAYED, None, outcome)
        self.stdout.write(outcome)
