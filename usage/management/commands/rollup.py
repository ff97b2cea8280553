from typing import Any

from django.core.management.base import BaseCommand

from usage.rollups import roll_up


class Command(BaseCommand):
    help = "Add the batches that are not in the rollups yet. The scheduled task does the same."

    def handle(self, *args: Any, **options: Any) -> None:
        run = roll_up()
        self.stdout.write(f"{run.batches:,} batches, {run.events:,} events rolled up")
