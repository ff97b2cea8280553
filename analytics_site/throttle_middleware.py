"""Holds every request against its limit, in one round trip to Redis, before anybody looks at it.

Whose request it is is found out only by the view. So a credential that was found to be good once is remembered
(`throttling.remember`), and takes from its caller's bucket from then on; one that is not known takes from its
address's. Guesses are never known, so they are slow, and refused before the database is asked.

How many requests of an org are served at once is held by the view (`orgs.concurrency`); here it becomes an answer.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from orgs import throttling
from orgs.addresses import client_address, network_of
from orgs.bodies import drain
from orgs.concurrency import TooManyAtOnce
from orgs.limits import ORG_BUSY_SECONDS
from orgs.models import ApiKey
from orgs.throttling import Bucket, Caller, Rate, Taken
from orgs.tokens import Token

from .problems import API_ROOT, respond

_NOBODY: Literal[""] = ""
_SESSION = "session "
_EVENTS = re.compile(r"/analytics/v1/(orgs/[^/]+/events|events/validate)")
# Asked by machinery, which takes a refusal for an outage. Static files are answered before this.
_NEVER_LIMITED = ("healthz", "readyz", "metrics")


@functools.cache
def _free_paths() -> frozenset[str]:
    return frozenset(map(reverse, _NEVER_LIMITED))


class ThrottleMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        address = client_address(request)
        structlog.contextvars.bind_contextvars(ip=address)  # and not what a client wrote into a header
        if request.path in _free_paths():
            return self.get_response(request)
        caller = _caller(request)
        taken = throttling.take([_strangers(address)], caller)
        if taken is not None and not taken.is_allowed:
            return _refuse(request, taken, caller)
        response = self.get_response(request)
        if taken is not None:
            if caller is not None:
                _learn(request, response, caller.credential, taken.is_known)
            for name, value in taken.headers.items():
                response.headers.setdefault(name, value)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """What a view found only when it knew whose data was asked for."""
        return _refuse_org(request) if isinstance(exception, TooManyAtOnce) else None


def _strangers(address: str) -> Bucket:
    rate = Rate(settings.RATE_LIMIT_STRANGERS, settings.RATE_LIMIT_STRANGERS_BURST)
    return Bucket(f"address:{network_of(address)}", rate)


def _caller(request: HttpRequest) -> Caller | None:
    credential = _credential(request)
    if credential is None:
        return None
    if request.method == "POST" and _EVENTS.fullmatch(request.path):
        return Caller(credential, "events", Rate(settings.RATE_LIMIT_EVENTS, settings.RATE_LIMIT_EVENTS_BURST))
    return Caller(credential, "requests", Rate(settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_REQUESTS_BURST))


def _credential(request: HttpRequest) -> str | None:
    """What the view is going to look at, in its order. Pages know sessions alone: a key there buys nobody tokens."""
    if request.path.startswith(API_ROOT):
        for header in ("HTTP_X_API_KEY", "HTTP_AUTHORIZATION"):
            if header in request.META:
                return f"{header} {request.META[header]}"
    session = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    return f"{_SESSION}{session}" if session else None


def _learn(request: HttpRequest, response: HttpResponse, credential: str, is_known: bool) -> None:
    name = _name_of_caller(request, response, credential)
    if name and not is_known:
        throttling.remember(credential, name)
    elif name == _NOBODY and is_known:
        throttling.forget(credential)


def _name_of_caller(request: Any, response: HttpResponse, credential: str) -> str | None:
    """Who the view found; `_NOBODY` where it looked and found the credential to be bad; None where it did not look."""
    if response.status_code >= 500:  # the database may be away
        return None
    if credential.startswith(_SESSION):
        if not request.session.accessed:
            return None
        return f"user:{request.user.pk}" if request.user.is_authenticated else _NOBODY
    match getattr(request, "auth", None):  # Django REST framework's
        case ApiKey() as key:
            return f"key:{key.pk}"
        case Token() as token:
            return f"token:{token.subject}"
    return _NOBODY if response.status_code == 401 else None


_BUSY = (
    "Your organisation is asking for a lot at once",
    "Nothing was done. As many requests of it as may be at once are being answered; try again in a second or two.",
)


def _refuse(request: HttpRequest, taken: Taken, caller: Caller | None) -> HttpResponse:
    kind = caller.kind if caller and taken.is_known else "strangers"
    whose = "these credentials" if taken.is_known else "this address without credentials that are known here"
    return _refused(request, kind, f"with {whose}", taken.headers, taken.retry_after)


def _refuse_org(request: HttpRequest) -> HttpResponse:
    headers = {"Retry-After": str(ORG_BUSY_SECONDS)}
    return _refused(request, "organisation", "of this organisation at once", headers, ORG_BUSY_SECONDS, _BUSY)


def _refused(
    request: HttpRequest,
    limit: str,
    which: str,
    headers: Mapping[str, str],
    seconds: int,
    page: tuple[str, str] | None = None,
) -> HttpResponse:
    """`which` says of what requests there are too many; `page` is the title and text of a page that has its own."""
    if request.method not in ("GET", "HEAD"):
        drain(request)
    throttling.REFUSED.labels(limit).inc()
    until = f"{seconds} second{'' if seconds == 1 else 's'}"
    response = respond(request, 429, f"Too many requests {which}. Nothing was done; repeat in {until}.", page)
    for name, value in headers.items():
        response[name] = value
    return response
