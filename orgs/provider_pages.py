"""Signing in by the identity provider and out again, as a browser sees it: to the provider, back, and what went wrong."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import structlog
from authlib.common.urls import add_params_to_uri
from django.conf import settings
from django.contrib.auth import login, logout
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from . import audit, code_flow, identities
from .code_flow import Flow, SignInRefused
from .discovery import ProviderUnavailable
from .limits import SIGN_IN_LIFETIME
from .models import User
from .sign_in import Throttled, address_bucket, attempt
from .throttling import give_back

logger = structlog.get_logger(__name__)

BACKEND = "orgs.provider_backend.ProviderBackend"
_SIGN_OUT = "provider_sign_out"  # in the session: where the provider signs people out
_ATTEMPT, _WISH = "orgs.provider_pages.attempt", "orgs.provider_pages.wish"  # what is signed
_LIFETIME = int(SIGN_IN_LIFETIME.total_seconds())


@dataclass(frozen=True)
class Refusal:
    """What somebody reads who was not signed in."""

    title: str
    advice: str
    status: int = 403
    connects: bool = False  # whether connecting one's account is what helps


_NOT_SIGNED_IN = "You were not signed in"
_ANSWER = Refusal(
    _NOT_SIGNED_IN,
    "What {name} answered can't be relied on. Try again; if it stays like this, tell the operators of this service.",
    502,
)
_REFUSALS = {
    "state": Refusal(
        "Start again",
        "This sign-in was begun in another browser or window, or more than ten minutes ago, or is over already.",
        400,
    ),
    "cancelled": Refusal(
        _NOT_SIGNED_IN, "You did not go on at {name}, or it does not let you in here. Ask whoever runs it."
    ),
    "provider": Refusal(_NOT_SIGNED_IN, "{name} refused. Try again; if it stays like this, ask whoever runs it.", 502),
    "code": Refusal(
        "Start again", "{name} did not take what it had given out: it was used already, or is too old.", 400
    ),
    "issuer": _ANSWER,
    "token": _ANSWER,
    "no address": Refusal(_NOT_SIGNED_IN, "{name} did not say what your email address is. Ask whoever runs it."),
    "unverified": Refusal(
        _NOT_SIGNED_IN, "{name} has not made sure that your email address is yours. Confirm it there, then try again."
    ),
    "account": Refusal(
        "Connect your account first",
        "Your email address has an account here already, with a password. Sign in with that password once to connect it."
        " If it is not you who made it, or the password is lost, ask the operators of this service.",
        connects=True,
    ),
    "taken": Refusal(
        _NOT_SIGNED_IN,
        "Your email address belongs to somebody else's account here. Ask the operators of this service to change that.",
    ),
    "address": Refusal(
        "This is not your account",
        "Your email address at {name} is not the one of the account that you are signed in to here: nothing was connected.",
    ),
    "connected": Refusal(
        "Nothing was connected", "Whom {name} knows you as has another account here. Sign out, then sign in by {name}."
    ),
    "inactive": Refusal(_NOT_SIGNED_IN, "This account is switched off. Ask an admin of your organisation."),
    "unavailable": Refusal(
        "{name} does not answer", "You can't be signed in by it right now. Wait a few seconds, then try again.", 503
    ),
}


@never_cache
@require_safe
def begin(request: HttpRequest) -> HttpResponseBase:
    """To the provider. What has to come back stays with this browser."""
    _require_provider()
    flow = Flow.begin(safe_next(request, request.GET.get("next", "")), _connects(request))
    try:
        response = redirect(code_flow.address(flow, _way_back()))
    except ProviderUnavailable:
        return _refused(request, "unavailable")
    response.set_cookie(
        _cookie(), signing.dumps(flow.as_dict(), salt=_ATTEMPT), max_age=_LIFETIME, path="/",
        httponly=True, samesite="Lax", secure=settings.SESSION_COOKIE_SECURE,
    )  # fmt: skip
    return response


@never_cache
@require_safe
def come_back(request: HttpRequest) -> HttpResponseBase:
    """From the provider, with a code that is exchanged for what it says of somebody. Each attempt is good once."""
    _require_provider()
    buckets = [address_bucket(request)]
    flow = _flow(request)
    try:
        if flow is None or not flow.is_answered_by(request.GET.get("state", "")):
            raise SignInRefused("state")
        attempt(buckets)
        said = code_flow.finish(flow, request.GET.dict(), _way_back())
        entrance = identities.enter(said, _connecting(request, flow))
    except Throttled as error:
        response = _page(request, Refusal("Too many attempts", error.messages[0], 429))
        response["Retry-After"] = str(error.seconds)
    except SignInRefused as error:
        response = _refused(request, error.reason)
    except ProviderUnavailable:
        response = _refused(request, "unavailable")
    else:
        give_back(buckets)
        _open_session(request, entrance, said.sign_out)
        response = redirect(safe_next(request, flow.next) or settings.LOGIN_REDIRECT_URL)
    response.delete_cookie(_cookie(), path="/", samesite="Lax")
    return response


@never_cache
@require_safe
def connect(request: HttpRequest) -> HttpResponseBase:
    """Asks somebody who signed in with a password whether their account is to be signed in to by the provider from now on."""
    _require_provider()
    user = request.user
    if not isinstance(user, User):
        return redirect(f"{reverse('login')}?{urlencode({'next': request.path})}")
    if user.identities.exists():
        return redirect(settings.LOGIN_REDIRECT_URL)
    wish = signing.dumps(user.pk, salt=_WISH)
    return render(request, "orgs/connect.html", {"name": settings.OIDC_NAME, "wish": wish})


@never_cache
@require_POST
def sign_out(request: HttpRequest) -> HttpResponseBase:
    """Here, and at the provider where it opened the session and has an address for that.

    A page leads there, not a redirect: browsers hold the redirects of a form against Content-Security-Policy too.
    """
    asked: dict[str, str] = request.session.get(_SIGN_OUT) or {}
    logout(request)
    if not asked:
        return redirect(settings.LOGOUT_REDIRECT_URL)
    params = {
        "id_token_hint": asked["id_token_hint"],
        "client_id": settings.OIDC_CLIENT_ID,
        "post_logout_redirect_uri": f"{settings.PUBLIC_URL}{reverse('login')}",
    }
    url = add_params_to_uri(asked["url"], [(key, value) for key, value in params.items() if value])
    response = render(request, "orgs/signed_out.html", {"name": settings.OIDC_NAME, "url": url})
    response["Refresh"] = f"0; url={url}"
    response["Referrer-Policy"] = "no-referrer"
    return response


def safe_next(request: HttpRequest, url: str) -> str:
    """A page of this site, or ""."""
    is_ours = url_has_allowed_host_and_scheme(url, {request.get_host()}, require_https=request.is_secure())
    return url if is_ours else ""


def _require_provider() -> None:
    if not code_flow.is_on():
        raise Http404


def _way_back() -> str:
    return f"{settings.PUBLIC_URL}{reverse('come-back')}"


def _cookie() -> str:
    """Its name. With the prefix browsers take it from this very host alone: no other one of the domain can plant an attempt."""
    return "__Host-sign-in" if settings.SESSION_COOKIE_SECURE else "sign-in"


def _flow(request: HttpRequest) -> Flow | None:
    try:
        return Flow(**signing.loads(request.COOKIES.get(_cookie(), ""), salt=_ATTEMPT, max_age=_LIFETIME))
    except signing.BadSignature:
        return None


def _connects(request: HttpRequest) -> int | None:
    """The account to connect, where the page that asks led here: no other site can."""
    try:
        wished = signing.loads(request.GET.get("connect", ""), salt=_WISH, max_age=_LIFETIME)
    except signing.BadSignature:
        return None
    return request.user.pk if request.user.pk == wished else None


def _connecting(request: HttpRequest, flow: Flow) -> User | None:
    user = request.user
    if flow.connects is None:
        return None
    if not isinstance(user, User) or user.pk != flow.connects:
        raise SignInRefused("state")
    return user


def _open_session(request: HttpRequest, entrance: identities.Entrance, asked: Any) -> None:
    login(request, entrance.user, BACKEND)
    # By the clock, however often it is used: what the provider said is not relied on for longer.
    request.session.set_expiry(timezone.now() + timedelta(hours=settings.OIDC_SESSION_HOURS))
    request.session[_SIGN_OUT] = dict(asked)
    for change in entrance.changes:
        audit.record(request, change.action, change.org_id, change.target)


def _refused(request: HttpRequest, reason: str) -> HttpResponse:
    logger.info("provider_sign_in_refused", reason=reason)
    audit.record_failed_sign_in(request, f"identity provider: {reason}")
    return _page(request, _REFUSALS[reason])


def _page(request: HttpRequest, refusal: Refusal) -> HttpResponse:
    context = {
        "title": refusal.title.format(name=settings.OIDC_NAME),
        "advice": refusal.advice.format(name=settings.OIDC_NAME),
        "connects": refusal.connects and settings.SIGN_IN_PASSWORD,
        "name": settings.OIDC_NAME,
    }
    return render(request, "orgs/sign_in_refused.html", context, status=refusal.status)
