"""API keys, as Django REST framework sees them."""

from django.contrib.auth.models import AnonymousUser
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from .models import ApiKey


class ApiKeyAuthentication(BaseAuthentication):
    """`X-API-Key: …`. A key that is wrong, expired or revoked is refused, never passed on to the next way in."""

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
