"""Signing in by the identity provider: a browser, this service, and a provider that is asked over real HTTP."""

import hashlib
import hmac
import json
import logging
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.cookies import SimpleCookie
from itertools import combinations
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import time_machine
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import LazySettings
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from analytics_site import checks
from orgs import code_flow, discovery, fetching, identities
from orgs.access import scopes_of
from orgs.code_flow import Assertion
from orgs.discovery import Discovery, ProviderUnavailable
from orgs.limits import JWKS_FETCH_TIMEOUT, MAX_PROVIDER_BYTES, SIGN_IN_FETCH_TIMEOUT, SIGN_IN_LIFETIME
from orgs.models import AuditRecord, Membership, Org, ProviderIdentity, Role, StaffRole, User
from tests.factories import make_org, make_user

from .identity_provider import CLIENT_ID, CLIENT_SECRET, STAFF_ROLE, IdentityProvider, b64, rsa_key

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse"
COOKIE = "sign-in"


@pytest.fixture
def acme(provider: IdentityProvider, settings: LazySettings) -> IdentityProvider:
    """A provider that signs people in, under an address of its own."""
    provider.sign_people_in(settings)
    return provider


@pytest.fixture
def org() -> Org:
    return make_org()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def through_provider(url: str) -> str:
    """What the provider answers a browser that was sent to it: the address that it is sent back to."""
    try:
        urllib.request.build_opener(_Stay).open(url, timeout=10)
    except urllib.error.HTTPError as answer:
        return str(answer.headers["Location"])
    raise AssertionError("no redirect")


def begin(client: Client, next_page: str = "", **params: str) -> str:
    """Press the button, and go through the provider: the address to come back to."""
    answer = client.get(reverse("begin-sign-in"), ({"next": next_page} if next_page else {}) | params)
    assert answer.status_code == 302, answer.content
    return through_provider(answer["Location"])


def come_back(client: Client, url: str, **changes: str | None) -> Any:
    parts = urlsplit(url)
    assert f"{parts.scheme}://{parts.netloc}" == "http://testserver"
    query = dict(parse_qsl(parts.query)) | changes
    return client.get(parts.path, {name: value for name, value in query.items() if value is not None})


def sign_in(client: Client, next_page: str = "", **params: str) -> Any:
    return come_back(client, begin(client, next_page, **params))


def assertion(issuer: str = "https://id.example.com", subject: str = "ada", **claims: Any) -> Assertion:
    return Assertion(issuer, subject, {"email": "ada@example.com", "email_verified": True, **claims}, {})


def who(client: Client) -> str:
    """The address of who is signed in."""
    pk = client.session.get("_auth_user_id")
    return User.objects.get(pk=pk).email if pk else ""


def assert_is_refused(client: Client, answer: Any, status: int, reason: str, said: str = "") -> None:
    assert answer.status_code == status, answer.content
    assert said in answer.content.decode()
    assert who(client) == ""
    record = AuditRecord.objects.latest("id")
    assert (record.action, record.outcome) == ("sign-in failed", "denied")
    assert record.target == f"identity provider: {reason}"
    assert answer.cookies[COOKIE].value == "" or COOKIE not in client.cookies


# ── What is right ────────────────────────────────────────────────────────────────────────────────────────────────


def test_somebody_new_gets_an_account_and_what_the_provider_gives(acme: IdentityProvider, org: Org) -> None:
    acme.person |= {"orgs": [str(org.pk), str(uuid.uuid4())], "roles": ["engineer", "somebody-elses"]}
    client = Client()
    answer = sign_in(client, f"/orgs/{org.slug}/usage/?range=24h")
    assert answer["Location"] == f"/orgs/{org.slug}/usage/?range=24h"
    assert client.get(answer["Location"]).status_code == 200
    user = User.objects.get()
    assert (user.email, user.email_confirmed, user.is_staff) == ("ada@example.com", True, False)
    assert not user.has_usable_password()
    member = Membership.objects.get()
    assert (member.org, member.user, member.role, member.identity) == (org, user, Role.ENGINEER, user.identities.get())
    assert (member.identity.issuer, member.identity.subject) == (acme.url, "ada")
    records = AuditRecord.objects.order_by("id").values_list("actor", "action", "org", "target")
    assert list(records) == [
        ("user:ada@example.com", "signed in", None, "/login/provider/callback"),
        ("user:ada@example.com", "identity connected", None, "ada@example.com: ada"),
        ("user:ada@example.com", "member added", org.pk, "ada@example.com as engineer, by the identity provider"),
    ]


def test_the_provider_is_asked_as_the_protocol_has_it(acme: IdentityProvider) -> None:
    client = Client()
    url = client.get(reverse("begin-sign-in"))["Location"]
    asked = dict(parse_qsl(urlsplit(url).query))
    assert url.startswith(f"{acme.url}/authorize?")
    assert {name: asked.pop(name) for name in ("response_type", "client_id", "scope", "code_challenge_method")} == {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "scope": "openid email profile",
        "code_challenge_method": "S256",
    }
    assert asked.pop("redirect_uri") == "http://testserver/login/provider/callback"
    assert sorted(asked) == ["code_challenge", "nonce", "state"]
    assert all(len(value) == 43 for value in asked.values())
    come_back(client, through_provider(url))
    sent = acme.exchanges[0]
    assert 43 <= len(sent["code_verifier"]) <= 128
    assert "client_secret" not in sent
    # Nothing of an attempt is used twice.
    again = dict(parse_qsl(urlsplit(Client().get(reverse("begin-sign-in"))["Location"]).query))
    assert not {asked[name] for name in ("state", "nonce", "code_challenge")} & set(again.values())


def test_the_client_s_secret_goes_as_the_provider_takes_it(acme: IdentityProvider) -> None:
    acme.auth_methods = ["client_secret_post", "private_key_jwt"]
    assert sign_in(Client()).status_code == 302
    assert (acme.exchanges[0]["client_secret"], acme.exchanges[0]["authorization"]) == (CLIENT_SECRET, "")


def test_an_account_is_known_again_by_its_subject_whatever_the_address_says(acme: IdentityProvider) -> None:
    sign_in(Client())
    acme.person |= {"email": "other@example.com", "email_verified": False}
    client = Client()
    sign_in(client)
    assert who(client) == "ada@example.com"
    assert User.objects.count() == 1


def test_claims_may_come_from_userinfo(acme: IdentityProvider, org: Org) -> None:
    acme.person = {"sub": "ada"}
    acme.userinfo = {
        "sub": "ada",
        "email": "Ada@Example.com",
        "email_verified": "true",
        "orgs": {str(org.pk): "viewer"},
    }
    client = Client()
    sign_in(client)
    assert who(client) == "ada@example.com"
    assert Membership.objects.get().role == Role.VIEWER


def test_userinfo_of_somebody_else_is_not_believed(acme: IdentityProvider) -> None:
    acme.person = {"sub": "ada"}
    acme.userinfo = {"sub": "eve", "email": "eve@example.com", "email_verified": True}
    client = Client()
    assert_is_refused(client, sign_in(client), 502, "token")


def test_userinfo_vouches_for_its_own_address_alone(acme: IdentityProvider) -> None:
    acme.person = {"sub": "ada", "email": "eve@example.com"}
    acme.userinfo = {"sub": "ada", "email": "ada@example.com", "email_verified": True}
    client = Client()
    assert_is_refused(client, sign_in(client), 403, "unverified")
    acme.userinfo["email"] = "eve@example.com"
    sign_in(client)
    assert who(client) == "eve@example.com"


def test_two_first_sign_ins_at_once_make_one_account(transactional_db: None, org: Org) -> None:
    said = assertion(orgs=[str(org.pk)], roles="viewer")

    def enter(_: int) -> int:
        try:
            return identities.enter(said).user.pk
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(enter, range(4)))) == 1
    assert (User.objects.count(), ProviderIdentity.objects.count(), Membership.objects.count()) == (1, 1, 1)


# ── Cookies and sessions ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("secure", "name"), [(False, "sign-in"), (True, "__Host-sign-in")])
def test_the_cookies_are_for_this_site_alone(
    acme: IdentityProvider, settings: LazySettings, secure: bool, name: str
) -> None:
    settings.SESSION_COOKIE_SECURE = secure
    client = Client()
    client.get(reverse("begin-sign-in"))
    cookie = client.cookies[name]
    assert (cookie["httponly"], cookie["samesite"], cookie["secure"], cookie["path"]) == (
        True,
        "Lax",
        secure or "",
        "/",
    )
    assert cookie["max-age"] == SIGN_IN_LIFETIME.total_seconds()
    answer = sign_in(client)
    assert answer.cookies[name].value == ""
    session = answer.cookies[settings.SESSION_COOKIE_NAME]
    assert (session["httponly"], session["samesite"], session["secure"]) == (True, "Lax", secure or "")


def test_a_session_ends_by_the_clock_however_often_it_is_used(acme: IdentityProvider, settings: LazySettings) -> None:
    settings.OIDC_SESSION_HOURS = 1
    client = Client()
    with time_machine.travel(timezone.now(), tick=False) as traveller:
        sign_in(client)
        for _ in range(5):
            traveller.shift(timedelta(minutes=11))
            session = client.session
            session["touched"] = time.time()
            session.save()
            assert client.get("/orgs/").status_code == 200
        traveller.shift(timedelta(minutes=6))
        assert client.get("/orgs/")["Location"] == "/login/?next=/orgs/"


def test_a_sign_in_gives_the_session_a_new_key(acme: IdentityProvider) -> None:
    client = Client()
    client.force_login(make_user("eve@example.com"))
    before = client.session.session_key
    sign_in(client)
    assert who(client) == "ada@example.com"
    assert client.session.session_key != before
    assert not Session.objects.filter(pk=before).exists()


def test_sessions_end_with_the_way_that_opened_them(acme: IdentityProvider, settings: LazySettings) -> None:
    by_provider, by_password = Client(), Client()
    sign_in(by_provider)
    by_password.force_login(make_user(), "django.contrib.auth.backends.ModelBackend")
    assert by_provider.get("/orgs/").status_code == by_password.get("/orgs/").status_code == 200
    backends = list(settings.AUTHENTICATION_BACKENDS)
    settings.AUTHENTICATION_BACKENDS = backends[1:]
    assert (by_provider.get("/orgs/").status_code, by_password.get("/orgs/").status_code) == (200, 302)
    settings.AUTHENTICATION_BACKENDS = [backends[0], backends[2]]
    assert by_provider.get("/orgs/").status_code == 302


def test_sign_out_leads_to_the_provider_s_own(acme: IdentityProvider) -> None:
    client = Client()
    sign_in(client)
    answer = client.post(reverse("logout"))
    assert who(client) == ""
    url = answer["Refresh"].removeprefix("0; url=")
    asked = dict(parse_qsl(urlsplit(url).query))
    assert (answer.status_code, url.split("?")[0]) == (200, f"{acme.url}/end")
    assert (asked["client_id"], asked["post_logout_redirect_uri"]) == (CLIENT_ID, "http://testserver/login/")
    assert code_flow.claims_of(asked["id_token_hint"], CLIENT_ID)["sub"] == "ada"
    assert answer["Referrer-Policy"] == "no-referrer"
    assert "no-store" in answer["Cache-Control"]
    assert through_provider(url) == "http://testserver/login/"


@pytest.mark.parametrize("address", [None, "javascript:alert(1)", "file:///etc/passwd", "https:nohost"])
def test_sign_out_stays_here_where_the_provider_has_no_address_for_it(
    acme: IdentityProvider, address: str | None
) -> None:
    acme.discovery = {"end_session_endpoint": address}
    client = Client()
    sign_in(client)
    assert client.post(reverse("logout"))["Location"] == "/login/"
    assert who(client) == ""


@pytest.mark.parametrize(
    "page",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "http:evil.example",
        "\x00/x",
    ],
)
def test_the_next_page_is_never_another_site(acme: IdentityProvider, page: str) -> None:
    assert sign_in(Client(), page)["Location"] == "/"


# ── Wrong answers ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", [None, "", "x" * 43, "é"])
def test_a_wrong_state_is_refused_before_the_provider_is_asked(acme: IdentityProvider, state: str | None) -> None:
    client = Client()
    answer = come_back(client, begin(client), state=state)
    assert_is_refused(client, answer, 400, "state", "begun in another browser")
    assert acme.exchanges == []


def test_an_attempt_of_another_browser_signs_nobody_in(acme: IdentityProvider) -> None:
    """Login CSRF: the attacker's answer in the victim's browser, with and without an attempt of its own."""
    attackers = begin(Client())
    victim = Client()
    assert_is_refused(victim, come_back(victim, attackers), 400, "state")
    begin(victim)
    assert_is_refused(victim, come_back(victim, attackers), 400, "state")
    assert acme.exchanges == []


def test_another_browser_s_code_does_not_fit(acme: IdentityProvider) -> None:
    """A stolen code with the thief's own state: the verifier and the nonce are others."""
    stolen = dict(parse_qsl(urlsplit(begin(Client())).query))["code"]
    thief = Client()
    answer = come_back(thief, begin(thief), code=stolen)
    assert_is_refused(thief, answer, 400, "code", "did not take")


def test_a_code_is_good_once(acme: IdentityProvider) -> None:
    client = Client()
    back, cookie = begin(client), client.cookies[COOKIE].value
    assert come_back(client, back).status_code == 302
    client.post(reverse("logout"))
    assert_is_refused(client, come_back(client, back), 400, "state")
    client.cookies[COOKIE] = cookie  # as whoever can read the browser's disk has it
    assert_is_refused(client, come_back(client, back), 400, "code")


def test_an_attempt_ends_after_ten_minutes(acme: IdentityProvider) -> None:
    client = Client()
    with time_machine.travel(timezone.now(), tick=False) as traveller:
        back, cookie = begin(client), client.cookies[COOKIE].value
        traveller.shift(SIGN_IN_LIFETIME + timedelta(seconds=1))
        client.cookies = SimpleCookie({COOKIE: cookie})
        assert_is_refused(client, come_back(client, back), 400, "state")


@pytest.mark.parametrize("value", ["", "x", "a:b:c", "é" * 200])
def test_a_cookie_that_was_not_made_here_is_none(acme: IdentityProvider, value: str) -> None:
    client = Client()
    back = begin(client)
    client.cookies[COOKIE] = value
    assert_is_refused(client, come_back(client, back), 400, "state")


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        ({"error": "access_denied", "error_description": "<b>no</b>"}, 403, "cancelled"),
        ({"error": "server_error"}, 502, "provider"),
        ({"error": "<script>"}, 502, "provider"),
        ({"code": ""}, 502, "provider"),
        ({"code": "x" * 5_000}, 502, "provider"),
        ({"code": "x\x00"}, 400, "code"),
        ({"no": "code"}, 502, "provider"),
    ],
)
def test_a_provider_that_says_no_is_said_in_words(
    acme: IdentityProvider, answer: dict[str, str], status: int, reason: str
) -> None:
    acme.answer = answer
    client = Client()
    got = sign_in(client)
    assert_is_refused(client, got, status, reason, "You were not signed in" if reason != "code" else "Start again")
    assert "<b>no" not in got.content.decode()
    assert "<script>" not in got.content.decode()


def test_an_answer_of_another_provider_is_refused(acme: IdentityProvider) -> None:
    client = Client()
    assert_is_refused(client, come_back(client, begin(client), iss="https://id.evil.example"), 502, "issuer")
    assert come_back(client, begin(client), iss=acme.url).status_code == 302
    assert len(acme.exchanges) == 1


def test_an_answer_must_name_its_provider_where_that_promised_to(acme: IdentityProvider) -> None:
    acme.discovery = {"authorization_response_iss_parameter_supported": True}
    client = Client()
    assert_is_refused(client, sign_in(client), 502, "issuer")


Make = Callable[[IdentityProvider, dict[str, Any]], Any]


def _hs256(provider: IdentityProvider, claims: dict[str, Any], secret: bytes) -> str:
    signed = f"{b64({'alg': 'HS256', 'kid': 'first'})}.{b64(provider.claims(**claims))}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


PUBLIC = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
WRONG_TOKENS: dict[str, Make] = {
    "no algorithm": lambda p, c: f"{b64({'alg': 'none', 'kid': 'first'})}.{b64(p.claims(**c))}.",
    "an HMAC with the public key": lambda p, c: _hs256(p, c, p.keys[0].private.public_key().public_bytes(*PUBLIC)),
    "an HMAC with the client's secret": lambda p, c: _hs256(p, c, CLIENT_SECRET.encode()),
    "another audience": lambda p, c: p.sign(**c | {"aud": "analytics"}),
    "an audience among others without azp": lambda p, c: p.sign(**c | {"aud": [CLIENT_ID, "other"]}),
    "made for another client": lambda p, c: p.sign(**c | {"aud": [CLIENT_ID, "other"], "azp": "other"}),
    "another issuer": lambda p, c: p.sign(**c | {"iss": "https://id.evil.example"}),
    "another nonce": lambda p, c: p.sign(**c | {"nonce": "x" * 43}),
    "no nonce": lambda p, c: p.sign(**c | {"nonce": None}),
    "a nonce that is a list": lambda p, c: p.sign(**c | {"nonce": [c["nonce"]]}),
    "expired": lambda p, c: p.sign(**c | {"exp": int(time.time()) - 31}),
    "no expiry": lambda p, c: p.sign(**c | {"exp": None}),
    "no moment of issue": lambda p, c: p.sign(**c | {"iat": None}),
    "not valid yet": lambda p, c: p.sign(**c | {"nbf": int(time.time()) + 600}),
    "an unknown key": lambda p, c: p.sign(rsa_key("stranger"), **c),
    "a stranger's key by a known id": lambda p, c: p.sign(rsa_key("stranger"), {"kid": "first"}, **c),
    "another access token": lambda p, c: p.sign(**c | {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}),
    "no subject": lambda p, c: p.sign(**c | {"sub": None}),
    "an empty subject": lambda p, c: p.sign(**c | {"sub": ""}),
    "a subject with a line break": lambda p, c: p.sign(**c | {"sub": "a\nb"}),
    "a subject that is too long": lambda p, c: p.sign(**c | {"sub": "a" * 256}),
    "no token": lambda p, c: "",
    "a number": lambda p, c: 7,
    "an access token": lambda p, c: p.token(uuid.uuid4()),
}


@pytest.mark.parametrize("make", WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_a_wrong_id_token_signs_nobody_in(acme: IdentityProvider, make: Make) -> None:
    acme.id_token = lambda claims: make(acme, claims)
    client = Client()
    assert_is_refused(client, sign_in(client), 502, "token", "can&#x27;t be relied on")
    assert not User.objects.exists()


def test_an_id_token_of_an_earlier_sign_in_is_refused(acme: IdentityProvider) -> None:
    kept: list[str] = []
    acme.id_token = lambda claims: kept.append(acme.sign(**claims)) or kept[0]  # type: ignore[func-returns-value]
    assert sign_in(Client()).status_code == 302
    client = Client()
    assert_is_refused(client, sign_in(client), 502, "token")


# ── A provider that is not well ──────────────────────────────────────────────────────────────────────────────────


def test_a_provider_that_is_away_is_said_and_comes_back(acme: IdentityProvider) -> None:
    client = Client()
    back = begin(client)
    acme.go_away()
    assert_is_refused(client, come_back(client, back), 503, "unavailable", "Acme ID does not answer")
    acme.come_back()
    assert sign_in(client).status_code == 302


def test_a_provider_that_was_never_there_is_said_at_the_button(acme: IdentityProvider) -> None:
    acme.go_away()
    answer = Client().get(reverse("begin-sign-in"))
    assert (answer.status_code, "Acme ID does not answer" in answer.content.decode()) == (503, True)
    assert COOKIE not in answer.cookies
    assert Client().get("/login/").status_code == 200


HUGE = b'{"id_token": "' + b"x" * MAX_PROVIDER_BYTES + b'"}'


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", HUGE, b"[" * 100_000, b"\xff\xfe"])
def test_an_answer_that_is_no_answer_is_said(acme: IdentityProvider, body: bytes) -> None:
    acme.token_body = body
    client = Client()
    assert_is_refused(client, sign_in(client), 503, "unavailable")


@pytest.mark.parametrize(
    ("status", "shown", "reason"), [(500, 503, "unavailable"), (429, 503, "unavailable"), (403, 400, "code")]
)
def test_a_token_endpoint_that_refuses_is_said(
    acme: IdentityProvider, status: int, shown: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    acme.token_status = status
    client = Client()
    assert_is_refused(client, sign_in(client), shown, reason)


def test_a_provider_that_hangs_is_not_waited_for(acme: IdentityProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_flow, "SIGN_IN_FETCH_TIMEOUT", timedelta(seconds=0.3))
    client = Client()
    for name, value in (("token_pause", 2.0), ("drip", 0.2)):
        back = begin(client)
        setattr(acme, name, value)
        assert_is_refused(client, come_back(client, back), 503, "unavailable")
        setattr(acme, name, 0.0)
    assert SIGN_IN_FETCH_TIMEOUT.total_seconds() < 10
    assert JWKS_FETCH_TIMEOUT.total_seconds() < 10


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/", "javascript:x", "//127.0.0.1/", None, 7])
@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint"])
def test_the_provider_leads_nowhere_but_over_http(acme: IdentityProvider, name: str, address: object) -> None:
    acme.discovery = {name: address}
    assert Client().get(reverse("begin-sign-in")).status_code == 503


def test_over_https_it_leads_to_https_alone() -> None:
    document = {"issuer": "https://id.example.com", "token_endpoint": "http://id.example.com/token"}
    with pytest.raises(ValueError, match="over https"):
        discovery.endpoint(document, "token_endpoint")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "data:application/json,{}", "ftp://127.0.0.1/x"])
def test_only_http_is_fetched(url: str) -> None:
    with pytest.raises(OSError, match=r"unknown url type"):
        fetching.fetch(url, time.monotonic() + 5)


def test_redirects_of_the_token_endpoint_are_not_followed(acme: IdentityProvider) -> None:
    acme.token_status, acme.headers = 307, {"Location": f"{acme.url}/elsewhere"}
    client = Client()
    assert_is_refused(client, sign_in(client), 503, "unavailable")
    assert "/elsewhere" not in acme.asked


def test_another_issuer_s_document_is_not_believed(acme: IdentityProvider) -> None:
    acme.discovery = {"issuer": "https://id.evil.example"}
    assert Client().get(reverse("begin-sign-in")).status_code == 503


def test_the_last_document_counts_while_none_can_be_had_and_failures_are_not_repeated(acme: IdentityProvider) -> None:
    found = Discovery(acme.url)
    with time_machine.travel(timezone.now(), tick=False) as traveller:
        document = found.find()
        acme.go_away()
        traveller.shift(timedelta(hours=1))
        assert found.find() == document
        acme.come_back()
        before = len(acme.asked)
        assert found.find() == document
        assert len(acme.asked) == before  # the failure was a moment ago
        traveller.shift(timedelta(seconds=11))
        found.find()
        assert len(acme.asked) == before + 1
        acme.go_away()
        traveller.shift(timedelta(hours=7))
        with pytest.raises(ProviderUnavailable):
            found.find()


def test_nothing_secret_is_logged_or_kept(acme: IdentityProvider, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client = Client()
        back = begin(client)
        come_back(client, back)
        acme.token_status = 403
        come_back(client, begin(client))
        acme.token_status, acme.token_body = 200, json.dumps({"id_token": "a.b.c"}).encode()
        sign_in(client)
    text = " ".join(record.getMessage() for record in caplog.records)
    text += " ".join(f"{r.actor} {r.target}" for r in AuditRecord.objects.all())
    secrets = [CLIENT_SECRET, "an-access-token", "a.b.c", *(sent["code_verifier"] for sent in acme.exchanges)]
    secrets += [sent["code"] for sent in acme.exchanges]
    assert [secret for secret in secrets if secret in text] == []


# ── Whose account ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verified", [None, False, "false", "yes", 1.5, []])
def test_an_address_that_the_provider_does_not_vouch_for_gets_no_account(
    acme: IdentityProvider, verified: object
) -> None:
    make_user("ada@example.com", email_confirmed=True)
    acme.person["email_verified"] = verified
    client = Client()
    assert_is_refused(client, sign_in(client), 403, "unverified", "has not made sure")
    assert not ProviderIdentity.objects.exists()


@pytest.mark.parametrize("email", [None, "", "ada", "a\x00@b.example", ["ada@example.com"], "a" * 250 + "@b.example"])
def test_what_is_no_address_gets_no_account(acme: IdentityProvider, email: object) -> None:
    acme.person["email"] = email
    client = Client()
    assert_is_refused(client, sign_in(client), 403, "no address")


@pytest.mark.parametrize(
    "fields",
    [{}, {"is_staff": True, "email_confirmed": True}, {"is_superuser": True, "email_confirmed": True}],
    ids=["not confirmed", "staff", "superuser"],
)
def test_an_account_is_not_taken_by_its_address_alone(acme: IdentityProvider, fields: dict[str, bool]) -> None:
    user = make_user("ada@example.com", **fields)
    client = Client()
    assert_is_refused(client, sign_in(client), 403, "account", "Sign in to connect it")
    user.refresh_from_db()
    assert user.check_password(PASSWORD)


def test_a_confirmed_account_of_no_staff_is_taken_and_its_password_ends(acme: IdentityProvider, org: Org) -> None:
    user = make_user("ada@example.com", org, Role.FINANCE, email_confirmed=True)
    before, client = Client(), Client()
    before.force_login(user)
    assert sign_in(client)["Location"] == "/"
    assert who(client) == "ada@example.com"
    assert before.get("/orgs/").status_code == 302
    user.refresh_from_db()
    assert not user.has_usable_password()
    assert Membership.objects.get().identity is None


def test_an_address_that_passed_to_somebody_else_takes_nothing(acme: IdentityProvider) -> None:
    sign_in(Client())
    acme.person["sub"] = "eve"
    client = Client()
    assert_is_refused(client, sign_in(client), 403, "taken", "somebody else")


def test_who_has_the_password_connects_the_account(acme: IdentityProvider) -> None:
    user = make_user("ada@example.com", is_staff=True, staff_role=StaffRole.ADMIN)
    client = Client()
    page = client.post(
        "/login/?next=/login/provider/connect/", {"username": user.email, "password": PASSWORD}, follow=True
    )
    assert "Connect with Acme ID" in page.content.decode()
    wish = page.context["wish"]
    assert sign_in(client, connect=wish).status_code == 302
    assert ProviderIdentity.objects.get().user == user
    user.refresh_from_db()
    assert (user.is_staff, user.staff_role, user.email_confirmed) == (True, StaffRole.ADMIN, True)
    assert client.get("/admin/").status_code == 200
    assert client.get(reverse("connect"))["Location"] == "/"


def test_nobody_is_connected_without_asking(acme: IdentityProvider) -> None:
    """Another site can send a browser to the button, and knows no wish of this person's."""
    user, other = make_user("ada@example.com"), make_user()
    client, others = Client(), Client()
    client.force_login(user)
    others.force_login(other)
    for wish in ("", "x", others.get(reverse("connect")).context["wish"]):
        assert sign_in(client, connect=wish).status_code == 403
    assert not ProviderIdentity.objects.exists()
    assert Client().get(reverse("connect"))["Location"] == "/login/?next=%2Flogin%2Fprovider%2Fconnect%2F"


def test_only_one_s_own_address_is_connected(acme: IdentityProvider) -> None:
    client = Client()
    client.force_login(make_user("grace@example.com"))
    answer = sign_in(client, connect=client.get(reverse("connect")).context["wish"])
    assert (answer.status_code, "This is not your account" in answer.content.decode()) == (403, True)
    assert who(client) == "grace@example.com"
    sign_in(Client())  # ada has an account now
    answer = sign_in(client, connect=client.get(reverse("connect")).context["wish"])
    assert (answer.status_code, "Nothing was connected" in answer.content.decode()) == (403, True)


def test_a_wish_counts_for_whoever_is_still_signed_in(acme: IdentityProvider) -> None:
    client = Client()
    client.force_login(make_user("ada@example.com"))
    back = begin(client, connect=client.get(reverse("connect")).context["wish"])
    attempt = client.cookies[COOKIE].value
    client.logout()
    client.cookies[COOKIE] = attempt
    assert_is_refused(client, come_back(client, back), 400, "state")


def test_an_account_that_is_switched_off_stays_so(acme: IdentityProvider) -> None:
    sign_in(Client())
    User.objects.update(is_active=False)
    client = Client()
    assert_is_refused(client, sign_in(client), 403, "inactive", "switched off")


def test_who_has_an_identity_needs_no_password_and_can_t_use_one(acme: IdentityProvider) -> None:
    sign_in(Client())
    user = User.objects.get()
    user.set_password(PASSWORD)  # as staff may do in the admin
    user.save()
    client = Client()
    answer = client.post("/login/", {"username": user.email, "password": PASSWORD})
    assert "signs in by the identity provider" in answer.content.decode()
    assert who(client) == ""


def test_staff_connect_an_account_by_hand(acme: IdentityProvider, boss: Client) -> None:
    user = make_user("ada@example.com")
    page = reverse("admin:orgs_user_change", args=[user.pk])
    assert f'value="{acme.url}"' in boss.get(page).content.decode()
    fields = {
        "email": user.email, "is_active": "on", "staff_role": "staff_support",
        "memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0,
        "identities-TOTAL_FORMS": 1, "identities-INITIAL_FORMS": 0,
        "identities-0-issuer": acme.url, "identities-0-subject": "ada", "identities-0-user": user.pk,
    }  # fmt: skip
    answer = boss.post(page, fields)
    assert answer.status_code == 302, answer.context["errors"]
    client = Client()
    sign_in(client)
    assert who(client) == "ada@example.com"


@pytest.mark.parametrize(
    ("role", "victim"),
    [
        (StaffRole.SUPPORT, {"staff_role": StaffRole.ADMIN}),
        (StaffRole.SUPPORT, {"is_superuser": True}),
        (StaffRole.ADMIN, {"is_superuser": True}),  # another staff admin they may change
    ],
)
def test_nobody_connects_an_identity_of_theirs_with_somebody_who_may_more(
    acme: IdentityProvider, role: StaffRole, victim: dict[str, Any]
) -> None:
    user, client = make_user("boss@example.com", is_staff=True, **victim), Client()
    client.force_login(make_user(is_staff=True, staff_role=role))
    fields = {
        "email": user.email, "identities-TOTAL_FORMS": 1, "identities-INITIAL_FORMS": 0,
        "identities-0-issuer": acme.url, "identities-0-subject": "ada", "identities-0-user": user.pk,
    }  # fmt: skip
    assert client.post(reverse("admin:orgs_user_change", args=[user.pk]), fields).status_code == 403
    assert not ProviderIdentity.objects.exists()


# ── What the provider gives ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("roles", [some for n in (1, 2, 3, 4) for some in combinations(Role.values, n)], ids="+".join)
def test_of_several_roles_the_one_that_allows_all_of_them_counts(org: Org, roles: tuple[str, ...]) -> None:
    identities.enter(assertion(orgs={str(org.pk): list(roles)}))
    assert scopes_of([Membership.objects.get().role]) == scopes_of(roles)


def test_what_the_provider_no_longer_says_is_gone_at_the_next_sign_in_in_every_session(
    acme: IdentityProvider, org: Org
) -> None:
    other = make_org("Other")
    acme.person["orgs"] = {str(org.pk): "org_admin", str(other.pk): "viewer"}
    older, newer = Client(), Client()
    sign_in(older)
    assert older.get(f"/orgs/{org.slug}/settings/").status_code == 200
    acme.person["orgs"] = {str(other.pk): "engineer"}
    sign_in(newer)
    for client in (older, newer):
        assert client.get(f"/orgs/{org.slug}/usage/").status_code == 403
        assert client.get(f"/orgs/{other.slug}/exports/").status_code == 200
    acme.person["orgs"] = []
    sign_in(newer)
    assert not Membership.objects.exists()
    actions = AuditRecord.objects.filter(org=org).values_list("action", flat=True).order_by("id")
    assert list(actions) == ["member added", "member removed", "refused"]


def test_what_was_given_here_stays_as_it_is(acme: IdentityProvider, org: Org) -> None:
    user = make_user("ada@example.com", org, Role.VIEWER, email_confirmed=True)
    acme.person["orgs"] = {str(org.pk): "org_admin"}
    sign_in(Client())
    acme.person["orgs"] = []
    sign_in(Client())
    member = Membership.objects.get()
    assert (member.user, member.role, member.identity) == (user, Role.VIEWER, None)


def test_staff_are_staff_for_as_long_as_the_provider_says(acme: IdentityProvider, org: Org) -> None:
    acme.person["roles"] = [STAFF_ROLE]
    client = Client()
    sign_in(client)
    assert client.get("/admin/").status_code == 200
    assert User.objects.get().staff_role_held is StaffRole.SUPPORT
    User.objects.update(staff_role=StaffRole.ADMIN)
    sign_in(client)
    assert User.objects.get().staff_role_held is StaffRole.ADMIN
    acme.person["roles"] = []
    sign_in(Client())
    assert client.get("/admin/", follow=True).status_code == 403
    assert (User.objects.get().is_staff, User.objects.get().staff_role) == (False, StaffRole.SUPPORT)
    assert AuditRecord.objects.filter(action="staff changed by the identity provider").count() == 2


def test_who_was_staff_here_stays_it(acme: IdentityProvider) -> None:
    user = make_user("ada@example.com", is_staff=True)
    ProviderIdentity.objects.create(user=user, issuer=acme.url, subject="ada")
    for roles in ([STAFF_ROLE], []):
        acme.person["roles"] = roles
        sign_in(Client())
        user.refresh_from_db()
        assert user.is_staff


def test_with_an_identity_goes_what_it_gave(acme: IdentityProvider, org: Org) -> None:
    acme.person |= {"orgs": {str(org.pk): "viewer"}, "roles": [STAFF_ROLE]}
    sign_in(Client())
    ProviderIdentity.objects.get().delete()
    assert not Membership.objects.exists()
    assert not User.objects.get().is_staff


def test_another_provider_takes_the_place_of_the_one_before(org: Org) -> None:
    identities.enter(assertion("https://old.example", "1", orgs={str(org.pk): "org_admin"}))
    identities.enter(assertion("https://new.example", "2"))
    assert (User.objects.count(), ProviderIdentity.objects.get().issuer) == (1, "https://new.example")
    assert not Membership.objects.exists()


def test_an_org_s_admins_see_and_leave_what_comes_from_the_provider(acme: IdentityProvider, org: Org) -> None:
    acme.person["orgs"] = {str(org.pk): "org_admin"}
    sign_in(Client())
    client, member = Client(), Membership.objects.get()
    client.force_login(make_user("owner@example.com", org))
    settings_page = reverse("settings", args=[org.slug])
    html = client.get(settings_page).content.decode()
    assert "By the identity provider" in html
    assert html.count("lose access at once") == 1
    for name, fields in (("change-role", {"role": "viewer"}), ("remove-member", {})):
        said = client.post(reverse(name, args=[org.slug, member.pk]), fields, follow=True).content.decode()
        assert "comes from the identity provider" in said
    member.refresh_from_db()
    assert member.role == Role.ORG_ADMIN


# ── One way, the other, or both ──────────────────────────────────────────────────────────────────────────────────


def test_without_a_client_there_is_no_sign_in_by_the_provider(steady_provider: IdentityProvider) -> None:
    assert [Client().get(reverse(name)).status_code for name in ("begin-sign-in", "come-back", "connect")] == [404] * 3
    page = Client().get("/login/").content.decode()
    assert "Sign in with" not in page
    assert 'name="password"' in page


def test_the_page_offers_what_there_is(acme: IdentityProvider, settings: LazySettings) -> None:
    page = Client().get("/login/?next=/orgs/").content.decode()
    assert 'href="/login/provider/?next=/orgs/"' in page
    assert "Sign in with Acme ID" in page
    assert 'name="password"' in page
    settings.SIGN_IN_PASSWORD = False
    page = Client().get("/login/?next=/orgs/").content.decode()
    assert "Sign in with Acme ID" in page
    assert 'name="password"' not in page


def test_without_passwords_none_is_looked_at(acme: IdentityProvider, settings: LazySettings, org: Org) -> None:
    user = make_user("boss@example.com", org, is_staff=True)
    settings.SIGN_IN_PASSWORD = False
    for page in ("/login/", "/admin/login/"):
        client = Client()
        client.post(page, {"username": user.email, "password": PASSWORD})
        assert who(client) == ""
    assert Client().post("/login/").status_code == 405


@pytest.mark.parametrize("with_password", [True, False])
def test_the_admin_leads_to_the_same_page(acme: IdentityProvider, settings: LazySettings, with_password: bool) -> None:
    settings.SIGN_IN_PASSWORD = with_password
    answer = Client().get("/admin/orgs/org/", follow=True)
    assert answer.redirect_chain[-1][0] == "/login/?next=/admin/orgs/org/"
    client = Client()
    sign_in(client)  # no staff: no circle of redirects
    assert client.get("/admin/", follow=True).status_code == 403


def test_attempts_are_counted_and_those_that_succeed_are_not(acme: IdentityProvider, settings: LazySettings) -> None:
    settings.SIGN_IN_LIMITS = True
    address = f"2001:db8:{uuid.uuid4().hex[:4]}:{uuid.uuid4().hex[:4]}::1"
    client = Client(REMOTE_ADDR=address)
    for _ in range(12):
        assert sign_in(client).status_code == 302
    acme.person["email_verified"] = False
    ProviderIdentity.objects.all().delete()
    statuses = [sign_in(client).status_code for _ in range(12)]
    assert statuses == [403] * 10 + [429] * 2
    before = len(acme.exchanges)
    refused = sign_in(client)
    assert int(refused["Retry-After"]) > 0
    assert "too many attempts" in refused.content.decode()
    assert len(acme.exchanges) == before


def test_not_both_ways_are_off(settings: LazySettings) -> None:
    assert checks.somebody_can_sign_in(None) == []
    settings.SIGN_IN_PASSWORD = False
    assert [(one.id, one.obj) for one in checks.somebody_can_sign_in(None)] == [("analytics.E011", "SIGN_IN_PASSWORD")]
    settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID = "https://id.example.com", "analytics"
    assert checks.somebody_can_sign_in(None) == []


def test_an_id_token_should_be_no_bearer_token(settings: LazySettings) -> None:
    settings.OIDC_AUDIENCE, settings.OIDC_CLIENT_ID = "analytics", "pages"
    assert checks.id_tokens_are_no_bearer_tokens(None) == []
    settings.OIDC_CLIENT_ID = "analytics"
    assert [one.id for one in checks.id_tokens_are_no_bearer_tokens(None)] == ["analytics.W011"]
