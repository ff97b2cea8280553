"""The public keys of the platform's identity provider: fetched from its JWKS, cached by each process, bounded both ways.

A set is fetched anew once it is `JWKS_LIFETIME` old; a key that is not in it is looked for at once, since the
provider may have rotated. Fetches begin `JWKS_FETCH_INTERVAL` apart at least, whatever callers send: nobody can make this service
call another without end. Where the provider does not answer, or answers with something else than keys, the last good set
counts until it is `JWKS_GRACE` old. Callers wait for a fetch, `JWKS_FETCH_TIMEOUT` at most; once one has failed they don't, for
`JWKS_LIFETIME`, and fetches go on behind them: a provider that hangs holds up no thread, whatever strangers ask for.

PyJWT's own client fetches for every unknown key, and lets its set go the moment that it is old.
"""

import functools
import http.client
import json
import threading
import time
import urllib.request
from typing import Any, NoReturn
from urllib.parse import urlsplit

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from .limits import (
    JWKS_FETCH_INTERVAL,
    JWKS_FETCH_TIMEOUT,
    JWKS_GRACE,
    JWKS_LIFETIME,
    MAX_JWKS_BYTES,
    MAX_JWKS_KEYS,
    MIN_RSA_BITS,
)

logger = structlog.get_logger(__name__)

ALGORITHMS = ("RS256", "ES256")
_NEVER = float("-inf")
_PIECE = 16 * 1024  # bytes read between two looks at the clock

# A key's id and its algorithm: a key verifies one algorithm alone, whatever a token says of itself.
Name = tuple[str, str]


class KeysUnavailable(Exception):
    """No set of keys is at hand, so no token can be judged."""


class SigningKeys:
    """Of one provider, in one process. Found by the issuer's discovery document where no address is given."""

    def __init__(self, issuer: str, jwks_url: str) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._lock = threading.Lock()  # of what follows
        self._keys: dict[Name, jwt.PyJWK] = {}
        self._fetched_at = _NEVER
        self._begun_at = _NEVER
        self._failed_at = _NEVER  # since the last good set
        self._fetch: threading.Thread | None = None  # the last one, until it has brought a set
        self._wait_until = 0.0  # of that one; by the monotonic clock

    def find(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key of that id for that algorithm, where the provider has one.

        Raises `KeysUnavailable` where no set is at hand, and where the last look failed and the key may be newer than the set.
        """
        name = (kid, algorithm)
        if name not in self._keys or _since(self._fetched_at) >= JWKS_LIFETIME.total_seconds():
            self._begin()
            if _since(self._failed_at) >= JWKS_LIFETIME.total_seconds():
                self._wait()
        with self._lock:
            key, fetched_at, has_failed = self._keys.get(name), self._fetched_at, self._failed_at != _NEVER
        if _since(fetched_at) >= JWKS_GRACE.total_seconds() or (key is None and has_failed):
            raise KeysUnavailable
        return key

    def _begin(self) -> None:
        """Start a fetch, but for where one began within the interval. One that hangs for longer is left to itself."""
        with self._lock:
            if _since(self._begun_at) < JWKS_FETCH_INTERVAL.total_seconds():
                return
            self._begun_at = time.time()
            self._wait_until = time.monotonic() + JWKS_FETCH_TIMEOUT.total_seconds()
            self._fetch = threading.Thread(target=self._take_over, name="jwks", daemon=True)
            self._fetch.start()

    def _wait(self) -> None:
        """For the fetch that is on its way, until its time is over."""
        with self._lock:
            fetch, until = self._fetch, self._wait_until
        if fetch is not None:
            fetch.join(max(0.0, until - time.monotonic()))
            if fetch.is_alive():
                self._note_failure(fetch)

    def _take_over(self) -> None:
        begun, this = time.time(), threading.current_thread()
        try:
            keys = self._read()
        except Exception as error:  # whatever was wrong with the answer: the set stays as it is
            self._note_failure(this)
            logger.warning("jwks_not_fetched", issuer=self._issuer, error=f"{type(error).__name__}: {error}"[:300])
            return
        with self._lock:
            if self._fetch is this:  # not one that was given up, and is behind another now
                self._keys, self._fetched_at = keys, begun
                self._failed_at, self._fetch = _NEVER, None
        logger.info("jwks_fetched", issuer=self._issuer, keys=sorted(kid for kid, _ in keys))

    def _note_failure(self, fetch: threading.Thread) -> None:
        with self._lock:
            if self._fetch is fetch:
                self._failed_at = time.time()

    def _read(self) -> dict[Name, jwt.PyJWK]:
        until = time.monotonic() + JWKS_FETCH_TIMEOUT.total_seconds()
        keys = keys_of(_get(self._jwks_url or self._discovered(until), until))
        if not keys:
            # Nor is an empty set believed: it is what a provider that is half up says, and would refuse everybody.
            raise ValueError("no key for " + " or ".join(ALGORITHMS))
        return keys

    def _discovered(self, until: float) -> str:
        """OpenID Connect Discovery: the document must be the issuer's own, and may not lead to a weaker scheme."""
        document = _get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration", until)
        if document.get("issuer") != self._issuer:
            raise ValueError("the discovery document is another issuer's")
        url = document.get("jwks_uri")
        schemes = {"https", urlsplit(self._issuer).scheme}
        if not isinstance(url, str) or urlsplit(url).scheme not in schemes:
            raise ValueError("the discovery document names no jwks_uri over https")
        return url


def _since(moment: float) -> float:
    """Seconds. A clock that is set back makes what it dated old, never young for ever."""
    return abs(time.time() - moment)


@functools.cache
def signing_keys(issuer: str, jwks_url: str) -> SigningKeys:
    """This process's own."""
    return SigningKeys(issuer, jwks_url)


def keys_of(document: dict[str, Any]) -> dict[Name, jwt.PyJWK]:
    """The keys of a JWKS that may verify tokens here. Others are left out; of two of one name the first counts."""
    entries = document.get("keys")
    found: dict[Name, jwt.PyJWK] = {}
    for entry in entries[:MAX_JWKS_KEYS] if isinstance(entries, list) else ():
        key = _usable(entry)
        if key is not None:
            found.setdefault((str(key.key_id), key.algorithm_name), key)
    return found


def _usable(entry: Any) -> jwt.PyJWK | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or not isinstance(entry.get("kid"), str):
        return None
    try:
        if "verify" not in entry.get("key_ops", ("verify",)):
            return None
        key = jwt.PyJWK(entry)
    except Exception:  # another kind of key, or a broken one: its neighbours count
        return None
    if key.algorithm_name == "RS256" and isinstance(key.key, RSAPublicKey) and key.key.key_size >= MIN_RSA_BITS:
        return key
    is_es256 = key.algorithm_name == "ES256" and isinstance(key.key, EllipticCurvePublicKey)
    return key if is_es256 and isinstance(key.key.curve, SECP256R1) else None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from the address that was named, or not at all."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def _get(url: str, until: float) -> dict[str, Any]:
    """A JSON object, all of it there before `until` on the monotonic clock."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310  the settings know http(s) alone
    with _opener.open(request, timeout=_left(until)) as response:
        body = _body(response, until)
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    body = b""
    while piece := response.read1(_PIECE):
        body += piece
        _left(until)  # one that sends a byte now and then is not waited for
        if len(body) > MAX_JWKS_BYTES:
            raise ValueError(f"more than {MAX_JWKS_BYTES:,} bytes")
    return body


def _left(until: float) -> float:
    left = until - time.monotonic()
    return left if left > 0 else _late()


def _late() -> NoReturn:
    raise TimeoutError("no whole answer in time")
