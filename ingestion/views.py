"""The HTTP doors."""

import uuid
from typing import Any

import structlog
from drf_spectacular.utils import OpenApiResponse, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import ParseError, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from orgs.limits import MAX_BODY_BYTES, MAX_EVENTS_PER_REQUEST
from orgs.models import ApiKey, Org, Scope

from .metrics import note_rejected
from .models import Door
from .parsing import JSONEventsParser, LengthRequired, NDJSONEventsParser, OneEventParser
from .schema import Fault, Invalid, UsageEvent, json_schema
from .writing import Delivery, store


class EventDoorView(APIView):
    """What both doors share."""

    required_scope = Scope.EVENTS_WRITE

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
            raise LengthRequired


class ValidateView(EventDoorView):
    parser_classes = (OneEventParser,)

    @extend_schema(
        operation_id="validateEvent",
        tags=["events"],
        request={"application/json": json_schema()},
        responses={204: OpenApiResponse(description="The event is valid.")},
    )
    def post(self, request: Request) -> Response:
        """Say whether one event is valid; nothing is stored. Fields the contract does not know are refused."""
        read = request.data
        if not isinstance(read, (UsageEvent, Invalid)):
            raise ParseError("The body is empty; it must be one event as a JSON object.")
        if isinstance(read, Invalid):
            raise ValidationError(_by_field(read.faults))
        return Response(status=204)


class EventsView(EventDoorView):
    parser_classes = (JSONEventsParser, NDJSONEventsParser)
    # A key of the platform may name an org that nobody registered; it gets a stub.
    unregistered_orgs = True
    org: Org | None

    @extend_schema(
        operation_id="sendEvents",
        tags=["events"],
        request={
            "application/json": {
                "type": "array",
                "items": json_schema() | {"additionalProperties": True},
                "minItems": 1,
                "maxItems": MAX_EVENTS_PER_REQUEST,
            },
            "application/x-ndjson": {"type": "string"},
        },
        responses={
            200: inline_serializer(
                "SentEvents",
                {
                    "batchId": serializers.UUIDField(),
                    "accepted": serializers.IntegerField(help_text="Stored for the first time."),
                    "duplicates": serializers.IntegerField(help_text="Stored already; counted once."),
                    "rejected": inline_serializer(
                        "RejectedEvent",
                        {
                            "index": serializers.IntegerField(help_text="Position in the request, from 0."),
                            "eventId": serializers.CharField(allow_null=True),
                            "errors": inline_serializer(
                                "FieldError",
                                {"field": serializers.CharField(), "message": serializers.CharField()},
                                many=True,
                            ),
                        },
                        many=True,
                    ),
                },
            ),
            411: OpenApiResponse(description="No Content-Length."),
            413: OpenApiResponse(description=f"More than {MAX_BODY_BYTES:,} bytes, as sent or unpacked."),
            415: OpenApiResponse(description="Neither JSON nor NDJSON, or packed otherwise than by gzip."),
        },
        description=(
            f"Store 1 to {MAX_EVENTS_PER_REQUEST:,} events as one batch; the body may be packed with gzip."
            " The answer comes after commit. A bad event does not spoil its neighbours; a repeat adds nothing."
        ),
    )
    def post(self, request: Request, org_id: uuid.UUID) -> Response:
        if not isinstance(request.data, list):
            raise ParseError("The body is empty; it must be an array of events.")
        read = [_of_org(item, org_id) for item in request.data]
        events = [item for item in read if isinstance(item, UsageEvent)]
        rejected = [(index, item) for index, item in enumerate(read) if isinstance(item, Invalid)]
        registers = isinstance(request.auth, ApiKey) and request.auth.org_id is None
        batch = store(Delivery(Door.HTTP, events, rejected=len(rejected), registers=registers))
        note_rejected(item for _, item in rejected)
        structlog.contextvars.bind_contextvars(batch_id=batch.pk)  # for the line of the request
        return Response(
            {
                "batchId": batch.public_id,
                "accepted": batch.accepted,
                "duplicates": batch.duplicates,
                "rejected": [
                    {"index": index, "eventId": item.event_id, "errors": _as_list(item.faults)}
                    for index, item in rejected
                ],
            }
        )


def _of_org(item: UsageEvent | Invalid, org_id: uuid.UUID) -> UsageEvent | Invalid:
    """The event, where it belongs to the org of the path."""
    if isinstance(item, Invalid) or item.org_id == org_id:
        return item
    return Invalid(str(item.event_id), [Fault("orgId", "must be the org of the path")], b"")


def _as_list(faults: list[Fault]) -> list[dict[str, str]]:
    return [{"field": fault.field, "message": fault.message} for fault in faults]


def _by_field(faults: list[Fault]) -> dict[str, list[str]]:
    """As Django REST framework's `ValidationError` takes them."""
    found: dict[str, list[str]] = {}
    for fault in faults:
        found.setdefault(fault.field or "non_field_errors", []).append(fault.message)
    return found
