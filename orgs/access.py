"""Who may do what in which org: one function that asks the table of roles and scopes (`policy`).

The API, the pages and the schema all come through here. An org is always an explicit argument.
"""

import uuid
from collections.abc import Iterable
from typing import Any

from django.http import HttpRequest
from rest_framework.exceptions import NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from . import audit, concurrency
from .actions import Action
from .models import ApiKey, Membership, Org, Scope, User
from .policy import ALL_SCOPES, ROLE_SCOPES, STAFF_SCOPES
from .tokens import Token

# A look at an org by somebody from outside (platform staff, platform keys) is audited as this.
READ_FROM_OUTSIDE = {
    Scope.USAGE_READ: Action.READ_USAGE,
    Scope.RELIABILITY_READ: Action.READ_RELIABILITY,
    Scope.EXPORTS_READ: Action.READ_EXPORTS,
    Scope.EXPORTS_DOWNLOAD: Action.READ_DOWNLOADS,
    Scope.ADMIN: Action.READ_ADMINISTRATION,
}

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
    return (STAFF_SCOPES, True) if user.staff_role_held else (frozenset(), False)


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
    from outside the org leaves an audit record, and so does a refusal. The request counts for the org from here on; raises
    `TooManyAtOnce` where as many do as may.
    """
    if not is_authenticated(request):
        raise NotAuthenticated
    scopes, outside = scopes_in(request, org_id)
    org = Org.objects.filter(pk=org_id).first() if scope in scopes else None
    if org is None and not (scope in scopes and outside and unregistered):
        audit.record_refusal(request, scope, org_id)
        raise PermissionDenied(REFUSAL)
    if outside and scope in READ_FROM_OUTSIDE:
        audit.record(request, READ_FROM_OUTSIDE[Scope(scope)], org_id, request.path)
    concurrency.enter(org_id)
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
    is_staffs = request.user.staff_role_held is not None and scope in STAFF_SCOPES
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
            audit.record_refusal(request, view.required_scope)
            raise PermissionDenied(REFUSAL)
        return True
