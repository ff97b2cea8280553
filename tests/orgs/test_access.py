"""Who may do what in which org: every route of the API × credential × org, in one table."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.urls import URLPattern, URLResolver
from django.utils import timezone
from rest_framework.test import APIClient

from analytics_site.urls import api as api_patterns
from exports.jobs import Wanted
from exports.models import ExportJob, State
from orgs.models import ApiKey, AuditRecord, Org, Role, Scope, User
from usage.windows import Window

from ..factories import as_json, at, make_event, make_key, make_org, make_user
from .identity_provider import STAFF_ROLE, IdentityProvider, rsa_key

pytestmark = pytest.mark.django_db

ORG = "orgs/<anyuuid:org_id>"
RANGE = {"start": at(0).isoformat(), "end": at(1).isoformat()}


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    scope: Scope
    success: int = 200
    is_of_a_range: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def address(self, org_id: uuid.UUID) -> str:
        """Where it names a job, one of that org; where there is no such org, of none."""
        address = f"/analytics/v1/{self.path}".replace("<anyuuid:org_id>", str(org_id))
        if "<anyuuid:job_id>" not in address:
            return address
        job = ExportJob.objects.filter(org_id=org_id).first()
        return address.replace("<anyuuid:job_id>", str(job.pk if job else uuid.uuid4()))

    def call(self, client: APIClient, org_id: uuid.UUID, **headers: str) -> Any:
        address = self.address(org_id)
        if self.method == "GET":
            return client.get(address, RANGE if self.is_of_a_range else {}, headers=headers)
        if "exports" in self.path:
            return client.post(address, {"timeRange": RANGE}, format="json", headers=headers)
        event = as_json(make_event(org_id))
        return client.post(address, event if "validate" in self.path else [event], format="json", headers=headers)


READS = (
    Route("GET", f"{ORG}/usage", Scope.USAGE_READ, is_of_a_range=True),
    Route("GET", f"{ORG}/freshness", Scope.USAGE_READ),
    Route("GET", f"{ORG}/reliability", Scope.RELIABILITY_READ, is_of_a_range=True),
    Route("GET", f"{ORG}/reliability/incidents", Scope.RELIABILITY_READ, is_of_a_range=True),
    Route("GET", f"{ORG}/reliability/incident.csv", Scope.RELIABILITY_READ, is_of_a_range=True),
)
EXPORT = f"{ORG}/exports/<anyuuid:job_id>"
EXPORTS = (
    Route("GET", f"{ORG}/exports", Scope.EXPORTS_READ),
    Route("GET", EXPORT, Scope.EXPORTS_READ),
    Route("GET", f"{EXPORT}/download", Scope.EXPORTS_DOWNLOAD, success=302),
)
ASK = (
    Route("POST", f"{ORG}/exports", Scope.EXPORTS_CREATE, success=202),
    Route("POST", f"{EXPORT}/cancel", Scope.EXPORTS_CREATE, success=409),  # the job is over
    Route("POST", f"{EXPORT}/rerun", Scope.EXPORTS_CREATE, success=202),
)
ADMINISTRATION = (
    Route("GET", f"{ORG}/audit", Scope.ADMIN),
    Route("GET", f"{ORG}/audit.csv", Scope.ADMIN),
)
DATASETS = Route("GET", "exports/datasets", Scope.EXPORTS_READ)  # names no org
SEND = Route("POST", f"{ORG}/events", Scope.EVENTS_WRITE)
VALIDATE = Route("POST", "events/validate", Scope.EVENTS_WRITE, success=204)  # names no org
OF_ORGS = (*READS, *EXPORTS, *ASK, *ADMINISTRATION, SEND)
ROUTES = (*OF_ORGS, DATASETS, VALIDATE)
# For everybody: they tell nothing about any org.
OPEN = {"* status/healthz", "* status/readyz", "GET schema", "GET docs"}

# What each credential gets: in its own org, in a foreign one, and in one that does not exist. "ok" is the route's own success. In
# order: figures; events sent (they may name an org before anybody registers it), and validated; exports looked at, asked for,
# and what they can be.
TABLE = {
    "nobody": ("401 401 401", "401 401 401", "401", "401 401 401", "401 401 401", "401"),
    "a wrong key": ("401 401 401", "401 401 401", "401", "401 401 401", "401 401 401", "401"),
    "a known key with another secret": ("401 401 401", "401 401 401", "401", "401 401 401", "401 401 401", "401"),
    "an expired key": ("401 401 401", "401 401 401", "401", "401 401 401", "401 401 401", "401"),
    "a revoked key": ("401 401 401", "401 401 401", "401", "401 401 401", "401 401 401", "401"),
    "a key with the scope": ("ok 403 403", "ok 403 403", "ok", "ok 403 403", "ok 403 403", "ok"),
    "a key with every other scope": ("403 403 403", "403 403 403", "403", "403 403 403", "403 403 403", "403"),
    "a key with admin": ("ok 403 403", "ok 403 403", "ok", "ok 403 403", "ok 403 403", "ok"),
    "a key of another org": ("403 403 403", "403 403 403", "ok", "403 403 403", "403 403 403", "ok"),
    "a key of the platform": (
        "ok ok 403",
        "ok ok ok",
        "ok",
        "ok ok 403",
        "ok ok 403",
        "ok",
    ),
    "a key of the platform with every other scope": (
        "403 403 403",
        "403 403 403",
        "403",
        "403 403 403",
        "403 403 403",
        "403",
    ),
    "an org admin": ("ok 403 403", "ok 403 403", "ok", "ok 403 403", "ok 403 403", "ok"),
    "an engineer": ("ok 403 403", "403 403 403", "403", "ok 403 403", "ok 403 403", "ok"),
    "a finance member": ("ok 403 403", "403 403 403", "403", "ok 403 403", "ok 403 403", "ok"),
    "a viewer": ("ok 403 403", "403 403 403", "403", "403 403 403", "403 403 403", "403"),
    "a stranger": ("403 403 403", "403 403 403", "403", "403 403 403", "403 403 403", "403"),
    "staff": ("ok ok 403", "403 403 403", "403", "ok ok 403", "403 403 403", "ok"),
    "an org admin's token": ("ok 403 403", "ok 403 403", "ok", "ok 403 403", "ok 403 403", "ok"),
    "an engineer's token": ("ok 403 403", "403 403 403", "403", "ok 403 403", "ok 403 403", "ok"),
    "a finance member's token": ("ok 403 403", "403 403 403", "403", "ok 403 403", "ok 403 403", "ok"),
    "a viewer's token": ("ok 403 403", "403 403 403", "403", "403 403 403", "403 403 403", "403"),
    "a token of another org": ("403 403 403", "403 403 403", "ok", "403 403 403", "403 403 403", "ok"),
    "a token of no org": ("403 403 403", "403 403 403", "403", "403 403 403", "403 403 403", "403"),
    "staff's token": ("ok ok 403", "403 403 403", "403", "ok ok 403", "403 403 403", "ok"),
    "an expired token": ("401 401 401", "401 401 401", "401", "401 401 401", "401 401 401", "401"),
    "a token for another audience": ("401 401 401", "401 401 401", "401", "401 401 401", "401 401 401", "401"),
    "a token of another provider": ("401 401 401", "401 401 401", "401", "401 401 401", "401 401 401", "401"),
}
PLACES = ("own", "foreign", "missing")
ROLES = {
    "an org admin": Role.ORG_ADMIN,
    "an engineer": Role.ENGINEER,
    "a finance member": Role.FINANCE,
    "a viewer": Role.VIEWER,
}


def cases() -> Iterator[Any]:
    for credential, (reads, sends, validates, exports, asks, datasets) in TABLE.items():
        named = {SEND: sends, VALIDATE: validates, DATASETS: datasets}
        named |= dict.fromkeys(EXPORTS, exports) | dict.fromkeys(ASK, asks)
        # As asking for exports, but for admins alone.
        is_no_admin = credential.startswith(("an engineer", "a finance member"))
        administers = "403 403 403" if is_no_admin else asks
        named |= dict.fromkeys(ADMINISTRATION, administers)
        for route in ROUTES:
            outcomes = named.get(route, reads).split()
            for place, outcome in zip(PLACES, outcomes, strict=False):
                status = route.success if outcome == "ok" else int(outcome)
                yield pytest.param(route, credential, place, status, id=f"{route}, {credential}, {place}")


@dataclass(frozen=True)
class World:
    """The org whose credentials are tried, another org, and the id of none."""

    own: Org
    foreign: Org
    provider: IdentityProvider

    def org_id(self, place: str) -> uuid.UUID:
        return {"own": self.own.pk, "foreign": self.foreign.pk}.get(place) or uuid.uuid4()

    def credential(self, name: str, scope: Scope) -> tuple[APIClient, dict[str, str]]:
        """A client that has signed in, or the header of a key or a token."""
        client = APIClient(raise_request_exception=False)
        if user := self._user(name):
            client.force_login(user)
        if bearer := self._bearer(name):
            return client, {"Authorization": f"Bearer {bearer}"}
        token = self._token(name, scope)
        return client, {} if token is None else {"X-API-Key": token}

    def _user(self, name: str) -> User | None:
        if name in ROLES:
            return make_user(org=self.own, role=ROLES[name])
        return make_user(is_staff=name == "staff") if name in ("a stranger", "staff") else None

    def _token(self, name: str, scope: Scope) -> str | None:
        others = [other for other in Scope if other not in (scope, Scope.ADMIN)]
        make: dict[str, Callable[[], str]] = {
            "a wrong key": lambda: "ak_00000000_wrong",
            "a known key with another secret": lambda: make_key(self.own)[:-1] + "~",
            "an expired key": lambda: self._unusable(expires_at=timezone.now() - timedelta(seconds=1)),
            "a revoked key": lambda: self._unusable(revoked_at=timezone.now()),
            "a key with the scope": lambda: make_key(self.own, scope),
            "a key with every other scope": lambda: make_key(self.own, *others),
            "a key with admin": lambda: make_key(self.own, Scope.ADMIN),
            "a key of another org": lambda: make_key(make_org("Initech")),
            "a key of the platform": lambda: make_key(None, scope),
            "a key of the platform with every other scope": lambda: make_key(None, *others),
        }
        return make[name]() if name in make else None

    def _bearer(self, name: str) -> str | None:
        own, sign = self.own.pk, self.provider.token
        roles = {f"{who}'s token": role for who, role in ROLES.items()}
        if name in roles:
            return sign(own, role=roles[name])
        make: dict[str, Callable[[], str]] = {
            "a token of another org": lambda: sign(make_org("Initech").pk, role=Role.ORG_ADMIN),
            "a token of no org": lambda: sign(role=Role.ORG_ADMIN),
            "staff's token": lambda: sign(role=STAFF_ROLE),
            "an expired token": lambda: sign(own, role=Role.ORG_ADMIN, exp=int(time.time()) - 3600),
            "a token for another audience": lambda: sign(own, role=Role.ORG_ADMIN, aud="billing"),
            "a token of another provider": lambda: sign(own, role=Role.ORG_ADMIN, key=rsa_key("stranger")),
        }
        return make[name]() if name in make else None

    def _unusable(self, **fields: Any) -> str:
        key, token = ApiKey.issue(org=self.own, name="test", scopes=[Scope.ADMIN])
        ApiKey.objects.filter(pk=key.pk).update(**fields)
        return token


@pytest.fixture
def world(settings: LazySettings, tmp_path: Path, steady_provider: IdentityProvider) -> World:
    """Each org has an export that is ready."""
    settings.EXPORT_FOLDER = str(tmp_path)
    found = World(make_org(), make_org("Globex"), steady_provider)
    for org in (found.own, found.foreign):
        job = Wanted(org=org, window=Window(at(0), at(1))).job("somebody")
        job.status, job.expires_at = State.SUCCEEDED, timezone.now() + timedelta(days=1)
        job.save()
    return found


@pytest.mark.parametrize(("route", "credential", "place", "status"), list(cases()))
def test_each_credential_gets_what_the_table_says(
    world: World, route: Route, credential: str, place: str, status: int
) -> None:
    client, headers = world.credential(credential, route.scope)
    answer = route.call(client, world.org_id(place), **headers)
    assert answer.status_code == status, answer.content
    if status >= 400:
        assert answer["Content-Type"] == "application/problem+json"
    if status == 401:
        challenge = 'Bearer error="invalid_token"' if "token" in credential else 'ApiKey realm="analytics"'
        assert answer["WWW-Authenticate"] == challenge
    if status == 403:
        refused = AuditRecord.objects.get()
        assert (refused.action, refused.outcome, refused.request_id) == ("refused", "denied", answer["X-Request-ID"])
        assert refused.org_id in (None, world.org_id(place))


def routes(patterns: Sequence[URLPattern | URLResolver], prefix: str = "") -> Iterator[str]:
    """Every method and route, as `Route` spells them; a view that takes any method has a star."""
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, route)
            continue
        view = getattr(pattern.callback, "view_class", None) or getattr(pattern.callback, "cls", None)
        methods = ("get", "post", "put", "patch", "delete")
        yield from (f"{m.upper()} {route}" for m in methods if hasattr(view, m)) if view else [f"* {route}"]


def test_no_route_is_missing_from_the_table() -> None:
    assert sorted(routes(api_patterns)) == sorted({str(route) for route in ROUTES} | OPEN)


@pytest.mark.parametrize("route", OF_ORGS, ids=str)
def test_the_three_refusals_cannot_be_told_apart(world: World, route: Route) -> None:
    def refusal(credential: str, place: str) -> tuple[dict[str, Any], dict[str, str]]:
        org_id = world.org_id(place)
        client, headers = world.credential(credential, route.scope)
        answer = route.call(client, org_id, **headers)
        assert answer.status_code == 403
        body = answer.json()
        assert body.pop("instance") == answer.wsgi_request.path
        return body, {
            name: value for name, value in answer.headers.items() if not name.startswith(("X-Req", "Content-S"))
        }

    no_scope = refusal("a key with every other scope", "own")
    another_org = refusal("a key with the scope", "foreign")
    no_such_org = refusal("a key with the scope", "missing")
    by_token = [refusal("an org admin's token", place) for place in ("foreign", "missing")]
    assert [no_scope, another_org, *by_token] == [no_such_org] * 4
    assert no_scope[0] == {
        "type": "urn:analytics:problem:forbidden",
        "title": "Forbidden",
        "status": 403,
        "detail": "These credentials do not allow this.",
        "errors": [],
    }


@pytest.mark.parametrize("route", [*READS, *EXPORTS[:2]], ids=str)
def test_a_read_from_outside_leaves_an_audit_record(world: World, route: Route) -> None:
    staff = make_user("staff@example.com", is_staff=True)
    client = APIClient()
    client.force_login(staff)
    key, token = ApiKey.issue(org=None, name="platform", scopes=[route.scope])
    answers = [
        route.call(client, world.foreign.pk),
        route.call(APIClient(), world.foreign.pk, **{"X-API-Key": token}),
        route.call(APIClient(), world.foreign.pk, Authorization=f"Bearer {world.provider.token(role=STAFF_ROLE)}"),
    ]
    found = AuditRecord.objects.order_by("pk").values_list("actor", "action", "org", "target", "request_id")
    path = route.address(world.foreign.pk)
    assert list(found) == [
        (actor, f"read from outside: {route.scope}", world.foreign.pk, path, answer["X-Request-ID"])
        for actor, answer in zip(("user:staff@example.com", f"key:{key.prefix}", "token:ada"), answers, strict=True)
    ]


@pytest.mark.parametrize("route", READS, ids=str)
@pytest.mark.parametrize("credential", [*ROLES, "a key with the scope", "a key with admin", "a viewer's token"])
def test_a_read_from_inside_leaves_none(world: World, route: Route, credential: str) -> None:
    client, headers = world.credential(credential, route.scope)
    assert route.call(client, world.own.pk, **headers).status_code == 200
    assert not AuditRecord.objects.exists()


def test_staff_who_are_members_look_from_inside(world: World) -> None:
    client = APIClient()
    client.force_login(make_user(org=world.own, role=Role.VIEWER, is_staff=True))
    assert READS[0].call(client, world.own.pk).status_code == 200
    assert not AuditRecord.objects.exists()


def test_a_key_counts_more_than_a_session(world: World) -> None:
    client = APIClient()
    client.force_login(make_user(org=world.own))
    assert READS[0].call(client, world.own.pk, **{"X-API-Key": "ak_00000000_wrong"}).status_code == 401
    assert READS[0].call(client, world.own.pk, **{"X-API-Key": make_key(world.foreign)}).status_code == 403


@pytest.mark.parametrize("token", ["", "_", "ak", "ak_\0_x", "é_é_é", "ak_" + "x" * 100_000])
def test_a_header_that_is_no_key_is_a_wrong_key(world: World, token: str) -> None:
    client = APIClient(raise_request_exception=False)
    assert READS[0].call(client, world.own.pk, **{"X-API-Key": token}).status_code == 401


@pytest.mark.parametrize("cookie", ["sessionid=nobody-was-given-this", r'sessionid="\000abcdefgh"'])
def test_a_cookie_that_is_no_session_is_no_credential(world: World, cookie: str) -> None:
    client = APIClient(raise_request_exception=False)
    assert READS[0].call(client, world.own.pk, Cookie=cookie).status_code == 401
