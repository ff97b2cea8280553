"""What must not stand in a log line."""

from typing import Any

from django.dispatch import receiver
from django.http import HttpRequest
from django.urls import Resolver404, ResolverMatch, resolve
from django_structlog import signals

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
