from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from ingestion import storage
from ingestion.maintenance import AlreadyRunning, carry_out
from usage import retention


class Command(BaseCommand):
    help = "Settle the days of raw events that are over, and drop what is past its retention. Prints each step, then the sizes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        steps = retention.steps(timezone.now())
        if options["dry_run"]:
            for step in steps:
                self.stdout.write(f"would {step}")
        else:
            try:
                for step, freed in carry_out(steps):
                    self.stdout.write(f"{step}: {freed:,} bytes freed")
            except AlreadyRunning as error:
                raise CommandError(str(error)) from error
        parts = storage.parts()
        table, index = (sum(getattr(part, name) for part in parts) for name in ("table_bytes", "index_bytes"))
        settled = [part for part in parts if part.is_settled]
        self.stdout.write(
            f"raw events ({storage.engine().name}): {len(parts)} days, {table:,} bytes of rows and {index:,} of indexes;"
            f" of these {len(settled)} days settled, {sum(part.bytes for part in settled):,} bytes"
        )
