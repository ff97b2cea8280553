"""Errors as RFC 9457 `application/problem+json` for the API, and as a page for people."""

import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import structlog
from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.template.loader import render_to_string
from psycopg.errors import QueryCanceled
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import exception_handler as rest_exception_handler

from orgs.limits import RETRY_AFTER_SECONDS
from orgs.rendering import ProblemRenderer

MEDIA_TYPE = ProblemRenderer.media_type
API_ROOT = "/analytics/"

# What people read on the error page: what failed, what still holds, what to do.
_FOR_PEOPLE = {
    403: ("No access", "Your account does not allow this. Ask an admin of the organisation for access."),
    404: ("Page not found", "There is nothing at this address. The link may be old, or mistyped."),
    429: (
        "Too many requests",
        "Nothing was done. More pages were asked for than one person reads. Wait a few seconds, then try again.",
    ),
    503: (
        "The database does not answer",
        (
            "Figures can't be shown right now. Nothing is lost: events that were accepted are stored, and senders"
            " repeat the others. Try again in a few seconds."
        ),
    ),
}
_TOO_LONG = (
    "This took the database too long",
    "The question was given up, so that it holds up nobody else. Ask for a shorter range, or try again later.",
)
_OTHERWISE = ("Something went wrong", "The page could not be made. Your data is as it was.")


def problem(
    request: HttpRequest, status: int, detail: str, errors: list[dict[str, str]] | None = None, title: str | None = None
) -> dict[str, Any]:
    """The body of a problem document. `errors` has one entry per offending field."""
    phrase = HTTPStatus(status).phrase
    return {
        "type": f"urn:analytics:problem:{phrase.lower().replace(' ', '-')}",
        "title": title or phrase,
        "status": status,
        "detail": detail,
        "instance": request.path,
        "errors": errors or [],
    }


def respond(request: HttpRequest, status: int, detail: str, for_people: tuple[str, str] | None = None) -> HttpResponse:
    """An error outside the API's views: problem+json below /analytics/, a page elsewhere."""
    if request.path.startswith(API_ROOT):
        body = ProblemRenderer().render(problem(request, status, detail))
        response = HttpResponse(body, status=status, content_type=MEDIA_TYPE)
    else:
        title, advice = for_people or _FOR_PEOPLE.get(status, _OTHERWISE)
        request_id = structlog.contextvars.get_contextvars().get("request_id", "")
        context = {"status": status, "title": title, "advice": advice, "request_id": request_id}
        response = HttpResponse(render_to_string("error.html", context), status=status)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Django REST framework's errors as problem documents. What it does not know goes on to `server_error`."""
    request: HttpRequest = context["request"]._request
    if isinstance(error, UnreadablePostError):  # who sent it is gone: nobody's fault here, and nobody reads the answer
        error = exceptions.ParseError("The body is cut short.")
    if isinstance(error, RequestDataTooBig):
        error = PayloadTooLarge(str(error))
    response = rest_exception_handler(error, context)
    if response is None:
        return None
    errors: list[dict[str, str]] = []
    if isinstance(error, exceptions.ValidationError):
        errors = list(_fields(error.detail))
        detail = "; ".join(f"{e['field']} {e['message']}".strip() for e in errors) or "The request is not valid."
    elif isinstance(error, exceptions.APIException):
        detail = str(error.detail)
    else:
        detail = HTTPStatus(response.status_code).description or HTTPStatus(response.status_code).phrase
    response.data = problem(request, response.status_code, detail, errors)
    response.content_type = MEDIA_TYPE
    # Content negotiation may be what failed; a problem is always JSON.
    context["request"].accepted_renderer = ProblemRenderer()
    context["request"].accepted_media_type = MEDIA_TYPE
    return response


class PayloadTooLarge(exceptions.APIException):
    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_detail = "The body is too large."


def _fields(detail: Any, field: str = "") -> Iterator[dict[str, str]]:
    if isinstance(detail, dict):
        for name, inner in detail.items():
            path = "" if name == "non_field_errors" else name
            yield from _fields(inner, f"{field}.{path}" if field and path else field or path)
    elif isinstance(detail, list):
        for inner in detail:
            yield from _fields(inner, field)
    else:
        yield {"field": field, "message": str(detail)}


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return respond(request, 404, "There is nothing at this address.")


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return respond(request, 403, "These credentials do not allow this.")


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return respond(request, 400, "The request is not valid.")


def server_error(request: HttpRequest) -> HttpResponse:
    """What no view handled. Django calls this while it handles the error, and has logged it."""
    error = sys.exc_info()[1]
    if not is_unavailable(error):
        return respond(request, 500, "The service failed. The request id tells its operators where to look.")
    if error is not None and isinstance(error.__cause__, QueryCanceled):
        detail = (
            "This took the database too long, and was given up. Nothing was stored; ask for less, or repeat it later."
        )
        return respond(request, 503, detail, _TOO_LONG)
    return respond(request, 503, "The database does not answer. Nothing was stored; repeat the request.")


def is_unavailable(error: BaseException | None) -> bool:
    """Whether the database did not answer, or not in time: nobody's mistake, and worth a repeat."""
    return isinstance(error, (OperationalError, InterfaceError))
