"""Events for the other org: by path, by body, by both, spelt in each way the door knows."""

import json
import uuid
from typing import Any

from .learning import api, event, own, window
from .trial import Trial
from .wire import Answer, Call

JSON = ("Content-Type", "application/json")
LINES = ("Content-Type", "application/x-ndjson")


def attack(trial: Trial) -> None:
    a, b = trial.a, trial.b
    before = own(trial, b, f"usage?{window()}")["totals"]
    to_b = event(b, modelId=b.model_id or a.model_id)
    for name, document in (("an event of B", to_b), ("an event of A", event(a)), ("no org", _without(to_b, "orgId"))):
        for form, headers, text in (
            ("JSON", JSON, json.dumps([document])),
            ("lines", LINES, json.dumps(document)),
        ):
            call = Call("POST", api(b, "events"), (a.header(), headers), text.encode())
            trial.attempt(f"{name} to B's path as {form}", call, expected={403})

    def nothing_taken(answer: Answer) -> str | None:
        if answer.status != 200:
            return None
        accepted = json.loads(answer.body)["accepted"]
        return f"{accepted} accepted" if accepted else None

    for name, body in _bodies(a.org_id, b.org_id, to_b):
        call = Call("POST", api(a, "events"), (a.header(), JSON), body)
        trial.attempt(f"B's org in the body, {name}", call, expected={200, 400}, check=nothing_taken)
    call = Call("POST", api(a, "events"), (a.header(), LINES), json.dumps(to_b).encode())
    trial.attempt("B's org in a line", call, expected={200, 400}, check=nothing_taken)

    if known := b.ids.get("spare_id"):
        # The identity is (org, id): A may have an event of the same id, and B's stays what it is.
        call = Call("POST", api(a, "events"), (a.header(), JSON), json.dumps([event(a, eventId=known)]).encode())
        trial.attempt("an event of A with the id of B's", call, expected={200, 400})
    trial.roll_up()
    after = own(trial, b, f"usage?{window()}")["totals"]
    changed = None if before == after else f"B's figures were {before} and are {after}"
    if changed and not trial.is_own:
        trial.skip("B's figures moved meanwhile: somebody sends events for B; whether the attack did can't be told")
        changed = None
    trial.verdict("B's figures, after all this", changed, Call("GET", api(b, f"usage?{window()}"), (b.header(),)))


def _without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def _bodies(mine: str, theirs: str, document: dict[str, Any]) -> list[tuple[str, bytes]]:
    bare = _without(document, "orgId")

    def with_org(text: str) -> bytes:
        """JSON whose org is written by hand: names twice, both spellings."""
        return b"[{" + text.encode() + b"," + json.dumps(bare | {"eventId": str(uuid.uuid4())}).encode()[1:] + b"]"

    return [
        ("plainly", with_org(f'"orgId": "{theirs}"')),
        ("in snake case", with_org(f'"org_id": "{theirs}"')),
        ("in the other case", with_org(f'"orgId": "{theirs.upper()}"')),
        ("without hyphens", with_org(f'"orgId": "{theirs.replace("-", "")}"')),
        ("after A's, the same name", with_org(f'"orgId": "{mine}", "orgId": "{theirs}"')),
        ("after A's, in snake case", with_org(f'"orgId": "{mine}", "org_id": "{theirs}"')),
        ("before A's, in snake case", with_org(f'"org_id": "{theirs}", "orgId": "{theirs}"')),
        ("as a list", with_org(f'"orgId": ["{theirs}"]')),
        ("as an object", with_org(f'"orgId": {{"id": "{theirs}"}}')),
        ("with escapes", with_org('"org\\u0049d": "' + theirs + '"')),
    ]
