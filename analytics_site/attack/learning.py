"""What the suite knows before it attacks: canaries that it plants in the victim's org, and what the org's own key and people see.

Each is looked for in the owner's own answers first: a canary that nobody can see proves nothing.
"""

import json
import re
import secrets
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

from .trial import Party, Person, Trial
from .wire import Answer, Call, form

PLANTED_FOR = 20.0  # seconds until events that were sent are in the figures
EXPORTED_IN = 30.0  # seconds until a file that was asked for is there


class CannotAttack(Exception):
    """The installation does not do for its owners what the attack needs; the text says what."""


def window() -> str:
    """The last days, as the query string of figures has them."""
    now = datetime.now(UTC)
    return urlencode({"start": (now - timedelta(days=25)).isoformat(), "end": (now + timedelta(hours=1)).isoformat()})


def learn(trial: Trial) -> None:
    for party in (trial.a, trial.b):
        trial.is_secret(party.key, f"key of {party.label}")
        for name, key in party.keys.items():
            trial.is_secret(key, f"{name} key of {party.label}")
        for person in party.people.values():
            trial.is_secret(person.password, f"password of {party.label}")
            sign_in(trial, person)
        _read_figures(trial, party)
    _plant(trial)
    _read_exports(trial)
    for party in (trial.a, trial.b):
        _read_pages(trial, party)
    for value, name in trial.b.secrets.items():
        trial.is_canary(value, name)
    for name in ("org_id", "slug"):
        trial.is_canary(str(getattr(trial.b, name)), f"the {name}")
    _forget_what_both_know(trial)


def api(party: Party, path: str) -> str:
    return f"/analytics/v1/orgs/{party.org_id}/{path}"


def own(trial: Trial, party: Party, path: str) -> Any:
    """What an org's own key reads."""
    answer = trial.send(Call("GET", api(party, path), (party.header(),)))
    if answer.status != 200:
        raise CannotAttack(f"{party.label}'s key can't read its own {path.partition('?')[0]}: {answer.status}")
    return json.loads(answer.body)


def _read_figures(trial: Trial, party: Party) -> None:
    series = own(trial, party, f"usage?{window()}")["series"]
    party.model_id = party.model_id or next((point["modelId"] for point in series), "")
    answer = trial.send(Call("GET", api(party, f"reliability/incident.csv?{window()}&limit=1"), (party.header(),)))
    if found := re.search(r'filename="incident-(.+)-\d{8}T', answer.get("Content-Disposition")):
        party.slug = found.group(1)


def event(party: Party, **fields: Any) -> dict[str, Any]:
    """One that the door takes, of a moment ago."""
    return {
        "eventId": str(uuid.uuid4()),
        "orgId": party.org_id,
        "modelId": party.model_id or str(uuid.uuid4()),
        "occurredAt": (datetime.now(UTC) - timedelta(minutes=3)).isoformat(),
        "latencyMs": 120,
        "status": "error",
        "inputTokens": 1,
        "outputTokens": 1,
        "costEstimateCents": 1,
        **fields,
    }


def send_events(trial: Trial, party: Party, events: list[dict[str, Any]]) -> Answer:
    headers = (party.header(), ("Content-Type", "application/json"))
    return trial.send(Call("POST", api(party, "events"), headers, json.dumps(events).encode()))


def _plant(trial: Trial) -> None:
    """An event whose every text is a canary, and a cost that no other figure is made of."""
    victim = trial.b
    word = secrets.token_hex(5)
    cost = f"{secrets.randbelow(80_000) + 10_000}.{secrets.randbelow(8999) + 1001}"
    planted = event(
        victim,
        clientId=f"client-{word}",
        errorCode=f"code-{word}",
        actorId=str(uuid.uuid4()),
        metadata={"note": f"meta-{word}"},
        costEstimateCents=float(cost),
    )
    spare = event(victim)  # nobody looks for its id, which others may have too
    answer = send_events(trial, victim, [planted, spare])
    if answer.status != 200 or json.loads(answer.body)["accepted"] != 2:
        trial.skip(f"no canary could be planted in B's events: answered {answer.status}")
        return
    victim.ids |= {"event_id": planted["eventId"], "spare_id": spare["eventId"]}
    for name in ("eventId", "clientId", "errorCode", "actorId"):
        trial.is_canary(planted[name], name)
    trial.is_canary(planted["metadata"]["note"], "metadata")
    trial.is_canary(cost, "a cost")
    trial.is_canary(victim.model_id, "the model")
    trial.roll_up()
    deadline = time.monotonic() + PLANTED_FOR
    while planted["clientId"] not in json.dumps(own(trial, victim, f"usage?{window()}&groupBy=client")):
        if time.monotonic() > deadline:
            raise CannotAttack("B's own key does not see the event that was planted: no worker rolls up")
        time.sleep(0.5)
    total = own(trial, victim, f"usage?{window()}")["totals"]["costEstimate"]
    trial.is_canary(str(total), "the total cost")


def wish() -> dict[str, Any]:
    """An export that can be had."""
    now = datetime.now(UTC)
    return {
        "timeRange": {"start": (now - timedelta(days=3)).isoformat(), "end": (now + timedelta(hours=1)).isoformat()}
    }


def ask_for_export(trial: Trial, party: Party, **fields: Any) -> str:
    """A job's id; empty where none is had."""
    headers = (party.header(), ("Content-Type", "application/json"))
    answer = trial.send(Call("POST", api(party, "exports"), headers, json.dumps(wish() | fields).encode()))
    return str(json.loads(answer.body)["jobId"]) if answer.status == 202 else ""


def ready(trial: Trial, party: Party, job_id: str) -> bool:
    """Whether a job's file is there, after a while."""
    trial.make_export(job_id)
    deadline = time.monotonic() + EXPORTED_IN
    while (status := own(trial, party, f"exports/{job_id}")["status"]) in ("pending", "running"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return bool(status == "succeeded")


def link_of(trial: Trial, party: Party, job_id: str) -> str:
    """The path of a file's signed address, where the service itself hands it out."""
    answer = trial.send(Call("GET", api(party, f"exports/{job_id}/download"), (party.header(),)))
    parts = urlsplit(answer.get("Location"))
    if parts.netloc != trial.wire.host or "/exports/files/" not in parts.path:
        return ""
    trial.is_secret(parts.path.rpartition("/")[2], f"signed link of {party.label}")
    return parts.path


def _read_exports(trial: Trial) -> None:
    """An export of each org. The victim's is made of its events, canaries and all."""
    for party in (trial.a, trial.b):
        job_id = ask_for_export(trial, party, dataset="incident_events")
        if not job_id:
            trial.skip(f"{party.label} has no export: its key may not ask for one")
            continue
        party.ids["job_id"] = job_id
        if party is trial.b:
            trial.is_canary(job_id, "an export's id")
        if not ready(trial, party, job_id):
            trial.skip(f"{party.label}'s export was not made within {EXPORTED_IN:.0f} s: no worker makes them")
            continue
        party.links["good"] = link_of(trial, party, job_id)
        if party is trial.b:
            trial.is_canary(own(trial, party, f"exports/{job_id}")["checksum"], "a checksum")
            file = trial.send(Call("GET", party.links["good"])) if party.links["good"] else None
            if file is not None and party.ids.get("event_id", "") not in file.text:
                raise CannotAttack("B's own export does not hold the event that was planted")


def sign_in(trial: Trial, person: Person) -> None:
    page = trial.send(Call("GET", "/login/"))
    token = page.cookies().get("csrftoken", "")
    headers, body = form(
        {"username": person.email, "password": person.password, "csrfmiddlewaretoken": token, "next": ""}
    )
    origin = (("Cookie", f"csrftoken={token}"), ("Origin", trial.wire.base), ("Referer", f"{trial.wire.base}/login/"))
    answer = trial.send(Call("POST", "/login/", (*headers, *origin), body))
    cookies = answer.cookies()
    if "sessionid" not in cookies:
        raise CannotAttack(f"a person can't sign in: /login/ answers {answer.status}")
    person.session, person.csrf = cookies["sessionid"], cookies.get("csrftoken", token)
    trial.is_secret(person.session, "a session")
    trial.is_secret(person.csrf, "a CSRF token")


_NUMBERS = {
    "membership_id": r"/settings/members/(\d+)/role",
    "key_id": r"/settings/keys/(\d+)/revoke",
    "invitation_id": r"/settings/invitations/(\d+)/withdraw",
}


def _read_pages(trial: Trial, party: Party) -> None:
    """What an org's admin sees on its settings page."""
    admin = party.admin
    if admin is None or not party.slug:
        trial.skip(f"{party.label} has no admin who signs in: pages are attacked without the ids that stand on them")
        return
    page = trial.send(Call("GET", f"/orgs/{party.slug}/settings/", (admin.cookie(),)))
    if page.status != 200:
        raise CannotAttack(f"{party.label}'s person does not see /orgs/{party.slug}/settings/: {page.status}")
    for name, pattern in _NUMBERS.items():
        if found := re.findall(pattern, page.text):
            party.ids[name] = found[-1]
    if party is trial.b:
        for email in set(re.findall(r"[\w.+-]+@[\w-]+\.[\w.-]*\w", page.text)):
            trial.is_canary(email, "an address")
        for prefix in set(re.findall(r"ak_[0-9a-f]{8}", page.text)):
            trial.is_canary(prefix, "a key's prefix")


def _forget_what_both_know(trial: Trial) -> None:
    """Models stand in one registry: what A sees of itself anyway is no sign of B."""
    mine = [trial.a.org_id, trial.a.slug, *(person.email for person in trial.a.people.values())]
    for path in (f"usage?{window()}", f"usage?{window()}&groupBy=client", "freshness"):
        mine.append(json.dumps(own(trial, trial.a, path)))
    text = "\n".join(mine).lower()
    for value in [value for value in trial.canaries if value in text]:
        name = trial.canaries.pop(value)
        trial.skip(f"{name} is A's too, and is not looked for")
