"""What Prometheus is told of reliability: the last five minutes that are counted, of the busiest orgs and models."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import timedelta

from django.conf import settings
from django.utils import timezone
from prometheus_client.core import GaugeMetricFamily

from orgs.models import Org
from usage import freshness
from usage.histogram import merge, percentiles
from usage.overview import names_of
from usage.recent import Row, calls_by_org, minutes, orgs_since
from usage.windows import Window, floor_minute

from .models import Watch

LOOKED_AT = timedelta(minutes=5)
_LABELS = ("org", "model", "model_name")


class ReliabilityState:
    """Gauges of `RELIABILITY_GAUGES` orgs and as many models, those with the most calls; read when they are asked for.

    An org's models all together have the empty model. What has no calls has no gauges: there is nothing to be told.
    """

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = timezone.now()
        until = floor_minute(freshness.complete_up_to(now))
        window = Window(until - LOOKED_AT, until)
        calls = calls_by_org(window, orgs_since(window.start))
        busiest = sorted(calls, key=lambda org_id: (-calls[org_id], org_id))[: settings.RELIABILITY_GAUGES]
        orgs = {org.pk: org for org in Org.objects.filter(pk__in=busiest)}
        rows = [row for org_id in orgs for row in minutes(window, org_id)]
        yield from _families(orgs, _subjects(rows))
        lag = GaugeMetricFamily("analytics_freshness_lag_seconds", "How far an org's figures trail", labels=("org",))
        for org_id, trailing in freshness.lags(orgs, now).items():
            lag.add_metric((orgs[org_id].slug,), trailing.total_seconds())
        yield lag
        watched = Watch.objects.values_list("watched_up_to", flat=True).first()
        if watched is not None:
            yield GaugeMetricFamily(
                "analytics_incident_watch_lag_seconds",
                "How far the watch for incidents trails the clock",
                value=(now - watched).total_seconds(),
            )


def _subjects(rows: list[Row]) -> dict[tuple[uuid.UUID, uuid.UUID | None], list[Row]]:
    """The rows of each org, and of the models with the most calls."""
    calls: Counter[tuple[uuid.UUID, uuid.UUID]] = Counter()
    for row in rows:
        calls[row.org_id, row.model_id] += row.invocations
    named = {pair for pair, _ in calls.most_common(settings.RELIABILITY_GAUGES)}
    subjects: dict[tuple[uuid.UUID, uuid.UUID | None], list[Row]] = defaultdict(list)
    for row in rows:
        subjects[row.org_id, None].append(row)
        if (row.org_id, row.model_id) in named:
            subjects[row.org_id, row.model_id].append(row)
    return subjects


def _families(
    orgs: dict[uuid.UUID, Org], subjects: dict[tuple[uuid.UUID, uuid.UUID | None], list[Row]]
) -> Iterator[GaugeMetricFamily]:
    names = names_of({model for _, model in subjects if model is not None})
    calls = GaugeMetricFamily("analytics_reliability_calls", "Calls of the last five minutes", labels=_LABELS)
    errors = GaugeMetricFamily("analytics_reliability_error_ratio", "Failed ones of them, 0 to 1", labels=_LABELS)
    p95 = GaugeMetricFamily("analytics_reliability_latency_p95_seconds", "Of them; within 1 %", labels=_LABELS)
    p99 = GaugeMetricFamily("analytics_reliability_latency_p99_seconds", "Of them; within 1 %", labels=_LABELS)
    for (org_id, model_id), rows in subjects.items():
        labels = (orgs[org_id].slug, str(model_id or ""), names[model_id] if model_id else "")
        invocations = sum(row.invocations for row in rows)
        calls.add_metric(labels, invocations)
        errors.add_metric(labels, sum(row.failures for row in rows) / invocations)
        for family, ms in zip((p95, p99), percentiles(merge(row.histogram for row in rows), (0.95, 0.99)), strict=True):
            if ms is not None:
                family.add_metric(labels, ms / 1000)
    yield from (calls, errors, p95, p99)
