"""What browsers are told: where a redirect may lead, what cookies and pages may do."""

import re
from urllib.parse import quote, urljoin, urlsplit

from .pages import post
from .routes import all_routes
from .trial import Check, Person, Trial
from .wire import Answer, Call, form

NEXT = (
    "//evil.example",
    "///evil.example",
    "https://evil.example/",
    "https:evil.example",
    "http:///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "//evil.example@localhost",
    "/%09/evil.example",
    "/\r\nSet-Cookie: a=b",
    " //evil.example",
    "//evil%2eexample",
    "////evil.example/%2f..",
    "http://[::1]@evil.example/",
)


def attack(trial: Trial) -> None:
    _redirects(trial)
    _cookies(trial)
    _headers(trial)


def stays(base: str) -> Check:
    def check(answer: Answer) -> str | None:
        where = answer.get("Location")
        if answer.get("Set-Cookie").startswith("a="):
            return "a header was put in"
        if not where:
            return None
        # Browsers read a backslash as a slash, and leave out tabs and line ends.
        target = urlsplit(urljoin(base, re.sub(r"[\t\r\n]", "", where.strip()).replace("\\", "/")))
        home = urlsplit(base)
        return None if (target.scheme, target.netloc) == (home.scheme, home.netloc) else f"leads to {where}"

    return check


def _redirects(trial: Trial) -> None:
    base, person = trial.wire.base, trial.a.person
    for text in NEXT:
        quoted = quote(text, safe="")
        trial.attempt(
            f"sign-in page, next={text!r}",
            Call("GET", f"/login/?next={quoted}"),
            expected={200, 302, 400},
            check=stays(base),
        )
        if person:
            call = Call("GET", f"/login/?next={quoted}", (person.cookie(),))
            trial.attempt(
                f"sign-in page when signed in, next={text!r}", call, expected={200, 302, 400}, check=stays(base)
            )
            page = Call("GET", f"/orgs/?next={quoted}", (person.cookie(),))
            trial.attempt(f"a page, next={text!r}", page, expected={200, 302, 400}, check=stays(base))
        trial.attempt(
            f"the address {text!r}",
            Call("GET", quote(f"/{text}", safe="/:")),
            expected={301, 302, 400, 404},
            check=stays(base),
        )
    if person is None:
        trial.skip("nobody of A signs in: where signing in leads to was not tried")
        return
    for text in NEXT[:3] + NEXT[5:6] + NEXT[8:9]:
        token = "A" * 32
        headers, body = form(
            {"username": person.email, "password": person.password, "next": text, "csrfmiddlewaretoken": token}
        )
        call = Call("POST", "/login/", (*headers, ("Cookie", f"csrftoken={token}"), ("Origin", base)), body)
        answer = trial.attempt(f"signing in, next={text!r}", call, expected={200, 302, 400, 429}, check=stays(base))
        cookies = answer.cookies()
        if "sessionid" not in cookies:
            continue
        fresh = Person(person.email, person.password, person.role, cookies["sessionid"], cookies.get("csrftoken", ""))
        trial.is_secret(fresh.session, "a session")
        if text == NEXT[0]:
            _session(trial, person, answer)
        trial.attempt(
            f"signing out, next={text!r}",
            post(trial, fresh, "/logout/", {"next": text}),
            expected={200, 302, 400},
            check=stays(base),
        )
        old = Call("GET", "/orgs/", (fresh.cookie(),))
        trial.attempt(f"a session after signing out ({text!r})", old, expected={302})


def _session(trial: Trial, person: Person, answer: Answer) -> None:
    """A session that an attacker chose must not be the one that is signed in."""
    chosen = "a" * 32
    token = "A" * 32
    headers, body = form({"username": person.email, "password": person.password, "csrfmiddlewaretoken": token})
    call = Call(
        "POST",
        "/login/",
        (*headers, ("Cookie", f"csrftoken={token}; sessionid={chosen}"), ("Origin", trial.wire.base)),
        body,
    )
    trial.send(call)
    fixed = Call("GET", "/orgs/", (("Cookie", f"sessionid={chosen}"),))
    trial.attempt("a session that was chosen before signing in", fixed, expected={302})


def _cookies(trial: Trial) -> None:
    person = trial.a.person
    calls = [Call("GET", "/login/")]
    if person:
        token = "A" * 32
        headers, body = form({"username": person.email, "password": person.password, "csrfmiddlewaretoken": token})
        calls.append(
            Call("POST", "/login/", (*headers, ("Cookie", f"csrftoken={token}"), ("Origin", trial.wire.base)), body)
        )
    secure = trial.wire.base.startswith("https:")

    def check(answer: Answer) -> str | None:
        for cookie in answer.all("Set-Cookie"):
            name, flags = cookie.partition("=")[0], cookie.lower()
            missing = [flag for flag in ("httponly", "samesite", *(("secure",) if secure else ())) if flag not in flags]
            if missing or "samesite=none" in flags:
                return f"the cookie {name} has no {', '.join(missing) or 'SameSite that holds'}"
        return None

    for call in calls:
        trial.attempt(f"cookies of {call.method} {call.path}", call, expected={200, 302, 429}, check=check)


def _headers(trial: Trial) -> None:
    """Of every page, and of every answer of the API."""
    a = trial.a
    for route in all_routes():
        if route.names - {"org_id", "slug"} or "GET" not in route.methods or "metrics" in route.template:
            continue
        credential = a.header() if route.is_api or a.person is None else a.person.cookie()
        call = Call("GET", route.path(a), (credential,))
        check = _is_page if not route.is_api else _is_sealed
        trial.attempt(f"headers of {route.template}", call, expected=frozenset(range(200, 500)), check=check)
    for path in ("/nowhere", "/admin/login/", "/analytics/v1/nowhere"):
        trial.attempt(
            f"headers of {path}",
            Call("GET", path),
            expected={200, 404},
            check=_is_page if "analytics" not in path else _is_sealed,
        )


def _is_sealed(answer: Answer) -> str | None:
    wanted = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
    wrong = [name for name, value in wanted.items() if answer.get(name).upper() != value.upper()]
    return f"{', '.join(wrong)} missing" if wrong else None


def _is_page(answer: Answer) -> str | None:
    policy = {
        part.split()[0]: part.split()[1:] for part in answer.get("Content-Security-Policy").split(";") if part.strip()
    }
    scripts = policy.get("script-src", policy.get("default-src"))
    if scripts is None:
        return "no Content-Security-Policy for scripts"
    if loose := {"'unsafe-inline'", "'unsafe-eval'", "*", "http:", "https:", "data:"} & set(scripts):
        return f"scripts may be {', '.join(loose)}"
    if policy.get("frame-ancestors") not in (["'none'"], ["'self'"]):
        return "may be framed"
    if "html" in answer.get("Content-Type"):
        for tag in re.findall(r"<script\b[^>]*>", answer.text):
            if "src=" not in tag and "application/json" not in tag:
                return f"an inline script: {tag}"
    return _is_sealed(answer)
