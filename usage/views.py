"""The usage and freshness endpoints."""

import uuid
from collections.abc import Iterable
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion.models import Status
from orgs.api import OrgView
from orgs.models import Scope

from . import freshness
from .queries import part_of, read_parameters, read_question, refused
from .series import Figures, Group, Unanswerable, points, total

SERIES_PARAMETERS = [
    OpenApiParameter("start", OpenApiTypes.DATETIME, required=True, description="Included; with an offset."),
    OpenApiParameter("end", OpenApiTypes.DATETIME, required=True, description="Not included; with an offset."),
    OpenApiParameter("granularity", enum=["hour", "day"], default="day"),
    OpenApiParameter("modelId", OpenApiTypes.UUID),
    OpenApiParameter("timeZone", enum=["UTC", "org"], default="UTC", description="Whose days are meant."),
]
Fields = dict[str, serializers.Field[Any, Any, Any, Any]]
_FIGURES: Fields = {
    "invocations": serializers.IntegerField(),
    "inputTokens": serializers.IntegerField(help_text="Cached ones included."),
    "outputTokens": serializers.IntegerField(),
    "costEstimateCents": serializers.IntegerField(help_text="Rounded once, half-even."),
    "costEstimate": serializers.CharField(help_text="Exact cents, four decimals."),
    "unpricedInvocations": serializers.IntegerField(help_text="Invocations without a known cost; not in the cost."),
}
_FRESHNESS: Fields = {
    "modelId": serializers.UUIDField(allow_null=True),
    "lastEventAt": serializers.DateTimeField(allow_null=True),
    "lastRollupAt": serializers.DateTimeField(allow_null=True),
    "lagSeconds": serializers.IntegerField(allow_null=True),
    "status": serializers.ChoiceField(choices=list(freshness.Status)),
}
GROUPS = (Group.MODEL, Group.CLIENT)


def group_parameter(groups: Iterable[Group]) -> OpenApiParameter:
    return OpenApiParameter(
        "groupBy",
        enum=list(groups),
        default=Group.MODEL,
        description=(
            "What a point is of. Clients and error codes are kept by the hour; each bucket names those with the most calls and"
            " those that cost most. The rest are one point, which also has the calls of hours in which a client is not named."
        ),
    )


def part_fields(groups: Iterable[Group]) -> Fields:
    """What a point is of: one of these, by groupBy."""
    fields: Fields = {"modelId": serializers.UUIDField(required=False, help_text="Where grouped by model.")}
    if Group.CLIENT in groups:
        fields["clientId"] = serializers.CharField(
            required=False,
            allow_null=True,
            help_text="Where grouped by client; null where none was told, and of the rest.",
        )
    if Group.STATUS in groups:
        fields["status"] = serializers.ChoiceField(Status.labels, required=False, help_text="Where grouped by status.")
    if Group.ERROR_CODE in groups:
        fields["errorCode"] = serializers.CharField(
            required=False,
            allow_null=True,
            help_text="Where grouped by error code; null where none was told, and of the rest.",
        )
    fields["isRest"] = serializers.BooleanField(
        required=False, help_text="Whether this is all those together that are not named in their hour."
    )
    return fields


_POINT: Fields = {"bucketStart": serializers.DateTimeField(), **part_fields(GROUPS), **_FIGURES}


class UsageView(OrgView):
    required_scope = Scope.USAGE_READ

    @extend_schema(
        operation_id="getUsage",
        tags=["usage"],
        parameters=[*SERIES_PARAMETERS, group_parameter(GROUPS)],
        responses=inline_serializer(
            "Usage",
            {
                "orgId": serializers.UUIDField(),
                "granularity": serializers.ChoiceField(choices=["hour", "day"]),
                "series": inline_serializer("UsagePoint", _POINT, many=True),
                "totals": inline_serializer("UsageTotals", _FIGURES),
                "freshness": inline_serializer("Freshness", _FRESHNESS),
            },
        ),
    )
    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        """Usage by bucket and model, or client, and the totals of exactly the asked range."""
        question, _ = read_question(request, self.org, GROUPS)
        try:
            series = points(question)
        except Unanswerable as error:
            raise refused(error) from error
        return Response(
            {
                "orgId": org_id,
                "granularity": question.granularity,
                "series": [
                    {"bucketStart": point.bucket_start, **part_of(point.key, question.group), **_figures(point)}
                    for point in series
                ],
                "totals": _figures(total(series)),
                "freshness": _entry(freshness.overall(org_id, question.model_id)),
            }
        )


class FreshnessView(OrgView):
    required_scope = Scope.USAGE_READ

    @extend_schema(
        operation_id="getFreshness",
        tags=["usage"],
        parameters=[OpenApiParameter("modelId", OpenApiTypes.UUID)],
        responses=inline_serializer(
            "OrgFreshness",
            {
                "orgId": serializers.UUIDField(),
                "status": serializers.ChoiceField(choices=list(freshness.Status)),
                "entries": inline_serializer("FreshnessEntry", _FRESHNESS, many=True),
            },
        ),
    )
    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        """How far the figures trail the events that were accepted."""
        model_id = read_parameters(request, only=("modelId",)).get("modelId")
        return Response(
            {
                "orgId": org_id,
                "status": freshness.overall(org_id, model_id).status,
                "entries": [_entry(entry) for entry in freshness.entries(org_id, model_id)],
            }
        )


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "invocations": figures.invocations,
        "inputTokens": figures.input_tokens,
        "outputTokens": figures.output_tokens,
        "costEstimateCents": figures.rounded_cost_cents,
        "costEstimate": figures.exact_cost,
        "unpricedInvocations": figures.unpriced_invocations,
    }


def _entry(entry: freshness.Entry) -> dict[str, Any]:
    return {
        "modelId": entry.model_id,
        "lastEventAt": entry.last_event_at,
        "lastRollupAt": entry.last_rollup_at,
        "lagSeconds": entry.lag_seconds,
        "status": entry.status,
    }
