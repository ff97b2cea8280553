"""How often somebody may try to sign in.

Every attempt takes a token of its address and one of the account that it names; one that succeeds gives them back. An
address has fewer than an account, so that nobody can use up an account's from one place. Many places can: so a browser
in which somebody signed in before holds a cookie that says so, and its attempts for that account are counted on their
own. Who is under attack signs in as usual from the browser of yesterday, and from a new one with some patience.

All of this goes by what was typed, never by whether there is such an account.
"""

import secrets
import unicodedata
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponseBase

from .addresses import client_address, network_of
from .limits import (
    KNOWN_BROWSER_REMEMBERED,
    SIGN_INS_BY_ACCOUNT,
    SIGN_INS_BY_ADDRESS,
    SIGN_INS_BY_BROWSER,
)
from .models import User
from .throttling import REFUSED, Bucket, Rate, digest, give_back, take

COOKIE = "known-browser"
_SALT = "orgs.sign_in"


class Throttled(ValidationError):
    def __init__(self, seconds: int) -> None:
        wait = f"{seconds} second{'' if seconds == 1 else 's'}" if seconds < 100 else f"{-(-seconds // 60)} minutes"
        super().__init__(f"There were too many attempts to sign in. Wait {wait}, then try again.", code="throttled")
        self.seconds = seconds


class ThrottledForm(AuthenticationForm):
    """An attempt that is refused here looks at no password."""

    error_messages = {
        **AuthenticationForm.error_messages,
        "provider": "This account signs in by the identity provider, not with a password.",
    }

    throttled_for: int | None = None  # seconds

    def clean(self) -> dict[str, Any]:
        account = self.cleaned_data.get("username")
        if not (account and self.cleaned_data.get("password") and settings.SIGN_IN_LIMITS and self.request):
            return super().clean() or {}
        buckets = buckets_of(self.request, account)
        try:
            attempt(buckets)
        except Throttled as error:
            self.throttled_for = error.seconds
            raise
        data = super().clean() or {}
        give_back(buckets)
        return data

    def confirm_login_allowed(self, user: Any) -> None:
        """What the provider gave somebody counts in sessions that it opened, and in no others."""
        super().confirm_login_allowed(user)
        if isinstance(user, User) and user.identities.exists():
            raise ValidationError(self.error_messages["provider"], code="provider")


class ThrottledAdminForm(ThrottledForm, AdminAuthenticationForm):
    """For the admin's own page."""


def attempt(buckets: Sequence[Bucket]) -> None:
    """Count an attempt to sign in; `give_back` where it succeeds. Raises `Throttled`."""
    taken = take(buckets) if settings.SIGN_IN_LIMITS else None
    if taken is not None and not taken.is_allowed:
        REFUSED.labels("sign-in").inc()
        raise Throttled(taken.retry_after)


def address_bucket(request: HttpRequest) -> Bucket:
    return Bucket(f"sign-in:address:{network_of(client_address(request))}", Rate(*SIGN_INS_BY_ADDRESS))


def buckets_of(request: HttpRequest, account: str) -> Sequence[Bucket]:
    name = _tag(account)
    owner, _, browser = _known_browser(request).partition(":")
    if owner == name and browser:
        return [Bucket(f"sign-in:browser:{browser}", Rate(*SIGN_INS_BY_BROWSER))]
    return [address_bucket(request), Bucket(f"sign-in:account:{name}", Rate(*SIGN_INS_BY_ACCOUNT))]


def _tag(account: str) -> str:
    """The same however an address is spelt; accounts go without case."""
    return digest("account:" + unicodedata.normalize("NFKC", account).strip().lower())[:32]


def _known_browser(request: HttpRequest) -> str:
    found = request.get_signed_cookie(COOKIE, "", salt=_SALT, max_age=int(KNOWN_BROWSER_REMEMBERED.total_seconds()))
    return str(found or "")


def conclude(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Finish the answer of a page that signs people in: the browser is known from now on, or is told to wait."""
    form = (getattr(response, "context_data", None) or {}).get("form")
    wait = getattr(form, "throttled_for", None)
    if wait is not None:
        response.status_code = 429
        response["Retry-After"] = str(wait)
    elif request.method == "POST" and response.status_code == 302 and isinstance(request.user, User):
        response.set_signed_cookie(
            COOKIE, f"{_tag(request.user.email)}:{secrets.token_hex(16)}", salt=_SALT,
            max_age=int(KNOWN_BROWSER_REMEMBERED.total_seconds()), httponly=True, samesite="Lax",
            secure=settings.SESSION_COOKIE_SECURE,
        )  # fmt: skip
    return response
