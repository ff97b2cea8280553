"""What must not stand in a log line."""

from typing import Any

from django.dispatch import receiver
from django.http import HttpRequest
from django_structlog import signals


@receiver([signals.bind_extra_request_finished_metadata, signals.bind_extra_request_failed_metadata])
def hide_tokens(request: HttpRequest, log_kwargs: dict[str, Any], **kwargs: Any) -> None:
    """Paths that carry a secret are logged as their route."""
    match = request.resolver_match
    if match is not None and "token" in match.kwargs:
        log_kwargs["request"] = f"{request.method} /{match.route}"
