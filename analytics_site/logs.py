"""What a log line says, and what must not stand in it.

Payloads, secrets and people's addresses get into lines by way of errors: PostgreSQL quotes the row, a client its URL. So
the words of every error, and every text of every line, go through here.
"""

import functools
import re
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import DisallowedHost
from django.db import Error as DatabaseError
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, ResolverMatch, resolve
from django_structlog import signals
from psycopg import Error as PsycopgError

from ingestion import spans

Line = MutableMapping[str, Any]

MAX_WORDS = 500  # characters of what an error says
MAX_HOST = 100  # characters of a Host header that was refused
SHORTEST_SECRET = 6  # characters; what is shorter stands in ordinary words

# What PostgreSQL adds to an error: rows, keys, parameters, statements. In a `repr` the line breaks are spelt out.
_ADDED = re.compile(r"(?:\n|\\n)\s*(?:DETAIL|HINT|CONTEXT|QUERY|STATEMENT|LINE \d+)\b.*", re.DOTALL)
# `invalid input syntax for type uuid: "…"`, `invalid literal for int() with base 10: '…'`
_QUOTED = re.compile(r"""(:\s*)(?:b?'[^']*'|b?"[^"]*"|["'].*)""", re.DOTALL)
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(\w://)[^\s/@]*@"), r"\1…@"),  # of a URL
    (re.compile(r"\b(password|passwd|pwd|secret)=('[^']*'|[^\s&'\"]+)", re.IGNORECASE), r"\1=…"),
    (re.compile(r"\b(ak_[0-9a-z]{8})_[\w-]+"), r"\1_…"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), "…"),  # a JWT
    (re.compile(r"(/invitations/)[^/\s'\"]+"), r"\1…"),
    (re.compile(r"\b(sessionid|csrftoken|known-browser)=[^;\s'\"]+"), r"\1=…"),
    (re.compile(r"(?<![\w.+-])(?!celery@)[\w.+-]+@[\w-]+\.[\w.-]*\w"), "…@…"),
)


def add_trace(logger: Any, method: str, line: Line) -> Line:
    """The trace that the line belongs to, where there is one."""
    if trace_id := spans.trace_id():
        line.setdefault("trace_id", trace_id)
    return line


def calm_strangers(logger: Any, method: str, line: Line) -> Line:
    """What Django suspects is a stranger's doing: no error of this service, and no traceback."""
    if line["_record"].name.startswith("django.security."):
        line["level"] = "warning"
        line.pop("exc_info", None)
    return line


def tell_exception(logger: Any, method: str, line: Line) -> Line:
    """`exc_info` as text: where it went wrong, and in which words as far as these are fit for a log."""
    if error := _error_of(line.pop("exc_info", None)):
        line["exception"] = "".join(_told(error))
        if "error" in line:  # as a library told it
            line["error"] = error
    return line


def hide_secrets(logger: Any, method: str, line: Line) -> Line:
    """No text of a line shows what it must not; the last processor before a renderer."""
    for name, value in line.items():
        if isinstance(value, BaseException):
            line[name] = f"{type(value).__name__}: {words(value)}"
        elif isinstance(value, str):
            line[name] = _hidden(value if name == "exception" else _ADDED.sub("", value))
    return line


def words(error: BaseException) -> str:
    """What an error says, without what it quotes: values of a row, of a message, of a setting."""
    said = _ADDED.sub("", str(error))
    if not isinstance(error, (DatabaseError, PsycopgError)) or _is_about_data(error):
        said = _QUOTED.sub(r"\1…", said)
    if isinstance(error, LookupError):  # says nothing but the key that was looked for
        said = "…"
    return _hidden(said)[:MAX_WORDS]


def _is_about_data(error: BaseException) -> bool:
    """Class 22 of SQL's states, the one whose first line quotes what was given. Django keeps the driver's error as cause."""
    states = (getattr(each, "sqlstate", None) or "" for each in (error, error.__cause__))
    return any(state.startswith("22") for state in states)


def _error_of(exc_info: Any) -> BaseException | None:
    if exc_info is True:
        return sys.exc_info()[1]
    found = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    return found if isinstance(found, BaseException) else None


def _told(error: BaseException) -> Iterator[str]:
    """A traceback with the errors behind it, as Python writes it, but for the words. It never shows variables."""
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if behind is not None:
        yield from _told(behind)
        yield "\nThe error above led to this one:\n\n" if error.__cause__ else "\nWhile handling it, another came:\n\n"
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__name__}: {words(error)}\n"


def _hidden(text: str) -> str:
    for secret in _own_secrets():
        text = text.replace(secret, "…")
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


@functools.cache
def _own_secrets() -> tuple[str, ...]:
    """What this installation was told, the longest first: one may be part of another."""
    from django.conf import settings

    urls = (settings.DATABASE_URL, settings.REDIS_URL, settings.BROKER_URL, settings.RABBITMQ_URL)
    passwords = [urlsplit(url).password or "" for url in urls]
    keys = (settings.S3_ACCESS_KEY, settings.S3_SECRET_KEY, settings.SECRET_KEY, settings.OIDC_CLIENT_SECRET)
    found = {*passwords, *map(unquote, passwords), *keys}
    return tuple(sorted((secret for secret in found if len(secret) >= SHORTEST_SECRET), key=len, reverse=True))


_SECRET_QUERIES = ("begin-sign-in", "come-back")  # a wish, a code


@receiver(
    [
        signals.bind_extra_request_metadata,
        signals.bind_extra_request_finished_metadata,
        signals.bind_extra_request_failed_metadata,
    ]
)
def hide_tokens(request: HttpRequest, log_kwargs: dict[str, Any], **kwargs: Any) -> None:
    """Addresses that carry a secret are logged as their route."""
    match = request.resolver_match or _match(request)
    if match is not None and ("token" in match.kwargs or match.url_name in _SECRET_QUERIES):
        log_kwargs["request"] = f"{request.method} /{match.route}"


def _match(request: HttpRequest) -> ResolverMatch | None:
    """What a request is going to be answered by, while nobody has looked."""
    try:
        return resolve(request.path_info)
    except Resolver404:
        return None


@receiver(signals.bind_extra_request_finished_metadata)
def name_wrong_host(request: HttpRequest, response: HttpResponse, log_kwargs: dict[str, Any], **kwargs: Any) -> None:
    """Why a request was refused that no view has seen."""
    if response.status_code == 400:
        try:
            request.get_host()
        except DisallowedHost:
            log_kwargs |= {"reason": "host not allowed", "host": request.META.get("HTTP_HOST", "")[:MAX_HOST]}
