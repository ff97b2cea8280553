"""The exports page, and downloads from the pages."""

import uuid
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from orgs import audit
from orgs.limits import MAX_OPEN_EXPORTS
from orgs.models import Org, Scope
from orgs.pages import frame, org_page
from usage import filters, overview
from usage.pages import by_name
from usage.series import Unanswerable, zone_of
from usage.windows import local_day

from . import display, jobs
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
    return _page(request, org, _form(org))


@org_page(Scope.EXPORTS_CREATE)
@require_POST
def create(request: HttpRequest, org: Org) -> HttpResponse:
    form = _form(org, request.POST)
    if form.is_valid():
        try:
            job = jobs.ask(form.wanted, audit.actor_of(request))
        except Unanswerable as error:
            form.refuse(error.field, str(error))
        except jobs.TooManyOpen:
            form.add_error(None, _TOO_MANY)
        else:
            audit.record(request, "asked for export", org.pk, str(job.pk))
            return _back(org)
    return _page(request, org, form, 400)


@org_page(Scope.EXPORTS_CREATE)
@require_POST
def cancel(request: HttpRequest, org: Org, job_id: uuid.UUID) -> HttpResponse:
    job = get_object_or_404(ExportJob, pk=job_id, org=org)
    if jobs.cancel(job, audit.actor_of(request)):
        audit.record(request, "cancelled export", org.pk, str(job.pk))
    else:
        messages.error(request, "The export was over already: there was nothing to cancel.")
    return _back(org)


@org_page(Scope.EXPORTS_CREATE)
@require_POST
def rerun(request: HttpRequest, org: Org, job_id: uuid.UUID) -> HttpResponse:
    job = get_object_or_404(ExportJob, pk=job_id, org=org)
    try:
        new = jobs.again(job, audit.actor_of(request)) if not job.is_open else job
    except Unanswerable as error:
        messages.error(request, f"This export can't be had again: {error.field} {error}.")
    except jobs.TooManyOpen:
        messages.error(request, _TOO_MANY)
    else:
        audit.record(request, "asked for export", org.pk, str(new.pk))
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
        raise Http404
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
    store = store_of("")
    assert isinstance(store, FolderStore)
    kind = next(kind for kind in sorted(Format, key=len, reverse=True) if key.endswith(f".{kind}"))
    try:
        content = store.path(key).open("rb")
    except OSError as error:
        raise Http404 from error
    return FileResponse(content, as_attachment=True, filename=filename, content_type=kind.media_type)


_TOO_MANY = (
    f"This organisation has {MAX_OPEN_EXPORTS} exports that are not finished, as many as it may have at once."
    " Wait for one, or cancel it."
)


def _form(org: Org, data: Any = None) -> ExportForm:
    names = overview.names_of(overview.models_of(org))
    return ExportForm(org, by_name(names), timezone.now(), data)


def _page(request: HttpRequest, org: Org, form: ExportForm, status: int = 200) -> HttpResponse:
    now = timezone.now()
    found = ExportJob.objects.select_related("org").filter(org=org)
    page = Paginator(found, JOBS_ON_A_PAGE).get_page(request.GET.get("page"))
    rows = [display.row(job, form.zone, now) for job in page]
    context = frame(request, org, "exports") | {
        "form": form,
        "zone": form.zone,
        "page": page,
        "rows": rows,
        "last_month": display.last_month(org, form.zone, now),
        "is_moving": any(row.job.is_open for row in rows),
    }
    return render(request, "exports/exports.html", context, status=status)


def _back(org: Org) -> HttpResponse:
    return redirect("exports", slug=org.slug)
