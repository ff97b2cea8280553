"""Fields that are not the caller's to set: which org, what state, by whom, where to."""

import json
import re
from html import unescape
from urllib.parse import parse_qs

from .learning import api, event, own, window
from .pages import post
from .trial import Trial
from .wire import Answer, Call

JSON = ("Content-Type", "application/json")


def attack(trial: Trial) -> None:
    _exports(trial)
    _events(trial)
    _forms(trial)


def _exports(trial: Trial) -> None:
    a, b = trial.a, trial.b
    asked = {"timeRange": {name: values[0] for name, values in parse_qs(window()).items()}}
    for name, value in (
        ("orgId", b.org_id),
        ("org_id", b.org_id),
        ("org", b.org_id),
        ("jobId", b.ids.get("job_id", "")),
        ("id", b.ids.get("job_id", "")),
        ("status_", "succeeded"),
        ("initiatedBy", "user:somebody@example.com"),
        ("initiated_by", "schedule"),
        ("bucket", "other-bucket"),
        ("key", f"analytics/exports/{b.org_id}/x.csv"),
        ("outputUri", "s3://other/x"),
        ("checksum", "0" * 64),
        ("expiresAt", "2999-01-01T00:00:00Z"),
        ("month", "2020-01"),
        ("version", 9),
        ("createdAt", "2020-01-01T00:00:00Z"),
        ("totals", {}),
        ("rowCount", 1),
        ("__proto__", {"admin": True}),
    ):
        call = Call("POST", api(a, "exports"), (a.header(), JSON), json.dumps(asked | {name: value}).encode())
        trial.attempt(f"an export with {name}", call, expected={400})
    for name, nested in (
        ("timeRange.orgId", {"timeRange": asked["timeRange"] | {"orgId": b.org_id}}),
        ("delivery.key", {"delivery": {"type": "s3", "bucket": "x", "key": "../x"}}),
        ("delivery.endpoint", {"delivery": {"type": "s3", "bucket": "x", "endpoint": "http://127.0.0.1:9"}}),
        ("status of a job", {"status": "succeeded"}),
    ):
        call = Call("POST", api(a, "exports"), (a.header(), JSON), json.dumps(asked | nested).encode())
        trial.attempt(f"an export with {name}", call, expected={400})
    mine = own(trial, a, "exports")["items"]
    strange = [job["jobId"] for job in mine if job["orgId"] != a.org_id]
    complaint = f"jobs of another org in A's list: {strange}" if strange else None
    trial.verdict("A's jobs, after all this", complaint, Call("GET", api(a, "exports"), (a.header(),)))


def _events(trial: Trial) -> None:
    """The strict door refuses what it does not know."""
    for name, value in (
        ("batchId", "1"),
        ("receivedAt", "2020-01-01T00:00:00Z"),
        ("priced", True),
        ("isStub", False),
        ("id", 1),
    ):
        body = json.dumps(event(trial.a) | {name: value}).encode()
        call = Call("POST", "/analytics/v1/events/validate", (trial.a.header(), JSON), body)
        trial.attempt(f"an event with {name}", call, expected={400, 403})


def _forms(trial: Trial) -> None:
    """A's admin sends A's own form, with B's org in it. What it changes is A's, and stays as it was."""
    a, b = trial.a, trial.b
    if a.admin is None or not (a.slug and b.slug):
        trial.skip("A has no admin who signs in: forms are not tried")
        return
    settings = f"/orgs/{a.slug}/settings/"
    page = trial.send(Call("GET", settings, (a.admin.cookie(),))).text
    fields = dict(_inputs(page))
    if "name" not in fields:
        trial.skip("the form of the organisation is not on its page")
        return
    strange = {
        "id": b.org_id,
        "pk": b.org_id,
        "slug": b.slug,
        "org": b.org_id,
        "is_stub": "on",
        "created_at": "2020-01-01",
    }
    call = post(trial, a.admin, f"{settings}organisation", fields | strange)

    def still_there(answer: Answer) -> str | None:
        again = trial.send(Call("GET", settings, (a.admin.cookie(),))) if a.admin else answer
        return None if again.status == 200 and dict(_inputs(again.text)) == fields else "A's own form is another now"

    trial.attempt("A's form with B's id and slug", call, expected={302, 400}, check=still_there)
    for path in ("keys", "invitations"):
        # Nothing is made: what the form needs is not given.
        call = post(trial, a.admin, f"{settings}{path}", {"org": b.org_id, "org_id": b.org_id, "slug": b.slug})
        trial.attempt(f"A's form of {path} with B's org", call, expected={400})


def _inputs(page: str) -> list[tuple[str, str]]:
    """Name, contact and zone of the form that changes an organisation."""
    found = []
    for name in ("name", "billing_contact"):
        tag = next((tag for tag in re.findall(r"<input\b[^>]*>", page) if f'id="org-{name}"' in tag), "")
        value = re.search(r'value="([^"]*)"', tag)
        if tag:
            found.append((name, unescape(value.group(1)) if value else ""))
    if zone := re.search(r'id="org-time_zone".*?<option value="([^"]+)"\s+selected', page, re.DOTALL):
        found.append(("time_zone", zone.group(1)))
    return found
