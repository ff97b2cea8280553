"""Request ids."""

import re
import uuid
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse

from orgs.limits import MAX_REQUEST_ID_LENGTH

GetResponse = Callable[[HttpRequest], HttpResponse]

HEADER = "X-Request-ID"
_ACCEPTABLE = re.compile(rf"[A-Za-z0-9._:+/=-]{{1,{MAX_REQUEST_ID_LENGTH}}}")


class RequestIdMiddleware:
    """Takes over the caller's request id, or makes one; it stands in the response and in every log line."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        # Not request.headers: it is cached, and django-structlog would not see the id that is made here.
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = given if _ACCEPTABLE.fullmatch(given) else str(uuid.uuid4())
        request.META["HTTP_X_REQUEST_ID"] = request_id  # where django-structlog looks for it
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = self.get_response(request)
        response[HEADER] = request_id
        # Answers are somebody's own unless they say otherwise: no cache in between may keep them.
        response.headers.setdefault("Cache-Control", "private, no-cache")
        return response
