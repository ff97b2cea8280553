"""Ids of the other org where one's own are expected: in paths, bodies, filters, cursors and links."""

import base64
import json
from dataclasses import replace
from urllib.parse import parse_qs, quote, urlsplit

from .learning import api, own, window, wish
from .pages import post
from .routes import of_orgs
from .trial import Trial
from .wire import Answer, Call

JSON = ("Content-Type", "application/json")
GUESSES = ("0", "-1", str(2**31), str(2**63), str(10**40), "1e3", "0x1", "１")


def attack(trial: Trial) -> None:
    _things_in_paths(trial)
    _filters(trial)
    _bodies(trial)
    _cursors(trial)


def _things_in_paths(trial: Trial) -> None:
    """B's job, member, key and invitation at an address of A."""
    a, b = trial.a, trial.b
    for route in (r for r in of_orgs() if r.names_a_thing):
        method = "GET" if "GET" in route.methods and route.is_api else "POST"
        path = route.path(a, things=b)
        thing = next(iter(route.names - {"org_id", "slug"}))
        if thing not in b.ids:
            trial.skip(f"{route.template}: B has no {thing}")
            continue
        what = f"{method} {route.template} in A with B's {thing}"
        # 400: the method of a form whose id is right is looked at first.
        if route.is_api:
            headers = (a.header(), *((JSON,) if method == "POST" else ()))
            trial.attempt(what, Call(method, path, headers), expected={404})
        elif a.admin:
            trial.attempt(what, post(trial, a.admin, path, {"role": "viewer"}), expected={404, 405})
            trial.attempt(f"GET of {what}", Call("GET", path, (a.admin.cookie(),)), expected={404, 405})
        encoded = f"%{ord(b.ids[thing][0]):02x}{b.ids[thing][1:]}"
        for guess in (*GUESSES, encoded):
            guessed = route.path(a, things=replace(b, ids=b.ids | {thing: guess}))
            if route.is_api:
                trial.attempt(f"{what}, as {guess}", Call(method, guessed, (a.header(),)), expected={400, 404})
            elif a.admin:
                trial.attempt(
                    f"{what}, as {guess}", post(trial, a.admin, guessed, {"role": "viewer"}), expected={400, 404, 405}
                )


def _filters(trial: Trial) -> None:
    a, b = trial.a, trial.b

    def has_no_calls(answer: Answer) -> str | None:
        if answer.status == 200 and b"invocations" in answer.body:
            calls = json.loads(answer.body).get("totals", {}).get("invocations", 0)
            return f"{calls} calls of a model that A does not use" if calls else None
        return None

    if b.model_id and b.model_id != a.model_id:
        for path in ("usage", "reliability", "reliability/incidents", "reliability/incident.csv"):
            call = Call("GET", api(a, f"{path}?{window()}&modelId={b.model_id}"), (a.header(),))
            trial.attempt(f"{path} of A with B's model", call, expected={200, 400}, check=has_no_calls)
        call = Call("GET", api(a, f"freshness?modelId={b.model_id}"), (a.header(),))
        trial.attempt("freshness of A with B's model", call, expected={200, 400})
        for page in ("usage", "reliability", "exports"):
            if a.person and a.slug:
                call = Call("GET", f"/orgs/{a.slug}/{page}/?range=7d&model={b.model_id}", (a.person.cookie(),))
                trial.attempt(f"the {page} page of A with B's model", call, expected={200, 400})
    for name in ("orgId", "org_id", "org", "orgs", "organisation", "tenant", "orgId[]", "slug"):
        for value in (b.org_id, b.slug or b.org_id):
            call = Call("GET", api(a, f"usage?{window()}&{name}={value}"), (a.header(),))
            trial.attempt(f"usage of A with {name} of B", call, expected={400})


def _bodies(trial: Trial) -> None:
    """An export of A that names what is B's."""
    a, b = trial.a, trial.b
    for name, strange in (
        ("a bucket of B", {"delivery": {"type": "s3", "bucket": f"{b.slug or 'b'}-exports"}}),
        ("a bucket that leads away", {"delivery": {"type": "s3", "bucket": "../" + b.org_id}}),
        ("a bucket at an address", {"delivery": {"type": "s3", "bucket": "http://169.254.169.254/latest"}}),
        ("no bucket", {"delivery": {"type": "s3", "bucket": ""}}),
        ("another store", {"delivery": {"type": "file", "bucket": "/etc"}}),
        ("the summary of all orgs", {"dataset": "org_summary"}),
        ("B's org as a model", {"models": [f"{b.org_id}' OR '1'='1"]}),
        ("all models as a star", {"models": ["*"]}),
        ("a dataset that is none", {"dataset": f"../{b.org_id}/usage"}),
        ("a format that leads away", {"format": "../../csv"}),
    ):
        body = json.dumps(wish() | strange).encode()
        trial.attempt(
            f"an export of A with {name}", Call("POST", api(a, "exports"), (a.header(), JSON), body), expected={400}
        )


def _cursors(trial: Trial) -> None:
    a, b = trial.a, trial.b
    cursors = {"empty": "", "no base64": "%%%", "long": "A" * 5_000, "NUL": _cursor("p=\0")}
    for name, text in (
        ("position of B", f"p={quote('2999-01-01 00:00:00+00:00')}"),
        ("offset", "o=99999999"),
        ("offset below zero", "o=-1"),
        ("reverse", f"r=1&p={quote('1970-01-01 00:00:00+00:00')}"),
        ("SQL", "p=" + quote("2999-01-01' OR '1'='1")),
        ("sleep", "p=" + quote("2999-01-01'||pg_sleep(3)||'")),
        ("org", f"p={quote('2999-01-01 00:00:00+00:00')}&org={b.org_id}"),
    ):
        cursors[name] = _cursor(text)
    if following := own(trial, b, "exports?limit=1").get("next"):
        cursors["of B's list"] = parse_qs(urlsplit(following).query)["cursor"][0]

    def only_mine(answer: Answer) -> str | None:
        if answer.status != 200:
            return None
        others = {item["orgId"] for item in json.loads(answer.body)["items"]} - {a.org_id}
        return f"jobs of {others}" if others else None

    for name, cursor in cursors.items():
        call = Call("GET", api(a, f"exports?cursor={quote(cursor, safe='')}"), (a.header(),))
        trial.attempt(f"A's exports with a cursor: {name}", call, expected={200, 400, 414}, check=only_mine)


def _cursor(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
