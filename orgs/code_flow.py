"""OpenID Connect's authorization code flow: from the button to what the identity provider says of a person.

Authlib makes and checks the protocol's messages; they go out by `fetching`, and an ID token's signature is looked at
where every token of the provider is (`tokens`).
"""

import hmac
import secrets
import time
import urllib.error
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jwt
import structlog
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.client import OAuth2Client
from authlib.oauth2.rfc6749.parameters import prepare_token_request
from authlib.oidc.core import CodeIDToken
from django.conf import settings
from joserfc.errors import JoseError

from .discovery import ProviderUnavailable, discovery, endpoint
from .fetching import error_of, fetch, in_time
from .limits import MAX_CODE_LENGTH, MAX_HINT_LENGTH, MAX_IDENTITY_LENGTH, SIGN_IN_FETCH_TIMEOUT
from .signing_keys import KeysUnavailable
from .tokens import MALFORMED, InvalidToken, claims_of, has_claim

logger = structlog.get_logger(__name__)


class SignInRefused(Exception):
    """Why somebody is not signed in: a word for the page, the audit trail and the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_on() -> bool:
    """Whether people may sign in by the provider."""
    return bool(settings.OIDC_ISSUER and settings.OIDC_CLIENT_ID)


@dataclass(frozen=True)
class Flow:
    """One attempt, kept by the browser that began it: whoever comes back must bring it along."""

    state: str
    nonce: str
    verifier: str
    next: str
    connects: int | None = None  # the account to connect, where somebody signed in asked for that

    @classmethod
    def begin(cls, next_page: str, connects: int | None = None) -> "Flow":
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(64), next_page, connects)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def is_answered_by(self, state: str) -> bool:
        return hmac.compare_digest(self.state.encode(), state.encode(errors="surrogateescape"))


@dataclass(frozen=True)
class Assertion:
    """What the provider said of a person, verified."""

    issuer: str
    subject: str
    claims: Mapping[str, Any]
    sign_out: Mapping[str, str]  # where the provider signs people out, and what it is told; empty where it does not


def address(flow: Flow, redirect_uri: str) -> str:
    """Where the browser is sent. Raises `ProviderUnavailable`."""
    document = discovery(settings.OIDC_ISSUER).find()
    client = OAuth2Client(
        None,
        client_id=settings.OIDC_CLIENT_ID,
        scope=settings.OIDC_SCOPES,
        redirect_uri=redirect_uri,
        code_challenge_method="S256",
    )
    url, _ = client.create_authorization_url(
        endpoint(document, "authorization_endpoint"), state=flow.state, nonce=flow.nonce, code_verifier=flow.verifier
    )
    return str(url)


def finish(flow: Flow, answer: Mapping[str, str], redirect_uri: str) -> Assertion:
    """What the provider says, for the answer that a browser brought back. Raises `SignInRefused`, `ProviderUnavailable`."""
    if not flow.is_answered_by(answer.get("state", "")):
        raise SignInRefused("state")
    document = discovery(settings.OIDC_ISSUER).find()
    # RFC 9207: an answer of another provider, mixed in.
    issuer = answer.get("iss")
    if issuer is None and document.get("authorization_response_iss_parameter_supported") is True:
        raise SignInRefused("issuer")
    if issuer is not None and issuer != settings.OIDC_ISSUER:
        raise SignInRefused("issuer")
    if "error" in answer:
        raise SignInRefused("cancelled" if answer["error"] == "access_denied" else "provider")
    code = answer.get("code", "")
    if not 0 < len(code) <= MAX_CODE_LENGTH:
        raise SignInRefused("provider")
    until = time.monotonic() + SIGN_IN_FETCH_TIMEOUT.total_seconds()
    try:
        return in_time(until, lambda: _exchanged(document, flow, code, redirect_uri, until))
    except (OSError, ValueError) as error:
        # Never the message: it may hold what was sent.
        logger.warning("provider_did_not_answer", error=type(error).__name__)
        raise ProviderUnavailable from error


def _exchanged(document: Mapping[str, Any], flow: Flow, code: str, redirect_uri: str, until: float) -> Assertion:
    answer = _tokens(document, flow, code, redirect_uri, until)
    id_token, access_token = answer.get("id_token"), answer.get("access_token")
    if not isinstance(id_token, str) or not (access_token is None or isinstance(access_token, str)):
        raise SignInRefused("token")
    claims = _verified(id_token, access_token, flow.nonce)
    if access_token and "userinfo_endpoint" in document and not _says_enough(claims):
        said = fetch(
            endpoint(document, "userinfo_endpoint"), until, headers={"Authorization": f"Bearer {access_token}"}
        )
        if said.get("sub") != claims["sub"]:
            raise SignInRefused("token")
        if claims.get("email") not in (None, said.get("email")):
            said.pop("email_verified", None)  # it is said of another address
        claims = said | claims
    return Assertion(settings.OIDC_ISSUER, claims["sub"], claims, _sign_out(document, id_token))


def _tokens(document: Mapping[str, Any], flow: Flow, code: str, redirect_uri: str, until: float) -> dict[str, Any]:
    url = endpoint(document, "token_endpoint")
    body = prepare_token_request(
        "authorization_code", code=code, redirect_uri=redirect_uri, code_verifier=flow.verifier
    )
    headers = {"Content-Type": "application/x-www-form-urlencoded;charset=UTF-8"}
    auth = ClientAuth(settings.OIDC_CLIENT_ID, settings.OIDC_CLIENT_SECRET, _auth_method(document))
    url, headers, body = auth.prepare("POST", url, headers, body)
    try:
        return fetch(url, until, body, headers)
    except urllib.error.HTTPError as error:
        if not 400 <= error.code < 500 or error.code == 429:
            raise
        logger.warning("provider_refused_code", status=error.code, error=error_of(error, until))
        raise SignInRefused("code") from error


def _auth_method(document: Mapping[str, Any]) -> str:
    """How this service proves to the provider who it is: what is told of it, as far as it can."""
    if not settings.OIDC_CLIENT_SECRET:
        return "none"  # a public client: PKCE alone binds the code to who asked for it
    methods = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    return "client_secret_basic" if "client_secret_basic" in methods else "client_secret_post"


def _verified(id_token: str, access_token: str | None, nonce: str) -> dict[str, Any]:
    try:
        claims = claims_of(id_token, settings.OIDC_CLIENT_ID, "iat", "sub")
        header = jwt.get_unverified_header(id_token)  # verified with the rest by now
        params = {"nonce": nonce, "client_id": settings.OIDC_CLIENT_ID, "access_token": access_token}
        CodeIDToken(claims, header, params=params).validate(leeway=settings.OIDC_CLOCK_SKEW)
        if not _is_subject(claims["sub"]):
            raise InvalidToken("no subject")
    except KeysUnavailable as error:
        raise ProviderUnavailable from error
    except (*MALFORMED, InvalidToken, JoseError) as error:
        logger.warning(
            "id_token_refused", error=str(error.args[0] if isinstance(error, InvalidToken) else type(error).__name__)
        )
        raise SignInRefused("token") from error
    return claims


def _is_subject(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_IDENTITY_LENGTH and value.isprintable()


def _says_enough(claims: Mapping[str, Any]) -> bool:
    return has_claim(claims, "email") and has_claim(claims, settings.OIDC_ORGS_CLAIM)


def _sign_out(document: Mapping[str, Any], id_token: str) -> Mapping[str, str]:
    try:
        url = endpoint(document, "end_session_endpoint")
    except ValueError:
        return {}
    return {"url": url, "id_token_hint": id_token if len(id_token) <= MAX_HINT_LENGTH else ""}
