"""Headers, methods and paths that some proxy, framework or parser somewhere takes for something else."""

from .learning import api, window
from .reading import call_to
from .routes import of_orgs
from .trial import Trial
from .wire import Answer, Call

EVIL = "evil.example"
METHODS = ("PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "CONNECT", "HEAD", "PROPFIND")


def attack(trial: Trial) -> None:
    _headers(trial)
    _hosts(trial)
    _doubled(trial)
    _methods(trial)
    _paths(trial)


def _headers(trial: Trial) -> None:
    a, b = trial.a, trial.b
    email = b.admin.email if b.admin else "admin@example.com"
    usage = api(b, f"usage?{window()}")
    for name, value in (
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1;host=localhost"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", EVIL),
        ("X-Forwarded-User", email),
        ("X-Forwarded-Email", email),
        ("X-Remote-User", email),
        ("Remote-User", email),
        ("X-User", email),
        ("X-Actor-Id", email),
        ("X-Actor-Email", email),
        ("X-Actor-Org", b.org_id),
        ("X-Org-Id", b.org_id),
        ("X-Tenant-Id", b.org_id),
        ("X-Scopes", "admin"),
        ("X-Original-URL", usage),
        ("X-Rewrite-URL", usage),
        ("X-HTTP-Method-Override", "GET"),
        ("X-Script-Name", "/x"),
        ("Script-Name", "/x"),
        ("Authorization", f"Basic {email}"),
        ("Authorization", "Negotiate x"),
        ("Authorization", ""),
        ("X-Is-Staff", "1"),
        ("X-Internal", "1"),
        ("X-Request-ID", "x\tadmin=1"),
        ("X-SSL-Client-Verify", "SUCCESS"),
        ("X-Client-Cert-DN", email),
    ):
        # An empty base path at this address keeps WSGI's script name from mattering; odd headers may be refused as such.
        trial.attempt(
            f"{name} with A's key", Call("GET", usage, (a.header(), (name, value))), expected={400, 401, 403, 404}
        )
        trial.attempt(f"{name} with no key", Call("GET", usage, ((name, value),)), expected={400, 401, 404})
        if "User" in name or "Email" in name or "Staff" in name:
            trial.attempt(f"{name} to the admin", Call("GET", "/admin/", ((name, value),)), expected={302, 400, 403})
    for name in ("X-Original-URL", "X-Rewrite-URL"):
        call = Call("GET", "/analytics/v1/status/healthz", (a.header(), (name, usage)))
        trial.attempt(f"{name} at an open address", call, expected={200}, check=_is_health)


def _is_health(answer: Answer) -> str | None:
    return None if answer.body == b"OK" else "something else was answered"


def _hosts(trial: Trial) -> None:
    def not_taken_over(answer: Answer) -> str | None:
        where = answer.get("Location")
        return f"leads to {where}" if EVIL in where.partition("?")[0] else None

    for host in (
        EVIL,
        f"{trial.wire.host}@{EVIL}",
        f"{trial.wire.host}.{EVIL}",
        f"{EVIL}:80",
        f"{trial.wire.host},{EVIL}",
        "",
        " ",
        f"{EVIL}#",
    ):
        for path in ("/", "/login/", "/orgs"):
            call = Call("GET", path, (("Host", host),))
            trial.attempt(f"{path} at the host {host!r}", call, expected={0, 400, 404, 421}, check=not_taken_over)
    for name in ("X-Forwarded-Host", "X-Host", "X-Forwarded-Server", "Forwarded"):
        call = Call("GET", "/orgs/", ((name, f"host={EVIL}" if name == "Forwarded" else EVIL),))
        trial.attempt(f"{name} in a redirect", call, expected={302, 400}, check=not_taken_over)
    whole = Call("GET", f"http://{EVIL}/analytics/v1/orgs/{trial.b.org_id}/usage", (trial.a.header(),))
    trial.attempt("a whole address as the path", whole, expected={400, 401, 403, 404})


def _doubled(trial: Trial) -> None:
    a, b = trial.a, trial.b
    path, other = api(b, f"usage?{window()}"), "ak_00000000_nobody"
    for name, keys in (
        ("A's key, then a wrong one", (a.key, other)),
        ("a wrong key, then A's", (other, a.key)),
        ("A's key twice", (a.key, a.key)),
    ):
        call = Call("GET", path, tuple(a.header(key) for key in keys))
        trial.attempt(f"two keys: {name}", call, expected={400, 401, 403})
    host = trial.wire.host
    head = (
        f"POST {api(b, 'events')} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {a.key}\r\nContent-Type: application/json\r\n"
    )
    inner = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {a.key}\r\n\r\n"
    for name, headers, body in (
        ("two lengths", "Content-Length: 2\r\nContent-Length: 40\r\n", "[]"),
        ("length and chunks", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + inner),
        ("chunks misspelt", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n" + inner),
        ("chunks behind a space", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n" + inner),
        ("a length below zero", "Content-Length: -1\r\n", "[]"),
        ("a length with a plus", "Content-Length: +2\r\n", "[]"),
        ("a folded header", "X-Folded: a\r\n b: c\r\nContent-Length: 2\r\n", "[]"),
        ("a bare line feed", "X-Bare: a\nX-API-Key: x\r\nContent-Length: 2\r\n", "[]"),
        ("a header without a colon", "nonsense\r\nContent-Length: 2\r\n", "[]"),
    ):
        message = (head + headers + "\r\n" + body).encode()
        call = Call("POST", api(b, "events"), (a.header(), ("X-Note", name)), body.encode())
        # 501: what gunicorn says of an encoding it does not know, as RFC 9112 wants it.
        answer = trial.wire.send_bytes(message, "POST")
        trial.attempt(f"smuggling: {name}", call, expected={0, 400, 401, 403, 411, 413, 501}, answer=answer)


def _methods(trial: Trial) -> None:
    probe = ("X-Probe", "echoed-or-not")
    for route in of_orgs():
        for method in METHODS:
            call = call_to(trial, route, method)
            person = trial.a.person
            credential = trial.a.header() if route.is_api or person is None else person.cookie()

            def no_echo(answer: Answer) -> str | None:
                return "the request is echoed" if probe[1] in answer.text else None

            # 302: to the sign-in page. gunicorn closes what it takes for no method.
            expected = {0, 302, 400, 403, 404, 405}
            trial.attempt(
                f"{method} {route.template}", call.with_headers(credential, probe), expected=expected, check=no_echo
            )
    for override in ("X-HTTP-Method-Override", "X-Method-Override", "_method"):
        for method in ("DELETE", "PUT"):
            call = Call(
                "POST",
                api(trial.b, "exports"),
                (trial.a.header(), (override, method), ("Content-Type", "application/json")),
                b"{}",
            )
            trial.attempt(f"{override}: {method}", call, expected={400, 403, 405})


def _paths(trial: Trial) -> None:
    a, b = trial.a, trial.b
    root, query = "/analytics/v1/orgs", f"?{window()}"
    refused = {0, 301, 400, 401, 403, 404, 405}
    for path in (
        f"{root}/{a.org_id}/../{b.org_id}/usage",
        f"{root}/{a.org_id}/%2e%2e/{b.org_id}/usage",
        f"{root}/{a.org_id}/..%2f{b.org_id}/usage",
        f"{root}/{a.org_id}%2f..%2f{b.org_id}/usage",
        f"{root}/{a.org_id}/..;/{b.org_id}/usage",
        f"{root}/{a.org_id};/../{b.org_id}/usage",
        f"{root}/./{b.org_id}/usage",
        f"//analytics/v1/orgs/{b.org_id}/usage",
        f"{root}//{b.org_id}/usage",
        f"{root}/{b.org_id}//usage",
        f"{root}/{b.org_id}/usage/",
        f"{root}/{b.org_id}/usage;a=b",
        f"{root}/{b.org_id}/USAGE",
        f"{root.upper()}/{b.org_id}/usage",
        f"{root}/{b.org_id.upper()}/usage",
        f"{root}/{b.org_id.replace('-', '')}/usage",
        f"{root}/{{{b.org_id}}}/usage",
        f"{root}/urn:uuid:{b.org_id}/usage",
        f"{root}/{b.org_id}%00/usage",
        f"{root}/{b.org_id}/usage%00",
        f"{root}/{b.org_id}/usage%0a",
        f"{root}/{b.org_id}/usage%20",
        f"{root}/{b.org_id}/usage%23",
        f"{root}/{b.org_id}/usage%3f",
        f"{root}/{b.org_id}/usage.json",
        f"{root}/{b.org_id}/us%61ge",
        f"{root}/%{ord(b.org_id[0]):02x}{b.org_id[1:]}/usage",
        f"{root}/{b.org_id}\\usage",
        f"{root}/{b.org_id}%5cusage",
        f"{root}/{a.org_id},{b.org_id}/usage",
        f"{root}/{a.org_id}&org_id={b.org_id}/usage",
        f"{root}/*/usage",
        f"{root}/%25/usage",
        f"{root}/{b.org_id}/usage%e2%80%8b",
        f"{root}/{b.org_id}%ef%bc%8fusage",
        f"{root}/{b.org_id}/%c0%afusage",
        f"{root}/{b.org_id}%ff/usage",
        f"/analytics/v1/../v1/orgs/{b.org_id}/usage",
        f"/status/..{root}/{b.org_id}/usage",
        f"{root}/{b.org_id}/exports/{b.ids.get('job_id', b.org_id)}/download/..",
        f"{root}/{a.org_id}/exports/..%2f..%2f{b.org_id}%2fexports",
    ):
        trial.attempt(f"path {path}", Call("GET", path + query, (a.header(),)), expected=refused)
    person = a.person
    if person is None or not (a.slug and b.slug):
        return
    for path in (
        f"/orgs/{a.slug}/../{b.slug}/usage/",
        f"/orgs/{a.slug}/%2e%2e/{b.slug}/usage/",
        f"/orgs/{a.slug}%2f..%2f{b.slug}/usage/",
        f"/orgs/{b.slug.upper()}/usage/",
        f"/orgs/{b.slug}%20/usage/",
        f"/orgs/{b.slug}%00/usage/",
        f"//orgs/{b.slug}/usage/",
        f"/orgs/{b.slug};/usage/",
        f"/orgs/{b.slug}/usage",
        f"/orgs/{b.slug}/usage.csv",
        f"/orgs/{b.org_id}/usage/",
        f"/orgs/{b.slug}./usage/",
        f"/orgs/{a.slug},{b.slug}/usage/",
        f"/orgs/{b.slug}/usage/..",
        "/admin/../orgs/",
        "/admin//orgs/org/",
        "/Admin/",
        "/admin;/",
        "/%61dmin/",
    ):
        allowed = refused | ({302} if "dmin" in path else set())
        trial.attempt(f"page {path}", Call("GET", path, (person.cookie(),)), expected=allowed)
