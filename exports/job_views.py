"""Export jobs by API: asked for, looked at, called off, run again, downloaded."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.conf import settings
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_field,
    inline_serializer,
)
from rest_framework import serializers
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from ingestion.models import Status
from orgs import paging
from orgs.api import OrgView, unknown_parameters
from orgs.limits import (
    DEFAULT_INCIDENT_ROWS,
    EXPORT_REFUSED_SECONDS,
    MAX_EXPORT_DAYS,
    MAX_EXPORT_MODELS,
    MAX_IDEMPOTENCY_KEY_LENGTH,
    MAX_INCIDENT_ROWS,
    MAX_OPEN_EXPORTS,
    RETRY_AFTER_SECONDS,
)
from orgs.models import Org, Scope
from orgs.paging import ListCursor
from usage.queries import Wrong, moment
from usage.series import Unanswerable, zone_of
from usage.windows import UTC_ZONE, Window

from . import asking, jobs
from .contents import COLUMNS
from .datasets.usage import Grain
from .delivery import Undeliverable
from .downloads import hand_out
from .models import ExportJob, Kind, State
from .writers import Format

OF_AN_ORG = (Kind.USAGE, Kind.INCIDENT_EVENTS)  # the summary of all orgs is the staff's


class TooManyExports(APIException):
    status_code = 429
    wait = EXPORT_REFUSED_SECONDS  # Retry-After


class Conflict(APIException):
    status_code = 409


class StorageUnavailable(APIException):
    status_code = 503
    wait = RETRY_AFTER_SECONDS


# ── What is asked for ────────────────────────────────────────────────────────────────────────────────────────────
@extend_schema_field(OpenApiTypes.DATETIME)
class MomentField(serializers.Field[datetime, str, str, Any]):
    """A time with an offset."""

    def to_internal_value(self, data: Any) -> datetime:
        try:
            return moment(data if isinstance(data, str) else "")
        except Wrong as error:
            raise ValidationError(str(error)) from error

    def to_representation(self, value: datetime) -> str:
        return value.isoformat()


class Strict(serializers.Serializer[Any]):
    """Refuses what it does not know: a misspelt name would be a wish that is not heard."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := sorted(set(data) - set(self.fields))):
            raise ValidationError({str(name): "is not known here" for name in unknown})
        return super().to_internal_value(data)


class TimeRange(Strict):
    start = MomentField(help_text="Included; with an offset.")
    end = MomentField(help_text=f"Not included; with an offset. At most {MAX_EXPORT_DAYS} days after start.")

    def validate(self, attrs: dict[str, Any]) -> Window:
        if attrs["start"] >= attrs["end"]:
            raise ValidationError({"end": "must be after start"})
        return Window(attrs["start"], attrs["end"])


class Delivery(Strict):
    type = serializers.ChoiceField(choices=["s3"])
    bucket = serializers.CharField(max_length=63, help_text="One that staff have put on the organisation's list.")


class ExportRequest(Strict):
    dataset = serializers.ChoiceField(choices=OF_AN_ORG, default=Kind.USAGE)
    format = serializers.ChoiceField(choices=[kind.value for kind in Format], default=Format.CSV)
    timeRange = TimeRange()  # noqa: N815  the name that clients use
    granularity = serializers.ChoiceField(
        choices=[grain.value for grain in Grain], default=Grain.DAILY, help_text="Of usage alone."
    )
    timeZone = serializers.ChoiceField(  # noqa: N815
        choices=["UTC", "org"], default="UTC", help_text="Whose days and months: UTC's, or those of the org's zone."
    )
    models = serializers.ListField(
        child=serializers.UUIDField(),
        required=False,
        allow_null=True,
        min_length=1,
        max_length=MAX_EXPORT_MODELS,
        help_text="Left out: all.",
    )
    status = serializers.ChoiceField(
        choices=Status.labels, required=False, allow_null=True, help_text="Of incident_events alone."
    )
    limit = serializers.IntegerField(
        min_value=1,
        max_value=MAX_INCIDENT_ROWS,
        required=False,
        allow_null=True,
        help_text=f"Of incident_events alone: rows at most, newest first. {DEFAULT_INCIDENT_ROWS:,} where left out.",
    )
    delivery = Delivery(required=False, allow_null=True, help_text="Left out: wherever this installation puts files.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["dataset"] == Kind.INCIDENT_EVENTS:
            return attrs
        misplaced = {name: "belongs to incident_events" for name in ("status", "limit") if attrs.get(name) is not None}
        if misplaced:
            raise ValidationError(misplaced)
        return attrs

    def wanted(self, org: Org) -> jobs.Wanted:
        """What a valid request wants."""
        asked = self.validated_data
        is_incident = asked["dataset"] == Kind.INCIDENT_EVENTS
        models, delivery = asked.get("models"), asked.get("delivery")
        return jobs.Wanted(
            org=org,
            window=asked["timeRange"],
            dataset=Kind(asked["dataset"]),
            format=Format(asked["format"]),
            grain=Grain(asked["granularity"]),
            zone=(zone_of(org) if asked["timeZone"] == "org" else UTC_ZONE).key,
            model_ids=None if models is None else frozenset(models),
            call_status=Status.called(asked.get("status")),
            row_limit=(asked.get("limit") or DEFAULT_INCIDENT_ROWS) if is_incident else None,
            bucket=None if delivery is None else delivery["bucket"],
        )


# ── What is answered ─────────────────────────────────────────────────────────────────────────────────────────────
JOB = inline_serializer(
    "ExportJob",
    {
        "jobId": serializers.UUIDField(),
        "orgId": serializers.UUIDField(),
        "status": serializers.ChoiceField(State.values),
        "dataset": serializers.ChoiceField([kind.value for kind in OF_AN_ORG]),
        "format": serializers.ChoiceField([kind.value for kind in Format]),
        "granularity": serializers.ChoiceField([grain.value for grain in Grain], allow_null=True),
        "timeRange": inline_serializer(
            "ExportedTimeRange", {"start": serializers.DateTimeField(), "end": serializers.DateTimeField()}
        ),
        "timeZone": serializers.CharField(help_text="IANA name."),
        "models": serializers.ListField(child=serializers.UUIDField(), allow_null=True, help_text="Null: all."),
        "createdAt": serializers.DateTimeField(),
        "startedAt": serializers.DateTimeField(allow_null=True),
        "completedAt": serializers.DateTimeField(allow_null=True),
        "expiresAt": serializers.DateTimeField(allow_null=True, help_text="When the file is deleted."),
        "month": serializers.CharField(allow_null=True, help_text="YYYY-MM, of a file that the schedule asked for."),
        "version": serializers.IntegerField(help_text="Of that month's files."),
        "rowsWritten": serializers.IntegerField(help_text="So far."),
        "rowCount": serializers.IntegerField(allow_null=True),
        "isTruncated": serializers.BooleanField(help_text="Whether its limit cut it: there were more calls."),
        "byteCount": serializers.IntegerField(allow_null=True),
        "totals": serializers.DictField(child=serializers.CharField(), help_text="Sums of its columns, exact."),
        "outputUri": serializers.CharField(allow_null=True),
        "checksum": serializers.CharField(allow_null=True, help_text="SHA-256 of the file, hexadecimal."),
        "initiatedBy": serializers.CharField(help_text="user:<address>, key:<prefix>, or schedule."),
        "error": serializers.CharField(
            allow_null=True, help_text="Why it failed, or why it was not made yet and is tried again."
        ),
    },
)


def as_document(job: ExportJob) -> dict[str, Any]:
    """A job as the API tells it."""
    return {
        "jobId": job.pk,
        "orgId": job.org_id,
        "status": job.status,
        "dataset": job.dataset,
        "format": job.format,
        "granularity": job.granularity or None,
        "timeRange": {"start": job.start_at, "end": job.end_at},
        "timeZone": job.time_zone,
        "models": job.model_ids,
        "createdAt": job.created_at,
        "startedAt": job.started_at,
        "completedAt": job.completed_at,
        "expiresAt": job.expires_at,
        "month": None if job.month is None else f"{job.month:%Y-%m}",
        "version": job.version,
        "rowsWritten": job.rows_written,
        "rowCount": job.row_count,
        "isTruncated": job.is_truncated,
        "byteCount": job.byte_count,
        "totals": job.totals,
        "outputUri": _output(job),
        "checksum": job.checksum or None,
        "initiatedBy": job.initiated_by,
        "error": job.error or None,
    }


def _output(job: ExportJob) -> str | None:
    if job.status != State.SUCCEEDED:
        return None
    if job.bucket:
        return f"s3://{job.bucket}/{job.key}"
    return settings.PUBLIC_URL + reverse("api-export-download", args=[job.org_id, job.pk])


# ── The views ────────────────────────────────────────────────────────────────────────────────────────────────────
NO_JOB = {404: OpenApiResponse(description="The organisation has no such export.")}
OVER = {409: OpenApiResponse(description="The export is, or is not, over.")}
REFUSED = {
    409: OpenApiResponse(description="The Idempotency-Key names another request, or the export is not over."),
    429: OpenApiResponse(description=f"The organisation has {MAX_OPEN_EXPORTS} exports that are not finished."),
}


class ExportsCursor(ListCursor):
    """By export_jobs_by_org."""

    ordering = ("-created_at", "-id")

    def check_position(self, position: str) -> None:
        datetime.fromisoformat(position)


class ExportsView(OrgView):
    @property
    def required_scope(self) -> Scope:
        return Scope.EXPORTS_CREATE if self.request.method == "POST" else Scope.EXPORTS_READ

    @extend_schema(
        operation_id="createExport",
        tags=["exports"],
        request=ExportRequest,
        parameters=[
            OpenApiParameter(
                "Idempotency-Key",
                OpenApiTypes.STR,
                OpenApiParameter.HEADER,
                description="The same key within a day names the same job. Without one, the same request within a minute does.",
            )
        ],
        responses={
            202: OpenApiResponse(JOB, description="The job: a new one, or that of the same request."),
            **REFUSED,
        },
    )
    def post(self, request: Request, org_id: uuid.UUID) -> Response:
        """Ask for a file."""
        asked = ExportRequest(data=request.data)
        asked.is_valid(raise_exception=True)
        with _as_problems():
            job = asking.ask(request, asked.wanted(self.org), _idempotency_key(request))
        return Response(as_document(job), 202)

    @extend_schema(
        operation_id="listExports",
        tags=["exports"],
        parameters=[
            OpenApiParameter("status", enum=State.values),
            *paging.PARAMETERS,
        ],
        responses=paging.page_of("ExportJobs", JOB),
    )
    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        """The org's jobs, newest first."""
        status = request.query_params.get("status")
        errors = unknown_parameters(request, ("status", *paging.NAMES)) | paging.limit_errors(request)
        if status is not None and status not in State.values:
            errors["status"] = f"must be one of {', '.join(State.values)}"
        if errors:
            raise ValidationError(errors)
        found = ExportJob.objects.filter(org=self.org, **({} if status is None else {"status": status}))
        return ExportsCursor().answer(found, request, self, as_document)


class ExportView(OrgView):
    required_scope = Scope.EXPORTS_READ

    @extend_schema(operation_id="getExport", tags=["exports"], responses={200: JOB, **NO_JOB})
    def get(self, request: Request, org_id: uuid.UUID, job_id: uuid.UUID) -> Response:
        """One job."""
        return Response(as_document(_job(self.org, job_id)))


class DownloadView(OrgView):
    required_scope = Scope.EXPORTS_DOWNLOAD

    @extend_schema(
        operation_id="downloadExport",
        tags=["exports"],
        responses={
            302: OpenApiResponse(description="To the file: a signed address that expires. Each is recorded."),
            404: OpenApiResponse(
                description="There is no such export, or no file of it: not ready, failed, or expired."
            ),
        },
    )
    def get(self, request: Request, org_id: uuid.UUID, job_id: uuid.UUID) -> HttpResponse:
        """The file. 404 while it is not ready, and once it has expired."""
        with _as_problems():
            address = hand_out(request, _job(self.org, job_id))
        if address is None:
            raise NotFound("There is no file: the export is not ready, has failed, or has expired.")
        return HttpResponseRedirect(address, headers={"Cache-Control": "no-store"})


class CancelView(OrgView):
    required_scope = Scope.EXPORTS_CREATE

    @extend_schema(operation_id="cancelExport", tags=["exports"], request=None, responses={202: JOB, **NO_JOB, **OVER})
    def post(self, request: Request, org_id: uuid.UUID, job_id: uuid.UUID) -> Response:
        """Call a job off: it fails, with that as its error. One that is being made ends within seconds."""
        job = _job(self.org, job_id)
        if not asking.cancel(request, job):
            raise Conflict("The export is over, or is being finished just now: there is nothing to cancel.")
        return Response(as_document(_job(self.org, job_id)), 202)


class RerunView(OrgView):
    required_scope = Scope.EXPORTS_CREATE

    @extend_schema(
        operation_id="rerunExport", tags=["exports"], request=None, responses={202: JOB, **NO_JOB, **REFUSED}
    )
    def post(self, request: Request, org_id: uuid.UUID, job_id: uuid.UUID) -> Response:
        """Ask for the same file once more, as a new job."""
        job = _job(self.org, job_id)
        if job.is_open:
            raise Conflict("The export is not over: wait for it, or cancel it.")
        with _as_problems():
            new = asking.again(request, job)
        return Response(as_document(new), 202)


class DatasetsView(APIView):
    required_scope = Scope.EXPORTS_READ

    @extend_schema(
        operation_id="listDatasets",
        tags=["exports"],
        responses=inline_serializer(
            "Datasets",
            {
                "items": inline_serializer(
                    "Dataset",
                    {
                        "dataset": serializers.ChoiceField([kind.value for kind in OF_AN_ORG]),
                        "formats": serializers.ListField(child=serializers.CharField(), help_text="To be had here."),
                        "columns": inline_serializer(
                            "DatasetColumn",
                            {
                                "name": serializers.CharField(),
                                "type": serializers.CharField(),
                                "unit": serializers.CharField(help_text="Empty where there is none."),
                                "meaning": serializers.CharField(),
                            },
                            many=True,
                        ),
                    },
                    many=True,
                )
            },
        ),
    )
    def get(self, request: Request) -> Response:
        """What can be exported, with the columns of each."""
        formats = [kind.value for kind in Format if not kind.missing]
        return Response(
            {
                "items": [
                    {
                        "dataset": kind,
                        "formats": formats,
                        "columns": [column.as_document for column in COLUMNS[kind]],
                    }
                    for kind in OF_AN_ORG
                ]
            }
        )


def _job(org: Org, job_id: uuid.UUID) -> ExportJob:
    """An org's own job. Another's is none."""
    job = ExportJob.objects.select_related("org").filter(pk=job_id, org=org).first()
    if job is None:
        raise NotFound("This organisation has no such export.")
    return job


def _idempotency_key(request: Request) -> str:
    key: str = request.headers.get("Idempotency-Key", "")
    if len(key) > MAX_IDEMPOTENCY_KEY_LENGTH or "\0" in key:
        raise ValidationError(
            {"Idempotency-Key": f"must be at most {MAX_IDEMPOTENCY_KEY_LENGTH} characters, none of them NUL"}
        )
    return key


_FIELDS = {"start": "timeRange.start", "end": "timeRange.end"}


@contextmanager
def _as_problems() -> Iterator[None]:
    """What `jobs` and stores raise, as the API tells it."""
    try:
        yield
    except Unanswerable as error:
        raise ValidationError({_FIELDS.get(error.field, error.field): str(error)}) from error
    except jobs.TooManyOpen as error:
        raise TooManyExports(str(error)) from error
    except jobs.KeyReused as error:
        raise Conflict("This Idempotency-Key names an export that asked for something else.") from error
    except Undeliverable as error:
        raise StorageUnavailable(str(error)) from error
