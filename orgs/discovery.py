"""OpenID Connect Discovery: where the identity provider has what, cached by each process."""

import functools
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import structlog

from .fetching import fetch, in_time
from .limits import JWKS_FETCH_INTERVAL, JWKS_FETCH_TIMEOUT, JWKS_GRACE, JWKS_LIFETIME

logger = structlog.get_logger(__name__)

NEVER = float("-inf")


class ProviderUnavailable(Exception):
    """The provider does not answer, or not in a way that can be used."""


def read(issuer: str, until: float) -> dict[str, Any]:
    """The document of a provider: the issuer's own. Raises `OSError`, `ValueError`."""
    document = fetch(f"{issuer.rstrip('/')}/.well-known/openid-configuration", until)
    if document.get("issuer") != issuer:
        raise ValueError("the discovery document is another issuer's")
    return document


def endpoint(document: Mapping[str, Any], name: str) -> str:
    """An address that the document names. It may not lead to a weaker scheme than the issuer's. Raises `ValueError`."""
    url = document.get(name)
    if isinstance(url, str):
        parts = urlsplit(url)
        if parts.scheme in {"https", urlsplit(document["issuer"]).scheme} and parts.hostname:
            return url
    raise ValueError(f"the discovery document names no {name} over https")


class Discovery:
    """The document of one provider, in one process. As with its keys, the last good one counts while none can be had.

    One caller fetches, others wait for it, `JWKS_FETCH_TIMEOUT` at most; after a failure nobody asks for `JWKS_FETCH_INTERVAL`.
    """

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer
        self._lock = threading.Lock()  # of what follows
        self._document: dict[str, Any] = {}
        self._fetched_at = NEVER
        self._failed_at = NEVER

    def find(self) -> Mapping[str, Any]:
        """Raises `ProviderUnavailable`."""
        with self._lock:
            is_old = since(self._fetched_at) >= JWKS_LIFETIME.total_seconds()
            if is_old and since(self._failed_at) >= JWKS_FETCH_INTERVAL.total_seconds():
                self._fetch()
            if since(self._fetched_at) < JWKS_GRACE.total_seconds():
                return self._document
        raise ProviderUnavailable

    def _fetch(self) -> None:
        until = time.monotonic() + JWKS_FETCH_TIMEOUT.total_seconds()
        try:
            found = in_time(until, lambda: read(self._issuer, until))
            for name in ("authorization_endpoint", "token_endpoint"):
                endpoint(found, name)
        except Exception as error:  # whatever was wrong with the answer: the document stays as it is
            self._failed_at = time.time()
            logger.warning(
                "provider_not_discovered", issuer=self._issuer, error=f"{type(error).__name__}: {error}"[:300]
            )
            return
        self._document, self._fetched_at, self._failed_at = found, time.time(), NEVER


def since(moment: float) -> float:
    """Seconds. A clock that is set back makes what it dated old, never young for ever."""
    return abs(time.time() - moment)


@functools.cache
def discovery(issuer: str) -> Discovery:
    """This process's own."""
    return Discovery(issuer)
