from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ingestion import storage
from ingestion.locks import Lock, hold_for_session, let_go_for_session
from ingestion.storage.moving import NotEqual, move


class Command(BaseCommand):
    help = (
        "Make the plain table of raw events a TimescaleDB hypertable. May be broken off and run again; loses nothing."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        if storage.change() is not storage.Change.APPEARED:
            raise CommandError("the table of raw events is a hypertable already, or this server has no TimescaleDB")
        if not hold_for_session(Lock.MAINTENANCE, ""):
            raise CommandError("maintenance is running: try again when it is over")
        try:
            for part, rows in move():
                self.stdout.write(f"{part.start:%Y-%m-%d}: {rows:,} events copied")
        except NotEqual as error:
            raise CommandError(f"{error} was not copied whole; nothing was changed") from error
        finally:
            let_go_for_session(Lock.MAINTENANCE, "")
        storage.forget()
        self.stdout.write("usage_events is a hypertable now; `manage.py maintain` compresses the days that are over")
