"""The reliability endpoints: error rates and latency percentiles, and the incidents that were found in them."""

import uuid
from typing import Any

from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion.models import Status
from orgs.api import OrgView
from orgs.limits import MAX_INCIDENTS
from orgs.models import Scope
from usage.histogram import PERCENTILES, percentiles
from usage.queries import one_of, part_of, read_parameters, read_question, refused
from usage.series import PART_NAMES, Group, Point, Unanswerable, points
from usage.views import SERIES_PARAMETERS, Fields, group_parameter, part_fields
from usage.windows import Window

from .conditions import Condition
from .detection import Measure
from .incidents import holding, incidents_of
from .models import Blame, Incident

_BLAME: Fields = {
    "share": serializers.FloatField(help_text="Its part of the bad calls beyond the expected ones, 0 to 1."),
    "bad": serializers.IntegerField(help_text="Its calls that failed, or were slow where the measure is p95."),
    "expected": serializers.FloatField(help_text="How many would have been normal."),
}


def _causes_of(group: Group, name: str) -> serializers.Serializer[Any]:
    """Ranked causes of one kind."""
    fields = {key: field for key, field in part_fields(Group).items() if key in (PART_NAMES[group], "isRest")}
    if group is Group.MODEL:
        del fields["isRest"]
    serializer: serializers.Serializer[Any] = inline_serializer(name, {**fields, **_BLAME}, many=True)
    return serializer


class ReliabilityView(OrgView):
    required_scope = Scope.RELIABILITY_READ

    @extend_schema(
        operation_id="getReliability",
        tags=["reliability"],
        parameters=[
            *SERIES_PARAMETERS,
            group_parameter(Group),
            OpenApiParameter("percentile", enum=list(PERCENTILES), description="The one to highlight."),
        ],
        responses=inline_serializer(
            "Reliability",
            {
                "orgId": serializers.UUIDField(),
                "granularity": serializers.ChoiceField(choices=["hour", "day"]),
                "percentile": serializers.ChoiceField(choices=list(PERCENTILES), required=False),
                "series": inline_serializer(
                    "ReliabilityPoint",
                    {
                        "bucketStart": serializers.DateTimeField(),
                        **part_fields(Group),
                        "errorRate": serializers.FloatField(help_text="0 to 1; every status but success."),
                        "invocations": serializers.IntegerField(),
                        "statuses": inline_serializer(
                            "StatusCounts", {name: serializers.IntegerField() for name in Status.labels}
                        ),
                        "latencyMs": inline_serializer(
                            "LatencyPercentiles",
                            {name: serializers.FloatField(help_text="Within 1 %.") for name in PERCENTILES},
                        ),
                    },
                    many=True,
                ),
            },
        ),
    )
    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        """Error rate, counts per status and latency percentiles by bucket and model, client, status or error code."""
        question, values = read_question(request, self.org, list(Group), {"percentile": one_of(PERCENTILES)})
        try:
            series = points(question, histograms=True)
        except Unanswerable as error:
            raise refused(error) from error
        answer: dict[str, Any] = {"orgId": org_id, "granularity": question.granularity}
        if "percentile" in values:
            answer["percentile"] = values["percentile"]
        return Response(answer | {"series": [_point(point, question.group) for point in series]})


def _point(point: Point, group: Group) -> dict[str, Any]:
    values = percentiles(point.histogram, list(PERCENTILES.values()))
    return {
        "bucketStart": point.bucket_start,
        **part_of(point.key, group),
        "errorRate": point.failures / point.invocations,
        "invocations": point.invocations,
        "statuses": {
            "success": point.invocations - point.failures,
            "error": point.errors,
            "timeout": point.timeouts,
            "throttled": point.throttled,
        },
        "latencyMs": dict(zip(PERCENTILES, values, strict=True)),
    }


class IncidentsView(OrgView):
    required_scope = Scope.RELIABILITY_READ

    @extend_schema(
        operation_id="getIncidents",
        tags=["reliability"],
        parameters=[
            OpenApiParameter("start", OpenApiTypes.DATETIME, required=True, description="Included; with an offset."),
            OpenApiParameter("end", OpenApiTypes.DATETIME, required=True, description="Not included; with an offset."),
            OpenApiParameter("modelId", OpenApiTypes.UUID, description="Incidents of this model, and of all together."),
        ],
        responses=inline_serializer(
            "Incidents",
            {
                "orgId": serializers.UUIDField(),
                "incidents": inline_serializer(
                    "Incident",
                    {
                        "incidentId": serializers.UUIDField(),
                        "modelId": serializers.UUIDField(allow_null=True, help_text="Null: all models together."),
                        "measure": serializers.ChoiceField(list(Measure)),
                        "start": serializers.DateTimeField(),
                        "end": serializers.DateTimeField(help_text="So far, where it is open."),
                        "isOpen": serializers.BooleanField(),
                        "observed": serializers.FloatField(help_text="0 to 1 of an error rate, ms of p95."),
                        "normal": serializers.FloatField(help_text="What it was at these hours of the days before."),
                        "invocations": serializers.IntegerField(),
                        "failures": serializers.IntegerField(),
                        "failedTokens": serializers.IntegerField(help_text="Input and output tokens of failed calls."),
                        "failedCostEstimate": serializers.CharField(help_text="Of failed calls; cents, four decimals."),
                        "causes": inline_serializer(
                            "IncidentCauses",
                            {
                                "models": _causes_of(Group.MODEL, "ModelCause"),
                                "clients": _causes_of(Group.CLIENT, "ClientCause"),
                                "errorCodes": _causes_of(Group.ERROR_CODE, "ErrorCodeCause"),
                            },
                        ),
                        "conditions": serializers.ListField(
                            child=serializers.CharField(),
                            help_text="Of those that page a platform team, the ones that held meanwhile.",
                        ),
                    },
                    many=True,
                ),
                "holding": inline_serializer(
                    "HoldingCondition",
                    {
                        "condition": serializers.ChoiceField(list(Condition)),
                        "description": serializers.CharField(),
                        "modelId": serializers.UUIDField(allow_null=True, help_text="Null: all models together."),
                        "since": serializers.DateTimeField(),
                    },
                    many=True,
                    help_text="Conditions that page a platform team and hold now.",
                ),
            },
        ),
    )
    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        """Windows in which the error rate or the p95 left its own normal, latest first, with what explains them."""
        asked = read_parameters(request, only=("start", "end", "modelId"))
        found = incidents_of(self.org, Window(asked["start"], asked["end"]), asked.get("modelId"))
        if len(found) > MAX_INCIDENTS:
            raise ValidationError(
                {"start": f"has more than {MAX_INCIDENTS:,} incidents up to end: ask for a shorter range"}
            )
        return Response(
            {
                "orgId": org_id,
                "incidents": [_incident(incident) for incident in found],
                "holding": [
                    {
                        "condition": held.condition,
                        "description": held.condition.text,
                        "modelId": model_id,
                        "since": held.start,
                    }
                    for model_id, held in holding(self.org, timezone.now(), asked.get("modelId"))
                ],
            }
        )


def _incident(incident: Incident) -> dict[str, Any]:
    def causes(found: list[Blame], group: Group) -> list[dict[str, Any]]:
        return [{**part_of(blame["name"], group), **{key: blame[key] for key in _BLAME}} for blame in found]  # type: ignore[literal-required]

    return {
        "incidentId": incident.pk,
        "modelId": incident.model_id,
        "measure": incident.measure,
        "start": incident.started_at,
        "end": incident.ended_at,
        "isOpen": incident.is_open,
        "observed": incident.observed,
        "normal": incident.normal,
        "invocations": incident.invocations,
        "failures": incident.failures,
        "failedTokens": incident.failed_tokens,
        "failedCostEstimate": f"{incident.failed_cost_cents:.4f}",
        "causes": {
            "models": causes(incident.causes["models"], Group.MODEL),
            "clients": causes(incident.causes["clients"], Group.CLIENT),
            "errorCodes": causes(incident.causes["errorCodes"], Group.ERROR_CODE),
        },
        "conditions": incident.conditions,
    }
