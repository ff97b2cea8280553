"""The contract of usage events in plain Python: what each door must make of some bytes.

Written from the contract, and on purpose without a line of `ingestion`: JSON is read by the standard library, and every rule
is told once more. So the two can only agree by both being right.
"""

import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

STATUSES = {"success": 0, "error": 1, "timeout": 2, "throttled": 3}  # as numbers in the database
FIELDS = {
    "eventId": "event_id",
    "orgId": "org_id",
    "modelId": "model_id",
    "actorId": "actor_id",
    "clientId": "client_id",
    "occurredAt": "occurred_at",
    "latencyMs": "latency_ms",
    "status": "status",
    "errorCode": "error_code",
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "cachedInputTokens": "cached_input_tokens",
    "cacheCreationInputTokens": "cache_creation_input_tokens",
    "costEstimateCents": "cost_estimate_cents",
    "metadata": "metadata",
}
OPTIONAL = {
    "actor_id", "client_id", "error_code", "cached_input_tokens", "cache_creation_input_tokens", "cost_estimate_cents",
    "metadata",
}  # fmt: skip
_SPELLINGS = FIELDS | {name: name for name in FIELDS.values()}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)")

Row = dict[str, Any]  # an event as it is stored: column and value, but for the batch and when it was received
Key = tuple[uuid.UUID, uuid.UUID]


class Refused(ValueError):
    """No event: which field, by its column; empty where it is the whole."""


def loads(body: bytes) -> Any:
    """JSON as RFC 8259 has it; of a name that is given twice, the last counts. Raises `ValueError`."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    text = body.decode()
    if text.startswith("\ufeff"):
        raise ValueError("a byte order mark")
    found = json.loads(text, parse_float=Decimal, parse_constant=refuse)
    json.dumps(found, default=str, ensure_ascii=False).encode()  # half a character, by an escape, is no text
    return found


@dataclass
class Contract:
    now: datetime
    retention: timedelta

    def read(self, payload: bytes) -> Row:
        """The row of an event. Raises `Refused`."""
        try:
            document = loads(payload)
        except (ValueError, RecursionError) as error:
            raise Refused("") from error
        if not isinstance(document, dict):
            raise Refused("")
        given: dict[str, Any] = {}
        for name, value in document.items():
            column = _SPELLINGS.get(name)
            if column is None:
                continue
            if column in given:
                raise Refused(column)
            given[column] = value
        row: Row = {}
        for column in FIELDS.values():
            if column not in given and column not in OPTIONAL:
                raise Refused(column)
            value = given.get(column)
            if value is None and column in OPTIONAL:
                row[column] = 0 if column.endswith("_tokens") else None
                continue
            row[column] = self._value(column, value)
        if row["status"] == STATUSES["success"] and row["error_code"] is not None:
            raise Refused("error_code")
        if row["cached_input_tokens"] + row["cache_creation_input_tokens"] > row["input_tokens"]:
            raise Refused("cached_input_tokens")
        return row

    def _value(self, column: str, value: Any) -> Any:
        right: Any = None
        match column:
            case "event_id" | "org_id" | "model_id" | "actor_id":
                right = uuid.UUID(value) if isinstance(value, str) and _UUID.fullmatch(value) else None
            case "client_id" | "error_code":
                right = value if isinstance(value, str) and len(value) <= 128 and "\0" not in value else None
            case "occurred_at":
                right = self._time(value)
            case "latency_ms":
                right = _integer(value, 86_400_000)
            case "status":
                right = STATUSES.get(value) if isinstance(value, str) else None
            case "input_tokens" | "output_tokens" | "cached_input_tokens" | "cache_creation_input_tokens":
                right = _integer(value, 2**31 - 1)
            case "cost_estimate_cents":
                right = _cost(value)
            case "metadata":
                right = _metadata(value)
        if right is None:
            raise Refused(column)
        return right

    def _time(self, value: Any) -> datetime | None:
        match = _TIME.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return None
        day, clock, fraction, offset = match.groups()
        try:
            whole = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if offset in 'Zz' else offset}")
            # PostgreSQL keeps microseconds: the nearest.
            part = Decimal(fraction or 0) * 1_000_000
            at = whole.astimezone(UTC) + timedelta(microseconds=int(part + Decimal("0.5")))
        except (ValueError, OverflowError):
            return None
        return at if self.now - self.retention <= at <= self.now + timedelta(minutes=5) else None


def _integer(value: Any, largest: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    return int(value) if 0 <= value <= largest and value == int(value) else None


def _cost(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= 10**9:
        return None
    cents = Decimal(value)
    return abs(cents) if cents == round(cents, 4) else None


def _metadata(value: Any) -> dict[str, str] | None:
    if not isinstance(value, dict) or len(value) > 32:
        return None
    if not all(isinstance(text, str) and "\0" not in text for pair in value.items() for text in pair):
        return None
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    return value if size <= 4096 else None


@dataclass
class Model:
    """What the service must hold after all that was sent to it."""

    contract: Contract
    rows: dict[Key, Row] = field(default_factory=dict)
    duplicates: int = 0
    conflicts: int = 0
    refused: list[bytes] = field(default_factory=list)

    def send(self, payloads: list[bytes], org_id: uuid.UUID | None = None) -> tuple[int, int, list[int]]:
        """Events one after another: how many are new, how many are not, and which (by position) are no events here."""
        accepted = duplicates = 0
        rejected = []
        for position, payload in enumerate(payloads):
            try:
                row = self.contract.read(payload)
                if org_id is not None and row["org_id"] != org_id:
                    raise Refused("org_id")
            except Refused:
                rejected.append(position)
                self.refused.append(payload)
                continue
            key = (row["org_id"], row["event_id"])
            first = self.rows.setdefault(key, row)
            if first is row:
                accepted += 1
                continue
            duplicates += 1
            self.conflicts += first != row
        self.duplicates += duplicates
        return accepted, duplicates, rejected
