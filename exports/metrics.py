"""What Prometheus is told of exports: attempts of the process that makes them, and the state that stands in the database."""

from collections.abc import Iterator
from datetime import timedelta

from django.db import connection
from django.db.models import Count, Min
from django.utils import timezone
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily

from .models import OPEN, ExportJob

ATTEMPTS = Counter("analytics_export_attempts", "Attempts to make a file, by how they ended", ("dataset", "outcome"))

LOOKED_AT = timedelta(days=7)  # by export_jobs_newest; what was longer ago alerts nobody

# Attempts that failed since the last file that was made, by org, dataset, and whether the schedule asked. What somebody called
# off is no failure.
_FAILING = """
WITH lately AS (
    SELECT dataset, CASE WHEN initiated_by = 'schedule' THEN 'schedule' ELSE 'people' END AS asked_by,
        coalesce(org_id, '00000000-0000-0000-0000-000000000000') AS org, failures, failed_at, checksum, completed_at
    FROM exports_exportjob WHERE created_at > %s
), made AS (
    SELECT dataset, asked_by, org, max(completed_at) AS at FROM lately WHERE checksum <> '' GROUP BY 1, 2, 3
)
SELECT dataset, asked_by, count(*) FROM (
    SELECT dataset, asked_by, org, sum(failures) AS failures
    FROM lately LEFT JOIN made USING (dataset, asked_by, org)
    WHERE failures > 0 AND (made.at IS NULL OR failed_at > made.at) GROUP BY 1, 2, 3
) subjects WHERE failures >= 2 GROUP BY 1, 2
"""


class ExportState:
    """Gauges; collected by the web process's registry."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = timezone.now()
        lately = ExportJob.objects.filter(created_at__gt=now - LOOKED_AT).order_by()
        jobs = GaugeMetricFamily(
            "analytics_export_jobs", "Exports asked for in the last seven days, by status", labels=("dataset", "status")
        )
        for dataset, status, count in lately.values_list("dataset", "status").annotate(count=Count("pk")):
            jobs.add_metric((dataset, status), count)
        yield jobs
        oldest = ExportJob.objects.filter(status__in=OPEN).aggregate(oldest=Min("created_at"))["oldest"]
        yield GaugeMetricFamily(
            "analytics_export_oldest_open_seconds",
            "Age of the oldest export that is not over",
            value=max(0.0, (now - oldest).total_seconds()) if oldest else 0.0,
        )
        yield GaugeMetricFamily(
            "analytics_export_mismatches",
            "Exports of the last seven days that did not agree with the rollups",
            value=lately.filter(is_mismatch=True).count(),
        )
        failing = GaugeMetricFamily(
            "analytics_exports_failing_twice",
            "Orgs whose exports have failed twice running",
            labels=("dataset", "asked_by"),
        )
        with connection.cursor() as cursor:
            cursor.execute(_FAILING, [now - LOOKED_AT])
            for dataset, asked_by, orgs in cursor.fetchall():
                failing.add_metric((dataset, asked_by), orgs)
        yield failing
