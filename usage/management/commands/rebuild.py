import uuid
from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from usage.rollups import rebuild
from usage.windows import LAST_YEAR, Window


def moment(text: str) -> datetime:
    """A date or date-time; what has no offset is UTC."""
    parsed = datetime.fromisoformat(text)
    if not 1 < parsed.year <= LAST_YEAR:  # steps of days go beyond what is asked for
        raise ValueError(f"{text} lies too far away")
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


class Command(BaseCommand):
    help = "Make the rollups of a window again from raw events. Widened to whole UTC days."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("start", type=moment, help="included; such as 2026-01-31 or 2026-01-31T10:00Z")
        parser.add_argument("end", type=moment, help="not included")
        parser.add_argument("--org", type=uuid.UUID, help="one org only")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["start"] >= options["end"]:
            raise CommandError("end must be after start")
        window = rebuild(Window(options["start"], options["end"]), options["org"])
        self.stdout.write(f"rebuilt {window.start:%Y-%m-%d} to {window.end:%Y-%m-%d} (not included)")
