"""Asking the identity provider: a JSON object, bounded in time and size, from the address that was named and no other."""

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .limits import MAX_PROVIDER_BYTES

T = TypeVar("T")
_PIECE = 16 * 1024  # bytes read between two looks at the clock
_LATE = "no whole answer in time"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is asked for comes from the address that was named, or not at all."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _http_alone() -> urllib.request.OpenerDirector:
    """Without what urllib's own opener has for file:, ftp: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _NoRedirects(),
    ):
        opener.add_handler(handler)
    return opener


_opener = _http_alone()


def fetch(url: str, until: float, body: str | None = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The object that an address answers with, all of it there before `until` on the monotonic clock. With a body it is posted.

    Raises `urllib.error.HTTPError` for every status but 2xx, `OSError` or `ValueError` for whatever else is wrong.
    """
    request = urllib.request.Request(  # noqa: S310  the opener knows http(s) alone
        url, None if body is None else body.encode(), {"Accept": "application/json", **(headers or {})}
    )
    try:
        with _opener.open(request, timeout=_left(until)) as response:
            return _object(response, until)
    except http.client.HTTPException as error:
        raise ValueError(type(error).__name__) from error


def error_of(error: urllib.error.HTTPError, until: float) -> str:
    """The code of OAuth that a refusal names, such as `invalid_grant`; "" where it names none that is well formed."""
    try:
        code = _object(error, until).get("error")
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    return code if isinstance(code, str) and len(code) <= 60 and code.isascii() and code.isprintable() else ""


def in_time(until: float, call: Callable[[], T]) -> T:
    """What a call answers before `until`. The socket's time-out is for each read: a line that drips would be waited for."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # raised below, where somebody waits for it
            errors.append(error)

    thread = threading.Thread(target=run, name="identity-provider", daemon=True)
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    if results:
        return results[0]
    raise errors[0] if errors else TimeoutError(_LATE)


def _object(response: Any, until: float) -> dict[str, Any]:
    body = b""
    while piece := response.read1(_PIECE):
        body += piece
        _left(until)  # one that sends a byte now and then is not waited for
        if len(body) > MAX_PROVIDER_BYTES:
            raise ValueError(f"more than {MAX_PROVIDER_BYTES:,} bytes")
    try:
        document = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested without end") from error
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def _left(until: float) -> float:
    """Seconds, more than none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError(_LATE)
    return left
