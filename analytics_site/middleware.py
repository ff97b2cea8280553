"""Request ids, and the line that each request leaves."""

import re
import uuid
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse
from django_structlog.middlewares import RequestMiddleware

from orgs.limits import MAX_REQUEST_ID_LENGTH

from .problems import is_unavailable

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


class RequestLogMiddleware(RequestMiddleware):
    """One line for each request: what was asked, and what it was answered."""

    @staticmethod
    def format_request(request: HttpRequest) -> str:
        return f"{request.method} {request.path}"  # without the query: people search for people

    def _process_exception(self, request: HttpRequest, exception: Exception) -> None:
        if is_unavailable(exception):  # the answer is 503, and a traceback would say no more than this
            structlog.contextvars.bind_contextvars(error=exception)
        else:
            super()._process_exception(request, exception)
