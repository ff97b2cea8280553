"""Export jobs and the buckets of orgs in the admin. Staff ask for the summary of all orgs here."""

from collections.abc import Iterable
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.widgets import AdminDateWidget
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from orgs import audit
from orgs.actions import Action
from orgs.admin_base import BaseAdmin, Link, ModelForm, ReadOnly, actor, as_uuid
from orgs.models import AuditRecord
from usage.series import Unanswerable
from usage.windows import UTC_ZONE, Window, first_of_month, local_day, midnight, next_month, previous_month

from . import asking, jobs
from .contents import dataset_of
from .delivery import Undeliverable
from .display import size
from .downloads import hand_out
from .models import OPEN, ExportBucket, ExportJob, Kind, State
from .writers import Format

DOWNLOADS_SHOWN = 20
ZONES = {"": "Each organisation's own", UTC_ZONE.key: "UTC"}


class SummaryForm(ModelForm):
    """Asks for the summary of all orgs: from one month to another, both included."""

    first = forms.DateField(label="First month", help_text="Any day of it.", widget=AdminDateWidget)
    last = forms.DateField(
        label="Last month",
        help_text="Any day of it; the current month counts to date.",
        widget=AdminDateWidget,
    )
    zone = forms.ChoiceField(label="Months of", choices=list(ZONES.items()), required=False)
    format = forms.ChoiceField(choices=[])
    wanted: jobs.Wanted

    class Meta:
        model = ExportJob
        fields = ("format",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["format"].choices = [(kind.value, kind.value) for kind in Format if not kind.missing]  # type: ignore[attr-defined]
        today = local_day(timezone.now(), UTC_ZONE)
        self.fields["first"].initial = previous_month(today)
        self.fields["last"].initial = first_of_month(today)

    def clean(self) -> dict[str, Any]:
        asked = super().clean() or {}
        if {"first", "last", "format"} <= asked.keys():
            try:
                self.wanted = _summary(asked["first"], asked["last"], asked.get("zone", ""), Format(asked["format"]))
                dataset_of(self.wanted.job("")).rows.close()
            except Unanswerable as error:
                field = {"start": "first", "end": "last"}[error.field]
                self.add_error(field, f"The {field} month {error}.")
            except OverflowError:
                self.add_error("last", "The last month lies too far ahead.")
        return asked

    def _post_clean(self) -> None:
        """Nothing of the row is filled in by hand."""


def _summary(first: date, last: date, zone: str, kind: Format) -> jobs.Wanted:
    if first_of_month(first) > last:
        raise Unanswerable("end", "lies before the first")
    whose = ZoneInfo(zone or UTC_ZONE.key)
    window = Window(midnight(first_of_month(first), whose), midnight(next_month(last), whose))
    return jobs.Wanted(org=None, window=window, dataset=Kind.ORG_SUMMARY, format=kind, zone=zone)


@admin.register(ExportJob)
class ExportJobAdmin(ReadOnly, BaseAdmin):
    audits_itself = True
    list_display = ("what", "org", "status", "progress", "file_size", "created_at", "initiated_by", "short_error")
    list_display_links = ("what",)
    list_select_related = ("org",)
    list_filter = ("status", "dataset", "format", ("month", admin.EmptyFieldListFilter))
    search_fields = ("org__name", "org__slug")
    search_help_text = "A part of the name of an org, or the whole id of a job."
    ordering = ("-created_at", "-id")  # by export_jobs_newest
    sortable_by = ()
    actions = ("run_again", "cancel")
    fieldsets = (
        ("State", {"fields": ("status", "error", "progress", "attempts", "failures", "failed_at", "cancelled_by")}),
        (
            "What was asked for",
            {
                "fields": (
                    "org", "dataset", "format", "start_at", "end_at", "granularity", "time_zone", "model_ids",
                    "call_status", "row_limit", "is_truncated", "month", "version", "initiated_by", "created_at",
                )
            },
        ),
        (
            "What came of it",
            {
                "fields": (
                    "started_at", "completed_at", "expires_at", "bucket", "key", "row_count", "file_size", "checksum",
                    "sums", "downloads",
                )
            },
        ),
    )  # fmt: skip

    def get_urls(self) -> list[URLPattern]:
        view = self.wrap(self.download_view)
        return [path("<uuid:pk>/download/", view, name="exports_exportjob_download"), *super().get_urls()]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[ExportJob], search_term: str
    ) -> tuple[QuerySet[ExportJob], bool]:
        job_id = as_uuid(search_term.strip())
        if job_id is not None:
            return queryset.filter(pk=job_id), False
        return super().get_search_results(request, queryset, search_term)

    def links(self, request: HttpRequest, row: ExportJob) -> Iterable[Link]:
        if row.is_available(timezone.now()):
            yield Link("Download", self.reverse("download", row.pk))

    def download_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        job = ExportJob.objects.select_related("org").filter(pk=pk).first()
        try:
            address = hand_out(request, job) if job else None
        except Undeliverable as error:
            messages.error(request, str(error))
            return HttpResponseRedirect(self.reverse("change", pk))
        if address is None:
            raise Http404
        return HttpResponseRedirect(address)

    # ── What is shown ──
    @admin.display(description="what")
    def what(self, job: ExportJob) -> str:
        return str(job)

    @admin.display(description="rows")
    def progress(self, job: ExportJob) -> str:
        if job.status == State.RUNNING:
            return f"{job.rows_written:,} so far"
        return "–" if job.row_count is None else f"{job.row_count:,}"

    @admin.display(description="size")
    def file_size(self, job: ExportJob) -> str:
        return "–" if job.byte_count is None else size(job.byte_count)

    @admin.display(description="error")
    def short_error(self, job: ExportJob) -> str:
        return job.error if len(job.error) <= 100 else f"{job.error[:100]}…"

    @admin.display(description="totals")
    def sums(self, job: ExportJob) -> SafeString:
        return format_html_join("", "<div>{}: {}</div>", job.totals.items()) or format_html("–")

    @admin.display(description="downloads")
    def downloads(self, job: ExportJob) -> SafeString:
        """The newest; uses audit_by_target."""
        found = AuditRecord.objects.filter(target=str(job.pk), action=Action.EXPORT_DOWNLOADED).order_by("-id")
        rows = ((f"{record.at:%Y-%m-%d %H:%M:%S} UTC", record.actor) for record in found[:DOWNLOADS_SHOWN])
        return format_html_join("", "<div>{} by {}</div>", rows) or format_html("None yet")

    # ── What staff do ──
    def has_run_permission(self, request: HttpRequest) -> bool:
        return actor(request).has_perm("exports.change_exportjob")

    @admin.action(description="Run selected exports again", permissions=("run",))
    def run_again(self, request: HttpRequest, queryset: QuerySet[ExportJob]) -> None:
        new, refused = [], []
        for job in queryset.exclude(status__in=OPEN).select_related("org"):
            try:
                new.append(asking.again(request, job))
            except (Unanswerable, jobs.TooManyOpen) as error:
                refused.append(f"{job}: {error}")
        self.log_each(request, ExportJob.objects.filter(pk__in=[job.pk for job in new]), "Asked for again.")
        messages.info(request, f"{len(new)} asked for again; what is open already is left alone.")
        for text in refused[:5]:
            messages.warning(request, text)

    @admin.action(description="Cancel selected exports", permissions=("run",))
    def cancel(self, request: HttpRequest, queryset: QuerySet[ExportJob]) -> None:
        over = [job.pk for job in queryset.filter(status__in=OPEN) if asking.cancel(request, job)]
        self.log_each(request, ExportJob.objects.filter(pk__in=over), "Cancelled.")
        messages.info(request, f"{len(over)} cancelled.")

    # ── The summary of all orgs ──
    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return actor(request).has_perm("exports.add_exportjob")

    def get_form(self, request: HttpRequest, obj: ExportJob | None = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **kwargs) if obj else SummaryForm

    def get_fieldsets(self, request: HttpRequest, obj: ExportJob | None = None) -> Any:
        if obj:
            return super().get_fieldsets(request, obj)
        return [("Summary of all organisations, month by month", {"fields": ("first", "last", "zone", "format")})]

    def get_readonly_fields(self, request: HttpRequest, obj: ExportJob | None = None) -> Any:
        return ("progress", "file_size", "sums", "downloads") if obj else ()

    def save_model(self, request: HttpRequest, obj: ExportJob, form: Any, change: bool) -> None:
        obj.__dict__.update(asking.ask(request, form.wanted).__dict__)


@admin.register(ExportBucket)
class ExportBucketAdmin(BaseAdmin):
    """Which buckets an org's files may go to. Each change is audited."""

    audits_itself = True
    list_display = ("bucket", "org", "created_at")
    list_select_related = ("org",)
    search_fields = ("bucket", "org__name", "org__slug")
    search_help_text = "A bucket, or a part of the name of an org."
    ordering = ("-id",)
    autocomplete_fields = ("org",)

    def save_model(self, request: HttpRequest, obj: ExportBucket, form: ModelForm, change: bool) -> None:
        super().save_model(request, obj, form, change)
        audit.record(request, Action.BUCKET_CHANGED if change else Action.BUCKET_ADDED, obj.org_id, obj.bucket)

    def delete_model(self, request: HttpRequest, obj: ExportBucket) -> None:
        super().delete_model(request, obj)
        audit.record(request, Action.BUCKET_REMOVED, obj.org_id, obj.bucket)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ExportBucket]) -> None:
        for bucket in queryset:
            self.delete_model(request, bucket)
