"""What Schemathesis can't know: rules that JSON Schema has no words for, and which times the service has anything to say about.

Each entry says which failure of a check is none, and why; the check goes on for everything else. See schemathesis.toml.
"""

import re
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis

# Such a request is well formed and is refused all the same. By the message of its problem document.
NOT_IN_THE_SCHEMA = re.compile(
    "|".join(
        (
            # Between two values.
            "must be after start",
            "lies more than .* after start: ask for a shorter range",
            "must be absent or null where status is success",
            "must together be at most inputTokens",
            "belongs to incident_events",
            "must name one model, or be left out: .*",
            # Between a value and the clock, or what is kept.
            "lies before .* kept.*: the earliest is .*",
            "cuts a day whose hours are no longer kept: .*",
            "lies outside of the years 1 to 9999 in UTC",
            "lies too far ahead",
            "must lie at most 5 minutes ahead of the server's clock",
            "must lie at most .* days back: older events are not kept",
            # What this list has given, and what is on that one.
            "is not one that this list has given",
            "is not on this organisation's list: .*",
            # multipleOf: 0.0001 is not to be had in binary floats, and validators differ on it.
            "must be a number from 0 to 1,000,000,000 with at most 4 decimals",
            # Bytes of an object as a whole.
            "must be an object of texts without NUL: at most 32 keys and 4,096 bytes",
        )
    )
)


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """False for a failure that is none."""
    if response.status_code == 400 and type(failure).__name__ == "RejectedPositiveData":
        errors = response.json()["errors"]
        return not errors or not all(NOT_IN_THE_SCHEMA.fullmatch(error["message"]) for error in errors)
    # One bad event does not spoil its neighbours: the door answers 200 and names those it has not taken.
    is_door = case.operation.definition.raw.get("operationId") == "sendEvents"
    if is_door and response.status_code == 200 and type(failure).__name__ == "AcceptedNegativeData":
        return not response.json()["rejected"]
    return True


# ── Times ────────────────────────────────────────────────────────────────────────────────────────────────────────
# Of times all over the calendar nearly none is kept, and what lies behind that refusal would hardly be tried. So three in four
# that are times at all are moved into the last weeks; what is no time stays what it is.
def near(value: Any) -> Any:
    try:
        datetime.fromisoformat(value)
    except (ValueError, TypeError):
        return value
    place = zlib.crc32(value.encode())
    if place % 4 == 0:
        return value
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today - timedelta(minutes=place % (21 * 24 * 60))).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ranged(given: Any) -> Any:
    """Both ends moved, and in their order where they were."""
    moved = {name: near(given[name]) for name in ("start", "end") if name in given}
    changed = moved if moved.items() != {name: given[name] for name in moved}.items() else {}
    if len(changed) == 2 and all(map(_is_moved, changed.values())):
        changed["start"], changed["end"] = sorted(changed.values())
    return {**given, **changed}


def _is_moved(value: Any) -> bool:
    return isinstance(value, str) and value.endswith("Z") and len(value) == 20


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    return _ranged(query) if isinstance(query, dict) else query


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if isinstance(body, list):
        return [map_body(context, item) for item in body]
    if not isinstance(body, dict):
        return body
    if "occurredAt" in body:
        body = {**body, "occurredAt": near(body["occurredAt"])}
    return {**body, "timeRange": _ranged(body["timeRange"])} if isinstance(body.get("timeRange"), dict) else body
