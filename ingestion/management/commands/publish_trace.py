from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from ingestion.stream.connecting import BROKER_ERRORS, declare
from ingestion.stream.partitions import streams
from ingestion.stream.publishing import NotConfirmed, Publisher, grouped, publish_all
from ingestion.trace import NotATrace, Trace


class Command(BaseCommand):
    help = "Publish a CSV trace on the stream, confirmed by the broker. The events are those of replay_trace."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("csv", type=Path)
        parser.add_argument("--rate", type=float, default=0, help="events a second; default: as fast as it goes")
        parser.add_argument("--per-message", type=int, default=1, help="events of a message")
        parser.add_argument(
            "--keep-times", action="store_true", help="leave the times; else the last row is moved to yesterday (UTC)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["per_message"] < 1 or options["rate"] < 0:
            raise CommandError("--per-message is 1 or more, --rate 0 or more")
        try:
            for stream in streams():
                declare(settings.RABBITMQ_URL, stream)
            trace = Trace.recent(options["csv"], keep_times=options["keep_times"])
            messages = grouped(trace.messages(), options["per_message"])
            with Publisher() as publisher:
                sent, events = publish_all(publisher, messages, options["rate"])
        except NotATrace as error:
            raise CommandError(str(error)) from error
        except (NotConfirmed, *BROKER_ERRORS) as error:
            raise CommandError(f"the broker at RABBITMQ_URL: {error}") from error
        self.stdout.write(f"{events:,} events in {sent:,} messages, all confirmed")
