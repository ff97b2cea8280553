"""An org's audit trail by API."""

import uuid
from collections.abc import Iterable
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from . import audit, paging
from .actions import Action
from .api import OrgView, unknown_parameters
from .models import AuditRecord, Scope
from .paging import ListCursor

FILTERS = [
    OpenApiParameter(
        "actor",
        {"type": "string", "pattern": "^[^\\u0000]*$"},
        description="user:<address> or key:<prefix>, or the part after the colon.",
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


def asked_filters(request: Request, also: Iterable[str] = ()) -> dict[str, str]:
    """The filters of a request, which may have parameters beside them. Raises `ValidationError`."""
    actor, action = request.query_params.get("actor", ""), request.query_params.get("action")
    errors = unknown_parameters(request, (*(parameter.name for parameter in FILTERS), *also))
    if "\0" in actor:
        errors["actor"] = "must not hold a NUL"
    if action is not None and action not in Action.values:
        errors["action"] = "is not one that is recorded"
    if errors:
        raise ValidationError(errors)
    return {"actor": actor, "action": action or ""}


class AuditCursor(ListCursor):
    """By number: audit_by_org."""

    ordering = "-id"

    def check_position(self, position: str) -> None:
        if not 0 <= int(position) < 2**63:
            raise ValueError(position)


class AuditView(OrgView):
    required_scope = Scope.ADMIN

    @extend_schema(
        operation_id="listAuditRecords",
        tags=["audit"],
        parameters=[
            *FILTERS,
            *paging.PARAMETERS,
        ],
        responses=paging.page_of("AuditRecords", RECORD),
    )
    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        """Who did what to the organisation, newest first."""
        if errors := paging.limit_errors(request):
            raise ValidationError(errors)
        found = audit.trail_of(self.org, **asked_filters(request, paging.NAMES))
        return AuditCursor().answer(found, request, self, as_document)
