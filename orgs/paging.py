"""Lists of the API that come page by page, newest first."""

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from .limits import MAX_PAGE_ROWS


class ListCursor(CursorPagination):
    """A list's own says by which index it comes, in which order, and what its positions are."""

    page_size = 50
    max_page_size = MAX_PAGE_ROWS
    page_size_query_param = "limit"

    def check_position(self, position: str) -> None:
        """Raises `ValueError` for what this list never gave."""
        raise NotImplementedError

    def decode_cursor(self, request: Request) -> Any:
        try:
            cursor = super().decode_cursor(request)
            if cursor is not None and cursor.position is not None:
                self.check_position(str(cursor.position))
            return cursor
        except (NotFound, ValueError) as error:
            raise ValidationError({"cursor": "is not one that this list has given"}) from error

    def answer(
        self, rows: QuerySet[Any], request: Request, view: APIView, as_document: Callable[[Any], dict[str, Any]]
    ) -> Response:
        page = self.paginate_queryset(rows, request, view)
        return Response({"items": [as_document(row) for row in page or []], "next": self.get_next_link()})


PARAMETERS = [
    OpenApiParameter("cursor", OpenApiTypes.STR, description="From `next` of the page before."),
    OpenApiParameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_ROWS},
        default=ListCursor.page_size,
        description="How many a page.",
    ),
]
NAMES = tuple(parameter.name for parameter in PARAMETERS)


def page_of(name: str, item: Any) -> Any:
    """The schema of a page."""
    return inline_serializer(
        name,
        {
            "items": serializers.ListField(child=item),
            "next": serializers.URLField(allow_null=True, help_text="The next page; null on the last."),
        },
    )


def limit_errors(request: Request) -> dict[str, str]:
    """What is wrong with how many a page are asked for, by parameter."""
    limit = request.query_params.get("limit")
    if limit is None or (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MAX_PAGE_ROWS):
        return {}
    return {"limit": f"must be an integer from 1 to {MAX_PAGE_ROWS}"}
