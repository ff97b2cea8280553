"""A real browser. Where there is none the tests are skipped."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.exports.conftest import folder  # noqa: F401  a fixture

# Playwright keeps an event loop in this thread, which Django takes for asynchronous code.
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCREENSHOTS = Path(__file__).parent.parent / "screenshots"

Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is missing; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """New pages. `page.complaints` of a page lists what the browser said: errors of scripts, the policy, the console."""
    contexts: list[BrowserContext] = []

    def open_one(width: int = 1280, scheme: str = "light", *, bypass_csp: bool = False, script: bool = True) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=bypass_csp, java_script_enabled=script
        )  # type: ignore[call-overload]  # fmt: skip
        contexts.append(context)
        page: Page = context.new_page()
        page.complaints = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda said: _note(page, said.type, said.text))
        return page

    yield open_one
    for context in contexts:
        context.close()


def _note(page: Page, kind: str, text: str) -> None:
    # A status of 400 or more that a test asks for is no fault of the page.
    if kind in ("error", "warning") and not re.match(r"Failed to load resource: .* status of [45]", text):
        page.complaints.append(text)  # type: ignore[attr-defined]


def keep(page: Page, name: str) -> None:
    """A picture for people, where they ask for it."""
    if os.environ.get("SCREENSHOTS") == "1":
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
