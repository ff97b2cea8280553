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
from zoneinfo import ZoneInfo

import axe_playwright_python
import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from analytics_site.rig import free_port
from exports.jobs import Wanted, cancelled
from exports.models import ExportJob, State
from orgs.actions import Action
from orgs.models import ApiKey, AuditRecord, Invitation, Membership, Org, Role, User
from reliability.models import Incident
from tests.browser.conftest import Open, keep
from tests.factories import MODEL, OTHER_MODEL, ingest, make_event, make_model, make_org, make_user
from usage.rollups import roll_up
from usage.windows import Window, local_day

pytestmark = pytest.mark.django_db(transaction=True)
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
ROOT = Path(__file__).parent.parent.parent
WAYS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
every_way = pytest.mark.parametrize(("width", "scheme"), WAYS)


def make_file(org: Org, status: State, **fields: object) -> ExportJob:
    """A job in some state, without a file."""
    now = timezone.now()
    month = fields.pop("month", None)
    wanted = Wanted(org=org, window=Window(now - timedelta(days=7), now), zone=org.time_zone, month=month)  # type: ignore[arg-type]
    job = wanted.job("user:owner@example.com")
    job.status = status
    if status in (State.SUCCEEDED, State.EXPIRED):
        job.row_count, job.byte_count, job.checksum, job.expires_at = 1_234, 20_480, "ab" * 32, now + timedelta(days=7)
        job.totals = {"cost_cents": "1739.2500"}
    for name, value in fields.items():
        setattr(job, name, value)
    job.save(force_insert=True)
    return job


def make_files(org: Org) -> None:
    """One in each state that stays as it is."""
    this_month = local_day(timezone.now(), ZoneInfo(org.time_zone)).replace(day=1)
    make_file(org, State.SUCCEEDED, month=(this_month - timedelta(days=1)).replace(day=1), initiated_by="schedule")
    make_file(org, State.SUCCEEDED)
    make_file(org, State.EXPIRED)
    make_file(org, State.FAILED, error="The store did not answer: " + "s3.example.com/" * 12)
    make_file(org, State.FAILED, error=cancelled("user:owner@example.com"), cancelled_by="user:owner@example.com")


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
    make_files(org)
    make_user("owner@example.com", org)
    make_user("viewer@example.com", org, Role.VIEWER)
    ApiKey.issue(org=org, name="gateway", scopes=["analytics:events:write"])
    key, _ = ApiKey.issue(org=org, name="old", scopes=["admin"], expires_at=now + timedelta(days=3))
    key.revoke()
    Invitation.issue(org, "new@example.com", Role.FINANCE, User.objects.get(email="owner@example.com"))
    AuditRecord.objects.create(
        actor="user:owner@example.com", action=Action.KEY_MADE, org=org, address="2001:db8:85a3::8a2e:370:7334",
        target="ak_1234abcd: analytics:usage:read, analytics:reliability:read, analytics:exports:create",
    )  # fmt: skip
    AuditRecord.objects.create(actor="key:ak_1234abcd", action=Action.REFUSED, org=org, outcome="denied")
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
    "exports": "/orgs/acme/exports/",
    "exports-begun": f"/orgs/acme/exports/?range=custom&start=2026-01-01T10:00&end=2026-01-02&model={MODEL}",
    "exports-empty": "/orgs/empty/exports/",
    "settings": "/orgs/acme/settings/",
    "audit": "/orgs/acme/settings/audit/",
    "audit-none": "/orgs/acme/settings/audit/?actor=nobody@example.com&before=1",
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


# ── Exports ──────────────────────────────────────────────────────────────────────────────────────────────────────
EXPORTS = "/orgs/acme/exports/"


@every_way
def test_files_that_move_and_errors_of_the_form_are_accessible_and_fit(
    open_page: Open, live_server: LiveServer, org: Org, width: int, scheme: str
) -> None:
    make_file(org, State.PENDING)
    make_file(org, State.PENDING, failures=1, error="The store did not answer.")
    make_file(org, State.RUNNING, rows_written=412_000)
    make_file(org, State.RUNNING, rows_written=412_000, cancelled_by="user:owner@example.com")
    page = open_page(width, scheme, bypass_csp=True)
    sign_in(page, live_server.url)
    page.goto(live_server.url + EXPORTS)
    keep(page, f"exports-moving-{scheme}-{width}")
    assert findings(page) == []
    page.click("label[for=export-dataset-incident_events]")
    page.click("label[for=export-range-custom]")
    page.fill("#export-start", "2026-01-05")
    page.fill("#export-end", "2026-01-02")
    page.fill("#export-limit", "0")
    page.click(".models summary")
    keep(page, f"exports-models-{scheme}-{width}")
    assert findings(page) == []
    assert not scrolls_sideways(page)
    page.keyboard.press("Escape")
    page.click(".export button.primary")
    expect(page.locator("#export-errors")).to_be_focused()
    expect(page.locator("#export-end")).to_have_accessible_description("The end must not lie before the start.")
    keep(page, f"exports-errors-{scheme}-{width}")
    assert findings(page) == []
    assert not scrolls_sideways(page)


def test_a_file_is_asked_for_by_keyboard(open_page: Open, live_server: LiveServer, org: Org, folder: Path) -> None:
    page = open_page()
    sign_in(page, live_server.url)
    page.goto(live_server.url + EXPORTS)
    expect(page.locator("#export-start")).to_be_hidden()
    press_until(page, "#export-dataset-usage")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#export-status")).to_be_visible()
    expect(page.locator("#export-granularity")).to_be_hidden()
    page.keyboard.press("Tab")
    press_until(page, "#export-range-custom", "ArrowRight", 6)
    expect(page.locator("#export-start")).to_be_visible()
    press_until(page, "#export-range-7d", "ArrowLeft", 6)
    press_until(page, ".models summary", limit=6)
    page.keyboard.press("Enter")
    press_until(page, ".models input", limit=2)
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    expect(page.locator(".models summary")).to_be_focused()
    expect(page.get_by_text("Chosen models")).to_be_visible()
    press_until(page, "#export-format", limit=2)
    page.keyboard.type("Parquet", delay=20)
    press_until(page, ".export button.primary", limit=3)
    page.keyboard.press("Enter")
    page.wait_for_url("**/exports/#job-*")
    job = ExportJob.objects.get(status=State.PENDING)
    assert (job.dataset, job.format, job.model_ids) == ("incident_events", "parquet", [OTHER_MODEL])
    expect(page.locator(f"#job-{job.pk}")).to_contain_text("Every call, 1 model, Parquet")
    press_until(page, f"#cancel-{job.pk}")
    page.keyboard.press("Enter")
    expect(page.locator(f"#job-{job.pk} .tag")).to_have_text("Cancelled")
    assert page.complaints == []  # type: ignore[attr-defined]


def change(job: ExportJob, **fields: object) -> None:
    ExportJob.objects.filter(pk=job.pk).update(**fields)


def test_progress_is_shown_in_place_and_only_what_ends_is_said(
    open_page: Open, live_server: LiveServer, org: Org
) -> None:
    ExportJob.objects.filter(month__isnull=False).delete()
    last_month = (local_day(timezone.now(), ZoneInfo(org.time_zone)).replace(day=1) - timedelta(days=1)).replace(day=1)
    of_month = make_file(org, State.RUNNING, month=last_month, rows_written=5)
    job = make_file(org, State.RUNNING, rows_written=1_000)
    page = open_page()
    sign_in(page, live_server.url)
    page.goto(live_server.url + EXPORTS)
    page.evaluate("window.untouched = true")
    row, said = page.locator(f"#job-{job.pk}"), page.locator("#announcement")
    expect(row).to_contain_text("1,000 rows so far")
    # What somebody is doing meanwhile stays: a menu that is open, the focus on a button of a row that is shown anew.
    page.click(".models summary")
    page.check(".models input >> nth=0")
    page.evaluate("id => document.getElementById(id).focus()", f"cancel-{job.pk}")
    change(job, rows_written=2_000)
    change(of_month, rows_written=6)
    expect(row).to_contain_text("2,000 rows so far")
    expect(page.locator(f"#cancel-{job.pk}")).to_be_focused()
    expect(page.locator(".models input >> nth=0")).to_be_visible()
    expect(page.locator(".models input >> nth=0")).to_be_checked()
    expect(page.locator(".last-month")).to_contain_text("6 rows so far")
    expect(said).to_have_text("")
    # It is ready: the row says so, so does the announcement, and the focus stays with it.
    ready = {"row_count": 2_345, "checksum": "cd" * 32, "expires_at": timezone.now() + timedelta(days=7)}
    change(job, status=State.SUCCEEDED, **ready)
    expect(row.locator(".tag")).to_have_text("Ready")
    expect(said).to_contain_text(": Ready")
    expect(row).to_be_focused()
    expect(row.locator("[data-copy]")).to_be_visible()
    # So is last month's, and nothing is asked for any more.
    change(of_month, status=State.SUCCEEDED, **ready)
    expect(page.locator(".last-month .tag")).to_have_text("Ready")
    expect(page.locator(".last-month .button")).to_be_visible()
    expect(page.locator("#poll")).not_to_have_attribute("hx-get", EXPORTS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2_500)
    assert asked == []
    assert page.evaluate("window.untouched") is True
    assert page.complaints == []  # type: ignore[attr-defined]


def test_a_page_that_follows_a_file_leads_to_the_sign_in_when_the_session_ends(
    open_page: Open, live_server: LiveServer, org: Org
) -> None:
    make_file(org, State.RUNNING)
    page = open_page()
    sign_in(page, live_server.url)
    page.goto(live_server.url + EXPORTS)
    page.context.clear_cookies()
    page.wait_for_url("**/login/?next=/orgs/acme/exports/")


def test_a_checksum_is_copied(open_page: Open, live_server: LiveServer, org: Org) -> None:
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sign_in(page, live_server.url)
    page.goto(live_server.url + EXPORTS)
    page.click(".last-month [data-copy]")
    expect(page.locator(".last-month [data-copy]")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "ab" * 32


def test_a_file_is_asked_for_without_script(open_page: Open, live_server: LiveServer, org: Org, folder: Path) -> None:
    page = open_page(script=False)
    sign_in(page, live_server.url)
    page.goto(live_server.url + EXPORTS)
    page.click("label[for=export-range-custom]")
    day = f"{timezone.now() - timedelta(days=2):%Y-%m-%d}"
    page.fill("#export-start", day)
    page.fill("#export-end", day)
    page.click(".export button.primary")
    expect(page.locator(".jobs .tag >> nth=0")).to_have_text("Waiting")
    expect(page.get_by_text("Reload the page to see progress.")).to_be_visible()


def test_the_exports_page_is_light(open_page: Open, live_server: LiveServer, org: Org) -> None:
    for _ in range(40):
        make_file(org, State.SUCCEEDED)
    page = open_page()
    sign_in(page, live_server.url)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.setCacheDisabled", {"cacheDisabled": True})
    sizes: list[int] = []
    network.on("Network.loadingFinished", lambda said: sizes.append(said["encodedDataLength"]))
    page.goto(live_server.url + EXPORTS, wait_until="networkidle")
    assert len(sizes) > 3
    assert sum(sizes) < 100_000, sizes  # of static files uncompressed: they are smaller where they were collected
