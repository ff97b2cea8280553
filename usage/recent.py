"""Rollup rows by the minute and by the hour, as they stand: for what watches, and for what looks at an incident closely."""

import uuid
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import NamedTuple

from django.db.models import QuerySet, Sum

from .histogram import Histogram
from .models import Freshness, HourlyUsage, MinuteUsage
from .windows import Window

_COLUMNS = (
    "org_id", "model_id", "bucket_start", "invocations", "errors", "timeouts", "throttled",
    "latency_buckets", "latency_counts",
)  # fmt: skip


class Row(NamedTuple):
    """What one org and model did in one minute or hour; the histogram is of latencies in ms."""

    org_id: uuid.UUID
    model_id: uuid.UUID
    start: datetime
    invocations: int
    errors: int
    timeouts: int
    throttled: int
    histogram: Histogram

    @property
    def failures(self) -> int:
        return self.errors + self.timeouts + self.throttled


def minutes(window: Window, org_id: uuid.UUID, model_id: uuid.UUID | None = None) -> Iterator[Row]:
    """Every minute of an org that begins in a window, by model and time. One span of the primary key."""
    found = MinuteUsage.objects.filter(org_id=org_id, bucket_start__gte=window.start, bucket_start__lt=window.end)
    if model_id is not None:
        found = found.filter(model_id=model_id)
    return _rows(found)


def hours(window: Window, org_id: uuid.UUID) -> Iterator[Row]:
    """Every hour of an org that begins in a window, by model and time. One span of the primary key."""
    return _rows(HourlyUsage.objects.filter(org_id=org_id, bucket_start__gte=window.start, bucket_start__lt=window.end))


def _rows(found: QuerySet[MinuteUsage] | QuerySet[HourlyUsage]) -> Iterator[Row]:
    ordered = found.order_by("model_id", "bucket_start").values_list(*_COLUMNS)
    for org_id, model_id, start, invocations, errors, timeouts, throttled, buckets, counts in ordered.iterator():
        yield Row(org_id, model_id, start, invocations, errors, timeouts, throttled, (buckets, counts))


def calls_by_org(window: Window, org_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
    """How many calls each of some orgs made in the minutes that begin in a window."""
    found = MinuteUsage.objects.filter(org_id__in=org_ids, bucket_start__gte=window.start, bucket_start__lt=window.end)
    return dict(found.values_list("org_id").annotate(calls=Sum("invocations")))


def orgs_since(moment: datetime) -> set[uuid.UUID]:
    """The orgs whose newest call was completed at a moment or after it. One row per org and model."""
    return set(Freshness.objects.filter(last_event_at__gte=moment).values_list("org_id", flat=True))
