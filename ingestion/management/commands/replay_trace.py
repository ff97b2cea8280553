from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingestion.models import Door
from ingestion.replaying import replay
from ingestion.trace import NotATrace, Trace


class Command(BaseCommand):
    help = "Store a CSV trace (TIMESTAMP, ContextTokens, GeneratedTokens) as events. A second run adds nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("csv", type=Path)
        parser.add_argument(
            "--keep-times", action="store_true", help="leave the times; else the last row is moved to yesterday (UTC)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            tally = replay(Trace.recent(options["csv"], keep_times=options["keep_times"]).messages(), Door.TRACE)
        except NotATrace as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"{tally.events:,} rows: {tally.accepted:,} accepted, {tally.duplicates:,} duplicates,"
            f" {tally.quarantined:,} quarantined"
        )
