"""SQL in every parameter, header and field. It is noticed by what is answered, and by how long that takes."""

import json
from urllib.parse import quote

from .learning import api, event, window
from .pages import post
from .routes import with_range
from .trial import Trial
from .wire import Answer, Call, form

SLEEP = 3  # seconds that a query would sleep
SLOW = 2.5  # seconds: an answer that took longer is asked for again
PAYLOADS = (
    f"'||pg_sleep({SLEEP})||'",
    f"1);SELECT pg_sleep({SLEEP})--",
    f"x' AND 1=(SELECT 1 FROM pg_sleep({SLEEP}))--",
    '" OR ""="',
)
JSON = ("Content-Type", "application/json")
ANSWERS = frozenset({200, 302, 400, 401, 403, 404, 405, 406, 409, 411, 415, 422, 429})


def attack(trial: Trial) -> None:
    _parameters(trial)
    _headers(trial)
    _fields(trial)
    _pages(trial)


def _try(trial: Trial, what: str, call: Call) -> None:
    """Slow once may be chance: it counts where it is slow again, and is not where the query would sleep for no time."""

    def slept(answer: Answer) -> str | None:
        if answer.seconds < SLOW:
            return None
        again, quick = trial.wire.send(call), trial.wire.send(_awake(call))
        if again.seconds < SLOW or quick.seconds >= SLOW:
            return None
        return f"pg_sleep ran: {answer.seconds:.1f} s and {again.seconds:.1f} s, {quick.seconds:.1f} s without sleep"

    trial.attempt(what, call, expected=ANSWERS, check=slept)


def _awake(call: Call) -> Call:
    def wake(text: str) -> str:
        for sleep in (f"pg_sleep({SLEEP})", quote(f"pg_sleep({SLEEP})", safe=""), quote(f"pg_sleep({SLEEP})")):
            text = text.replace(sleep, sleep.replace(str(SLEEP), "0"))
        return text

    headers = tuple((name, wake(value)) for name, value in call.headers)
    return Call(call.method, wake(call.path), headers, wake(call.body.decode("utf-8", "surrogateescape")).encode())


def _parameters(trial: Trial) -> None:
    a = trial.a
    for route, names in (
        ("usage", ("start", "end", "granularity", "modelId", "timeZone", "groupBy")),
        ("reliability", ("percentile", "modelId", "groupBy")),
        ("reliability/incidents", ("modelId", "start")),
        ("reliability/incident.csv", ("status", "limit", "modelId")),
        ("freshness", ("modelId",)),
        ("exports", ("status", "limit", "cursor")),
    ):
        for name in names:
            for payload in PAYLOADS:
                kept = "&".join(part for part in window().split("&") if not part.startswith(f"{name}="))
                path = with_range(api(a, route), kept)
                path += f"{'&' if '?' in path else '?'}{name}={quote(payload, safe='')}"
                _try(trial, f"{route}: {name} = {payload}", Call("GET", path, (a.header(),)))


def _headers(trial: Trial) -> None:
    a = trial.a
    path = api(a, f"usage?{window()}")
    payload = PAYLOADS[0]
    for name in (
        "X-API-Key",
        "Cookie",
        "X-Request-ID",
        "Accept",
        "Accept-Language",
        "User-Agent",
        "Referer",
        "X-Forwarded-For",
        "HX-Request",
    ):
        value = f"sessionid={payload}" if name == "Cookie" else f"ak_{payload}_x" if name == "X-API-Key" else payload
        headers = ((name, value),) if name in ("X-API-Key", "Cookie") else ((name, value), a.header())
        _try(trial, f"header {name}", Call("GET", path, headers))
    for name in ("Idempotency-Key", "Content-Type", "Content-Encoding"):
        others = (JSON,) if name != "Content-Type" else ()
        _try(trial, f"header {name}", Call("POST", api(a, "exports"), (a.header(), *others, (name, payload)), b"{}"))


def _fields(trial: Trial) -> None:
    a = trial.a
    texts = (
        "eventId",
        "orgId",
        "modelId",
        "actorId",
        "clientId",
        "occurredAt",
        "status",
        "errorCode",
        "latencyMs",
        "costEstimateCents",
    )
    for name in texts:
        body = json.dumps([event(a, **{name: PAYLOADS[0]})]).encode()
        _try(trial, f"event {name}", Call("POST", api(a, "events"), (a.header(), JSON), body))
    body = json.dumps([event(a, metadata={PAYLOADS[1]: PAYLOADS[0]})]).encode()
    _try(trial, "event metadata", Call("POST", api(a, "events"), (a.header(), JSON), body))
    for name in ("dataset", "format", "granularity", "timeZone", "models", "status", "limit", "timeRange", "delivery"):
        value = [PAYLOADS[0]] if name == "models" else PAYLOADS[0]
        asked = {"timeRange": {"start": PAYLOADS[0], "end": PAYLOADS[1]}, name: value}
        _try(trial, f"export {name}", Call("POST", api(a, "exports"), (a.header(), JSON), json.dumps(asked).encode()))
    # What was stored is read again: a query that is put together from stored text would sleep now.
    trial.roll_up()
    for group in ("client", "errorCode"):
        _try(
            trial,
            f"read back by {group}",
            Call("GET", api(a, f"reliability?{window()}&groupBy={group}"), (a.header(),)),
        )


def _pages(trial: Trial) -> None:
    a = trial.a
    token = "A" * 32
    for name in ("username", "password", "next"):
        fields = {
            "username": "x@example.com",
            "password": "x",
            name: f"x{PAYLOADS[0]}@example.com",
            "csrfmiddlewaretoken": token,
        }
        headers, body = form(fields)
        origin = (("Cookie", f"csrftoken={token}"), ("Origin", trial.wire.base))
        _try(trial, f"sign-in: {name}", Call("POST", "/login/", (*headers, *origin), body))
    _try(trial, "an invitation's token", Call("GET", f"/invitations/{quote(PAYLOADS[0], safe='')}/"))
    person = a.admin or a.person
    if person is None or not a.slug:
        return
    for page, names in (
        ("usage/", ("range", "start", "granularity", "model", "measure", "group", "sort", "page", "exact", "clients")),
        ("reliability/", ("model", "sort", "page", "exact")),
        ("usage.csv", ("model", "sort")),
        ("exports/", ("page", "model")),
        ("settings/", ("members", "keys")),
    ):
        for name in names:
            path = f"/orgs/{a.slug}/{page}?{name}={quote(PAYLOADS[0], safe='')}"
            _try(trial, f"page {page}: {name}", Call("GET", path, (person.cookie(),)))
    _try(trial, "page /orgs/: q", Call("GET", f"/orgs/?q={quote(PAYLOADS[0], safe='')}", (person.cookie(),)))
    for name in ("dataset", "range", "start", "models", "status", "limit", "format"):
        fields = {"dataset": "usage", "range": "custom", "format": "csv", name: PAYLOADS[0]}
        _try(trial, f"form of exports: {name}", post(trial, person, f"/orgs/{a.slug}/exports/new", fields))
