"""A CSV trace (TIMESTAMP, ContextTokens, GeneratedTokens; times in UTC) as messages."""

import csv
import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from django.utils import timezone

from orgs.limits import MAX_TOKENS

from .invented import NAMESPACE, ORGS, dice, latency_ms, model_of, org_index, outcome_of

HEADER = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
_YEARS = range(1970, 2200)  # a time of another year is a slip, and may not move all others with it


class NotATrace(ValueError):
    """The file can't be read as a trace."""


@dataclass(frozen=True)
class Trace:
    """A trace file, moved by whole days so that its last row lies on `last_day`; None leaves its times.

    A row that is no event (a token count that is no number, a time that is none) becomes a message that says so in the
    same place, and is quarantined like any other.
    """

    path: Path
    last_day: date | None

    @classmethod
    def recent(cls, path: Path, *, keep_times: bool = False) -> "Trace":
        """With its last row moved to yesterday (UTC), unless its times are to be kept."""
        return cls(path, None if keep_times else (timezone.now() - timedelta(days=1)).date())

    @cached_property
    def digest(self) -> str:
        """Names the file by its content: each trace has orgs of its own, so that its totals can be read back."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]

    def org_id(self, index: int) -> uuid.UUID:
        return uuid.uuid5(NAMESPACE, f"org/{self.digest}/{ORGS[index]}")

    @cached_property
    def span(self) -> tuple[datetime, datetime] | None:
        """The first and the last time of the trace, as moved; None where no row has a time."""
        times = [moment for _, row in self._rows() if (moment := _moment(row[0])) is not None]
        return (min(times) + self._shift(max(times)), max(times) + self._shift(max(times))) if times else None

    def _shift(self, last: datetime) -> timedelta:
        return timedelta() if self.last_day is None else self.last_day - last.date()

    def messages(self) -> Iterator[bytes]:
        """One JSON event a row, in the file's order."""
        last = max((moment for _, row in self._rows() if (moment := _moment(row[0])) is not None), default=None)
        # Without any time there is nothing to move; its rows are told as what they are all the same.
        shift, target_day = (timedelta(), None) if last is None else (self._shift(last), self.last_day or last.date())
        for number, row in self._rows():
            yield msgspec.json.encode(self._event(number, row, target_day, shift))

    def _event(self, number: int, row: list[str], target_day: date | None, shift: timedelta) -> dict[str, Any]:
        line = ",".join(row)
        throw = dice(f"{number}/{line}")
        model = model_of(throw)
        moment, inputs, outputs = _moment(row[0]), _count(row[1]), _count(row[2])
        status, error_code = outcome_of(throw)
        event: dict[str, Any] = {
            "eventId": uuid.uuid5(NAMESPACE, f"{target_day}/{number}/{line}"),
            "orgId": self.org_id(org_index(number)),
            "modelId": model.id,
            "clientId": f"client-{throw[2] % 8}",
            "occurredAt": row[0] if moment is None else moment + shift,
            "status": status,
            "errorCode": error_code,
            "inputTokens": inputs,
            "outputTokens": outputs,
            "latencyMs": None,
        }
        if isinstance(inputs, int) and isinstance(outputs, int):
            event["latencyMs"] = latency_ms(inputs, outputs)
            event["costEstimateCents"] = msgspec.Raw(str(model.cost(inputs, outputs)).encode())
        return event

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Row number, from 1, and three cells; missing ones are empty."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                if next(reader, None) != HEADER:
                    raise NotATrace(f"{self.path}: the first line must be {','.join(HEADER)}")
                for number, row in enumerate((row for row in reader if row), start=1):
                    # A comma too many belongs to the last cell, which then is no count: better than a wrong one.
                    yield number, [*row[:2], ",".join(row[2:]), ""][:3] if len(row) > 1 else [*row, "", ""]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise NotATrace(f"{self.path}: {error}") from error


def _moment(text: str) -> datetime | None:
    """A time of the trace, to the microsecond; what has no offset is UTC."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.year not in _YEARS:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _count(text: str) -> int | str:
    """A token count; what is none stays as it stands, for quarantine to say so."""
    try:
        count = int(text)
    except ValueError:
        return text
    # Nothing is made of one that no event may have: JSON and Decimal end where int goes on.
    return count if 0 <= count <= MAX_TOKENS else text
