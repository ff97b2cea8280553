"""The one place that writes the audit trail."""

import uuid

import structlog
from django.http import HttpRequest
from rest_framework.request import Request

from .models import ApiKey, AuditRecord
from .tokens import Token

DOWNLOADED_EXPORT = "downloaded export"


def actor_of(request: HttpRequest | Request) -> str:
    credential = getattr(request, "auth", None)
    if isinstance(credential, ApiKey):
        return f"key:{credential.prefix}"
    if isinstance(credential, Token):
        return f"token:{credential.subject}"
    return f"user:{getattr(request.user, 'email', '') or 'anonymous'}"


def record(request: HttpRequest | Request, action: str, org_id: uuid.UUID | None, target: str = "") -> None:
    """Note that the caller of this request did `action` to an org."""
    AuditRecord.objects.create(
        actor=actor_of(request),
        action=action,
        org_id=org_id,
        target=target[:400],
        request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
    )
