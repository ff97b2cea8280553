"""Signing in by an identity provider in a real browser, under the policy, and what the pages of it look like."""

import pytest
from django.conf import LazySettings
from pytest_django.live_server_helper import LiveServer

from orgs.models import Membership, Role, User
from tests.browser.conftest import Open, keep
from tests.browser.test_pages import every_way, findings, scrolls_sideways
from tests.factories import make_org, make_user
from tests.orgs.conftest import provider  # noqa: F401  a fixture
from tests.orgs.identity_provider import IdentityProvider

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def acme(provider: IdentityProvider, settings: LazySettings, live_server: LiveServer) -> IdentityProvider:  # noqa: F811
    # By a name, as in the wild: cookies know no ports, and the provider is on 127.0.0.1.
    provider.sign_people_in(settings, live_server.url.replace("127.0.0.1", "localhost"))
    return provider


def test_to_the_provider_in_and_out_again(open_page: Open, settings: LazySettings, acme: IdentityProvider) -> None:
    org = make_org(slug="acme")
    acme.person["orgs"] = {str(org.pk): "org_admin"}
    page = open_page()
    page.goto(f"{settings.PUBLIC_URL}/orgs/acme/settings/")
    page.click("text=Sign in with Acme ID")
    page.wait_for_url("**/orgs/acme/settings/")
    assert page.inner_text(".who") == "ada@example.com"
    keep(page, "settings-by-provider")
    page.click("text=Sign out")
    page.wait_for_url("**/login/")  # by way of the provider
    assert "/end" in acme.asked
    page.goto(f"{settings.PUBLIC_URL}/orgs/")
    page.wait_for_url("**/login/?next=/orgs/")
    assert page.complaints == []  # type: ignore[attr-defined]


def test_an_account_with_a_password_is_connected(
    open_page: Open, settings: LazySettings, acme: IdentityProvider
) -> None:
    make_user("ada@example.com", make_org(slug="acme"), Role.VIEWER)
    page = open_page(390)
    page.goto(f"{settings.PUBLIC_URL}/login/")
    page.click("text=Sign in with Acme ID")
    page.click("text=Sign in to connect it")
    page.fill("#id_username", "ada@example.com")
    page.fill("#id_password", "correct horse")
    page.click("form button")
    page.click("text=Connect with Acme ID")
    page.wait_for_url("**/orgs/acme/usage/")
    assert not User.objects.get().has_usable_password()
    assert Membership.objects.get().identity is None
    assert page.complaints == []  # type: ignore[attr-defined]


@every_way
def test_the_ways_in_are_accessible_and_fit(
    open_page: Open, settings: LazySettings, acme: IdentityProvider, width: int, scheme: str
) -> None:
    make_user("ada@example.com")
    make_user("owner@example.com", make_org(slug="acme"))
    page = open_page(width, scheme, bypass_csp=True)

    def look(name: str, path: str) -> None:
        page.goto(settings.PUBLIC_URL + path)
        keep(page, f"{name}-{scheme}-{width}")
        assert findings(page) == []
        assert not scrolls_sideways(page)

    look("sign-in-both", "/login/")
    look("sign-in-account", "/login/provider/")
    acme.answer = {"error": "access_denied"}
    look("sign-in-cancelled", "/login/provider/")
    settings.SIGN_IN_PASSWORD = False
    look("sign-in-provider", "/login/?next=/orgs/")
    settings.OIDC_NAME = "The identity provider of a company with a long name"
    look("sign-in-long-name", "/login/")
    settings.OIDC_NAME, settings.SIGN_IN_PASSWORD = "Acme ID", True
    page.goto(f"{settings.PUBLIC_URL}/login/?next=/login/provider/connect/")
    page.fill("#id_username", "owner@example.com")
    page.fill("#id_password", "correct horse")
    page.click("form button")
    page.wait_for_url("**/connect/")
    look("connect", "/login/provider/connect/")
    settings.OIDC_CLIENT_ID = ""
    page.context.clear_cookies()
    look("sign-in-password", "/login/")
