"""Everybody who may come to a route: each way in, with each role, and what the policy gives them."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any, Literal

from django.utils import timezone
from rest_framework.test import APIClient, ForceAuthClientHandler

from orgs.models import ApiKey, Membership, Org, Role, Scope, StaffRole, User
from orgs.policy import TABLE, Duty, admin_permissions

from ..factories import make_org
from .identity_provider import STAFF_ROLE, IdentityProvider, rsa_key

# Where a route is asked: in the org that most callers belong to, in another, in one that does not exist.
Place = Literal["own", "foreign", "missing"]
PLACES: tuple[Place, ...] = ("own", "foreign", "missing")
MEMBERS = (Role.ORG_ADMIN, Role.ENGINEER, Role.FINANCE, Role.VIEWER)


@dataclass(frozen=True)
class Caller:
    name: str
    way: Literal["none", "session", "key", "token"] = "none"
    role: Role | StaffRole | None = None  # of a session or a token; staff have theirs in every org
    at: Place | Literal["everywhere"] | None = None  # where a member or a key belongs
    scopes: frozenset[str] = frozenset()  # of a key
    is_superuser: bool = False
    is_good: bool = True  # what it shows is valid here
    is_from_elsewhere: bool = False  # another site's page makes the browser send it: there is no CSRF token
    fields: dict[str, Any] = field(default_factory=dict, hash=False)  # of the key, the person, or the token's claims

    def __str__(self) -> str:
        return self.name

    @property
    def is_person(self) -> bool:
        """Signed in, as pages and the admin know it: they look at sessions alone."""
        return self.way == "session" and self.is_good

    @property
    def staff_role(self) -> StaffRole | None:
        return self.role if isinstance(self.role, StaffRole) and self.is_good else None

    def holds(self, permission: Scope | Duty, place: Place) -> bool:
        """By the policy."""
        if not self.is_good or place == "missing":
            return False
        if self.way == "key":
            return self.at in (place, "everywhere") and bool(self.scopes & {permission, Scope.ADMIN})
        if self.role is None or self.role not in TABLE[permission]:
            return False
        return isinstance(self.role, StaffRole) or self.at == place

    def holds_somewhere(self, permission: Scope | Duty) -> bool:
        return any(self.holds(permission, place) for place in PLACES)

    def may_in_admin(self, permission: str) -> bool:
        """A permission in Django's terms."""
        if not self.is_person or self.staff_role is None:
            return False
        return self.is_superuser or permission in admin_permissions(self.staff_role)


def callers() -> Iterator[Caller]:
    yield Caller("nobody")
    for role in MEMBERS:
        yield Caller(f"{role} by session", "session", role, "own")
        yield Caller(f"{role} by token", "token", role, "own")
    yield Caller("org_admin by session, from another site", "session", Role.ORG_ADMIN, "own", is_from_elsewhere=True)
    yield Caller("org_admin of another org by session", "session", Role.ORG_ADMIN, "foreign")
    yield Caller("org_admin of another org by token", "token", Role.ORG_ADMIN, "foreign")
    yield Caller("person of no org by session", "session")
    yield Caller("person of no org by token", "token")
    yield Caller("staff_support by session", "session", StaffRole.SUPPORT)
    yield Caller("staff_admin by session", "session", StaffRole.ADMIN)
    yield Caller("superuser by session", "session", StaffRole.ADMIN, is_superuser=True)
    yield Caller("staff_admin who has left, by session", "session", StaffRole.ADMIN, is_good=False)
    yield Caller("staff by token", "token", StaffRole.SUPPORT)
    for scope in Scope:
        yield Caller(f"key for {scope}", "key", at="own", scopes=frozenset({scope}))
    yield Caller("key of another org", "key", at="foreign", scopes=frozenset({Scope.ADMIN}))
    yield Caller("key of the platform", "key", at="everywhere", scopes=frozenset({Scope.ADMIN}))
    past, bad = timezone.now() - timedelta(days=1), {"is_good": False, "scopes": frozenset({Scope.ADMIN})}
    yield Caller("expired key", "key", at="own", fields={"expires_at": past}, **bad)
    yield Caller("revoked key", "key", at="own", fields={"revoked_at": past}, **bad)
    yield Caller("expired token", "token", Role.ORG_ADMIN, "own", is_good=False, fields={"exp": int(time.time()) - 999})
    yield Caller(
        "token of another provider", "token", Role.ORG_ADMIN, "own", is_good=False, fields={"key": rsa_key("x")}
    )


# One for all clients: each of its own would read all static files anew.
_HANDLERS = {checks: ForceAuthClientHandler(enforce_csrf_checks=checks) for checks in (False, True)}


class People:
    """The callers as they are known here: with accounts, keys and tokens."""

    def __init__(self, provider: IdentityProvider) -> None:
        self.orgs: dict[str, Org] = {"own": make_org("Acme"), "foreign": make_org("Globex")}
        self.provider = provider
        self.known = {caller: self._introduce(caller) for caller in callers()}

    def org_id(self, place: Place | None) -> uuid.UUID:
        return self.orgs[place].pk if place in self.orgs else uuid.UUID(int=4)

    def client(self, caller: Caller) -> APIClient:
        """One that has done nothing yet."""
        cookies, headers = self.known[caller]
        client = APIClient(raise_request_exception=False, headers=headers)
        client.handler = _HANDLERS[caller.is_from_elsewhere]
        client.cookies = SimpleCookie(cookies)
        return client

    def _introduce(self, caller: Caller) -> tuple[dict[str, str], dict[str, str]]:
        """Cookies and headers."""
        match caller.way:
            case "session":
                return self._session(caller), {}
            case "key":
                org = None if caller.at == "everywhere" else self.orgs[str(caller.at)]
                key, token = ApiKey.issue(org=org, name=caller.name, scopes=sorted(caller.scopes))
                ApiKey.objects.filter(pk=key.pk).update(**caller.fields)
                return {}, {"X-API-Key": token}
            case "token":
                org_id = self.orgs[caller.at].pk if caller.at else None
                role = STAFF_ROLE if caller.staff_role else str(caller.role or Role.ORG_ADMIN)
                return {}, {"Authorization": f"Bearer {self.provider.token(org_id, role, **caller.fields)}"}
        return {}, {}

    def _session(self, caller: Caller) -> dict[str, str]:
        is_staff = isinstance(caller.role, StaffRole)
        fields: dict[str, Any] = {"is_staff": is_staff, "is_superuser": caller.is_superuser}
        if is_staff:
            fields["staff_role"] = caller.role
        # Without a password: hashing one takes longer than most routes.
        user = User.objects.create_user(f"{uuid.uuid4().hex[:8]}@example.com", None, **fields)
        if isinstance(caller.role, Role):
            Membership.objects.create(org=self.orgs[str(caller.at)], user=user, role=caller.role)
        client = APIClient()
        client.force_login(user)
        if not caller.is_good:
            User.objects.filter(pk=user.pk).update(is_active=False)
        return {name: morsel.value for name, morsel in client.cookies.items()}
