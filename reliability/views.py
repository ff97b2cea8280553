"""The reliability endpoint: error rates and latency percentiles, from the rollups' counts and histograms."""

import uuid
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from orgs.models import Org, Scope
from usage.histogram import percentiles
from usage.queries import read_question, refused
from usage.series import Point, Unanswerable, points
from usage.views import SERIES_PARAMETERS

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
                        "modelId": serializers.UUIDField(),
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
        """Error rate, counts per status and latency percentiles by bucket and model."""
        question = read_question(request, self.org)
        highlighted = request.query_params.get("percentile")
        if len(request.query_params.getlist("percentile")) > 1:
            raise ValidationError({"percentile": "is given more than once"})
        if highlighted and highlighted not in PERCENTILES:
            raise ValidationError({"percentile": "must be p50, p95 or p99"})
        try:
            series = points(question, histograms=True)
        except Unanswerable as error:
            raise refused(error) from error
        answer: dict[str, Any] = {"orgId": org_id, "granularity": question.granularity}
        if highlighted:
            answer["percentile"] = highlighted
        return Response(answer | {"series": [_point(point) for point in series]})


def _point(point: Point) -> dict[str, Any]:
    values = percentiles(point.histogram, list(PERCENTILES.values()))
    return {
        "bucketStart": point.bucket_start,
        "modelId": point.model_id,
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
