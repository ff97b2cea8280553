"""The public keys of the platform's identity provider: fetched from its JWKS, cached by each process, bounded both ways.

A set is fetched anew once it is `JWKS_LIFETIME` old; a key that is not in it is looked for at once, since the
provider may have rotated. Fetches begin `JWKS_FETCH_INTERVAL` apart at least, whatever callers send: nobody can make this service
call another without end. Where the provider does not answer, or answers with something else than keys, the last good set
counts until it is `JWKS_GRACE` old. Callers wait for a fetch, `JWKS_FETCH_TIMEOUT` at most; once one has failed they don't, for
`JWKS_LIFETIME`, and fetches go on behind them: a provider that hangs holds up no thread, whatever strangers ask for.

PyJWT's own client fetches for every unknown key, and lets its set go the moment that it is old.
"""

import functools
import threading
import time
from typing import Any

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from . import discovery
from .discovery import NEVER, since
from .fetching import fetch
from .limits import (
    JWKS_FETCH_INTERVAL,
    JWKS_FETCH_TIMEOUT,
    JWKS_GRACE,
    JWKS_LIFETIME,
    MAX_JWKS_KEYS,
    MIN_RSA_BITS,
)

logger = structlog.get_logger(__name__)

ALGORITHMS = ("RS256", "ES256")

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
        self._fetched_at = NEVER
        self._begun_at = NEVER
        self._failed_at = NEVER  # since the last good set
        self._fetch: threading.Thread | None = None  # the last one, until it has brought a set
        self._wait_until = 0.0  # of that one; by the monotonic clock

    def find(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key of that id for that algorithm, where the provider has one.

        Raises `KeysUnavailable` where no set is at hand, and where the last look failed and the key may be newer than the set.
        """
        name = (kid, algorithm)
        if name not in self._keys or since(self._fetched_at) >= JWKS_LIFETIME.total_seconds():
            self._begin()
            if since(self._failed_at) >= JWKS_LIFETIME.total_seconds():
                self._wait()
        with self._lock:
            key, fetched_at, has_failed = self._keys.get(name), self._fetched_at, self._failed_at != NEVER
        if since(fetched_at) >= JWKS_GRACE.total_seconds() or (key is None and has_failed):
            raise KeysUnavailable
        return key

    def _begin(self) -> None:
        """Start a fetch, but for where one began within the interval. One that hangs for longer is left to itself."""
        with self._lock:
            if since(self._begun_at) < JWKS_FETCH_INTERVAL.total_seconds():
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
                self._failed_at, self._fetch = NEVER, None
        logger.info("jwks_fetched", issuer=self._issuer, keys=sorted(kid for kid, _ in keys))

    def _note_failure(self, fetch: threading.Thread) -> None:
        with self._lock:
            if self._fetch is fetch:
                self._failed_at = time.time()

    def _read(self) -> dict[Name, jwt.PyJWK]:
        until = time.monotonic() + JWKS_FETCH_TIMEOUT.total_seconds()
        url = self._jwks_url or discovery.endpoint(discovery.read(self._issuer, until), "jwks_uri")
        keys = keys_of(fetch(url, until))
        if not keys:
            # Nor is an empty set believed: it is what a provider that is half up says, and would refuse everybody.
            raise ValueError("no key for " + " or ".join(ALGORITHMS))
        return keys


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
