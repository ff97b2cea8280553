"""The audit trail: the one place that writes it, forgets what is old, and says what an org may see of it."""

import hashlib
import uuid
from datetime import datetime
from typing import Any

import structlog
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.db import connection
from django.db.models import QuerySet
from django.dispatch import receiver
from django.http import HttpRequest
from rest_framework.request import Request

from .actions import Action
from .addresses import UNKNOWN, client_address, network_of
from .limits import AUDIT_REFUSALS_EVERY, MAX_ACCOUNT_LENGTH, MAX_FAILED_SIGN_INS_RECORDED, ROWS_DELETED_AT_ONCE
from .models import ApiKey, AuditRecord, Membership, Org, User
from .tokens import Token


def actor_of(request: HttpRequest | Request) -> str:
    credential = getattr(request, "auth", None)
    if isinstance(credential, ApiKey):
        return f"key:{credential.prefix}"
    if isinstance(credential, Token):
        return f"token:{credential.subject}"
    return f"user:{getattr(request.user, 'email', '') or 'anonymous'}"


def record(request: HttpRequest | Request, action: Action, org_id: uuid.UUID | None, target: str = "") -> None:
    """Note that the caller of this request did `action` to an org."""
    _made(actor_of(request), action, org_id, target, request).save(force_insert=True)


def record_command(command: str, action: Action, org_id: uuid.UUID | None, target: str = "") -> None:
    """Note what somebody did at the shell of the service."""
    _made(f"command:{command}", action, org_id, target).save(force_insert=True)


def record_refusal(request: HttpRequest | Request, what: str, org_id: uuid.UUID | None = None) -> None:
    """Note that the caller, who is known, was refused `what`: once in `AUDIT_REFUSALS_EVERY` for each actor, org and scope.

    An id that names no org is none here: whoever makes ids up would else have a record for each.
    """
    known = org_id if org_id and Org.objects.filter(pk=org_id).exists() else None
    actor, target = actor_of(request), f"{what}: {request.method} {request.path}"
    refused = _made(actor, Action.REFUSED, known, target, request)
    refused.outcome = AuditRecord.Outcome.DENIED
    refused.by_stranger = known is not None and not _belongs(request, known)
    _save_once(refused, actor, str(known), what)


def _belongs(request: HttpRequest | Request, org_id: uuid.UUID) -> bool:
    credential = getattr(request, "auth", None)
    if isinstance(credential, ApiKey):
        return credential.org_id == org_id
    if isinstance(credential, Token):
        return org_id in credential.roles
    return isinstance(request.user, User) and Membership.objects.filter(user=request.user, org_id=org_id).exists()


def _made(
    actor: str,
    action: Action,
    org_id: uuid.UUID | None,
    target: str,
    request: HttpRequest | Request | None = None,
) -> AuditRecord:
    return AuditRecord(
        actor=_fitting(actor, 260),
        action=action,
        org_id=org_id,
        target=_fitting(target, 400),
        address=_address(request),
        request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
    )


def _address(request: HttpRequest | Request | None) -> str | None:
    address = UNKNOWN if request is None else client_address(request)
    return None if address == UNKNOWN else address


def _fitting(text: str, length: int) -> str:
    return text.replace("\0", "")[:length]  # PostgreSQL takes no NUL


def _save_once(made: AuditRecord, *what: str) -> None:
    """Save a record unless there is one of the same in this stretch of time: the database refuses the second."""
    stretch = int(made.at.timestamp() // AUDIT_REFUSALS_EVERY.total_seconds())
    made.once = hashlib.sha256("\n".join((*what, made.action, str(stretch))).encode()).hexdigest()
    AuditRecord.objects.bulk_create([made], ignore_conflicts=True)


# ── Signing in ───────────────────────────────────────────────────────────────────────────────────────────────────
@receiver(user_logged_in)
def _signed_in(sender: object, request: HttpRequest | None, user: User, **kwargs: Any) -> None:
    if request is None or request.method is None:  # a session that no client asked for
        return
    _made(f"user:{user.email}", Action.SIGNED_IN, None, request.path, request).save(force_insert=True)


@receiver(user_login_failed)
def _failed(sender: object, credentials: dict[str, Any], request: HttpRequest | None = None, **kwargs: Any) -> None:
    """The name that was tried, never the password."""
    if request is not None:
        record_failed_sign_in(request, str(credentials.get("username", "")))


def record_failed_sign_in(request: HttpRequest, name: str) -> None:
    """Note that somebody could not sign in: with the name that was tried, or why the identity provider's word did not do.

    Bounded by where it came from, whatever names are tried.
    """
    name = _fitting(name, MAX_ACCOUNT_LENGTH)
    failed = _made("user:anonymous", Action.SIGN_IN_FAILED, None, name, request)
    failed.outcome = AuditRecord.Outcome.DENIED
    # Each name has a place, and a client fills each place once: two names that share one are told apart a minute later.
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % MAX_FAILED_SIGN_INS_RECORDED
    _save_once(failed, network_of(failed.address or UNKNOWN), str(place))


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
# Somebody of another org, or of none, who was refused: that it happened is the org's to know, who it was is not.
STRANGER = "somebody outside the organisation"


def trail_of(org: Org, actor: str = "", action: str = "") -> QuerySet[AuditRecord]:
    """What an org's admins see of the trail, newest first. Uses audit_by_org, audit_by_org_actor or audit_by_org_action."""
    found = AuditRecord.objects.filter(org_id=org.pk).order_by("-id")
    if actor == STRANGER:
        found = found.filter(by_stranger=True)
    elif actor:
        names = [actor] if ":" in actor else [f"user:{actor.lower()}", f"key:{actor}"]
        found = found.filter(actor__in=names).exclude(by_stranger=True)
    return found.filter(action=action) if action else found


def as_told_to_org(found: AuditRecord) -> AuditRecord:
    """A record with what is not the org's to know taken out."""
    if found.by_stranger:
        found.actor, found.address = STRANGER, None
    return found


# ── Retention ────────────────────────────────────────────────────────────────────────────────────────────────────
def forget(before: datetime) -> int:
    """Delete the records of before a moment, by the one function that the database lets do that. Returns how many."""
    total = 0
    with connection.cursor() as cursor:
        while True:
            cursor.execute("SELECT orgs_audit_forget(%s, %s)", [before, ROWS_DELETED_AT_ONCE])
            (deleted,) = cursor.fetchone() or (0,)
            total += deleted
            if deleted == 0:
                return total
