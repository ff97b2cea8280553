"""The pages in a real browser: axe finds nothing, nothing complains, nothing scrolls sideways, all works by keyboard."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import axe_playwright_python
import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from analytics_site.rig import free_port
from orgs.models import ApiKey, Invitation, Membership, Org, Role, User
from reliability.models import Incident
from tests.browser.conftest import Open, keep
from tests.factories import MODEL, OTHER_MODEL, ingest, make_event, make_model, make_org, make_user
from usage.rollups import roll_up

pytestmark = pytest.mark.django_db(transaction=True)
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
ROOT = Path(__file__).parent.parent.parent
WAYS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
every_way = pytest.mark.parametrize(("width", "scheme"), WAYS)


@pytest.fixture
def org() -> Org:
    """Two days of two models, one of them partly without a price; members, keys and an invitation."""
    org = make_org("Acme & Daughters", slug="acme", time_zone="Europe/Berlin")
    make_model()
    make_model(OTHER_MODEL, "Birch Mini")
    now = timezone.now()
    ingest(
        [
            make_event(
                org,
                occurred_at=now - timedelta(hours=hours),
                model_id=MODEL if hours % 3 else OTHER_MODEL,
                status="error" if hours % 7 == 0 else "success",
                cost_estimate_cents=None if hours % 6 == 0 else Decimal(hours),
            )
            for hours in range(48)
        ]
    )
    roll_up()
    Incident.objects.create(
        org=org, model_id=MODEL, measure="errorRate", started_at=now - timedelta(hours=8), ended_at=now - timedelta(hours=6),
        observed=0.31, normal=0.012, score=40, invocations=100, failures=31, failed_tokens=12_345,
        failed_cost_cents=Decimal("1234.5"), conditions=["errorRate"],
        causes={"models": [], "clients": [], "errorCodes": [{"name": "", "share": 0.9, "bad": 30, "expected": 1}]},
    )  # fmt: skip
    make_user("owner@example.com", org)
    make_user("viewer@example.com", org, Role.VIEWER)
    ApiKey.issue(org=org, name="gateway", scopes=["analytics:events:write"])
    key, _ = ApiKey.issue(org=org, name="old", scopes=["admin"], expires_at=now + timedelta(days=3))
    key.revoke()
    Invitation.issue(org, "new@example.com", Role.FINANCE, User.objects.get(email="owner@example.com"))
    make_org("Empty", slug="empty")
    Membership.objects.create(
        org=Org.objects.get(slug="empty"), user=User.objects.get(email="owner@example.com"), role=Role.ORG_ADMIN
    )
    return org


def sign_in(page: Page, server: str, email: str = "owner@example.com") -> None:
    page.goto(f"{server}/login/")
    page.fill("#id_username", email)
    page.fill("#id_password", "correct horse")
    page.click("button.primary")
    page.wait_for_url(lambda url: "/login/" not in url)


def go_back(page: Page) -> None:
    """As the browser's button does, until the page is there: what is asked while it loads goes with the old one."""
    with page.expect_event("load"):
        page.evaluate("() => { setTimeout(() => history.back()); }")


def findings(page: Page) -> list[str]:
    page.evaluate(AXE)
    violations = page.evaluate("async () => (await axe.run()).violations")
    return [f"{v['id']}: {node['html'][:200]}" for v in violations for node in v["nodes"]]


def scrolls_sideways(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


SIGNED_IN = {
    "usage": "/orgs/acme/usage/",
    "usage-hours": "/orgs/acme/usage/?range=24h&measure=tokens&group=none",
    "usage-model": f"/orgs/acme/usage/?range=30d&model={OTHER_MODEL}",
    "usage-empty": "/orgs/empty/usage/",
    "reliability": "/orgs/acme/reliability/",
    "reliability-hours": "/orgs/acme/reliability/?range=24h",
    "reliability-model": f"/orgs/acme/reliability/?range=30d&model={OTHER_MODEL}",
    "reliability-empty": "/orgs/empty/reliability/",
    "reliability-refused": "/orgs/acme/reliability/?exact=1",
    "usage-refused": "/orgs/acme/usage/?range=custom&start=2026-01-02&end=2026-01-01",
    "settings": "/orgs/acme/settings/",
    "orgs": "/orgs/",
    "no-access": "/orgs/acme-2/usage/",
    "not-found": "/nothing-here",
}


@every_way
def test_pages_are_accessible_and_fit(
    open_page: Open, live_server: LiveServer, org: Org, width: int, scheme: str
) -> None:
    page = open_page(width, scheme, bypass_csp=True)
    sign_in(page, live_server.url)
    found: dict[str, object] = {}
    for name, path in SIGNED_IN.items():
        page.goto(live_server.url + path, wait_until="networkidle")  # with what comes after the rest
        for closed in page.query_selector_all("details:not([open]):not(.switcher)"):
            closed.evaluate("details => { details.open = true }")
        keep(page, f"{name}-{scheme}-{width}")
        found |= {f"{name}: axe": findings(page)} if findings(page) else {}
        found |= {f"{name}: scrolls sideways": True} if scrolls_sideways(page) else {}
    assert found == {}


@every_way
def test_doors_are_accessible_and_fit(
    open_page: Open, live_server: LiveServer, org: Org, width: int, scheme: str
) -> None:
    page = open_page(width, scheme, bypass_csp=True)
    inviter = User.objects.get(email="owner@example.com")
    doors = {"login": "/login/", "invitation-over": "/invitations/nothing/"}
    for name, email in (("new", "somebody@example.com"), ("known", "viewer@example.com")):
        doors[f"invitation-{name}"] = f"/invitations/{Invitation.issue(org, email, Role.VIEWER, inviter)[1]}/"
    for name, path in doors.items():
        page.goto(live_server.url + path)
        keep(page, f"{name}-{scheme}-{width}")
        assert findings(page) == []
        assert not scrolls_sideways(page)


def test_nothing_complains_under_the_policy(open_page: Open, live_server: LiveServer, org: Org) -> None:
    page = open_page()
    sign_in(page, live_server.url)
    for path in SIGNED_IN.values():
        page.goto(live_server.url + path)
        page.wait_for_load_state("networkidle")
    page.goto(live_server.url + "/orgs/acme/usage/")
    page.click("label[for=range-30d]")
    expect(page.locator("#range-30d")).to_be_checked()
    page.wait_for_url("**/usage/?range=30d")
    page.click("label[for=range-custom]")
    page.fill("#start", "2026-01-01")
    page.fill("#end", "2026-01-31")
    page.click("button.apply")
    page.wait_for_url("**/usage/?*start=2026-01-01*")
    page.click("label[for=range-7d]")
    page.wait_for_url("**/usage/")
    page.hover(".slot >> nth=-1")
    expect(page.locator(".tip")).to_be_visible()
    page.click("label[for=range-24h]")
    page.wait_for_url("**/usage/?range=24h")
    page.click("#sections >> text=Reliability")  # the link follows the range
    page.wait_for_url("**/reliability/?range=24h")
    page.click("#models >> text=Birch Mini")
    page.wait_for_url(f"**/reliability/?range=24h&model={OTHER_MODEL}")
    page.hover("#figures .slot >> nth=-1")
    expect(page.locator(".tip:visible")).to_have_count(1)
    assert page.complaints == []  # type: ignore[attr-defined]


def test_the_address_follows_and_back_goes_back(open_page: Open, live_server: LiveServer, org: Org) -> None:
    page = open_page()
    sign_in(page, live_server.url)
    page.goto(live_server.url + "/orgs/acme/usage/")
    everything = page.get_attribute("#total-invocations", "data-exact")
    page.evaluate("window.untouched = true")
    page.click("#models >> text=Birch Mini")
    page.wait_for_url(f"**/?model={OTHER_MODEL}")
    expect(page.locator(".chip")).to_contain_text("Birch Mini")
    assert page.evaluate("window.untouched") is True
    assert page.get_attribute("#total-invocations", "data-exact") == "16"
    page.select_option("#granularity", "hour")
    page.wait_for_url(f"**/?granularity=hour&model={OTHER_MODEL}")
    go_back(page)
    page.wait_for_url(f"**/?model={OTHER_MODEL}")
    expect(page.locator(".chip")).to_contain_text("Birch Mini")
    go_back(page)
    page.wait_for_url("**/orgs/acme/usage/")
    expect(page.locator("#total-invocations")).to_have_attribute("data-exact", everything or "")


def test_a_session_that_ended_leads_to_the_sign_in(open_page: Open, live_server: LiveServer, org: Org) -> None:
    page = open_page()
    sign_in(page, live_server.url)
    page.goto(live_server.url + "/orgs/acme/usage/")
    page.context.clear_cookies()
    page.click("label[for=range-30d]")
    page.wait_for_url("**/login/?next=**range%3D30d")


def test_everything_works_without_script(open_page: Open, live_server: LiveServer, org: Org) -> None:
    page = open_page(script=False)
    sign_in(page, live_server.url)
    page.goto(live_server.url + "/orgs/acme/usage/")
    page.click("label[for=range-30d]")
    page.select_option("#model", str(MODEL))
    page.click("button.apply")
    expect(page.locator("#total-invocations")).to_have_attribute("data-exact", "32")
    page.click("#measure-tokens")
    expect(page.locator("#measure-tokens")).to_have_attribute("aria-current", "true")


def press_until(page: Page, selector: str, key: str = "Tab", limit: int = 120) -> None:
    """Walk with a key until something has the focus."""
    for _ in range(limit):
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{selector} can't be reached with {key}")


def test_everything_works_by_keyboard(open_page: Open, live_server: LiveServer, org: Org) -> None:
    page = open_page()
    page.goto(live_server.url + "/orgs/acme/usage/")
    # Sign in: the focus waits in the first field.
    expect(page.locator("#id_username")).to_be_focused()
    page.keyboard.type("owner@example.com")
    page.keyboard.press("Tab")
    page.keyboard.type("correct horse")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/login/" not in url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    # Change the range with the arrows; the focus stays.
    press_until(page, "#range-7d")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/?range=30d")
    expect(page.locator("#range-30d")).to_be_focused()
    # Filter by a model in the list.
    press_until(page, "#model")
    page.keyboard.type("Birch", delay=50)
    page.wait_for_url("**model=**")
    expect(page.locator(".chip")).to_contain_text("Birch Mini")
    # Walk along the chart: one stop, then arrows.
    press_until(page, ".slot")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".tip")).to_be_visible()
    expect(page.locator(".tip")).to_contain_text("Spend")
    page.keyboard.press("Tab")
    expect(page.locator(".slot:focus")).to_have_count(0)
    # Open or close the table.
    press_until(page, "#series > summary")
    was_open = page.get_attribute("#series", "open") is not None
    page.keyboard.press("Enter")
    assert (page.get_attribute("#series", "open") is not None) != was_open
    # The other page of the same figures: its range and model stay, each chart is one stop.
    page.goto(live_server.url + "/orgs/acme/usage/?range=30d")
    press_until(page, "#sections a[href*=reliability]")
    page.keyboard.press("Enter")
    page.wait_for_url("**/reliability/?range=30d")
    for said in ("Error rate", "p95"):
        press_until(page, ".slot")
        page.keyboard.press("ArrowLeft")
        expect(page.locator(".tip:visible")).to_contain_text(said)
        page.keyboard.press("Tab")
        expect(page.locator(".slot:focus")).to_have_count(0)
    press_until(page, "#incidents a[href*='range=custom']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/reliability/?range=custom**")
    # Settings: create a key, revoke it, change a role.
    page.goto(live_server.url + "/orgs/acme/settings/")
    press_until(page, "#key-name")
    page.keyboard.type("by hand")
    press_until(page, "#key-scopes_0")
    page.keyboard.press("Space")
    press_until(page, "form[action$=keys] button")
    page.keyboard.press("Enter")
    expect(page.locator("#secret")).to_contain_text("ak_")
    press_until(page, "#keys .confirm summary")  # the newest key is the first
    page.keyboard.press("Enter")
    press_until(page, "#keys .confirm[open] button", limit=3)
    page.keyboard.press("Enter")
    expect(page.locator(".note.success")).to_contain_text("was revoked")
    assert not ApiKey.objects.get(name="by hand").is_usable()
    member = Membership.objects.get(user__email="viewer@example.com")
    press_until(page, f"#role-{member.pk}")
    page.keyboard.type("Eng")
    press_until(page, f"form[action$='/{member.pk}/role'] button", limit=2)
    page.keyboard.press("Enter")
    expect(page.locator(".note.success")).to_contain_text("is now engineer")
    assert page.complaints == []  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def server_without_database() -> Iterator[str]:
    """The service, with nothing where its database should be."""
    port = free_port()
    environment = os.environ | {
        "DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "LOG_LEVEL": "CRITICAL",
    }
    command = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "analytics_site.wsgi"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/analytics/v1/status/healthz", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@every_way
def test_a_database_that_is_away_is_said_in_words(
    open_page: Open, server_without_database: str, width: int, scheme: str
) -> None:
    page = open_page(width, scheme, bypass_csp=True)
    # A session's cookie makes the page ask the database.
    page.context.add_cookies([{"name": "sessionid", "value": "a" * 32, "url": server_without_database}])
    answer = page.goto(f"{server_without_database}/orgs/acme/usage/", wait_until="load")
    assert answer is not None
    assert answer.status == 503
    assert answer.headers["x-request-id"] in page.inner_text("main")
    assert "The database does not answer" in page.inner_text("h1")
    keep(page, f"error-{scheme}-{width}")
    assert findings(page) == []
    assert not scrolls_sideways(page)
    assert page.complaints == []  # type: ignore[attr-defined]


def test_clients_of_a_long_range_come_after_the_rest_or_by_their_link(
    open_page: Open, live_server: LiveServer, org: Org
) -> None:
    address = f"{live_server.url}/orgs/acme/reliability/"
    page = open_page()
    sign_in(page, live_server.url)
    page.goto(address)
    page.wait_for_selector("table#clients")
    assert page.url == address
    assert page.complaints == []  # type: ignore[attr-defined]
    plain = open_page(script=False)
    sign_in(plain, live_server.url)
    plain.goto(address)
    assert not plain.query_selector("table#clients")
    plain.click("text=Show the clients")
    plain.wait_for_selector("table#clients")


def test_looking_closer_at_an_incident_begins_at_the_top(open_page: Open, live_server: LiveServer, org: Org) -> None:
    page = open_page(bypass_csp=True)  # so that the test may look where the page stands
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/orgs/acme/reliability/?range=24h")
    link = page.locator("text=Look closer").first
    link.scroll_into_view_if_needed()
    with page.expect_response(lambda response: "start=" in response.url):
        link.click()
    page.wait_for_url("**start=**")
    page.wait_for_function("window.scrollY === 0")
