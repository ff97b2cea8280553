"""The built-in sample: a few hours of three invented orgs, as messages; in one of them, a quarter of an hour of trouble."""

import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from .invented import MODELS, NAMESPACE, ORGS, dice, latency_ms, model_of, org_index, outcome_of

HOURS = 6
CALLS_AN_HOUR = 1_500
# In one hour of each sample, Willow Code is overloaded for a while.
TROUBLED = MODELS[2]
TROUBLE = (timedelta(minutes=20), timedelta(minutes=35))


@dataclass(frozen=True)
class Sample:
    """The hours before `end`, a whole hour. Each hour is the same whenever it is asked for."""

    end: datetime

    @property
    def span(self) -> tuple[datetime, datetime]:
        return self.end - timedelta(hours=HOURS), self.end

    @staticmethod
    def org_id(index: int) -> uuid.UUID:
        return uuid.uuid5(NAMESPACE, f"org/sample/{ORGS[index]}")

    def messages(self) -> Iterator[bytes]:
        for hours in range(HOURS):
            yield from self._hour(self.span[0] + timedelta(hours=hours))

    def _hour(self, start: datetime) -> Iterator[bytes]:
        calls = round(CALLS_AN_HOUR * (1 + 0.3 * math.sin(start.hour * math.pi / 12)))
        for number in range(calls):
            throw = dice(f"{start.isoformat()}/{number}")
            model = model_of(throw)
            status, error_code = outcome_of(throw)
            moment = start + timedelta(hours=1) * (number / calls)
            is_in_trouble = start.hour % HOURS == 0 and TROUBLE[0] <= moment - start < TROUBLE[1]
            if is_in_trouble and model is TROUBLED and throw[8] % 4 != 0:
                status, error_code = "error", "overloaded"
            inputs = 100 + int.from_bytes(throw[3:5]) % 4_000
            outputs = 0 if status != "success" else 5 + int.from_bytes(throw[5:7]) % 400
            yield msgspec.json.encode(
                {
                    "eventId": uuid.uuid5(NAMESPACE, f"{start.isoformat()}/{number}"),
                    "orgId": self.org_id(org_index(number)),
                    "modelId": model.id,
                    "clientId": f"client-{throw[2] % 8}",
                    "occurredAt": moment,
                    "status": status,
                    "errorCode": error_code,
                    "inputTokens": inputs,
                    "cachedInputTokens": inputs // 4 if throw[7] % 3 == 0 else 0,
                    "outputTokens": outputs,
                    "latencyMs": latency_ms(inputs, outputs),
                    "costEstimateCents": msgspec.Raw(str(model.cost(inputs, outputs)).encode()),
                }
            )
