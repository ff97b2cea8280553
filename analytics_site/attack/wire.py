"""HTTP as an attacker speaks it: what is sent is sent as it stands, wrong headers, odd paths, cut bodies and all."""

import contextlib
import http.client
import shlex
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

TIMEOUT = 30.0  # seconds until an answer counts as none
LARGEST = 64 * 1024 * 1024  # bytes of an answer that are read
NO_ANSWER = 0  # the status where the line was closed without one


@dataclass(frozen=True)
class Call:
    """A request. Nothing in it is encoded or put right."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def with_headers(self, *headers: tuple[str, str]) -> "Call":
        return Call(self.method, self.path, (*self.headers, *headers), self.body)

    def names(self) -> set[str]:
        return {name.lower() for name, _ in self.headers}

    def text(self) -> str:
        """All that it says, for what an answer may repeat."""
        head = "\n".join(f"{name}: {value}" for name, value in self.headers)
        return f"{self.method} {self.path}\n{head}\n{self.body.decode('utf-8', 'replace')}"

    def bytes(self, host: str) -> bytes:
        given = self.names()
        headers = list(self.headers)
        if "host" not in given:
            headers.insert(0, ("Host", host))
        if "connection" not in given:
            headers.append(("Connection", "close"))
        if (self.body or self.method in ("POST", "PUT", "PATCH")) and not given & {
            "content-length",
            "transfer-encoding",
        }:
            headers.append(("Content-Length", str(len(self.body))))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + self.body

    def curl(self, base: str) -> str:
        """A command line that repeats it, where curl can."""
        words = ["curl", "-sS", "-i", "--path-as-is", "-X", self.method]
        for name, value in self.headers:
            words += ["-H", f"{name}: {value}"]
        if self.body:
            shown = self.body[:400].decode("utf-8", "backslashreplace")
            words += ["--data-binary", shown + ("…" if len(self.body) > 400 else "")]
        return shlex.join([*words, base + self.path])


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    seconds: float = 0.0

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def everything(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.headers) + "\n\n" + self.text

    def cookies(self) -> dict[str, str]:
        pairs = (value.partition(";")[0].partition("=") for value in self.all("Set-Cookie"))
        return {name.strip(): value for name, _, value in pairs}


@dataclass
class Wire:
    """Speaks to one installation."""

    base: str
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the address must begin with http:// or https://")
        self.host = parts.netloc.rpartition("@")[2]
        self.address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.base = f"{parts.scheme}://{self.host}"

    @contextlib.contextmanager
    def connected(self, timeout: float = TIMEOUT) -> Iterator[socket.socket]:
        with contextlib.ExitStack() as open_:
            line = open_.enter_context(socket.create_connection(self.address, timeout))
            if self._tls is not None:
                line = open_.enter_context(self._tls.wrap_socket(line, server_hostname=self.address[0]))
            yield line

    def send(self, call: Call, timeout: float = TIMEOUT) -> Answer:
        return self.send_bytes(call.bytes(self.host), call.method, timeout)

    def send_bytes(self, message: bytes, method: str = "GET", timeout: float = TIMEOUT) -> Answer:
        self.calls += 1
        begun = time.perf_counter()
        try:
            with self.connected(timeout) as line:
                # Who refuses early may close while we still send: the answer is there all the same.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    line.sendall(message)
                response = http.client.HTTPResponse(line, method=method)
                response.begin()
                body = response.read(LARGEST)
                headers = tuple(response.getheaders())
                return Answer(response.status, headers, body, time.perf_counter() - begun)
        except (http.client.HTTPException, OSError):
            return Answer(NO_ANSWER, seconds=time.perf_counter() - begun)


def form(fields: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[tuple[str, str], ...], bytes]:
    """Header and body of a form that is sent."""
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    return (("Content-Type", "application/x-www-form-urlencoded"),), urlencode(list(pairs)).encode()
