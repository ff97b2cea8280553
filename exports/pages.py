"""Downloads of what a page shows."""

from collections.abc import Iterator

from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone

from orgs.models import Org, Scope
from orgs.pages import org_page
from usage.filters import Filters
from usage.report import model_names
from usage.series import Point, Unanswerable, points

from .csv_writer import lines

# Bucket start in UTC; tokens and invocations are counts; cost is the exact sum in cents, of priced invocations alone.
USAGE_COLUMNS = (
    "bucket_start",
    "model_id",
    "model",
    "invocations",
    "failed_invocations",
    "input_tokens",
    "output_tokens",
    "cost_cents",
    "unpriced_invocations",
    "currency",
)


@org_page(Scope.USAGE_READ)
def usage_csv(request: HttpRequest, org: Org) -> HttpResponse:
    """The series of the usage page with the same query string, all of its rows."""
    filters = Filters.read(request.GET, org, timezone.now())
    if filters.errors:
        return HttpResponse(
            "\n".join(f"{k}: {v}" for k, v in filters.errors.items()), status=400, content_type="text/plain"
        )
    try:
        series = points(filters.question)
    except Unanswerable as error:
        return HttpResponse(f"{error.field} {error}", status=400, content_type="text/plain")
    response = StreamingHttpResponse(lines(USAGE_COLUMNS, _rows(series)), content_type="text/csv; charset=utf-8")
    window = filters.window
    response["Content-Disposition"] = (
        f'attachment; filename="usage-{org.slug}-{window.start:%Y%m%dT%H%MZ}-{window.end:%Y%m%dT%H%MZ}.csv"'
    )
    return response  # type: ignore[return-value]


def _rows(series: list[Point]) -> Iterator[tuple[object, ...]]:
    names = model_names(point.model_id for point in series)
    for point in series:
        yield (
            f"{point.bucket_start:%Y-%m-%dT%H:%M:%SZ}",
            point.model_id,
            names[point.model_id],
            point.invocations,
            point.failures,
            point.input_tokens,
            point.output_tokens,
            point.exact_cost,
            point.unpriced_invocations,
            settings.CURRENCY,
        )
