"""The usage event: its fields, its rules, and how a message becomes one.

Reading has a fast way and a thorough way that accept exactly the same events. The fast way decodes a whole array with
typed structs; where anything in it is wrong, each event is read again field by field, so that every fault is named and
a bad event does not spoil its neighbours.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec
from django.conf import settings

from orgs.limits import (
    MAX_CLOCK_SKEW,
    MAX_COST_CENTS,
    MAX_EVENTS_PER_MESSAGE,
    MAX_LATENCY_MS,
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    MAX_METADATA_KEYS,
    MAX_TEXT_LENGTH,
    MAX_TOKENS,
)

from .horizon import raw_horizon

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_LENGTH)]


class UsageEvent(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True, gc=False):
    """One inference call, as its producer tells it. Times are aware; cost is in cents, None means "price it"."""

    event_id: uuid.UUID
    org_id: uuid.UUID
    model_id: uuid.UUID
    actor_id: uuid.UUID | None = None
    client_id: Text | None = None
    occurred_at: Annotated[datetime, msgspec.Meta(tz=True)]
    latency_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_LATENCY_MS)]
    status: Literal["success", "error", "timeout", "throttled"]
    error_code: Text | None = None
    input_tokens: Tokens
    output_tokens: Tokens
    cached_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    # An int or, through the decoder's hook, an exact Decimal. Checked in `_faults`: msgspec's own Decimal takes strings.
    cost_estimate_cents: Any = None
    metadata: dict[str, str] | None = None


class _SnakeCaseEvent(UsageEvent, rename=None):
    """The same, as one known producer spells it."""


_TOKENS_RULE = f"must be an integer from 0 to {MAX_TOKENS:,}"
_TEXT_RULE = f"must be a text of at most {MAX_TEXT_LENGTH} characters without NUL"
_COST_RULE = f"must be a number from 0 to {MAX_COST_CENTS:,} with at most 4 decimals"
_METADATA_RULE = (
    f"must be an object of texts without NUL: at most {MAX_METADATA_KEYS} keys and {MAX_METADATA_BYTES:,} bytes"
)
RULES = {
    "event_id": "must be a UUID",
    "org_id": "must be a UUID",
    "model_id": "must be a UUID",
    "actor_id": "must be a UUID or null",
    "client_id": _TEXT_RULE,
    "occurred_at": "must be an RFC 3339 date-time with an offset",
    "latency_ms": f"must be an integer from 0 to {MAX_LATENCY_MS:,}",
    "status": "must be one of success, error, timeout, throttled",
    "error_code": _TEXT_RULE,
    "input_tokens": _TOKENS_RULE,
    "output_tokens": _TOKENS_RULE,
    "cached_input_tokens": _TOKENS_RULE,
    "cache_creation_input_tokens": _TOKENS_RULE,
    "cost_estimate_cents": _COST_RULE,
    "metadata": _METADATA_RULE,
}
_FIELDS = {field.name: field for field in msgspec.structs.fields(UsageEvent)}
_TYPES = get_type_hints(UsageEvent, include_extras=True)
# Every accepted spelling of a field.
_SPELLINGS = {f.encode_name: f.name for f in _FIELDS.values()} | {name: name for name in _FIELDS}


def _number(text: str) -> Decimal:
    """Exact; infinite, and so no cost, where the exponent is beyond what a Decimal can hold."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")


_INTEGERS = {name for name in _TYPES if name == "latency_ms" or name.endswith("_tokens")}


def _whole(value: Any) -> Any:
    """JSON has one kind of number, and JSON Schema takes 1.0 and 1e2 for integers."""
    if type(value) is not Decimal or not -1 < value <= MAX_TOKENS or value != int(value):
        return value
    return int(value)


_ARRAYS = tuple(msgspec.json.Decoder(list[kind], float_hook=_number) for kind in (UsageEvent, _SnakeCaseEvent))  # type: ignore[valid-type]
_OBJECTS = tuple(msgspec.json.Decoder(kind, float_hook=_number) for kind in (UsageEvent, _SnakeCaseEvent))
_RAW_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_ANYTHING = msgspec.json.Decoder(float_hook=_number)
_EXACT = Context(prec=40, traps=[Inexact, InvalidOperation])
_FOUR_DECIMALS = Decimal("0.0001")
EXPIRED = "expired"  # why an event is quarantined that is older than events are kept


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one field of an event; `field` is empty where it is the whole."""

    field: str
    message: str
    reason: str = ""  # where it is another than the field

    def __str__(self) -> str:
        return f"{self.field} {self.message}".strip()


def reason_of(faults: Sequence[Fault]) -> str:
    """By what a quarantined message is sorted: mostly the field at fault; "unreadable" where it is the whole."""
    return faults[0].reason or faults[0].field or "unreadable"


@dataclass(frozen=True, slots=True)
class Invalid:
    """A message that is no event: every fault found, and its bytes."""

    event_id: str | None
    faults: list[Fault]
    payload: bytes


class NotJSON(ValueError):
    """The body is no JSON at all, or no array where one is needed."""


class TooMany(ValueError):
    """More events than the door takes at once; `args[0]` is how many."""


def exact_cents(cost: Decimal) -> Decimal:
    """A cost with its four decimals. Raises `Inexact`, `InvalidOperation` where it has more, or is none."""
    return _EXACT.quantize(cost, _FOUR_DECIMALS)


def metadata_bytes(metadata: dict[str, str]) -> bytes:
    return msgspec.json.encode(metadata)


def _is_cost(cost: Any) -> bool:
    if type(cost) is int:
        return 0 <= cost <= MAX_COST_CENTS
    if type(cost) is not Decimal or not 0 <= cost <= MAX_COST_CENTS:
        return False
    try:
        exact_cents(cost)
    except (Inexact, InvalidOperation):
        return False
    return True


def _is_metadata(metadata: dict[str, str]) -> bool:
    return (
        len(metadata) <= MAX_METADATA_KEYS
        and len(metadata_bytes(metadata)) <= MAX_METADATA_BYTES
        and not any("\0" in key or "\0" in value for key, value in metadata.items())
    )


@dataclass(frozen=True, slots=True)
class _Clock:
    """The times that an event may bear."""

    earliest: datetime
    latest: datetime

    @classmethod
    def at(cls, now: datetime) -> "_Clock":
        return cls(raw_horizon(now), now + MAX_CLOCK_SKEW)


_ENCODER = msgspec.json.Encoder(decimal_format="number")


def expired(event: UsageEvent) -> Invalid:
    """An event of a time whose events were dropped: whether it was counted before can't be known any more."""
    fault = Fault("occurredAt", "lies where events were dropped", EXPIRED)
    return Invalid(str(event.event_id), [fault], _ENCODER.encode(event))


def _faults(event: UsageEvent, clock: _Clock) -> list[Fault]:
    """The rules that types can't tell. Runs for every event: the common case is a row of comparisons."""
    found: list[Fault] = []
    if event.occurred_at > clock.latest:
        minutes = MAX_CLOCK_SKEW.seconds // 60
        found.append(Fault("occurredAt", f"must lie at most {minutes} minutes ahead of the server's clock"))
    elif event.occurred_at < clock.earliest:
        days = settings.RAW_RETENTION_DAYS
        found.append(Fault("occurredAt", f"must lie at most {days:,} days back: older events are not kept", EXPIRED))
    if event.status == "success" and event.error_code is not None:
        found.append(Fault("errorCode", "must be absent or null where status is success"))
    if (event.cached_input_tokens or 0) + (event.cache_creation_input_tokens or 0) > event.input_tokens:
        for name in ("cachedInputTokens", "cacheCreationInputTokens"):
            found.append(Fault(name, "must together be at most inputTokens"))
    if event.client_id is not None and "\0" in event.client_id:
        found.append(Fault("clientId", _TEXT_RULE))
    if event.error_code is not None and "\0" in event.error_code:
        found.append(Fault("errorCode", _TEXT_RULE))
    if event.cost_estimate_cents is not None and not _is_cost(event.cost_estimate_cents):
        found.append(Fault("costEstimateCents", _COST_RULE))
    if event.metadata is not None and not _is_metadata(event.metadata):
        found.append(Fault("metadata", _METADATA_RULE))
    return found


def read_event(payload: bytes, now: datetime, *, unknown_fields: bool = True) -> UsageEvent | Invalid:
    """One message, read field by field. Fields the contract does not know are dropped, or are a fault."""
    try:
        document = _ANYTHING.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Invalid(None, [Fault("", "is not valid JSON")], payload)
    if not isinstance(document, dict):
        return Invalid(None, [Fault("", "must be a JSON object")], payload)
    faults: list[Fault] = []
    given: dict[str, Any] = {}
    for spelling, value in document.items():
        name = _SPELLINGS.get(spelling)
        if name is None:
            if not unknown_fields:
                faults.append(Fault(spelling, "is not a field of a usage event"))
        elif name in given:
            faults.append(Fault(spelling, "is given twice"))
        else:
            given[name] = value
    values: dict[str, Any] = {}
    of_names = len(faults)
    for name, field in _FIELDS.items():
        if name not in given:
            if field.required:
                faults.append(Fault(field.encode_name, "is required"))
            continue
        try:
            value = _whole(given[name]) if name in _INTEGERS else given[name]
            values[name] = msgspec.convert(value, _TYPES[name])
        except msgspec.ValidationError:
            faults.append(Fault(field.encode_name, RULES[name]))
    if len(faults) == of_names:  # every value has its type: the rules between them can be tried
        event = UsageEvent(**values)
        faults += _faults(event, _Clock.at(now))
        if not faults:
            return event
    event_id = given.get("event_id")
    return Invalid(event_id if isinstance(event_id, str) else None, faults, payload)


def _is_json(body: bytes) -> bool:
    try:
        _ANYTHING.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


T = TypeVar("T")


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T | None:
    """What the fast way makes of a body; None where that is for the thorough way."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _are_right(events: Sequence[UsageEvent], now: datetime) -> bool:
    clock = _Clock.at(now)
    return not any(_faults(event, clock) for event in events)


def read_array(body: bytes, now: datetime, limit: int | None = None) -> list[UsageEvent | Invalid]:
    """A JSON array of events, in its order. Raises `NotJSON` where it is none, `TooMany` before more are read one by one."""
    for decoder in _ARRAYS:
        events = _decoded(decoder, body)
        if events is not None and _are_right(events, now):
            return list(events)
    try:
        payloads = _RAW_ARRAY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, msgspec.ValidationError) and _is_json(body):
            raise NotJSON("must be a JSON array of events") from error
        raise NotJSON(f"is not valid JSON: {error}") from error
    if limit is not None and len(payloads) > limit:
        raise TooMany(len(payloads))
    return [read_event(bytes(payload), now) for payload in payloads]


def read_lines(body: bytes, now: datetime, limit: int | None = None) -> list[UsageEvent | Invalid]:
    """Newline-delimited JSON, one event a line; empty lines are passed over. Raises `TooMany` before any is read."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    if limit is not None and len(lines) > limit:
        raise TooMany(len(lines))
    return [read_event(line, now) for line in lines]


def read_message(body: bytes, now: datetime) -> list[UsageEvent | Invalid]:
    """A message of a stream: one event, or a JSON array of events. What is neither, or too large, is one `Invalid`."""
    if len(body) > MAX_MESSAGE_BYTES:
        return [Invalid(None, [Fault("", f"is larger than {MAX_MESSAGE_BYTES:,} bytes")], body)]
    if body.lstrip()[:1] != b"[":
        for decoder in _OBJECTS:
            event = _decoded(decoder, body)
            if event is not None and _are_right([event], now):
                return [event]
        return [read_event(body, now)]
    try:
        return read_array(body, now, MAX_EVENTS_PER_MESSAGE)
    except NotJSON as error:
        return [Invalid(None, [Fault("", str(error))], body)]
    except TooMany as error:
        fault = Fault("", f"holds {error.args[0]:,} events; a message holds at most {MAX_EVENTS_PER_MESSAGE:,}")
        return [Invalid(None, [fault], body)]


def split(read: Sequence[UsageEvent | Invalid]) -> tuple[list[UsageEvent], list[Invalid]]:
    """The events, and what is none."""
    events = [item for item in read if not isinstance(item, Invalid)]
    return events, [item for item in read if isinstance(item, Invalid)]


def json_schema() -> dict[str, Any]:
    """The event as JSON Schema 2020-12, for the OpenAPI document."""

    def described() -> Iterator[tuple[str, dict[str, Any]]]:
        _, components = msgspec.json.schema_components([UsageEvent], ref_template="#/{name}")
        properties = components["UsageEvent"]["properties"]
        for name, field in _FIELDS.items():
            yield field.encode_name, {**properties[field.encode_name], "description": RULES[name]}

    properties = dict(described())
    without_nul = {"type": "string", "pattern": "^[^\\u0000]*$"}
    for name in ("clientId", "errorCode"):
        properties[name]["anyOf"][0] |= without_nul
    properties["metadata"]["anyOf"][0] |= {
        "propertyNames": without_nul, "additionalProperties": without_nul, "maxProperties": MAX_METADATA_KEYS,
    }  # fmt: skip
    properties["costEstimateCents"] |= {"type": ["number", "null"], "minimum": 0, "maximum": MAX_COST_CENTS}
    required = [field.encode_name for field in _FIELDS.values() if field.required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
