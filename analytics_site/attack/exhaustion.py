"""Too much: bodies, depth, packing, slowness. Each is refused soon, and others are served meanwhile."""

import contextlib
import gzip
import threading
import time
from collections.abc import Callable

from .learning import api, window
from .trial import Trial
from .wire import Answer, Call

MIB = 1024 * 1024
QUICK = 5.0  # seconds in which a refusal must come
SERVED = 5.0  # seconds in which others must be answered meanwhile
SLOW_LINES = 6  # fewer than the threads of one process: a proxy in front holds more, as docs/operating.md says
SLOW_FOR = 3.0  # seconds
JSON = ("Content-Type", "application/json")


def attack(trial: Trial) -> None:
    _large(trial)
    _endless(trial)
    _slow(trial)


def _large(trial: Trial) -> None:
    a = trial.a
    packed = gzip.compress(bytes(100 * MIB), 6)
    deep = b"[" * 100_000 + b"]" * 100_000
    deep_objects = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    cases = (
        ("6 MiB of spaces", b" " * (6 * MIB), ()),
        ("40 MiB of spaces", b" " * (40 * MIB), ()),
        ("100 MiB, packed into a tenth of one", packed, (("Content-Encoding", "gzip"),)),
        ("a bomb packed twice", gzip.compress(packed), (("Content-Encoding", "gzip"),)),
        ("a thousand packed members", gzip.compress(b" ") * 1_000, (("Content-Encoding", "gzip"),)),
        ("another packing", b"x", (("Content-Encoding", "br"),)),
        ("lists 100,000 deep", deep, ()),
        ("objects 100,000 deep", deep_objects, ()),
        ("an integer of a million digits", b"[" + b"9" * MIB + b"]", ()),
        ("a number beyond all exponents", b'[{"costEstimateCents": 1e999999999}]', ()),
        ("a million numbers", b"[" + b"1," * MIB + b"1]", ()),
        ("cut UTF-8", b'["\xff\xfe\xc3"]', ()),
        ("NUL", b"\x00" * 1_000, ()),
        ("surrogates", b'["\\ud800"]', ()),
    )

    def soon(answer: Answer) -> str | None:
        return f"took {answer.seconds:.1f} s" if answer.seconds > QUICK else None

    for name, body, headers in cases:
        for path in (api(a, "events"), "/analytics/v1/events/validate", api(a, "exports")):
            call = Call("POST", path, (a.header(), JSON, *headers), body)
            # 0: who sends on after a refusal may see the line broken instead.
            expected = (
                {400, 403, 411, 413, 415}
                | ({0} if len(body) > MIB else set())
                | ({200} if "events" in path and body.startswith(b"[") else set())
            )

            def check(answer: Answer) -> str | None:
                if answer.status == 200 and b'"accepted":0' not in answer.body:
                    return "something of it was stored"
                return soon(answer)

            trial.attempt(f"{name} to {path.rpartition('/')[2]}", call, expected=expected, check=check)
    if a.person and a.slug:
        form = (("Content-Type", "application/x-www-form-urlencoded"), a.person.cookie(), ("Origin", trial.wire.base))
        for name, body in (("6 MiB in a form", b"name=" + b"x" * (6 * MIB)), ("100,000 fields", b"a=1&" * 100_000)):
            call = Call("POST", f"/orgs/{a.slug}/settings/organisation", form, body)
            trial.attempt(name, call, expected={400, 403, 413}, check=soon)
    head = "GET /analytics/v1/status/healthz HTTP/1.1\r\nHost: " + trial.wire.host + "\r\n"
    for name, message in (
        ("a line of 1 MiB", "GET /" + "a" * MIB + " HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("10,000 headers", head + "".join(f"X-{n}: 1\r\n" for n in range(10_000)) + "\r\n"),
        ("a header of 1 MiB", head + "X-A: " + "a" * MIB + "\r\n\r\n"),
    ):
        answer = trial.wire.send_bytes(message.encode())
        trial.attempt(
            name,
            Call("GET", "/analytics/v1/status/healthz", (("X-Note", name),)),
            expected={0, 400, 414, 431},
            answer=answer,
        )


def _endless(trial: Trial) -> None:
    """Chunks without an end: refused while they still come, or cut off."""
    a = trial.a
    for path in (api(a, "events"), "/analytics/v1/events/validate", api(a, "exports")):
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {trial.wire.host}\r\nX-API-Key: {a.key}\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        sent, ended = _pour(trial, head.encode())
        complaint = None if ended else f"{sent // MIB} MiB were taken, and no end came"
        call = Call("POST", path, (a.header(), JSON, ("Transfer-Encoding", "chunked")))
        trial.verdict(f"chunks without end to {path.rpartition('/')[2]}", complaint, call)


def _pour(trial: Trial, head: bytes) -> tuple[int, bool]:
    """How many bytes were taken, and whether an answer or an end came."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    sent, deadline = 0, time.monotonic() + SLOW_FOR
    with contextlib.suppress(OSError), trial.wire.connected(1.0) as line:
        line.sendall(head)
        while time.monotonic() < deadline and sent < 256 * MIB:
            try:
                line.sendall(chunk)
            except TimeoutError:  # nobody reads on
                break
            except OSError:
                return sent, True
            sent += len(chunk)
        line.settimeout(2.0)
        try:
            line.recv(1)  # an answer, or the end
        except TimeoutError:
            return sent, False
    return sent, True


def _slow(trial: Trial) -> None:
    """Some who send a byte a second, while others ask."""
    usage = Call("GET", api(trial.a, f"usage?{window()}"), (trial.a.header(),))
    head = f"GET / HTTP/1.1\r\nHost: {trial.wire.host}\r\nX-Slow: "
    body = (
        f"POST {api(trial.a, 'events')} HTTP/1.1\r\nHost: {trial.wire.host}\r\nX-API-Key: {trial.a.key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n["
    )
    cases: tuple[tuple[str, bytes], ...] = (("headers", head.encode()), ("bodies", body.encode()))
    for name, beginning in cases:
        worst = _while_slow(trial, beginning, lambda: trial.send(usage).seconds)
        complaint = f"an answer took {worst:.1f} s meanwhile" if worst > SERVED else None
        trial.verdict(f"{SLOW_LINES} who send {name} a byte at a time", complaint, usage)


def _while_slow(trial: Trial, beginning: bytes, ask: Callable[[], float]) -> float:
    over = threading.Event()

    def dribble() -> None:
        with contextlib.suppress(OSError), trial.wire.connected() as line:
            line.sendall(beginning)
            while not over.wait(0.5):
                line.sendall(b" ")

    slow = [threading.Thread(target=dribble, daemon=True) for _ in range(SLOW_LINES)]
    for thread in slow:
        thread.start()
    worst, deadline = 0.0, time.monotonic() + SLOW_FOR
    try:
        while time.monotonic() < deadline:
            worst = max(worst, ask())
            time.sleep(0.1)
    finally:
        over.set()
        for thread in slow:
            thread.join(5)
    return worst
