"""Pages: what a member may not open, and what somebody else's browser could be made to send."""

from collections.abc import Iterator, Mapping
from urllib.parse import urlencode

from .routes import Route, admin_routes, all_routes
from .trial import Person, Trial
from .wire import Call, form

EVIL = "https://evil.example"


def attack(trial: Trial) -> None:
    _admin(trial)
    _above_ones_role(trial)
    _forged(trial)


def post(trial: Trial, person: Person, path: str, fields: Mapping[str, str], **instead: str) -> Call:
    """A form as a page of the service would send it; `instead` replaces the token, the cookie's token or the origin."""
    token = instead.get("token", person.csrf)
    headers, body = form(dict(fields) | ({"csrfmiddlewaretoken": token} if token else {}))
    cookie = f"sessionid={person.session}" + (f"; csrftoken={c}" if (c := instead.get("cookie", person.csrf)) else "")
    origin = instead.get("origin", trial.wire.base)
    return Call("POST", path, (*headers, ("Cookie", cookie), ("Origin", origin)), body)


def _admin(trial: Trial) -> None:
    """The admin is the platform's: no member of any org gets in."""
    people: list[tuple[str, tuple[tuple[str, str], ...]]] = [
        ("nobody", ()),
        ("A's key", (trial.a.header(),)),
        *((f"A's {role}", (person.cookie(),)) for role, person in trial.a.people.items()),
    ]
    for path in [path for path in admin_routes() if "logout" not in path and "jsi18n" not in path]:
        for name, headers in people[:3]:
            trial.attempt(
                f"{path} as {name}",
                Call("GET", path, headers),
                expected={200, 302, 403, 404} if "login" in path else {302, 403, 404, 405},
            )
    person = trial.a.person
    if person:
        for path in ("/admin/orgs/user/add/", "/admin/orgs/membership/add/", "/admin/orgs/apikey/add/"):
            call = post(trial, person, path, {"email": "x@evil.example", "is_staff": "on"})
            trial.attempt(f"POST {path} as a member", call, expected={302, 403, 404})


def _settings(slug: str) -> Iterator[Route]:
    yield from (r for r in all_routes() if r.template.startswith("/orgs/<slug:slug>/") and not r.is_api)


def _above_ones_role(trial: Trial) -> None:
    """Within one's own org: a viewer administers nothing and asks for no files, others don't administer."""
    a = trial.a
    for role, person in a.people.items():
        if role == "org_admin" or not a.slug:
            continue
        for route in _settings(a.slug):
            is_admins = "/settings/" in route.template
            is_exports = "/exports/" in route.template
            if is_admins or (is_exports and role == "viewer"):
                path = route.path(a)
                trial.attempt(
                    f"GET {route.template} as A's {role}", Call("GET", path, (person.cookie(),)), expected={403, 405}
                )
                call = post(trial, person, path, {"role": "org_admin", "email": "x@evil.example", "name": "x"})
                trial.attempt(f"POST {route.template} as A's {role}", call, expected={403, 405})


_FORMS: dict[str, dict[str, str]] = {
    "settings/organisation": {"name": "taken over", "time_zone": "UTC"},
    "settings/invitations": {"email": "x@evil.example", "role": "org_admin"},
    "settings/keys": {"name": "x", "scopes": "admin", "lifetime": ""},
    "exports/new": {"dataset": "usage", "range": "7d", "granularity": "daily", "format": "csv"},
}


def _forged(trial: Trial) -> None:
    """B's admin is signed in, and opens a page of A's: what that page can make the browser send."""
    victim, mine = trial.b.admin, trial.a.person
    if victim is None or not trial.b.slug:
        trial.skip("B has no admin who signs in: forged requests are not tried")
        return
    for path, fields in _FORMS.items():
        address = f"/orgs/{trial.b.slug}/{path}"
        for name, instead in (
            ("without a token", {"token": ""}),
            ("without token and cookie", {"token": "", "cookie": ""}),
            (
                "with a token of A's",
                {"token": mine.csrf[::-1] if mine is None else mine.csrf} if mine else {"token": "A" * 64},
            ),
            ("with a token of wrong length", {"token": victim.csrf[:-1]}),
            ("from another site", {"origin": EVIL}),
            ("from nowhere", {"origin": "null"}),
        ):
            call = post(trial, victim, address, fields, **instead)
            trial.attempt(f"POST {address} {name}", call, expected={403})
        by_link = Call("GET", f"{address}?{urlencode(fields)}", (victim.cookie(),))
        # GET of exports/new leads to the page; it asks for nothing. What it leads to is B's, for B.
        expected = {302, 405} if path == "exports/new" else {405}
        owners = trial.send(by_link)
        complaint = None if owners.status in expected else f"answered {owners.status}"
        trial.verdict(f"GET {address} as an image", complaint, by_link)
    _api_by_session(trial, victim)
    logout = Call("GET", "/logout/", (victim.cookie(),))
    trial.attempt("signing B's admin out by a link", logout, expected={405})


def _api_by_session(trial: Trial, victim: Person) -> None:
    """The API takes a session too: not without the token, whatever type the body says it has."""
    root = f"/analytics/v1/orgs/{trial.b.org_id}"
    for kind in (
        "application/json",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        for path in ("exports", "events"):
            headers = (("Content-Type", kind), ("Cookie", f"sessionid={victim.session}"), ("Origin", EVIL))
            trial.attempt(
                f"POST {path} by B's session as {kind}", Call("POST", f"{root}/{path}", headers, b"[]"), expected={403}
            )
    by_script = (("Origin", EVIL), victim.cookie())
    answer = trial.send(Call("GET", f"{root}/usage", by_script))
    allowed = answer.get("Access-Control-Allow-Origin")
    complaint = f"other sites may read: {allowed}" if allowed else None
    trial.verdict("B's figures read by a script of another site", complaint, Call("GET", f"{root}/usage", by_script))
