"""JWTs that nobody signed, or that the wrong one did. Where no identity provider is set, every one is refused alike."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

from .learning import api, window
from .trial import Trial
from .wire import Call


def attack(trial: Trial) -> None:
    b = trial.b
    refused = {400, 401, 403, 431}
    claims = {
        "sub": "admin",
        "email": b.admin.email if b.admin else "a@b.example",
        "iss": trial.wire.base,
        "aud": "analytics",
        "orgs": [b.org_id],
        "org_id": b.org_id,
        "roles": ["org_admin", "admin", "staff"],
        "scope": "admin",
        "is_staff": True,
        "iat": int(time.time()),
        "exp": int(time.time()) + 3600,
    }
    tokens = {
        "alg none": jwt({"alg": "none"}, claims, None),
        "alg None": jwt({"alg": "None"}, claims, None),
        "alg nOnE, with a signature": jwt({"alg": "nOnE"}, claims, b"x"),
        "no alg": jwt({}, claims, None),
        "HS256 with an empty secret": jwt({"alg": "HS256"}, claims, b""),
        "HS256 with “secret”": jwt({"alg": "HS256"}, claims, b"secret"),
        "HS256 with the issuer": jwt({"alg": "HS256"}, claims, trial.wire.base.encode()),
        "RS256 signed by a secret": jwt({"alg": "RS256"}, claims, b"secret"),
        "ES256 of zeros": jwt({"alg": "ES256"}, claims, None)
        + base64.urlsafe_b64encode(bytes(64)).decode().rstrip("="),
        "a key id that leads away": jwt({"alg": "HS256", "kid": "../../../../dev/null"}, claims, b""),
        "a key id of SQL": jwt({"alg": "HS256", "kid": "x' UNION SELECT 'secret'--"}, claims, b"secret"),
        "keys of its own address": jwt({"alg": "RS256", "jku": "http://127.0.0.1:9/keys", "kid": "1"}, claims, b"x"),
        "a key of its own": jwt({"alg": "RS256", "jwk": {"kty": "oct", "k": "c2VjcmV0"}}, claims, b"secret"),
        "a critical extension": jwt({"alg": "RS256", "crit": ["b64"], "b64": False}, claims, b"x"),
        "past its time": jwt({"alg": "HS256"}, claims | {"exp": 1}, b"secret"),
        "empty": "",
        "dots": "..",
        "one part": "abc",
        "no base64": "é.é.é",
        "no JSON": "YQ.YQ.YQ",
        "a list for claims": jwt({"alg": "HS256"}, [claims], b"secret"),
        "deep": jwt({"alg": "HS256"}, {"a": json.loads("[" * 200 + "]" * 200)}, b"secret"),
        "huge": jwt({"alg": "HS256"}, claims | {"x": "y" * 6_000}, b"secret"),
        "larger than a header": "a" * 100_000,
    }
    for name, token in tokens.items():
        for scheme in ("Bearer", "bearer"):
            call = Call("GET", api(b, f"usage?{window()}"), (("Authorization", f"{scheme} {token}"),))
            trial.attempt(f"{scheme}: {name}", call, expected=refused)
        both = Call("GET", api(b, f"usage?{window()}"), (("Authorization", f"Bearer {token}"), trial.a.header()))
        trial.attempt(f"beside A's key: {name}", both, expected=refused)


def jwt(header: dict[str, Any], claims: Any, secret: bytes | None) -> str:
    """Signed by HMAC with a secret, whatever the header says; unsigned where there is none."""
    body = ".".join(_part(json.dumps(part).encode()) for part in ({"typ": "JWT", **header}, claims))
    return f"{body}." + ("" if secret is None else _part(hmac.new(secret, body.encode(), hashlib.sha256).digest()))


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
