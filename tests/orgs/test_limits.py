"""How often somebody may ask: who shares a bucket with whom, what is answered, and what happens without Redis."""

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import redis
from django.conf import LazySettings
from django.test import Client, RequestFactory
from rest_framework.test import APIClient

from analytics_site.rig import redis_url
from orgs import sign_in, throttling
from orgs.addresses import client_address, network_of
from orgs.models import ApiKey, Org
from orgs.throttling import Bucket, Caller, Rate, give_back, take

from ..factories import as_json, make_event, make_key, make_org, make_user
from ..processes import NOWHERE
from .identity_provider import IdentityProvider

pytestmark = pytest.mark.django_db
ROOT = "/analytics/v1"
PASSWORD = "correct horse"


@pytest.fixture(autouse=True)
def own_redis(settings: LazySettings, worker_id: str) -> None:
    """Buckets that no other test takes from, and limits as an operator might set them; none is full again meanwhile."""
    settings.REDIS_URL = redis_url(10 + int(worker_id.removeprefix("gw") or 0) % 5 if worker_id != "master" else 15)
    redis.Redis.from_url(settings.REDIS_URL).flushdb()
    throttling._outage.until, throttling._outage.said = 0.0, float("-inf")
    settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_REQUESTS_BURST = 1, 5
    settings.RATE_LIMIT_EVENTS, settings.RATE_LIMIT_EVENTS_BURST = 1, 8
    settings.RATE_LIMIT_STRANGERS, settings.RATE_LIMIT_STRANGERS_BURST = 1, 3
    settings.SIGN_IN_LIMITS = True
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.MD5PasswordHasher"
    ]  # tokens come back while others take long


@pytest.fixture
def org() -> Org:
    return make_org()


def machine(org: Org | None, address: str = "192.0.2.1") -> APIClient:
    return with_token(make_key(org), address)


def with_token(token: str, address: str = "192.0.2.1") -> APIClient:
    return APIClient(raise_request_exception=False, headers={"X-API-Key": token}, REMOTE_ADDR=address)


def person(address: str = "192.0.2.1", **fields: Any) -> Client:
    client = Client(REMOTE_ADDR=address)
    client.force_login(make_user(**fields))
    return client


def freshness(org: Org) -> str:
    return f"{ROOT}/orgs/{org.pk}/freshness"


def statuses(client: Any, path: str, times: int) -> list[int]:
    return [client.get(path).status_code for _ in range(times)]


def bucket(rate: Rate) -> Bucket:
    return Bucket(uuid.uuid4().hex, rate)


# ── The bucket ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_fifty_at_once_exactly_as_many_pass_as_there_are_tokens() -> None:
    shared, start = bucket(Rate(1, 20)), threading.Barrier(50)

    def one(_: int) -> bool:
        start.wait()
        taken = take([shared])
        assert taken is not None
        return taken.is_allowed

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(one, range(50))) == 20


def test_tokens_come_back_with_time_and_never_more_than_fit() -> None:
    shared = bucket(Rate(60, 2))  # one a second

    def passed() -> int:
        return sum(taken.is_allowed for _ in range(4) if (taken := take([shared])))

    assert passed() == 2
    time.sleep(1.1)
    assert passed() == 1
    time.sleep(2.5)
    assert passed() == 2


def test_what_is_told_is_what_is_left() -> None:
    shared = bucket(Rate(6, 3))
    found = [take([shared]) for _ in range(4)]
    assert [(t.is_allowed, t.limit, t.remaining) for t in found if t] == [
        (True, 3, 2), (True, 3, 1), (True, 3, 0), (False, 3, 0),
    ]  # fmt: skip
    first, *_, last = found
    assert first is not None
    assert last is not None
    assert (first.reset, last.reset, last.retry_after) == (10, 30, 10)


def test_a_bucket_goes_by_itself_once_it_is_full(settings: LazySettings) -> None:
    shared, other = bucket(Rate(60, 5)), bucket(Rate(1, 5))
    take([shared])
    take([other])
    server = redis.Redis.from_url(settings.REDIS_URL)
    assert 0 < server.pttl(shared.key) <= 1_001
    assert 50_000 < server.pttl(other.key) <= 60_001
    time.sleep(1.1)
    assert not server.exists(shared.key)


def test_of_two_buckets_a_token_is_taken_of_both_or_of_none() -> None:
    narrow, wide = bucket(Rate(1, 1)), bucket(Rate(1, 3))
    assert [taken.is_allowed for _ in range(3) if (taken := take([narrow, wide]))] == [True, False, False]
    assert [taken.is_allowed for _ in range(3) if (taken := take([wide]))] == [True, True, False]


def test_what_is_given_back_is_there_again() -> None:
    shared = bucket(Rate(1, 2))
    for _ in range(5):
        take([shared])
        give_back([shared])
    assert [taken.remaining for _ in range(2) if (taken := take([shared]))] == [1, 0]
    give_back([shared])
    taken = take([shared])
    assert taken is not None
    assert taken.is_allowed


def test_a_clock_that_went_back_costs_no_more_than_a_full_bucket(settings: LazySettings) -> None:
    shared = bucket(Rate(60, 3))
    ahead = int((time.time() + 86_400) * 1_000_000)
    redis.Redis.from_url(settings.REDIS_URL).set(shared.key, ahead)
    taken = take([shared])
    assert taken is not None
    assert (taken.is_allowed, taken.retry_after) == (False, 1)


def test_without_a_limit_nobody_is_asked(settings: LazySettings) -> None:
    settings.REDIS_URL = f"redis://{NOWHERE}/0"
    assert take([bucket(Rate(0, 5))], Caller("x", "requests", Rate(0, 1))) is None
    assert throttling._outage.until == 0


# ── Who shares a bucket ──────────────────────────────────────────────────────────────────────────────────────────


def test_over_its_limit_a_key_is_refused_with_a_problem_that_says_for_how_long(org: Org) -> None:
    client = machine(org)
    answers = [client.get(freshness(org)) for _ in range(8)]
    # The first is its address's: nobody knew the key yet.
    assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 2
    assert [answer["RateLimit-Limit"] for answer in answers] == ["3"] + ["5"] * 7
    assert [answer["RateLimit-Remaining"] for answer in answers] == ["2", "4", "3", "2", "1", "0", "0", "0"]
    refused = answers[-1]
    assert refused["Content-Type"] == "application/problem+json"
    assert refused["X-Request-ID"]
    assert 55 <= int(refused["Retry-After"]) <= 60
    assert 290 <= int(refused["RateLimit-Reset"]) <= 300
    body = refused.json()
    assert (body["status"], body["type"]) == (429, "urn:analytics:problem:too-many-requests")
    assert f"repeat in {refused['Retry-After']} seconds" in body["detail"]


def test_two_orgs_and_two_keys_of_one_org_do_not_slow_each_other_down(org: Org, settings: LazySettings) -> None:
    settings.RATE_LIMIT_STRANGERS_BURST = 10
    rival = make_org("Rival")
    for client, owner in ((machine(org), org), (machine(org), org), (machine(rival), rival)):
        assert statuses(client, freshness(owner), 7) == [200] * 6 + [429]


def test_one_person_has_one_bucket_in_all_their_browsers(org: Org) -> None:
    user = make_user(org=org)
    browsers = [Client(REMOTE_ADDR=f"192.0.2.{n}") for n in range(2)]
    for browser in browsers:
        browser.force_login(user)
        assert browser.get(freshness(org)).status_code == 200  # known from now on
    assert statuses(browsers[0], freshness(org), 5) == [200] * 5
    assert browsers[1].get(freshness(org)).status_code == 429
    assert statuses(person("192.0.2.7", org=org), freshness(org), 6) == [200] * 6


def test_a_token_has_the_bucket_of_whoever_holds_it(org: Org, provider: IdentityProvider) -> None:
    mine = [f"Bearer {provider.token(org.pk, sub='mira', jti=name)}" for name in "ab"]
    theirs = f"Bearer {provider.token(org.pk, sub='noor')}"

    def asked(token: str, times: int) -> list[int]:
        client = APIClient(raise_request_exception=False, headers={"Authorization": token}, REMOTE_ADDR="192.0.2.1")
        return statuses(client, freshness(org), times)

    assert asked(mine[0], 1) + asked(mine[1], 1) == [200, 200]  # known from now on
    assert asked(mine[0], 5) == [200] * 5
    assert asked(mine[1], 1) == [429]
    assert asked(theirs, 6) == [200] * 6


def test_a_page_says_it_in_words(org: Org) -> None:
    browser = person(org=org)
    answer = [browser.get(f"/orgs/{org.slug}/settings/") for _ in range(7)][-1]
    assert (answer.status_code, answer["Content-Type"]) == (429, "text/html; charset=utf-8")
    assert "Too many requests" in answer.content.decode()
    assert int(answer["Retry-After"]) > 0
    assert "default-src" in answer["Content-Security-Policy"]


def test_events_and_reads_have_limits_of_their_own(org: Org) -> None:
    client = machine(org)
    assert statuses(client, freshness(org), 7)[-1] == 429
    path = f"{ROOT}/orgs/{org.pk}/events"
    sent = [client.post(path, [as_json(make_event(org))], format="json") for _ in range(9)]
    assert [answer.status_code for answer in sent] == [200] * 8 + [429]
    assert {answer["RateLimit-Limit"] for answer in sent} == {"8"}
    assert client.post(f"{ROOT}/events/validate", as_json(make_event(org)), format="json").status_code == 429


def test_guessing_keys_is_slow_and_asks_no_database(org: Org, django_assert_num_queries: Any) -> None:
    def guess(address: str) -> int:
        return with_token(f"ak_{uuid.uuid4().hex[:8]}_{uuid.uuid4().hex}", address).get(freshness(org)).status_code

    assert [guess("192.0.2.9") for _ in range(3)] == [401] * 3
    with django_assert_num_queries(0):
        assert [guess("192.0.2.9") for _ in range(5)] == [429] * 5
    assert guess("192.0.2.10") == 401


def test_a_right_guess_is_refused_like_the_others_while_its_address_has_no_tokens(org: Org) -> None:
    token = make_key(org)
    for _ in range(3):
        with_token("ak_00000000_wrong").get(freshness(org))
    assert with_token(token).get(freshness(org)).status_code == 429
    assert with_token(token, "192.0.2.2").get(freshness(org)).status_code == 200


def test_whoever_guesses_does_not_hurt_a_key_of_the_same_address_that_is_in_use(org: Org) -> None:
    client = machine(org)
    client.get(freshness(org))
    for _ in range(5):
        with_token("ak_00000000_wrong").get(freshness(org))
    assert statuses(client, freshness(org), 5) == [200] * 5


def test_a_guess_at_a_keys_secret_costs_that_key_nothing(org: Org) -> None:
    token = make_key(org)
    client = with_token(token)
    client.get(freshness(org))
    for _ in range(5):
        with_token(f"{token[:-4]}none", "192.0.2.66").get(freshness(org))
    assert statuses(client, freshness(org), 5) == [200] * 5


def test_a_revoked_key_is_a_strangers_again(org: Org) -> None:
    token = make_key(org)
    client = with_token(token)
    assert statuses(client, freshness(org), 2) == [200, 200]
    ApiKey.objects.get().revoke()
    assert statuses(client, freshness(org), 4) == [401, 401, 401, 429]


def test_a_session_that_is_over_is_a_strangers_again(org: Org) -> None:
    browser = person(org=org)
    kept = browser.cookies["sessionid"].value
    assert [browser.get("/orgs/")["RateLimit-Limit"] for _ in range(2)] == ["3", "5"]
    browser.post("/logout/")
    browser.cookies["sessionid"] = kept
    assert browser.get("/login/")["RateLimit-Limit"] == "3"


def test_nobody_buys_tokens_for_pages_with_a_key(org: Org) -> None:
    client = machine(org)
    client.get(freshness(org))
    assert statuses(client, "/login/", 3) == [200, 200, 429]


def test_no_secret_stands_in_redis(org: Org, settings: LazySettings) -> None:
    token = make_key(org)
    with_token(token).get(freshness(org))
    Client().post("/login/", {"username": "owner@example.com", "password": "wrong"})
    server = redis.Redis.from_url(settings.REDIS_URL)
    kept = b" ".join(name + b" " + (server.get(name) or b"") for name in server.scan_iter())
    assert b"key:" in kept
    for secret in (token, ApiKey.objects.get().key_hash, "owner@example.com"):
        assert secret.encode() not in kept
    assert all(server.ttl(name) > 0 for name in server.scan_iter())


def test_health_metrics_and_static_files_are_never_limited(settings: LazySettings) -> None:
    client = Client()
    for path in (f"{ROOT}/status/healthz", f"{ROOT}/status/readyz", "/metrics", "/static/style.css"):
        answers = [client.get(path) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 6, path
        assert "RateLimit-Limit" not in answers[0]


def test_an_address_without_anything_behind_it_counts_too() -> None:
    assert statuses(APIClient(raise_request_exception=False), f"{ROOT}/nothing", 4) == [404] * 3 + [429]


def test_zero_switches_a_limit_off(org: Org, settings: LazySettings) -> None:
    settings.RATE_LIMIT_REQUESTS = 0
    client = machine(org)
    answers = [client.get(freshness(org)) for _ in range(12)]
    assert {answer.status_code for answer in answers} == {200}
    assert "RateLimit-Limit" not in answers[-1]
    settings.RATE_LIMIT_STRANGERS = 0
    assert statuses(Client(), "/login/", 8) == [200] * 8


# ── Addresses ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("proxies", "header", "found"),
    [
        (0, "203.0.113.5", "10.0.0.1"),
        (0, None, "10.0.0.1"),
        (1, None, "10.0.0.1"),
        (1, "", "10.0.0.1"),
        (1, "203.0.113.5", "203.0.113.5"),
        (1, "198.51.100.1, 203.0.113.5", "203.0.113.5"),
        (1, "198.51.100.1, nonsense", "10.0.0.1"),
        (2, "198.51.100.1, 203.0.113.5, 10.0.0.2", "203.0.113.5"),
        (2, "203.0.113.5", "203.0.113.5"),
        (1, "203.0.113.5:4711", "203.0.113.5"),
        (1, "[2001:db8::1]:4711", "2001:db8::1"),
        (1, "2001:db8::1", "2001:db8::1"),
        (1, "::ffff:203.0.113.5", "203.0.113.5"),
        (1, "fe80::1%eth0", "fe80::1"),
    ],
)
def test_a_header_is_believed_as_far_as_proxies_are_trusted(
    settings: LazySettings, proxies: int, header: str | None, found: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    told = {} if header is None else {"HTTP_X_FORWARDED_FOR": header}
    assert client_address(RequestFactory().get("/", REMOTE_ADDR="10.0.0.1", **told)) == found  # type: ignore[arg-type]


def test_an_ipv6_address_counts_as_its_64_and_a_socket_without_one_as_itself() -> None:
    assert network_of("2001:db8:1:2:3::4") == network_of("2001:db8:1:2:ffff::") == "2001:db8:1:2::/64"
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of(client_address(RequestFactory().get("/", REMOTE_ADDR=""))) == "unknown"


@pytest.mark.parametrize("proxies", [0, 1])
def test_a_forged_header_evades_nothing_and_hurts_nobody(settings: LazySettings, proxies: int) -> None:
    settings.TRUSTED_PROXIES = proxies
    client = Client(REMOTE_ADDR="10.0.0.1")

    def get(real: str, forged: str) -> int:
        """As the outermost proxy passes it on, where there is one."""
        header = f"{forged}, {real}" if proxies else forged
        address = "10.0.0.1" if proxies else real
        return client.get("/login/", headers={"X-Forwarded-For": header}, REMOTE_ADDR=address).status_code

    assert [get("192.0.2.66", f"198.51.100.{n}") for n in range(5)] == [200] * 3 + [429] * 2
    assert get("198.51.100.0", "") == 200, "the address that was forged is unharmed"


def test_the_log_says_the_address_that_is_believed(settings: LazySettings, caplog: pytest.LogCaptureFixture) -> None:
    Client(REMOTE_ADDR="192.0.2.1").get("/login/", headers={"X-Forwarded-For": "198.51.100.1"})
    (finished,) = [r.msg for r in caplog.records if isinstance(r.msg, dict) and r.msg["event"] == "request_finished"]
    assert finished["ip"] == "192.0.2.1"


# ── Signing in ───────────────────────────────────────────────────────────────────────────────────────────────────

ACCOUNT = "owner@example.com"
PAGES = pytest.mark.parametrize("page", ["/login/", "/admin/login/"])


@pytest.fixture
def owner(settings: LazySettings) -> Any:
    settings.RATE_LIMIT_STRANGERS = 0
    return make_user(ACCOUNT, is_staff=True)


def sign_in_at(page: str, account: str, password: str, address: str = "192.0.2.1", client: Client | None = None) -> Any:
    return (client or Client()).post(page, {"username": account, "password": password}, REMOTE_ADDR=address)


@PAGES
@pytest.mark.parametrize("account", [ACCOUNT, "nobody@example.com"])
def test_who_guesses_at_an_account_from_one_address_has_to_wait(owner: Any, page: str, account: str) -> None:
    answers = [sign_in_at(page, account, f"wrong {n}") for n in range(11)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    assert 20 <= int(answers[-1]["Retry-After"]) <= 30
    assert f"too many attempts to sign in. Wait {answers[-1]['Retry-After']} seconds" in answers[-1].content.decode()
    assert sign_in_at(page, ACCOUNT, PASSWORD).status_code == 429, "the right password is not looked at either"


@PAGES
def test_an_account_from_one_address_is_open_from_another(owner: Any, page: str) -> None:
    for n in range(30):
        sign_in_at(page, ACCOUNT, f"wrong {n}")
    assert sign_in_at(page, ACCOUNT, PASSWORD, "192.0.2.2").status_code == 302


def test_spraying_one_password_over_many_accounts_is_slow(owner: Any) -> None:
    answers = [sign_in_at("/login/", f"person{n}@example.com", "Summer2026") for n in range(12)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2


def test_guessing_at_one_account_from_many_addresses_is_slow_however_it_is_spelt(owner: Any) -> None:
    spelt = (ACCOUNT, ACCOUNT.upper(), f" {ACCOUNT} ", "Owner@Example.com")
    answers = [sign_in_at("/login/", spelt[n % 4], f"wrong {n}", f"198.51.100.{n}") for n in range(22)]
    assert [answer.status_code for answer in answers] == [200] * 20 + [429] * 2


def test_whoever_signed_in_here_before_is_not_locked_out_by_strangers(owner: Any) -> None:
    usual = Client()
    assert sign_in_at("/login/", ACCOUNT, PASSWORD, client=usual).status_code == 302
    usual.post("/logout/")
    for n in range(25):
        sign_in_at("/login/", ACCOUNT, f"wrong {n}", f"198.51.100.{n}")
    for _ in range(12):  # and of the same address
        sign_in_at("/login/", "somebody@example.com", "wrong")
    assert sign_in_at("/login/", ACCOUNT, PASSWORD).status_code == 429
    assert sign_in_at("/login/", ACCOUNT, PASSWORD, client=usual).status_code == 302


def test_a_known_browser_has_few_guesses_and_none_at_other_accounts(owner: Any) -> None:
    usual = Client()
    sign_in_at("/login/", ACCOUNT, PASSWORD, client=usual)
    usual.post("/logout/")
    for _ in range(11):
        sign_in_at("/login/", "other@example.com", "wrong")
    assert sign_in_at("/login/", "other@example.com", "wrong", client=usual).status_code == 429
    answers = [sign_in_at("/login/", ACCOUNT, "wrong", client=usual).status_code for _ in range(11)]
    assert answers == [200] * 10 + [429]


def test_the_cookie_of_a_known_browser_cannot_be_made_up(owner: Any) -> None:
    forged = Client()
    forged.cookies[sign_in.COOKIE] = f"{sign_in._tag(ACCOUNT)}:{'0' * 32}"
    for n in range(25):
        sign_in_at("/login/", ACCOUNT, f"wrong {n}", f"198.51.100.{n}")
    assert sign_in_at("/login/", ACCOUNT, PASSWORD, client=forged).status_code == 429


def test_those_who_succeed_cost_their_office_nothing(owner: Any) -> None:
    assert [sign_in_at("/login/", ACCOUNT, PASSWORD).status_code for _ in range(15)] == [302] * 15


@PAGES
def test_without_redis_people_sign_in(owner: Any, settings: LazySettings, page: str) -> None:
    settings.REDIS_URL = f"redis://{NOWHERE}/0"
    assert sign_in_at(page, ACCOUNT, PASSWORD).status_code == 302


# ── Redis away ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hanging() -> Iterator[socket.socket]:
    """A Redis that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def connections_to(server: socket.socket) -> int:
    taken = 0
    with contextlib.suppress(TimeoutError):
        while True:
            server.accept()[0].close()
            taken += 1
    return taken


def said(caplog: pytest.LogCaptureFixture) -> int:
    events = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return sum(event["event"] == "throttling_unavailable" for event in events)


def test_a_redis_that_refuses_limits_nobody_and_is_said_once_a_minute(
    org: Org, settings: LazySettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL = f"redis://{NOWHERE}/0"
    client = machine(org)
    before = throttling.UNASKED._value.get()
    for _ in range(10):
        answer = client.get(freshness(org))
        throttling._outage.until = 0.0
        assert answer.status_code == 200
        assert "RateLimit-Limit" not in answer
    assert throttling.UNASKED._value.get() - before == 10
    assert said(caplog) == 1
    monkeypatch.setattr(throttling, "_LOG_EVERY", 0.0)
    client.get(freshness(org))
    assert said(caplog) == 2


def test_a_redis_that_hangs_is_waited_for_once_and_then_left_alone_for_a_while(
    org: Org, settings: LazySettings, hanging: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttling, "THROTTLE_PAUSE", timedelta(minutes=1))
    settings.REDIS_URL = f"redis://127.0.0.1:{hanging.getsockname()[1]}/0"
    client = machine(org)
    start = time.monotonic()
    assert take([bucket(Rate(1, 1))]) is None
    assert time.monotonic() - start < 1.5, "0.5 s at most, on a machine that has other things to do"
    assert statuses(client, freshness(org), 10) == [200] * 10
    assert connections_to(hanging) == 1


def test_limits_hold_again_once_redis_is_back(org: Org, settings: LazySettings) -> None:
    right, settings.REDIS_URL = settings.REDIS_URL, f"redis://{NOWHERE}/0"
    client = machine(org)
    assert client.get(freshness(org)).status_code == 200
    settings.REDIS_URL, throttling._outage.until = right, 0.0
    assert statuses(client, freshness(org), 7)[-1] == 429


def test_a_redis_that_forgot_the_script_is_given_it_again(settings: LazySettings) -> None:
    shared = bucket(Rate(1, 5))
    take([shared])
    redis.Redis.from_url(settings.REDIS_URL).script_flush()
    taken = take([shared])
    assert taken is not None
    assert taken.remaining == 3
