"""API keys and bearer tokens, as Django REST framework sees them.

Of several credentials in one request one counts, and the others are not looked at: the key before the token, the token before
the session. One that is wrong is refused, never passed on to the next.
"""

from http import HTTPStatus

import structlog
from django.contrib.auth.models import AnonymousUser
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import APIException, AuthenticationFailed
from rest_framework.request import Request

from .limits import JWKS_FETCH_INTERVAL
from .models import ApiKey
from .signing_keys import KeysUnavailable
from .tokens import InvalidToken, Token, verify

logger = structlog.get_logger(__name__)


class ApiKeyAuthentication(BaseAuthentication):
    """`X-API-Key: …`. A key that is wrong, expired or revoked is refused."""

    def authenticate(self, request: Request) -> tuple[AnonymousUser, ApiKey] | None:
        token = request.headers.get("X-API-Key")
        if token is None:
            return None
        key = ApiKey.find(token)
        if key is None:
            raise AuthenticationFailed("This API key is not known, has expired, or was revoked.")
        key.note_use()
        return AnonymousUser(), key

    def authenticate_header(self, request: Request) -> str:
        return 'ApiKey realm="analytics"'


class TokenRefused(APIException):
    """Not `AuthenticationFailed`: that is answered with the challenge of the first way in, whichever failed."""

    status_code = HTTPStatus.UNAUTHORIZED
    default_detail = "This token is not valid here."
    auth_header = 'Bearer error="invalid_token"'  # as RFC 6750 has it; rest_framework sends it as WWW-Authenticate


class TokenNotJudged(APIException):
    """Not 401: the token may well be right, and a client that is told otherwise throws it away, or signs somebody out."""

    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_detail = "Tokens can't be checked: the identity provider's keys are not at hand. Repeat the request."
    wait = JWKS_FETCH_INTERVAL.total_seconds()  # rest_framework sends it as Retry-After


class TokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer …`. Other schemes are nobody's credentials."""

    def authenticate(self, request: Request) -> tuple[AnonymousUser, Token] | None:
        scheme, _, text = request.headers.get("Authorization", "").strip().partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            return AnonymousUser(), verify(text.strip())
        except InvalidToken as error:
            logger.info("token_refused", reason=str(error))
            raise TokenRefused from error
        except KeysUnavailable as error:
            raise TokenNotJudged from error

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
