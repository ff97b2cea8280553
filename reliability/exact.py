"""Percentiles of the calls themselves, beside those of histograms: for short windows, as it reads every event of them."""

import uuid
from datetime import timedelta
from typing import Any

from django.db import connection

from usage.aggregation import ROLLED_UP
from usage.windows import Window

LONGEST = timedelta(hours=1)


def percentiles(
    org_id: uuid.UUID, window: Window, fractions: list[float], model_id: uuid.UUID | None = None
) -> list[int | None]:
    """Nearest-rank percentiles in ms of the calls that figures count; None where there is none.

    Read by the primary key of the events: org, then time.
    """
    if window.end - window.start > LONGEST:
        raise ValueError(f"{window} is longer than {LONGEST}")
    by_model = "" if model_id is None else "AND model_id = %(model)s"
    statement = f"""
        SELECT percentile_disc(%(fractions)s::float8[]) WITHIN GROUP (ORDER BY latency_ms) FROM usage_events e
        WHERE org_id = %(org)s AND occurred_at >= %(start)s AND occurred_at < %(end)s {by_model} AND {ROLLED_UP}
    """
    values: dict[str, Any] = {
        "fractions": fractions, "org": org_id, "start": window.start, "end": window.end, "model": model_id,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        found: list[int | None] | None = cursor.fetchone()[0]
    return found or [None] * len(fractions)
