"""What runs when. The rows stand in the database, editable in the admin; `migrate` adds those that are missing."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection


@dataclass(frozen=True)
class Entry:
    """A task and how often it runs. A run that can't start within `every` is dropped: the next one does its work."""

    name: str
    task: str
    every: timedelta


def entries() -> list[Entry]:
    return [
        Entry("Roll up new events", "usage.tasks.roll_up", timedelta(seconds=settings.ROLLUP_INTERVAL)),
        Entry("Close hours that are over", "usage.tasks.close_hours", timedelta(minutes=1)),
        Entry("Look for incidents", "reliability.tasks.watch", timedelta(minutes=1)),
        Entry("Forget old incidents", "reliability.tasks.forget_incidents", timedelta(days=1)),
        Entry("Verify the latest days", "usage.tasks.verify", timedelta(days=1)),
        Entry("Make partitions ahead", "ingestion.tasks.prepare_storage", timedelta(hours=6)),
        Entry("Settle and drop what is old", "usage.tasks.maintain", timedelta(days=1)),
        Entry("Rotate the dedupe ledger", "ingestion.tasks.rotate_ledger", timedelta(hours=1)),
        Entry("Look after exports", "exports.tasks.tend", timedelta(seconds=10)),
        Entry("Ask for the files of months", "exports.tasks.ask_for_months", timedelta(hours=1)),
        Entry("Delete exports that have expired", "exports.tasks.expire", timedelta(hours=1)),
    ]


def install(**kwargs: Any) -> None:
    """Add the entries that are not there; what staff changed stays."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    if PeriodicTask._meta.db_table not in connection.introspection.table_names():  # its migrations were taken back
        return
    for entry in entries():
        seconds = entry.every.total_seconds()
        whole = seconds.is_integer()
        interval, _ = IntervalSchedule.objects.get_or_create(
            every=int(seconds) if whole else int(seconds * 1_000_000),
            period=IntervalSchedule.SECONDS if whole else IntervalSchedule.MICROSECONDS,
        )
        PeriodicTask.objects.get_or_create(
            name=entry.name,
            defaults={"task": entry.task, "interval": interval, "expire_seconds": max(1, int(seconds))},
        )
