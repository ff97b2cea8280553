"""An identity provider for tests: real keys, and a real HTTP server that gives them out and signs people in, or does not."""

import base64
import hashlib
import json
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.conf import LazySettings
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from orgs.discovery import discovery
from orgs.signing_keys import signing_keys

AUDIENCE = "analytics"
CLIENT_ID, CLIENT_SECRET = "analytics-pages", "a secret of : & two"
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
        # Sign-in: who is signed in at the provider, and what it does otherwise.
        self.person: dict[str, Any] = {"sub": "ada", "email": "ada@example.com", "email_verified": True}
        self.userinfo: dict[str, Any] = {}
        self.answer: dict[str, str] = {}  # of the authorization endpoint, in the place of a code
        self.id_token: Callable[[dict[str, Any]], str] = lambda claims: self.sign(**claims)
        self.grants: dict[str, dict[str, str]] = {}  # by code: what was asked for
        self.exchanges: list[dict[str, str]] = []  # what the token endpoint was sent
        self.auth_methods = ["client_secret_basic"]
        self.token_status = 200
        self.token_body: bytes | None = None
        self.token_pause = 0.0
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.come_back()
        self.url = f"http://127.0.0.1:{self._port}"

    def configure(self, settings: LazySettings, *, discovers: bool = False) -> None:
        signing_keys.cache_clear()  # another may have had this port
        discovery.cache_clear()
        settings.OIDC_ISSUER = self.url
        settings.OIDC_AUDIENCE = AUDIENCE
        settings.OIDC_JWKS_URL = "" if discovers else f"{self.url}/keys"
        settings.OIDC_STAFF_ROLE = STAFF_ROLE

    def sign_people_in(self, settings: LazySettings, public_url: str = "http://testserver") -> None:
        """As the environment would say it."""
        self.configure(settings)
        settings.OIDC_CLIENT_ID, settings.OIDC_CLIENT_SECRET = CLIENT_ID, CLIENT_SECRET
        settings.OIDC_NAME = "Acme ID"
        settings.PUBLIC_URL = public_url
        settings.AUTHENTICATION_BACKENDS = [
            "django.contrib.auth.backends.ModelBackend",
            "orgs.provider_backend.ProviderBackend",
            "orgs.policy.StaffBackend",
        ]

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
    def document(self) -> dict[str, Any]:
        paths = {
            "jwks_uri": "keys",
            "authorization_endpoint": "authorize",
            "token_endpoint": "token",
            "userinfo_endpoint": "userinfo",
            "end_session_endpoint": "end",
        }
        return {
            "issuer": self.url,
            **{name: f"{self.url}/{path}" for name, path in paths.items()},
            "token_endpoint_auth_methods_supported": self.auth_methods,
        } | self.discovery

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser is sent: back with a code, since the person is signed in here and says yes."""
        answer = dict(self.answer)
        if not answer:
            answer["code"] = secrets.token_urlsafe(16)
            self.grants[answer["code"]] = asked
        return f"{asked['redirect_uri']}?{urlencode({'state': asked.get('state', '')} | answer)}"

    def exchange(self, sent: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """A code for tokens, once, for whoever holds the client's secret and the verifier of PKCE."""
        self.exchanges.append(sent)
        if self.token_status != 200:
            return self.token_status, {"error": "server_error", "error_description": "secret"}
        basic = "Basic " + base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if sent["authorization"] != basic and sent.get("client_secret") != CLIENT_SECRET:
            return 401, {"error": "invalid_client"}
        asked = self.grants.pop(sent.get("code", ""), None)
        challenge = b64(hashlib.sha256(sent.get("code_verifier", "").encode()).digest())
        if asked is None or asked["code_challenge"] != challenge or asked["code_challenge_method"] != "S256":
            return 400, {"error": "invalid_grant"}
        if asked["redirect_uri"] != sent.get("redirect_uri") or asked["client_id"] != CLIENT_ID:
            return 400, {"error": "invalid_grant"}
        claims = {"aud": CLIENT_ID, "nonce": asked["nonce"], **self.person}
        return 200, {"token_type": "Bearer", "access_token": "an-access-token", "id_token": self.id_token(claims)}

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
                provider.asked.append(urlsplit(self.path).path)
                time.sleep(provider.pause)
                match urlsplit(self.path).path:
                    case "/.well-known/openid-configuration":
                        self._send(json.dumps(provider.document).encode())
                    case "/authorize":
                        self._redirect(provider.authorize(dict(parse_qsl(urlsplit(self.path).query))))
                    case "/userinfo":
                        self._send(json.dumps(provider.userinfo or provider.person).encode())
                    case "/end":
                        self._redirect(dict(parse_qsl(urlsplit(self.path).query))["post_logout_redirect_uri"])
                    case _:
                        keys = {"keys": [key.public_jwk for key in provider.keys]}
                        self._send(provider.body if provider.body is not None else json.dumps(keys).encode())

            def do_POST(self) -> None:
                provider.asked.append(self.path)
                time.sleep(provider.token_pause)
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                sent = dict(parse_qsl(body)) | {"authorization": self.headers.get("Authorization", "")}
                status, answer = provider.exchange(sent)
                self._send(json.dumps(answer).encode() if provider.token_body is None else provider.token_body, status)

            def _redirect(self, url: str) -> None:
                self.send_response(302)
                self.send_header("Location", url)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _send(self, body: bytes, status: int = 0) -> None:
                try:
                    self.send_response(status or provider.status)
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
