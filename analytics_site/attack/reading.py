"""Every route of the other org, with every credential that should not open it."""

import json
from collections.abc import Iterator

from .learning import event, window, wish
from .routes import Route, of_orgs, with_range
from .trial import Trial
from .wire import Answer, Call

Header = tuple[str, str]
UNREAL = "7d0c1f52-93c4-4be0-8a53-000000000000"


def attack(trial: Trial) -> None:
    routes = of_orgs()
    for route in routes:
        _is_had_by_its_owner(trial, route)
        for name, headers, expected in _credentials(trial, route):
            for method in ("GET", "POST"):
                # One form of each: what a route does not take is tried by `methods`.
                if method == ("GET" if "GET" in route.methods else "POST"):
                    call = call_to(trial, route, method).with_headers(*headers)
                    trial.attempt(f"{method} {route.template} with {name}", call, expected=expected)
        if route.is_api:
            _is_told_apart(trial, route)
    for name, headers in _keys_in_wrong_places(trial):
        for route in (r for r in routes if r.template.endswith(("/usage", "/exports", "/events"))):
            method = "GET" if "GET" in route.methods else "POST"
            call = call_to(trial, route, method).with_headers(*headers)
            trial.attempt(f"{method} {route.template} with B's key {name}", call, expected={400, 401, 431})
    _in_the_query(trial)


def call_to(trial: Trial, route: Route, method: str, org: str = "") -> Call:
    """A request that would be answered, had it the right credentials."""
    path = with_range(route.path(trial.b), window())
    if org:
        path = path.replace(trial.b.org_id, org)
    if method == "POST" and route.is_api:
        body = [event(trial.b)] if route.template.endswith("/events") else wish()
        return Call(method, path, (("Content-Type", "application/json"),), json.dumps(body).encode())
    return Call(method, path)


def _is_had_by_its_owner(trial: Trial, route: Route) -> None:
    """A refusal of what nobody gets proves little."""
    owner = (trial.b.header(),) if route.is_api else (trial.b.admin.cookie(),) if trial.b.admin else ()
    if "GET" not in route.methods or not owner or ("POST" in route.methods and not route.is_api):
        return
    answer = trial.send(call_to(trial, route, "GET").with_headers(*owner))
    if answer.status not in (200, 302):
        trial.skip(f"{route.template}: B itself is answered {answer.status}, so that A's refusal proves little")


def _credentials(trial: Trial, route: Route) -> Iterator[tuple[str, tuple[Header, ...], set[int]]]:
    a, b = trial.a, trial.b
    denied = {403, 405}
    unknown = {401, 405} if route.is_api else {302, 403, 405}  # to the sign-in page
    yield "no credentials", (), unknown
    yield "A's key", (a.header(),), denied if route.is_api else unknown
    for name, key in a.keys.items():
        yield f"A's {name} key", (a.header(key),), ({401} if name in UNUSABLE else denied) if route.is_api else unknown
    for name in UNUSABLE:
        if name in b.keys:
            yield f"B's {name} key", (b.header(b.keys[name]),), unknown
    for name, key in _mangled(b.key):
        yield f"B's key {name}", (b.header(key),), {400, *unknown}
    for role, person in a.people.items():
        yield f"the session of A's {role}", (person.cookie(),), denied
    yield "a session that nobody has", (("Cookie", "sessionid=abcdefghijklmnopqrstuvwxyz012345"),), unknown


UNUSABLE = ("expired", "revoked")


def _mangled(key: str) -> Iterator[tuple[str, str]]:
    yield "cut", key[:-1]
    yield "in the other case", key.swapcase()
    yield "and more", key + "x"
    yield "with nothing but its prefix", "_".join(key.split("_")[:2]) + "_"
    yield "twice", f"{key},{key}"


def _keys_in_wrong_places(trial: Trial) -> Iterator[tuple[str, tuple[Header, ...]]]:
    key = trial.b.key
    for scheme in ("ApiKey", "Token", "Bearer", "Basic"):
        yield f"as Authorization: {scheme}", (("Authorization", f"{scheme} {key}"),)
    for header in ("X-Api-Token", "Api-Key", "X_API_Key", "X-API-Key-", "Proxy-Authorization"):
        yield f"as {header}", ((header, key),)
    yield "as a cookie", (("Cookie", f"X-API-Key={key}; api_key={key}"),)
    yield "as a session", (("Cookie", f"sessionid={key}"),)
    yield "in quotes", (("X-API-Key", f'"{key}"'),)
    yield "behind a word", (("X-API-Key", f"Bearer {key}"),)


def _in_the_query(trial: Trial) -> None:
    for name in ("api_key", "apikey", "X-API-Key", "key", "token", "access_token"):
        path = f"/analytics/v1/orgs/{trial.b.org_id}/usage?{window()}&{name}={trial.b.key}"
        trial.attempt(f"B's key in the query as {name}", Call("GET", path), expected={401})


def _is_told_apart(trial: Trial, route: Route) -> None:
    """A refusal must not tell whether an org, or a thing in it, exists."""
    method = "GET" if "GET" in route.methods else "POST"
    real = call_to(trial, route, method).with_headers(trial.a.header())
    unreal = call_to(trial, route, method, UNREAL).with_headers(trial.a.header())
    other = _without_accident(trial.send(unreal), UNREAL)

    def check(answer: Answer) -> str | None:
        mine = _without_accident(answer, trial.b.org_id)
        return None if mine == other else f"an org that is not there is refused otherwise: {other[0]}"

    trial.attempt(f"whether {route.template} tells a real org", real, expected={403, 405}, check=check)


def _without_accident(answer: Answer, org: str) -> tuple[int, str, tuple[str, ...]]:
    return answer.status, answer.text.replace(org, "ORG"), tuple(sorted(name for name, _ in answer.headers))
