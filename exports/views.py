"""Files by API."""

import uuid
from collections.abc import Iterable

from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from ingestion.models import Status
from orgs import audit_views
from orgs.api import OrgView
from orgs.limits import DEFAULT_INCIDENT_ROWS, MAX_INCIDENT_ROWS
from orgs.models import Scope
from usage.queries import Wrong, read_parameters, refused
from usage.series import Unanswerable
from usage.windows import Window

from . import audit_csv
from .datasets.incident_events import Incident, check_kept
from .incident_csv import file


class CsvRenderer(BaseRenderer):
    """So that `Accept: text/csv` can be answered; the file itself is streamed."""

    media_type = "text/csv"
    format = "csv"

    def render(self, data: object, accepted_media_type: str | None = None, renderer_context: object = None) -> bytes:
        return b""


class CsvView(OrgView):
    """Answers with a file, whatever form is preferred."""

    def get_renderers(self) -> list[BaseRenderer]:
        return [*super().get_renderers(), CsvRenderer()]

    def stream(self, name: str, lines: Iterable[str | bytes], **headers: str) -> StreamingHttpResponse:
        told = {"Content-Disposition": f'attachment; filename="{name}"', **headers}
        return StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8", headers=told)


def _status(text: str) -> Status:
    status = Status.called(text)
    if status is None:
        raise Wrong("must be one of " + ", ".join(Status.labels))
    return status


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_INCIDENT_ROWS):
        raise Wrong(f"must be an integer from 1 to {MAX_INCIDENT_ROWS:,}")
    return int(text)


class IncidentView(CsvView):
    required_scope = Scope.RELIABILITY_READ

    @extend_schema(
        operation_id="getIncidentCsv",
        tags=["reliability"],
        parameters=[
            OpenApiParameter("start", OpenApiTypes.DATETIME, required=True, description="Included; with an offset."),
            OpenApiParameter("end", OpenApiTypes.DATETIME, required=True, description="Not included; with an offset."),
            OpenApiParameter("modelId", OpenApiTypes.UUID),
            OpenApiParameter("status", enum=Status.labels),
            OpenApiParameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MAX_INCIDENT_ROWS},
                default=DEFAULT_INCIDENT_ROWS,
                description="How many events.",
            ),
        ],
        responses={
            (200, "text/csv"): OpenApiResponse(
                OpenApiTypes.STR, description="Events, newest first. `X-Truncated: true` where the limit cut some off."
            )
        },
    )
    def get(self, request: Request, org_id: uuid.UUID) -> HttpResponseBase:
        """The raw events of a window as CSV."""
        asked = read_parameters(request, only=("start", "end", "modelId"), also={"status": _status, "limit": _limit})
        window = Window(asked["start"], asked["end"])
        try:
            check_kept(window)
        except Unanswerable as error:
            raise refused(error) from error
        incident = Incident(
            org_id=self.org.pk,
            window=window,
            limit=asked.get("limit", DEFAULT_INCIDENT_ROWS),
            model_id=asked.get("modelId"),
            status=asked.get("status"),
        )
        name = f"incident-{self.org.slug}-{asked['start']:%Y%m%dT%H%M%SZ}.csv"
        return self.stream(name, file(incident), **({"X-Truncated": "true"} if incident.is_cut() else {}))


class AuditCsvView(CsvView):
    required_scope = Scope.ADMIN

    @extend_schema(
        operation_id="getAuditCsv",
        tags=["audit"],
        parameters=audit_views.FILTERS,
        responses={(200, "text/csv"): OpenApiResponse(OpenApiTypes.STR, description="All records, newest first.")},
    )
    def get(self, request: Request, org_id: uuid.UUID) -> HttpResponseBase:
        """Who did what to the organisation, as CSV."""
        asked = audit_views.asked_filters(request)
        return self.stream(f"audit-{self.org.slug}.csv", audit_csv.file(self.org, **asked))
