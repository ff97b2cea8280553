"""An org's audit trail by API."""

import uuid
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from . import audit
from .actions import Action
from .limits import MAX_PAGE_ROWS
from .models import AuditRecord, Org, Scope

FILTERS = [
    OpenApiParameter(
        "actor", OpenApiTypes.STR, description="user:<address> or key:<prefix>, or the part after the colon."
    ),
    OpenApiParameter("action", enum=Action.values),
]
RECORD = inline_serializer(
    "AuditRecord",
    {
        "id": serializers.IntegerField(),
        "at": serializers.DateTimeField(),
        "actor": serializers.CharField(
            help_text="user:<address>, key:<prefix> or command:<name>; without a name where a stranger was refused."
        ),
        "action": serializers.CharField(),
        "outcome": serializers.ChoiceField(AuditRecord.Outcome.values),
        "target": serializers.CharField(),
        "address": serializers.CharField(allow_null=True, help_text="Where the request came from."),
        "requestId": serializers.CharField(),
    },
)


def as_document(found: AuditRecord) -> dict[str, Any]:
    told = audit.as_told_to_org(found)
    return {
        "id": told.pk,
        "at": told.at,
        "actor": told.actor,
        "action": told.action,
        "outcome": told.outcome,
        "target": told.target,
        "address": told.address,
        "requestId": told.request_id,
    }


def asked_filters(request: Request) -> dict[str, str]:
    """The filters of a request. Raises `ValidationError`."""
    actor, action = request.query_params.get("actor", ""), request.query_params.get("action", "")
    errors = {}
    if "\0" in actor:
        errors["actor"] = "must not hold a NUL"
    if action and action not in Action.values:
        errors["action"] = "is not one that is recorded"
    if errors:
        raise ValidationError(errors)
    return {"actor": actor, "action": action}


class AuditCursor(CursorPagination):
    """Newest first, by number."""

    ordering = "-id"
    page_size = 50
    max_page_size = MAX_PAGE_ROWS
    page_size_query_param = "limit"

    def decode_cursor(self, request: Request) -> Any:
        try:
            cursor = super().decode_cursor(request)
            if cursor is not None and cursor.position is not None and not 0 <= int(cursor.position) < 2**63:
                raise ValueError
            return cursor
        except (NotFound, ValueError) as error:
            raise ValidationError({"cursor": "is not one that this list has given"}) from error


class AuditView(APIView):
    required_scope = Scope.ADMIN
    org: Org

    @extend_schema(
        operation_id="listAuditRecords",
        tags=["audit"],
        parameters=[
            *FILTERS,
            OpenApiParameter("cursor", OpenApiTypes.STR, description="From `next` of the page before."),
            OpenApiParameter(
                "limit", OpenApiTypes.INT, default=50, description=f"1 to {MAX_PAGE_ROWS} records a page."
            ),
        ],
        responses=inline_serializer(
            "AuditRecords",
            {
                "items": serializers.ListField(child=RECORD),
                "next": serializers.URLField(allow_null=True, help_text="The next page; null on the last."),
            },
        ),
    )
    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        """Who did what to the organisation, newest first."""
        limit = request.query_params.get("limit", "")
        if limit and not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MAX_PAGE_ROWS):
            raise ValidationError({"limit": f"must be an integer from 1 to {MAX_PAGE_ROWS}"})
        pages = AuditCursor()
        page = pages.paginate_queryset(audit.trail_of(self.org, **asked_filters(request)), request, self)
        return Response({"items": [as_document(found) for found in page or []], "next": pages.get_next_link()})
