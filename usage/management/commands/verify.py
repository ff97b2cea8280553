import sys
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand

from usage.verification import verify
from usage.windows import Window

from .rebuild import moment


def seconds(text: str) -> float:
    """Raises `ValueError` for what is none."""
    number = float(text)
    if not 0 <= number <= 86_400:
        raise ValueError(text)
    return number


class Command(BaseCommand):
    help = "Compare the rollups with the raw events. Prints what differs and exits 1, or says that nothing does."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--start", type=moment, help="default: the first event")
        parser.add_argument("--end", type=moment, help="default: the last event")
        parser.add_argument(
            "--grace",
            type=seconds,
            default=10,
            help="seconds that batches which just came in are given to be rolled up before they are a finding",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        start, end = options["start"], options["end"]
        if (start is None) != (end is None):
            self.stderr.write("--start and --end go together")
            sys.exit(2)
        if start is not None and start >= end:
            self.stderr.write("--end must be after --start")
            sys.exit(2)
        findings = verify(Window(start, end) if start else None, timedelta(seconds=options["grace"]))
        for finding in findings:
            self.stdout.write(str(finding))
        if findings:
            self.stdout.write(f"drift: {len(findings)} findings")
            sys.exit(1)
        self.stdout.write("no drift: the rollups equal the events")
