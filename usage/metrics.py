"""What Prometheus is told of the rollups: counters of the process that writes them, and the state that stands in the database."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db.models import Count, Max, Min, Sum
from django.utils import timezone
from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from ingestion.models import Batch

from . import freshness
from .models import Freshness

RUNS = Counter("analytics_rollup_runs", "Runs of the rollup, by outcome", ("outcome",))
EVENTS = Counter("analytics_rollup_events", "Events that runs of the rollup added")
SECONDS = Histogram(
    "analytics_rollup_seconds",
    "How long a run took that added something",
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
DRIFT = Counter("analytics_drift_findings", "What the nightly verification found different between rollups and events")
for _outcome in ("added", "idle", "failed"):
    RUNS.labels(_outcome)

_QUANTILES = (0.5, 0.95, 1.0)


@dataclass
class Timed:
    """A run of the rollup; `events` as far as they are committed."""

    events: int = 0


@contextmanager
def timed_rollup() -> Iterator[Timed]:
    """Count a run. What it added counts even where it breaks off later."""
    timed, began = Timed(), time.perf_counter()
    outcome = "failed"
    try:
        yield timed
        outcome = "added" if timed.events else "idle"
    finally:
        RUNS.labels(outcome).inc()
        EVENTS.inc(timed.events)
        if timed.events:
            SECONDS.observe(time.perf_counter() - began)


class RollupState:
    """What waits for the rollup, and how far the figures of all orgs trail; collected by the web process's registry."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = timezone.now()
        waiting = Batch.objects.filter(rolled_up_at=None).aggregate(  # batches_not_rolled_up
            oldest=Min("completed_at"), batches=Count("pk"), events=Sum("accepted")
        )
        yield GaugeMetricFamily(
            "analytics_rollup_lag_seconds",
            "Age of the oldest batch that is not in the rollups; 0 where none waits",
            value=max(0.0, (now - waiting["oldest"]).total_seconds()) if waiting["oldest"] else 0.0,
        )
        yield GaugeMetricFamily(
            "analytics_rollup_waiting_batches", "Batches that are not in the rollups yet", value=waiting["batches"]
        )
        yield GaugeMetricFamily(
            "analytics_rollup_waiting_events", "Events that are not in the rollups yet", value=waiting["events"] or 0
        )
        latest = Freshness.objects.aggregate(at=Max("last_rollup_at"))["at"]
        if latest is not None:
            yield GaugeMetricFamily(
                "analytics_rollup_last_added_timestamp_seconds",
                "When events were last added to the rollups, in seconds since 1970",
                value=latest.timestamp(),
            )
        lags = freshness.lags_of_active(now)
        spread = GaugeMetricFamily(
            "analytics_freshness_lag_across_orgs_seconds",
            "How far figures trail, by quantile of the orgs that had a call in the last day or whose events wait",
            labels=("quantile",),
        )
        for quantile in _QUANTILES:
            rank = math.ceil(round(quantile * len(lags), 9))
            spread.add_metric((str(quantile),), lags[rank - 1].total_seconds())
        yield spread
