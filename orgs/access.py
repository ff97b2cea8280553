"""Who may do what in which org: one table of roles and scopes, one function that asks it.

The API, the pages and the schema all come through here. An org is always an explicit argument.
"""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from django.http import HttpRequest
from rest_framework.exceptions import NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from . import audit
from .models import ApiKey, Membership, Org, Role, Scope, User
from .tokens import Token

ALL_SCOPES: frozenset[str] = frozenset(Scope.values)
_READ = frozenset({Scope.USAGE_READ, Scope.RELIABILITY_READ})
_EXPORTS = frozenset({Scope.EXPORTS_CREATE, Scope.EXPORTS_READ, Scope.EXPORTS_DOWNLOAD})

ROLE_SCOPES: Mapping[str, frozenset[str]] = {
    Role.ORG_ADMIN: ALL_SCOPES,
    Role.ENGINEER: _READ | _EXPORTS,
    Role.FINANCE: _READ | _EXPORTS,
    Role.VIEWER: _READ,
}
# Platform staff look, they do not write; each look at an org that is not theirs is audited.
STAFF_SCOPES: frozenset[str] = _READ | {Scope.EXPORTS_READ, Scope.EXPORTS_DOWNLOAD}

# The three refusals (no scope, another org, no such org) must not be told apart.
REFUSAL = "These credentials do not allow this."


def granted(key: ApiKey) -> frozenset[str]:
    """The scopes a key carries; `admin` stands for all of them."""
    return ALL_SCOPES if Scope.ADMIN in key.scopes else frozenset(key.scopes)


def scopes_of(roles: Iterable[str]) -> frozenset[str]:
    """All that several roles allow."""
    return frozenset[str]().union(*(ROLE_SCOPES[role] for role in roles))


def scopes_in(request: HttpRequest | Request, org_id: uuid.UUID) -> tuple[frozenset[str], bool]:
    """The caller's scopes in an org, and whether the caller stands outside it (platform staff, platform keys)."""
    credential = getattr(request, "auth", None)
    if isinstance(credential, ApiKey):
        if credential.org_id is not None and credential.org_id != org_id:
            return frozenset(), False
        return granted(credential), credential.org_id is None
    if isinstance(credential, Token):
        return _of_token(credential, org_id)
    user = request.user
    if not isinstance(user, User):
        return frozenset(), False
    membership = Membership.objects.filter(user=user, org_id=org_id).first()
    if membership is not None:
        return ROLE_SCOPES[membership.role], False
    return (STAFF_SCOPES, True) if user.is_staff else (frozenset(), False)


def _of_token(token: Token, org_id: uuid.UUID) -> tuple[frozenset[str], bool]:
    """As for people: who has a role in the org looks from inside, staff or not."""
    if org_id in token.roles:
        return scopes_of(token.roles[org_id]), False
    return (STAFF_SCOPES, True) if token.is_staff else (frozenset(), False)


def authorise(
    request: HttpRequest | Request, org_id: uuid.UUID, scope: str, *, unregistered: bool = False
) -> Org | None:
    """The org, where the caller holds `scope` in it.

    Raises `NotAuthenticated` without credentials, `PermissionDenied` where the scope is missing, or the org is
    another's or does not exist. With `unregistered`, a key of the platform may name an org that does not exist yet: None. A read
    from outside the org leaves an audit record.
    """
    if not is_authenticated(request):
        raise NotAuthenticated
    scopes, outside = scopes_in(request, org_id)
    org = Org.objects.filter(pk=org_id).first() if scope in scopes else None
    if org is None and not (scope in scopes and outside and unregistered):
        raise PermissionDenied(REFUSAL)
    if outside and scope in STAFF_SCOPES:
        audit.record(request, f"read from outside: {scope}", org_id, request.path)
    return org


def is_authenticated(request: HttpRequest | Request) -> bool:
    has_credential = isinstance(getattr(request, "auth", None), ApiKey | Token)
    return has_credential or bool(request.user and request.user.is_authenticated)


def has_scope_anywhere(request: Request, scope: str) -> bool:
    """Whether the caller holds a scope in any org at all: for doors that no org is named at."""
    if isinstance(request.auth, ApiKey):
        return scope in granted(request.auth)
    if isinstance(request.auth, Token):
        is_staffs = request.auth.is_staff and scope in STAFF_SCOPES
        return is_staffs or any(scope in scopes_of(roles) for roles in request.auth.roles.values())
    if not isinstance(request.user, User):
        return False
    roles = [role for role, scopes in ROLE_SCOPES.items() if scope in scopes]
    is_staffs = request.user.is_staff and scope in STAFF_SCOPES
    return is_staffs or Membership.objects.filter(user=request.user, role__in=roles).exists()


class HasScope(BasePermission):
    """For API views: the caller holds the view's `required_scope` in the org that the path names, or in any at all."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if not is_authenticated(request):
            raise NotAuthenticated
        org_id = view.kwargs.get("org_id")
        if org_id is not None:
            unregistered = getattr(view, "unregistered_orgs", False)
            view.org = authorise(request, org_id, view.required_scope, unregistered=unregistered)
        elif not has_scope_anywhere(request, view.required_scope):
            raise PermissionDenied(REFUSAL)
        return True
