"""Bearer tokens: which are right, where their keys come from and for how long they count, what claims give."""

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import jwt
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import LazySettings
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from rest_framework.test import APIClient

from exports.models import ExportJob
from orgs import tokens
from orgs.limits import (
    JWKS_FETCH_INTERVAL,
    JWKS_FETCH_TIMEOUT,
    JWKS_GRACE,
    JWKS_LIFETIME,
    MAX_PROVIDER_BYTES,
    MAX_SUBJECT_LENGTH,
    MAX_TOKEN_LENGTH,
)
from orgs.models import AuditRecord, Org, Role
from orgs.signing_keys import KeysUnavailable, SigningKeys, keys_of, signing_keys

from ..factories import at, make_key, make_org, make_user
from .identity_provider import STAFF_ROLE, IdentityProvider, Key, b64, ec_key, rsa_key

pytestmark = pytest.mark.django_db
RANGE = {"start": at(0).isoformat(), "end": at(1).isoformat()}


@pytest.fixture
def org() -> Org:
    return make_org()


def read(org: Org | uuid.UUID, authorization: str, client: APIClient | None = None, **headers: str) -> Any:
    """An org's usage, as asked for with a token."""
    org_id = org.pk if isinstance(org, Org) else org
    client = client or APIClient(raise_request_exception=False)
    path = f"/analytics/v1/orgs/{org_id}/usage"
    return client.get(path, RANGE, headers={"Authorization": authorization, **headers})


def status_of(org: Org | uuid.UUID, token: str) -> int:
    return int(read(org, f"Bearer {token}").status_code)


def assert_is_refused(answer: Any) -> None:
    assert answer.status_code == 401, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert answer["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert answer.json()["detail"] == "This token is not valid here."
    assert answer.json()["errors"] == []


def assert_is_not_judged(answer: Any) -> None:
    assert answer.status_code == 503, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert answer["Retry-After"] == str(int(JWKS_FETCH_INTERVAL.total_seconds()))
    assert "WWW-Authenticate" not in answer


# ── What is right ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("index", [0, 1], ids=["RS256", "ES256"])
def test_a_token_of_either_algorithm_is_taken(steady_provider: IdentityProvider, org: Org, index: int) -> None:
    key = steady_provider.keys[index]
    assert status_of(org, steady_provider.token(org.pk, key=key)) == 200


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   ", " Bearer "])
def test_the_scheme_is_read_as_http_has_it(steady_provider: IdentityProvider, org: Org, scheme: str) -> None:
    assert read(org, scheme + steady_provider.token(org.pk)).status_code == 200


@pytest.mark.parametrize("header", ["Basic YTpi", "", "Digest x", "BearerX", "Negotiate Bearer"])
def test_another_scheme_is_no_credential(steady_provider: IdentityProvider, org: Org, header: str) -> None:
    answer = read(org, header)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, 'ApiKey realm="analytics"')


def test_one_audience_of_several_is_enough(steady_provider: IdentityProvider, org: Org) -> None:
    assert status_of(org, steady_provider.token(org.pk, aud=["another", "analytics"])) == 200


@pytest.mark.parametrize(("late", "status"), [(29, 200), (31, 401)])
@pytest.mark.parametrize("claim", ["exp", "nbf"])
def test_clocks_may_differ_by_the_skew(
    steady_provider: IdentityProvider, org: Org, claim: str, late: int, status: int
) -> None:
    with time_machine.travel(time.time(), tick=False):
        now = int(time.time())
        token = steady_provider.token(org.pk, **{claim: now - late if claim == "exp" else now + late})
        assert status_of(org, token) == status


# ── What is wrong ────────────────────────────────────────────────────────────────────────────────────────────────


def forged(header: dict[str, Any] | str, payload: Any, secret: bytes = b"") -> str:
    """A token put together by hand, with an HMAC where there is a secret."""
    signed = f"{b64(header)}.{b64(payload)}"
    signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest() if secret else b""
    return f"{signed}.{b64(signature)}"


Make = Callable[[IdentityProvider, dict[str, Any]], str]
PEM = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _with_public_key(provider: IdentityProvider, claims: dict[str, Any], how: Callable[[Key], bytes]) -> str:
    key = provider.keys[0]
    return forged({"alg": "HS256", "typ": "JWT", "kid": key.kid}, provider.claims(**claims), how(key))


def _changed(token: str, part: int, change: Callable[[str], str]) -> str:
    parts = token.split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


STRANGER = rsa_key("stranger")
WRONG: dict[str, Make] = {
    "nothing": lambda provider, claims: "",
    "one part": lambda provider, claims: "abc",
    "two parts": lambda provider, claims: "abc.def",
    "three parts of nothing": lambda provider, claims: "..",
    "five parts": lambda provider, claims: "a.b.c.d.e",
    "not base64": lambda provider, claims: "é.ü.ß",
    "two tokens": lambda provider, claims: f"{provider.sign(**claims)} {provider.sign(**claims)}",
    "two headers": lambda provider, claims: f"{provider.sign(**claims)}, Bearer {provider.sign(**claims)}",
    "too long": lambda provider, claims: provider.sign(**claims, more="x" * MAX_TOKEN_LENGTH),
    "a header that is no object": lambda provider, claims: forged("[]", "{}"),
    "a header nested without end": lambda provider, claims: forged("[" * 5_000, "{}"),
    "a header with a number of 5,000 digits": lambda provider, claims: forged("9" * 5_000, "{}"),
    "no algorithm": lambda provider, claims: forged({"alg": "none", "kid": "first"}, provider.claims(**claims)),
    "no algorithm, spelled otherwise": lambda provider, claims: forged(
        {"alg": "nOnE", "kid": "first"}, provider.claims(**claims)
    ),
    "an algorithm that is a list": lambda provider, claims: forged({"alg": ["RS256"], "kid": "first"}, "{}"),
    "an HMAC with the public key": lambda provider, claims: _with_public_key(
        provider, claims, lambda key: key.private.public_key().public_bytes(*PEM)
    ),
    "an HMAC with the key as JSON": lambda provider, claims: _with_public_key(
        provider, claims, lambda key: json.dumps(key.public_jwk).encode()
    ),
    "an HMAC with the modulus": lambda provider, claims: _with_public_key(
        provider, claims, lambda key: key.public_jwk["n"].encode()
    ),
    "a stranger's key": lambda provider, claims: provider.sign(STRANGER, **claims),
    "a stranger's key by a known id": lambda provider, claims: provider.sign(STRANGER, {"kid": "first"}, **claims),
    "a stranger's key that comes along": lambda provider, claims: provider.sign(
        STRANGER, {"kid": "first", "jwk": STRANGER.public_jwk}, **claims
    ),
    "a stranger's address of keys": lambda provider, claims: provider.sign(
        STRANGER, {"jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x"}, **claims
    ),
    "a known key by another's id": lambda provider, claims: provider.sign(headers={"kid": "second"}, **claims),
    "no key id": lambda provider, claims: jwt.encode(provider.claims(**claims), provider.keys[0].private, "RS256"),
    "another algorithm of a known key": lambda provider, claims: provider.sign(
        Key("first", rsa_key("first").private, "RS512"), **claims
    ),
    "PSS by a known key": lambda provider, claims: provider.sign(
        Key("first", rsa_key("first").private, "PS256"), **claims
    ),
    "an extension that is critical": lambda provider, claims: provider.sign(
        headers={"crit": ["exotic"], "exotic": True}, **claims
    ),
    "a changed payload": lambda provider, claims: _changed(
        provider.sign(**claims), 1, lambda part: b64(provider.claims(**claims, more=True))
    ),
    "a changed signature": lambda provider, claims: _changed(
        provider.sign(**claims), 2, lambda part: part[:20] + ("A" if part[20] != "A" else "B") + part[21:]
    ),
    "no signature": lambda provider, claims: _changed(provider.sign(**claims), 2, lambda part: ""),
    "another audience": lambda provider, claims: provider.sign(**claims, aud="billing"),
    "no audience": lambda provider, claims: provider.sign(**claims, aud=None),
    "an audience that only begins alike": lambda provider, claims: provider.sign(**claims, aud="analytics2"),
    "another issuer": lambda provider, claims: provider.sign(**claims, iss="https://id.evil.example"),
    "the issuer with a slash": lambda provider, claims: provider.sign(**claims, iss=f"{provider.url}/"),
    "no issuer": lambda provider, claims: provider.sign(**claims, iss=None),
    "expired": lambda provider, claims: provider.sign(**claims, exp=int(time.time()) - 3600),
    "no expiry": lambda provider, claims: provider.sign(**claims, exp=None),
    "an expiry that is a word": lambda provider, claims: provider.sign(**claims, exp="never"),
    "an expiry without end": lambda provider, claims: provider.sign(**claims, exp=float("inf")),
    "not yet valid": lambda provider, claims: provider.sign(**claims, nbf=int(time.time()) + 3600),
    "made in the future": lambda provider, claims: provider.sign(**claims, iat=int(time.time()) + 3600),
    "no subject": lambda provider, claims: provider.sign(**claims, sub=None),
    "an empty subject": lambda provider, claims: provider.sign(**claims, sub=""),
    "a subject that PostgreSQL does not take": lambda provider, claims: provider.sign(**claims, sub="a\0b"),
    "half a character as subject": lambda provider, claims: provider.sign(**claims, sub="\ud800"),
    "a subject of two lines": lambda provider, claims: provider.sign(**claims, sub="ada\nuser:boss"),
    "a subject that is too long": lambda provider, claims: provider.sign(**claims, sub="x" * (MAX_SUBJECT_LENGTH + 1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_token_is_refused_and_nobody_learns_why(steady_provider: IdentityProvider, org: Org, name: str) -> None:
    token = WRONG[name](steady_provider, {"orgs": [str(org.pk)], "roles": ["org_admin"]})
    assert_is_refused(read(org, f"Bearer {token}"))


def test_a_subject_that_is_a_number_is_none(
    steady_provider: IdentityProvider, settings: LazySettings, org: Org
) -> None:
    settings.OIDC_SUBJECT_CLAIM = "number"
    assert status_of(org, steady_provider.token(org.pk, number=7)) == 401


def test_without_a_provider_every_token_is_refused(
    steady_provider: IdentityProvider, settings: LazySettings, org: Org
) -> None:
    token = steady_provider.token(org.pk)
    settings.OIDC_ISSUER = settings.OIDC_AUDIENCE = settings.OIDC_JWKS_URL = ""
    assert_is_refused(read(org, f"Bearer {token}"))
    settings.OIDC_ISSUER = steady_provider.url
    assert_is_refused(read(org, f"Bearer {token}"))


many = effort(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
parts = st.text(st.characters(max_codepoint=255), max_size=40) | st.builds(lambda v: b64(json.dumps(v)), json_values)
heads = st.fixed_dictionaries(
    {
        "alg": st.sampled_from(["RS256", "ES256"]) | json_values,
        "kid": st.sampled_from(["first", "second"]) | json_values,
    },
    optional={"typ": json_values, "crit": json_values, "b64": json_values, "cty": json_values, "jwk": json_values},
)


@many
@given(header=st.text(st.characters(max_codepoint=255), max_size=200))
def test_no_header_is_a_failure_of_the_service(steady_provider: IdentityProvider, org: Org, header: str) -> None:
    for authorization in (header, f"Bearer {header}"):
        assert read(org, authorization).status_code == 401


@many
@given(head=parts | st.builds(b64, heads), payload=parts, signature=parts)
def test_no_garbage_is_a_failure_of_the_service(
    steady_provider: IdentityProvider, org: Org, head: str, payload: str, signature: str
) -> None:
    assert_is_refused(read(org, f"Bearer {head}.{payload}.{signature}"))


@many
@given(data=st.data())
def test_no_changed_token_is_taken(steady_provider: IdentityProvider, org: Org, data: st.DataObject) -> None:
    token = steady_provider.token(org.pk)
    index = data.draw(st.integers(0, len(token) - 2))  # the last character of a signature may have bits to spare
    character = data.draw(st.characters(max_codepoint=255))
    changed = token[:index] + character + token[index + 1 :]
    assert status_of(org, changed) == (200 if changed == token else 401)


@many
@given(
    claims=st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "iat", "nbf", "exp", "jti", "orgs", "roles"]), json_values, max_size=5
    )
)
def test_whatever_the_provider_signs_is_no_failure_of_the_service(
    steady_provider: IdentityProvider, org: Org, claims: dict[str, Any]
) -> None:
    payload = json.dumps(steady_provider.claims() | claims).encode()
    token = jwt.PyJWS().encode(payload, rsa_key("first").private, "RS256", {"kid": "first"})
    assert status_of(org, token) in (401, 403)


# ── Where several credentials are sent ───────────────────────────────────────────────────────────────────────────


def test_a_key_counts_more_than_a_token(steady_provider: IdentityProvider, org: Org) -> None:
    right, other = f"Bearer {steady_provider.token(org.pk)}", make_key(make_org("Initech"))
    assert read(org, right, **{"X-API-Key": make_key(org)}).status_code == 200
    assert read(org, right, **{"X-API-Key": other}).status_code == 403
    refused = read(org, right, **{"X-API-Key": "ak_00000000_wrong"})
    assert (refused.status_code, refused["WWW-Authenticate"]) == (401, 'ApiKey realm="analytics"')
    assert read(org, "Bearer wrong", **{"X-API-Key": make_key(org)}).status_code == 200


def test_a_token_counts_more_than_a_session(steady_provider: IdentityProvider, org: Org) -> None:
    client = APIClient(raise_request_exception=False)
    client.force_login(make_user(org=org, role=Role.ORG_ADMIN))
    assert_is_refused(read(org, "Bearer wrong", client))
    assert read(org, f"Bearer {steady_provider.token(make_org('Initech').pk)}", client).status_code == 403
    assert read(org, "Basic YTpi", client).status_code == 200


# ── Claims ───────────────────────────────────────────────────────────────────────────────────────────────────────

A, B, C = (uuid.UUID(int=number) for number in (10, 11, 12))


def verified(provider: IdentityProvider, **claims: Any) -> tokens.Token:
    return tokens.verify(provider.sign(**claims))


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({}, {}),
        ({"orgs": [str(A), str(B)], "roles": ["viewer"]}, {A: {"viewer"}, B: {"viewer"}}),
        ({"orgs": [str(A)], "roles": "finance"}, {A: {"finance"}}),
        ({"orgs": [str(A)], "roles": ["viewer", "engineer", "cook"]}, {A: {"viewer", "engineer"}}),
        ({"orgs": [str(A)], "roles": ["cook", 7, None]}, {}),
        ({"orgs": [str(A)]}, {}),
        ({"roles": ["org_admin"]}, {}),
        (
            {"orgs": {str(A): "org_admin", str(B): ["viewer", "cook"], str(C): "cook"}},
            {A: {"org_admin"}, B: {"viewer"}},
        ),
        ({"orgs": {str(A): "viewer"}, "roles": ["org_admin"]}, {A: {"viewer"}}),
        ({"orgs": ["acme", 7, None, str(A).upper()], "roles": ["viewer"]}, {A: {"viewer"}}),
        ({"orgs": {str(A): {"viewer": True}}}, {}),
        ({"orgs": str(A), "roles": ["viewer"]}, {}),
        ({"orgs": 7, "roles": 7}, {}),
        ({"orgs": {str(A): STAFF_ROLE}}, {}),
    ],
)
def test_claims_name_roles_in_orgs(
    steady_provider: IdentityProvider, claims: dict[str, Any], roles: dict[uuid.UUID, set[str]]
) -> None:
    assert verified(steady_provider, **claims) == tokens.Token("ada", {o: frozenset(r) for o, r in roles.items()})


def test_staff_are_told_by_a_role_that_the_operator_names(
    steady_provider: IdentityProvider, settings: LazySettings
) -> None:
    assert verified(steady_provider, roles=[STAFF_ROLE]).is_staff
    assert not verified(steady_provider, roles=["staff"]).is_staff
    settings.OIDC_STAFF_ROLE = ""
    assert not verified(steady_provider, roles=["staff", "", STAFF_ROLE]).is_staff


def test_claims_and_roles_may_have_names_of_the_providers_own(
    steady_provider: IdentityProvider, settings: LazySettings
) -> None:
    settings.OIDC_SUBJECT_CLAIM = "email"
    settings.OIDC_ORGS_CLAIM = "https://example.com/orgs"
    settings.OIDC_ROLES_CLAIM = "realm_access.roles"
    settings.OIDC_ROLE_NAMES = {"Analytics Admin": "org_admin"}
    claims = {
        "email": "ada@example.com",
        "https://example.com/orgs": [str(A)],
        "realm_access": {"roles": ["Analytics Admin", "viewer"]},
    }
    assert verified(steady_provider, **claims) == tokens.Token("ada@example.com", {A: frozenset({"org_admin"})})
    with pytest.raises(tokens.InvalidToken):
        verified(steady_provider, realm_access=7)


def test_the_roles_of_the_settings_are_those_of_the_service(settings: LazySettings) -> None:
    assert {role.value: role.value for role in Role} == settings.OIDC_ROLE_NAMES


def test_several_roles_allow_what_any_of_them_does(steady_provider: IdentityProvider, org: Org) -> None:
    token = steady_provider.sign(orgs={str(org.pk): ["viewer", "finance"]})
    headers = {"Authorization": f"Bearer {token}"}
    answer = APIClient().post(
        f"/analytics/v1/orgs/{org.pk}/exports", {"timeRange": RANGE}, format="json", headers=headers
    )
    assert answer.status_code == 202
    assert ExportJob.objects.get().initiated_by == answer.json()["initiatedBy"] == "token:ada"


def test_an_org_that_a_token_names_and_that_does_not_exist_is_like_any_other(
    steady_provider: IdentityProvider, org: Org
) -> None:
    missing = uuid.uuid4()
    token = steady_provider.token(missing, role="org_admin")
    answers = [read(org_id, f"Bearer {token}") for org_id in (missing, org.pk)]
    assert [answer.status_code for answer in answers] == [403, 403]
    bodies = [answer.json() | {"instance": ""} for answer in answers]
    assert bodies[0] == bodies[1]


def test_a_read_of_staff_leaves_an_audit_record_and_one_from_inside_none(
    steady_provider: IdentityProvider, org: Org
) -> None:
    longest = "x" * MAX_SUBJECT_LENGTH
    assert status_of(org, steady_provider.token(org.pk, roles=[STAFF_ROLE, "viewer"])) == 200
    assert not AuditRecord.objects.exists()
    assert status_of(org, steady_provider.token(roles=[STAFF_ROLE], sub=longest)) == 200
    assert [(r.actor, r.org_id) for r in AuditRecord.objects.all()] == [(f"token:{longest}", org.pk)]


# ── Keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def later(delta: timedelta) -> Iterator[None]:
    """So much later than the real clock, which goes on."""
    with time_machine.travel(time.time() + delta.total_seconds()):
        yield


ONE = timedelta(seconds=1)


def eventually(holds: Callable[[], bool]) -> None:
    """What happens behind the callers is waited for, five seconds at most."""
    until = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_keys_are_fetched_once_for_many_tokens(provider: IdentityProvider, org: Org) -> None:
    assert {status_of(org, provider.token(org.pk, key=provider.keys[n % 2])) for n in range(20)} == {200}
    assert provider.fetches == 1


def test_callers_at_once_share_one_fetch(provider: IdentityProvider) -> None:
    provider.pause = 0.3
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda n: tokens.verify(provider.sign()).subject, range(16)))
    assert (set(found), provider.fetches) == ({"ada"}, 1)


def test_the_address_of_the_keys_is_found_by_discovery(
    provider: IdentityProvider, settings: LazySettings, org: Org
) -> None:
    provider.configure(settings, discovers=True)
    assert status_of(org, provider.token(org.pk)) == 200
    assert provider.asked == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "https://id.evil.example"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "ftp://127.0.0.1/keys"},
    ],
)
def test_a_discovery_document_that_is_wrong_is_not_followed(
    provider: IdentityProvider, settings: LazySettings, org: Org, wrong: dict[str, Any]
) -> None:
    provider.configure(settings, discovers=True)
    provider.discovery = wrong
    assert_is_not_judged(read(org, f"Bearer {provider.token(org.pk)}"))
    assert provider.asked == ["/.well-known/openid-configuration"]


def test_a_new_key_is_found_when_a_token_names_it(provider: IdentityProvider, org: Org) -> None:
    assert status_of(org, provider.token(org.pk)) == 200
    new = rsa_key("third")
    provider.keys.append(new)
    with later(JWKS_FETCH_INTERVAL + ONE):
        assert status_of(org, provider.token(org.pk, key=new)) == 200
        assert status_of(org, provider.token(org.pk)) == 200
    assert provider.fetches == 2


def test_a_key_that_was_withdrawn_counts_for_the_life_of_the_set(provider: IdentityProvider, org: Org) -> None:
    old = provider.keys[0]
    assert status_of(org, provider.token(org.pk)) == 200
    provider.keys = [rsa_key("third")]
    with later(JWKS_LIFETIME - timedelta(seconds=5)):
        assert status_of(org, provider.token(org.pk, key=old)) == 200
    with later(JWKS_LIFETIME + ONE):
        assert_is_refused(read(org, f"Bearer {provider.token(org.pk, key=old)}"))


def test_strangers_cannot_make_the_service_fetch_without_end(provider: IdentityProvider, org: Org) -> None:
    with time_machine.travel(time.time(), tick=False) as clock:
        assert status_of(org, provider.token(org.pk)) == 200
        for turn in range(1, 4):
            clock.shift(JWKS_FETCH_INTERVAL)
            for _ in range(20):
                unknown = provider.sign(STRANGER, {"kid": uuid.uuid4().hex}, orgs=[str(org.pk)])
                assert_is_refused(read(org, f"Bearer {unknown}"))
            assert provider.fetches == 1 + turn


def test_what_cannot_be_right_leads_to_no_fetch(provider: IdentityProvider, org: Org) -> None:
    for name in ("no algorithm", "an HMAC with the public key", "no key id", "too long", "three parts of nothing"):
        assert_is_refused(read(org, f"Bearer {WRONG[name](provider, {})}"))
    assert provider.asked == []


def test_a_clock_that_is_set_back_keeps_no_set_alive(provider: IdentityProvider, org: Org) -> None:
    assert status_of(org, provider.token(org.pk)) == 200
    with later(timedelta(hours=-1)):
        assert status_of(org, provider.token(org.pk)) == 200
    assert provider.fetches == 2


FAILURES: dict[str, dict[str, Any]] = {
    "an error": {"status": 500},
    "not found": {"status": 404},
    "nothing": {"body": b""},
    "a page": {"body": b"<html>maintenance</html>"},
    "a list": {"body": b"[]"},
    "nesting without end": {"body": b"[" * 100_000},
    "no keys": {"body": b'{"keys": []}'},
    "keys that are none": {"body": b'{"keys": 7}'},
    "keys of another kind": {"body": b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "first", "alg": "HS256"}]}'},
    "not UTF-8": {"body": b"\xff\xfe{"},
    "too much": {"body": b" " * (MAX_PROVIDER_BYTES + 1)},
    "less than it says": {"headers": {"Content-Length": "100000"}, "body": b'{"keys": ['},
    "a way to somewhere else": {"status": 302, "headers": {"Location": "/keys"}},
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_answer_that_is_no_set_of_keys_leaves_the_last_one(provider: IdentityProvider, org: Org, name: str) -> None:
    assert status_of(org, provider.token(org.pk)) == 200
    for field, value in FAILURES[name].items():
        setattr(provider, field, value)
    with later(JWKS_LIFETIME + ONE):
        assert status_of(org, provider.token(org.pk)) == 200
    assert provider.fetches == 2


@pytest.mark.parametrize("name", FAILURES)
def test_before_there_is_any_set_tokens_are_not_judged(provider: IdentityProvider, org: Org, name: str) -> None:
    for field, value in FAILURES[name].items():
        setattr(provider, field, value)
    assert_is_not_judged(read(org, f"Bearer {provider.token(org.pk)}"))
    assert provider.fetches == 1
    assert_is_refused(read(org, "Bearer not.a.token"))


def test_a_provider_that_was_never_there_is_found_when_it_comes(provider: IdentityProvider, org: Org) -> None:
    provider.go_away()
    with time_machine.travel(time.time(), tick=False) as clock:
        assert_is_not_judged(read(org, f"Bearer {provider.token(org.pk)}"))
        provider.come_back()
        assert_is_not_judged(read(org, f"Bearer {provider.token(org.pk)}"))  # too soon to look again
        assert provider.fetches == 0
        clock.shift(JWKS_FETCH_INTERVAL)
        read(org, f"Bearer {provider.token(org.pk)}")  # after a failure nobody waits
        eventually(lambda: status_of(org, provider.token(org.pk)) == 200)


def test_a_provider_that_is_away_is_no_outage_for_as_long_as_the_grace(provider: IdentityProvider, org: Org) -> None:
    assert status_of(org, provider.token(org.pk)) == 200
    provider.go_away()
    for delta in (JWKS_LIFETIME + ONE, JWKS_GRACE / 2, JWKS_GRACE - timedelta(seconds=5)):
        with later(delta):
            assert status_of(org, provider.token(org.pk)) == 200
            assert_is_refused(read(org, f"Bearer {provider.token(org.pk, aud='billing')}"))
    with later(JWKS_GRACE + ONE):
        assert_is_not_judged(read(org, f"Bearer {provider.token(org.pk)}"))
    provider.come_back()
    with later(JWKS_GRACE + JWKS_LIFETIME + timedelta(minutes=1)):
        assert status_of(org, provider.token(org.pk)) == 200


def test_a_key_that_may_be_new_is_not_judged_while_the_provider_is_away(provider: IdentityProvider, org: Org) -> None:
    assert status_of(org, provider.token(org.pk)) == 200
    provider.go_away()
    new = rsa_key("third")
    with later(JWKS_FETCH_INTERVAL + ONE):
        assert_is_not_judged(read(org, f"Bearer {provider.token(org.pk, key=new)}"))
        assert status_of(org, provider.token(org.pk)) == 200


@pytest.mark.parametrize("how", ["pause", "drip"])
def test_a_provider_that_hangs_is_waited_for_once(provider: IdentityProvider, org: Org, how: str) -> None:
    assert status_of(org, provider.token(org.pk)) == 200
    setattr(provider, how, 60 if how == "pause" else 0.2)
    with later(JWKS_LIFETIME + ONE):
        begun = time.monotonic()
        assert status_of(org, provider.token(org.pk)) == 200
        assert time.monotonic() - begun < JWKS_FETCH_TIMEOUT.total_seconds() + 2
    with later(JWKS_LIFETIME + JWKS_FETCH_INTERVAL + timedelta(seconds=5)):
        begun = time.monotonic()
        assert status_of(org, provider.token(org.pk)) == 200
        stranger = provider.token(org.pk, key=STRANGER)
        assert_is_not_judged(read(org, f"Bearer {stranger}"))
        assert time.monotonic() - begun < 1
    eventually(lambda: provider.fetches == 3)


def test_a_fetch_that_was_given_up_puts_no_old_set_in_place_of_a_newer_one(provider: IdentityProvider) -> None:
    keys = SigningKeys(provider.url, f"{provider.url}/keys")
    provider.pause = JWKS_FETCH_TIMEOUT.total_seconds() - 0.3
    with time_machine.travel(time.time()) as clock, ThreadPoolExecutor(1) as other:
        slow = other.submit(keys.find, "first", "RS256")
        eventually(lambda: provider.fetches == 1)
        clock.shift(JWKS_FETCH_INTERVAL)
        provider.pause = 0
        assert keys.find("first", "RS256")  # by a second fetch, as the first is still on its way
        assert provider.fetches == 2
        slow.result()
        assert keys.find("first", "RS256")


def test_keys_are_of_one_provider(provider: IdentityProvider) -> None:
    one, other = signing_keys(provider.url, ""), signing_keys("http://127.0.0.1:1", "http://127.0.0.1:1/keys")
    assert one is signing_keys(provider.url, "")
    assert one.find("first", "RS256")
    with pytest.raises(KeysUnavailable):
        other.find("first", "RS256")


# ── What a set may hold ──────────────────────────────────────────────────────────────────────────────────────────


def _without(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in names}


RSA, EC = rsa_key("first").public_jwk, ec_key("second").public_jwk


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (RSA, ("first", "RS256")),
        (EC, ("second", "ES256")),
        (_without(RSA, "alg", "use"), ("first", "RS256")),
        (_without(EC, "alg", "use"), ("second", "ES256")),
        (RSA | {"key_ops": ["verify"], "x5c": ["…"], "more": 7}, ("first", "RS256")),
        (_without(RSA, "kid"), None),
        (RSA | {"kid": 7}, None),
        (RSA | {"use": "enc"}, None),
        (RSA | {"key_ops": ["encrypt"]}, None),
        (RSA | {"key_ops": 7}, None),
        (RSA | {"alg": "RS512"}, None),
        (RSA | {"alg": "HS256"}, None),
        (RSA | {"alg": ["RS256"]}, None),
        (RSA | {"alg": "ES256"}, None),
        (_without(RSA, "n"), None),
        (RSA | {"n": "!"}, None),
        (RSA | {"kty": "oct"}, None),
        (rsa_key("weak", 1024).public_jwk, None),
        (ec_key("other", ec.SECP384R1, "ES384").public_jwk, None),
        (ec_key("other", ec.SECP384R1, "ES384").public_jwk | {"alg": "ES256"}, None),
        (EC | {"x": EC["y"]}, None),
        ({"kty": "oct", "k": "c2VjcmV0", "kid": "first"}, None),
        ({}, None),
        (7, None),
        (None, None),
    ],
)
def test_only_keys_that_fit_are_taken_and_the_others_spoil_nothing(entry: Any, name: tuple[str, str] | None) -> None:
    neighbour = rsa_key("neighbour").public_jwk
    assert set(keys_of({"keys": [entry, neighbour]})) == {("neighbour", "RS256")} | ({name} if name else set())
