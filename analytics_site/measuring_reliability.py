"""The reliability endpoint beside exact percentiles over the raw events, and the incident CSV beside COPY."""

import json
import resource
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlencode

from django.db import connection
from django.http import StreamingHttpResponse
from django.test import Client
from django.utils import timezone

from ingestion import storage
from ingestion.models import Batch, Door
from orgs.models import Org
from usage.histogram import PERCENTILES, merge, percentiles
from usage.rollups import roll_up
from usage.series import Question, points
from usage.windows import DAY, HOUR, Granularity, Window, floor_hour

from .measuring import Line, door_client, timed

DAYS = 30
EVENTS_A_BATCH = 250_000
CSV_ROWS = 1_000_000
ROUNDS = 5  # of what takes seconds

# Two models; latencies are log-normal, one in fifty fails.
_FILL = """
INSERT INTO usage_events (occurred_at, received_at, batch_id, latency_ms, input_tokens, output_tokens, cached_input_tokens,
    cache_creation_input_tokens, status, org_id, event_id, model_id, actor_id, client_id, error_code, cost_estimate_cents)
SELECT at, at, %(batch)s, exp(6.9 + 0.6 * sqrt(-2 * ln(1 - random())) * cos(6.283 * random()))::int, (6000 * random())::int,
    (600 * random())::int, 0, 0, failed::int, %(org)s, gen_random_uuid(),
    (%(models)s::uuid[])[1 + floor(random() * 2)::int], gen_random_uuid(), 'client-' || (20 * random())::int,
    CASE WHEN failed THEN 'upstream' END, (100000 * random())::int / 10000.0
FROM (
    SELECT %(start)s::timestamptz + n * %(step)s::interval AS at, random() < 0.02 AS failed
    FROM generate_series(0, %(events)s - 1) n OFFSET 0
) drawn
"""
_EXACT = """
SELECT {bucket}, {percentiles} FROM usage_events
WHERE org_id = %(org)s AND occurred_at >= %(start)s AND occurred_at < %(end)s AND {model} GROUP BY 1 ORDER BY 1
"""


def measure_reliability(org: Org, events: int, requests: int) -> tuple[list[Line], dict[str, float]]:
    """Thirty days of an org that gets so many events."""
    models = [uuid.uuid4(), uuid.uuid4()]
    _fill(org.pk, models, events)
    client = door_client(org.pk)
    lines, figures = _percentiles(client, org.pk, models, events, requests)
    csv_lines, csv_figures = _csv(client, org.pk, events)
    return [*lines, *csv_lines], figures | csv_figures


def _fill(org_id: uuid.UUID, models: list[uuid.UUID], events: int) -> None:
    end = floor_hour(timezone.now())
    storage.ensure_days((end - n * DAY).date() for n in range(DAYS + 1))
    pieces = max(DAYS, -(-events // EVENTS_A_BATCH))
    length, count = DAYS * DAY / pieces, events // pieces
    for n in range(pieces):
        start = end - DAYS * DAY + n * length
        batch = Batch.objects.create(
            door=Door.TRACE, received=count, accepted=count, org_ids=[org_id], first_occurred_at=start,
            last_occurred_at=start + length, started_at=timezone.now(), completed_at=timezone.now(),
        )  # fmt: skip
        with connection.cursor() as cursor:
            cursor.execute(
                _FILL,
                {"batch": batch.pk, "org": org_id, "models": models, "start": start, "step": str(length / count),
                 "events": count},
            )  # fmt: skip
    roll_up()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


# ── Percentiles ──────────────────────────────────────────────────────────────────────────────────────────────────


def _percentiles(
    client: Client, org_id: uuid.UUID, models: list[uuid.UUID], events: int, requests: int
) -> tuple[list[Line], dict[str, float]]:
    end = floor_hour(timezone.now())
    month = Window(end - DAYS * DAY, end)
    # Every request another window: by minutes, so that the edges are cut.
    windows = [Window(month.start + n * timedelta(minutes=7), month.end) for n in range(requests)]
    _ask(client, org_id, models[0], month)  # what a first answer loads
    asked = [_ask(client, org_id, models[0], window) for window in windows]
    raw = [timed(_exact, org_id, models[0], window, "date_trunc('hour', occurred_at)") for window in windows[:ROUNDS]]
    ratio = median(raw) / median(asked)
    error = max(_errors(org_id, models, month))
    p95 = 1000 * quantiles(asked, n=20)[-1]
    lines = [
        Line(
            "reliability, 30 days by hour, p95", f"{p95:.1f} ms", f"percentile_disc over {events:,} raw events",
            f"{1000 * median(raw):,.0f} ms", f"{ratio:.0f}×", "≤ 40 ms; ≥ 50× at 5,000,000",
        ),
        Line("percentiles, largest error", f"{error:.2%}", "the same, exact", "", "", "≤ 1 %"),
    ]  # fmt: skip
    return lines, {
        "reliability_30d_p95_ms": round(p95, 1),
        "percentile_vs_raw": round(ratio, 1),
        "percentile_max_relative_error": round(error, 5),
    }


def _ask(client: Client, org_id: uuid.UUID, model: uuid.UUID, window: Window) -> float:
    query = {"start": window.start.isoformat(), "end": window.end.isoformat(), "granularity": "hour", "modelId": model}
    answer: list[Any] = []
    seconds = timed(
        lambda: answer.append(client.get(f"/analytics/v1/orgs/{org_id}/reliability?{urlencode(query)}").content)
    )
    series = json.loads(answer[0])["series"]
    assert len(series) >= DAYS * 24 - 24, len(series)
    return seconds


def _exact(org_id: uuid.UUID, model: uuid.UUID | None, window: Window, bucket: str) -> dict[datetime, list[int]]:
    """Nearest-rank percentiles of the raw events, by bucket."""
    each = ", ".join(
        f"percentile_disc({fraction}) WITHIN GROUP (ORDER BY latency_ms)" for fraction in PERCENTILES.values()
    )
    statement = _EXACT.format(
        bucket=bucket, percentiles=each, model="true" if model is None else "model_id = %(model)s"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, {"org": org_id, "start": window.start, "end": window.end, "model": model})
        return {start: list(values) for start, *values in cursor.fetchall()}


def _errors(org_id: uuid.UUID, models: list[uuid.UUID], month: Window) -> list[float]:
    """Relative errors: of every hour, every day and the whole, of one model and of all."""
    errors = []
    buckets: dict[str, Callable[[datetime], datetime]] = {
        "date_trunc('hour', occurred_at)": lambda start: start,
        "date_trunc('day', occurred_at, 'UTC')": lambda start: start.replace(hour=0),
        f"'{month.start.isoformat()}'::timestamptz": lambda start: month.start,
    }
    for model in (models[0], None):
        found = points(Question(org_id, month, Granularity.HOUR, model), histograms=True)
        for bucket, of in buckets.items():
            exact = _exact(org_id, model, month, bucket)
            parts: dict[datetime, list[Any]] = {}
            for point in found:
                parts.setdefault(of(point.bucket_start), []).append(point.histogram)
            assert set(parts) == set(exact)
            for start, histograms in parts.items():
                values = percentiles(merge(histograms), list(PERCENTILES.values()))
                errors += [abs((value or 0) - true) / true for value, true in zip(values, exact[start], strict=True)]
    return errors


# ── The incident CSV ─────────────────────────────────────────────────────────────────────────────────────────────


def _csv(client: Client, org_id: uuid.UUID, events: int) -> tuple[list[Line], dict[str, float]]:
    rows = min(CSV_ROWS, events // DAYS * DAYS)
    end = floor_hour(timezone.now()) + HOUR
    query = urlencode({"start": (end - (DAYS + 1) * DAY).isoformat(), "end": end.isoformat(), "limit": rows})
    copied, streamed = [], []
    _drain(client, org_id, query, 10)  # what a first answer loads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(ROUNDS):
        streamed.append(timed(_drain, client, org_id, query, rows))
        copied.append(timed(copy_events, org_id, rows))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    ratio = median(copied) / median(streamed)
    line = Line(
        f"incident CSV, {rows:,} rows", f"{rows / median(streamed):,.0f}/s", "COPY (SELECT * …) TO STDOUT (FORMAT CSV)",
        f"{rows / median(copied):,.0f}/s", f"{ratio:.2f}", f"≥ 0.5; memory grew by {grown:.0f} MB",
    )  # fmt: skip
    return [line], {"incident_csv_vs_copy": round(ratio, 2), "incident_csv_grown_mb": round(grown, 1)}


def _drain(client: Client, org_id: uuid.UUID, query: str, least: int) -> None:
    response = client.get(f"/analytics/v1/orgs/{org_id}/reliability/incident.csv?{query}")
    assert isinstance(response, StreamingHttpResponse), response.content
    lines = sum(part.count(b"\n") for part in response)
    assert lines > least, lines


def copy_events(org_id: uuid.UUID, rows: int) -> None:
    """The same rows, in the same order, as they stand."""
    statement = (
        "COPY (SELECT event_id, org_id, occurred_at, received_at, model_id, actor_id, client_id, input_tokens, output_tokens,"
        " latency_ms, status, error_code, cost_estimate_cents, metadata FROM usage_events"
        f" WHERE org_id = '{org_id}' ORDER BY org_id DESC, occurred_at DESC, event_id DESC LIMIT {rows})"
        " TO STDOUT (FORMAT CSV, HEADER)"
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for _ in copy:
            pass
