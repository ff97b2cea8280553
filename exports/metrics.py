"""What Prometheus is told of exports, read from the database when it is asked for: whichever process made them."""

from collections.abc import Iterator
from datetime import timedelta

from django.db import connection
from django.db.models import Count, Min
from django.utils import timezone
from prometheus_client.core import GaugeMetricFamily

from .models import OPEN, ExportJob

LOOKED_AT = timedelta(days=7)  # failures longer ago don't alert anybody

# Attempts that failed since the last file that was made, by org and dataset. What somebody called off is no failure.
_FAILING = """
SELECT dataset, count(*) FROM (
    SELECT dataset, org_id, sum(failures) FILTER (WHERE failed_at > coalesce(
        (SELECT max(completed_at) FROM exports_exportjob made
         WHERE made.org_id IS NOT DISTINCT FROM job.org_id AND made.dataset = job.dataset AND made.checksum <> ''),
        '-infinity')) AS failures
    FROM exports_exportjob job WHERE created_at > %s AND failures > 0 GROUP BY 1, 2
) subjects WHERE failures >= 2 GROUP BY 1
"""


class ExportState:
    """Gauges; collected by the web process's registry."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = timezone.now()
        jobs = GaugeMetricFamily("analytics_export_jobs", "Export jobs by status", labels=("dataset", "status"))
        for dataset, status, count in (
            ExportJob.objects.order_by().values_list("dataset", "status").annotate(count=Count("pk"))
        ):
            jobs.add_metric((dataset, status), count)
        yield jobs
        oldest = ExportJob.objects.filter(status__in=OPEN).aggregate(oldest=Min("created_at"))["oldest"]
        yield GaugeMetricFamily(
            "analytics_export_oldest_open_seconds",
            "Age of the oldest export that is not over",
            value=max(0.0, (now - oldest).total_seconds()) if oldest else 0.0,
        )
        failing = GaugeMetricFamily(
            "analytics_exports_failing_twice", "Orgs whose exports have failed twice running", labels=("dataset",)
        )
        with connection.cursor() as cursor:
            cursor.execute(_FAILING, [now - LOOKED_AT])
            for dataset, orgs in cursor.fetchall():
                failing.add_metric((dataset,), orgs)
        yield failing
