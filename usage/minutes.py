"""Figures by the minute, of the last days: for what watches, and for what looks at an incident closely."""

import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from .histogram import Histogram
from .models import MinuteUsage
from .windows import Window


class Minute(NamedTuple):
    """What one org and model did in one minute; the histogram is of latencies in ms."""

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


def minutes(window: Window, org_id: uuid.UUID | None = None, model_id: uuid.UUID | None = None) -> Iterator[Minute]:
    """Every minute that begins in a window, of all orgs or one, by org, model and time. One span of the primary key."""
    found = MinuteUsage.objects.filter(bucket_start__gte=window.start, bucket_start__lt=window.end)
    if org_id is not None:
        found = found.filter(org_id=org_id)
    if model_id is not None:
        found = found.filter(model_id=model_id)
    columns = (
        "org_id", "model_id", "bucket_start", "invocations", "errors", "timeouts", "throttled",
        "latency_buckets", "latency_counts",
    )  # fmt: skip
    for *values, buckets, counts in (
        found.order_by("org_id", "model_id", "bucket_start").values_list(*columns).iterator()
    ):
        yield Minute(*values, (buckets, counts))
