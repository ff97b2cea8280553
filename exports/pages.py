"""Downloads from the pages."""

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from orgs.models import Org, Scope
from orgs.pages import org_page
from usage import filters, overview
from usage.series import Unanswerable, zone_of
from usage.windows import local_day

from .usage_csv import file


@org_page(Scope.USAGE_READ)
@require_safe
def usage_csv(request: HttpRequest, org: Org) -> HttpResponseBase:
    """What the usage page shows for the same query string, all rows of it."""
    asked = filters.read(request.GET, zone_of(org), timezone.now())
    try:
        if asked.errors:
            raise Unanswerable(*next(iter(asked.errors.items())))
        found = overview.read(org, asked)
    except Unanswerable as error:
        return HttpResponse(f"{error.field} {error}\n", status=400, content_type="text/plain; charset=utf-8")
    first = local_day(asked.window.start, asked.zone)
    name = f"usage-{org.slug}-{first}-{asked.grain}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingHttpResponse(file(found), content_type="text/csv; charset=utf-8", headers=headers)
