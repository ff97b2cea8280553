"""The series of the usage page as CSV: every row that the page's table has for the same query string, in its order.

Columns:

bucket_start            start of the hour or day, RFC 3339, UTC
bucket_local            the same moment in the zone that the page writes out, with its offset
model_id, model         which model; empty and "All models" where the page adds models up (group=none, group=client)
client                  which client, where the page shows them (group=client): its id, empty where calls told none, "Other
                        clients" for those that are not named in their hour
invocations             calls of any outcome
errors, timeouts, throttled   how many of them failed, by how
input_tokens, output_tokens   input includes cached tokens
cost_cents              exact cents, four decimals, of the calls that have a price
currency                what the cents are of
unpriced_invocations    calls without a price: counted, and not in cost_cents
"""

from collections.abc import Iterator

from django.conf import settings

from usage.overview import Overview

from .csv_writer import lines

COLUMNS = (
    "bucket_start",
    "bucket_local",
    "model_id",
    "model",
    "client",
    "invocations",
    "errors",
    "timeouts",
    "throttled",
    "input_tokens",
    "output_tokens",
    "cost_cents",
    "currency",
    "unpriced_invocations",
)


def file(overview: Overview) -> Iterator[str]:
    """The file, line by line."""
    return lines(COLUMNS, _rows(overview))


def _rows(overview: Overview) -> Iterator[tuple[object, ...]]:
    zone = overview.filters.zone
    for row in overview.rows:
        figures = row.figures
        yield (
            f"{row.bucket_start:%Y-%m-%dT%H:%M:%SZ}",
            row.bucket_start.astimezone(zone).isoformat(),
            "" if overview.is_by_client else row.key or "",
            overview.name_of(None if overview.is_by_client else row.key),
            "" if row.key in (None, "") or not overview.is_by_client else overview.name_of(row.key),
            figures.invocations,
            figures.errors,
            figures.timeouts,
            figures.throttled,
            figures.input_tokens,
            figures.output_tokens,
            figures.exact_cost,
            settings.CURRENCY,
            figures.unpriced_invocations,
        )
