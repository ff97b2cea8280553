"""The exports page, and downloads from the pages."""

import uuid
from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from orgs import concurrency
from orgs.limits import MAX_EXPORT_DAYS
from orgs.models import Org, Scope
from orgs.pages import frame, org_page
from usage import filters, overview
from usage.display import zone_text
from usage.pages import by_name
from usage.series import Unanswerable, zone_of
from usage.windows import local_day

from . import asking, display, jobs
from .delivery import Undeliverable, store_of
from .delivery.folder import FolderStore, signed
from .downloads import hand_out
from .forms import ExportForm
from .models import ExportJob
from .usage_csv import file
from .writers import Format

JOBS_ON_A_PAGE = 20


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


@org_page(Scope.EXPORTS_READ)
@require_safe
def exports(request: HttpRequest, org: Org) -> HttpResponse:
    """The org's files, and the form that asks for one."""
    return _page(request, org, _form(org, link=request.GET.dict()))


@org_page(Scope.EXPORTS_CREATE)
@require_http_methods(["GET", "HEAD", "POST"])
def create(request: HttpRequest, org: Org) -> HttpResponse:
    if request.method != "POST":  # from the page with the form's errors: loaded again, or another page of its list
        return redirect(f"{reverse('exports', args=[org.slug])}?{request.GET.urlencode()}")
    form = _form(org, request.POST)
    if form.is_valid():
        try:
            return _back(org, asking.ask(request, form.wanted))
        except Unanswerable as error:
            form.refuse(error.field, str(error))
        except jobs.TooManyOpen as error:
            form.add_error(None, str(error))
    return _page(request, org, form, 400)


@org_page(Scope.EXPORTS_CREATE)
@require_POST
def cancel(request: HttpRequest, org: Org, job_id: uuid.UUID) -> HttpResponse:
    job = get_object_or_404(ExportJob, pk=job_id, org=org)
    if asking.cancel(request, job):
        return _back(org, job)
    messages.error(request, "This file was finished already: there was nothing to cancel.")
    return _back(org)


@org_page(Scope.EXPORTS_CREATE)
@require_POST
def rerun(request: HttpRequest, org: Org, job_id: uuid.UUID) -> HttpResponse:
    job = get_object_or_404(ExportJob, pk=job_id, org=org)
    if job.is_open:
        return _back(org, job)
    try:
        return _back(org, asking.again(request, job))
    except Unanswerable as error:
        messages.error(request, f"This file can't be made again: {error.field} {error}.")
    except jobs.TooManyOpen as error:
        messages.error(request, str(error))
    return _back(org)


@org_page(Scope.EXPORTS_DOWNLOAD)
@require_safe
def download(request: HttpRequest, org: Org, job_id: uuid.UUID) -> HttpResponse:
    """To the file, by an address that expires."""
    job = get_object_or_404(ExportJob.objects.select_related("org"), pk=job_id, org=org)
    try:
        address = hand_out(request, job)
    except Undeliverable as error:
        messages.error(request, str(error))
        return _back(org)
    if address is None:
        messages.error(request, "There is no file to download: it has expired, or is not ready yet.")
        return _back(org)
    return redirect(address)


@never_cache
@require_safe
def signed_file(request: HttpRequest, token: str) -> HttpResponseBase:
    """A file of the service's own folder, for whoever has an address that is signed and not past its time."""
    known = signed(token)
    if known is None:
        return HttpResponse(
            "This link has expired, or was altered.\n", status=403, content_type="text/plain; charset=utf-8"
        )
    key, filename = known
    concurrency.enter(jobs.owner_of(key))  # whoever has the address: slow readers hold threads
    store = store_of("")
    assert isinstance(store, FolderStore)
    kind = next(kind for kind in sorted(Format, key=len, reverse=True) if key.endswith(f".{kind}"))
    try:
        content = store.path(key).open("rb")
    except OSError as error:
        raise Http404 from error
    return FileResponse(content, as_attachment=True, filename=filename, content_type=kind.media_type)


def _form(org: Org, data: Any = None, link: Mapping[str, str] | None = None) -> ExportForm:
    names = overview.names_of(overview.models_of(org))
    return ExportForm(org, by_name(names), timezone.now(), data, link)


def _page(request: HttpRequest, org: Org, form: ExportForm, status: int = 200) -> HttpResponse:
    now = timezone.now()
    around = frame(request, org, "exports")
    last_month = display.last_month(org, form.zone, now)
    found = ExportJob.objects.filter(org=org)
    if last_month.row:
        found = found.exclude(pk=last_month.row.job.pk)  # it stands on top
    page = Paginator(found, JOBS_ON_A_PAGE).get_page(request.GET.get("page"))
    rows = [display.row(job, form.zone, now) for job in page]
    moving = [row.job for row in (last_month.row, *rows) if row and row.job.is_open]
    context = around | {
        "form": form,
        "max_days": MAX_EXPORT_DAYS,
        "zone": form.zone,
        "zone_text": zone_text(filters.Filters(zone=form.zone, now=now)),
        "page": page,
        "rows": rows,
        "last_month": last_month,
        "moving": moving,
        # Each look of somebody from outside is recorded: those that nobody takes would fill the audit trail.
        "is_followed": bool(moving) and not around["is_outside"],
        "same_page": reverse("exports", args=[org.slug]) + (f"?page={page.number}" if page.number > 1 else ""),
    }
    return render(request, "exports/exports.html", context, status=status)


def _back(org: Org, job: ExportJob | None = None) -> HttpResponse:
    """To the page, and there to a job."""
    return redirect(reverse("exports", args=[org.slug]) + (f"#job-{job.pk}" if job else ""))
