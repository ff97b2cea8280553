"""An identity provider for tests: real keys, and a real HTTP server that gives them out, or does not."""

import base64
import json
import threading
import time
import uuid
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.conf import LazySettings
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "analytics"
STAFF_ROLE = "platform-staff"


@dataclass(frozen=True)
class Key:
    """A key pair. Made once for each id: RSA takes its time."""

    kid: str
    private: Any
    algorithm: str

    @property
    def public_jwk(self) -> dict[str, Any]:
        to_jwk = RSAAlgorithm.to_jwk if self.algorithm.startswith("RS") else ECAlgorithm.to_jwk
        return json.loads(to_jwk(self.private.public_key())) | {"kid": self.kid, "use": "sig", "alg": self.algorithm}


@cache
def rsa_key(kid: str, bits: int = 2048) -> Key:
    return Key(kid, rsa.generate_private_key(65537, bits), "RS256")


@cache
def ec_key(kid: str, curve: type[ec.EllipticCurve] = ec.SECP256R1, algorithm: str = "ES256") -> Key:
    return Key(kid, ec.generate_private_key(curve()), algorithm)


class IdentityProvider:
    def __init__(self) -> None:
        self.keys = [rsa_key("first"), ec_key("second")]
        self.asked: list[str] = []  # paths
        self.body: bytes | None = None  # of the set, where it is to be something else
        self.status = 200
        self.headers: dict[str, str] = {}
        self.discovery: dict[str, Any] = {}  # what the document says otherwise
        self.pause = 0.0  # seconds before an answer
        self.drip = 0.0  # seconds between two bytes of it
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.come_back()
        self.url = f"http://127.0.0.1:{self._port}"

    def configure(self, settings: LazySettings, *, discovers: bool = False) -> None:
        settings.OIDC_ISSUER = self.url
        settings.OIDC_AUDIENCE = AUDIENCE
        settings.OIDC_JWKS_URL = "" if discovers else f"{self.url}/keys"
        settings.OIDC_STAFF_ROLE = STAFF_ROLE

    def claims(self, **fields: Any) -> dict[str, Any]:
        """Of a token that is right; None leaves a claim out."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "nbf": now, "exp": now + 600}
        return {name: value for name, value in (usual | fields).items() if value is not None}

    def sign(self, key: Key | None = None, headers: dict[str, Any] | None = None, **fields: Any) -> str:
        key = key or self.keys[0]
        return jwt.encode(self.claims(**fields), key.private, key.algorithm, {"kid": key.kid} | (headers or {}))

    def token(self, org_id: uuid.UUID | str | None = None, role: str = "viewer", **fields: Any) -> str:
        """Of somebody with a role in an org."""
        return self.sign(**{"orgs": [] if org_id is None else [str(org_id)], "roles": [role]} | fields)

    @property
    def fetches(self) -> int:
        return self.asked.count("/keys")

    def go_away(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def come_back(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                time.sleep(provider.pause)
                discovers = self.path == "/.well-known/openid-configuration"
                known = {"issuer": provider.url, "jwks_uri": f"{provider.url}/keys"} | provider.discovery
                keys = {"keys": [key.public_jwk for key in provider.keys]}
                body = json.dumps(known if discovers else keys).encode()
                if provider.body is not None and not discovers:
                    body = provider.body
                try:
                    self.send_response(provider.status)
                    for name, value in {"Content-Length": str(len(body)), **provider.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for piece in [body] if not provider.drip else (body[i : i + 1] for i in range(len(body))):
                        self.wfile.write(piece)
                        time.sleep(provider.drip)
                except OSError:
                    return  # whoever asked has gone

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


def b64(value: bytes | str | dict[str, Any]) -> str:
    """As the parts of a token are written."""
    raw = json.dumps(value) if isinstance(value, dict) else value
    return base64.urlsafe_b64encode(raw.encode() if isinstance(raw, str) else raw).rstrip(b"=").decode()
