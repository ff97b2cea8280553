"""The reliability endpoint: error rates and latency percentiles, from the rollups' counts and histograms."""

import uuid
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from orgs.models import Org, Scope
from usage.histogram import percentiles
from usage.queries import one_of, part_of, read_question, refused
from usage.series import Group, Point, Unanswerable, points
from usage.views import SERIES_PARAMETERS, group_parameter, part_fields

PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_STATUSES = ("success", "error", "timeout", "throttled")


class ReliabilityView(APIView):
    required_scope = Scope.RELIABILITY_READ
    org: Org

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
                            "StatusCounts", {name: serializers.IntegerField() for name in _STATUSES}
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
        **part_of(point, group),
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
