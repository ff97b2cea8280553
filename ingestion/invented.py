"""The part of a replayed trace, or of the sample, that is invented: by fixed rules, so that a repeat is the same.

The README states these rules; a change here is a change there.
"""

import hashlib
import uuid
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from orgs.limits import MAX_LATENCY_MS

NAMESPACE = uuid.UUID("6b1c4f0e-8d5a-5d0b-9f57-6f0a3a8f2c11")
_FOUR_DECIMALS = Decimal("0.0001")


@dataclass(frozen=True)
class Model:
    """A served model that exists in demos alone. Prices are cents per million tokens."""

    name: str
    tier: str
    input_price: int
    output_price: int

    @property
    def id(self) -> uuid.UUID:
        return uuid.uuid5(NAMESPACE, f"model/{self.name}")

    def cost(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Cents, half-even to four decimals."""
        millionths = Decimal(input_tokens * self.input_price + output_tokens * self.output_price)
        return (millionths / 1_000_000).quantize(_FOUR_DECIMALS, ROUND_HALF_EVEN)


MODELS = (
    Model("Cedar Large", "premium", 300, 1500),
    Model("Cedar Small", "standard", 25, 125),
    Model("Willow Code", "premium", 150, 600),
    Model("Birch Mini", "economy", 10, 40),
)
# Of every ten calls: six of the first org, three of the second, one of the third.
ORGS = ("Acme", "Globex", "Initech")
_ORG_OF = (0, 0, 0, 0, 0, 0, 1, 1, 1, 2)
_FAILURES = {0: ("error", "internal_error"), 1: ("timeout", "upstream_timeout"), 2: ("throttled", "rate_limited")}


def dice(text: str) -> bytes:
    """Thirty-two bytes that look random and follow from the text."""
    return hashlib.sha256(text.encode()).digest()


def org_index(number: int) -> int:
    return _ORG_OF[number % len(_ORG_OF)]


def model_of(throw: bytes) -> Model:
    return MODELS[throw[0] % len(MODELS)]


def outcome_of(throw: bytes) -> tuple[str, str | None]:
    """Status and error code: 3 of 128 calls fail, one in each way."""
    return _FAILURES.get(throw[1] % 128, ("success", None))


def latency_ms(input_tokens: int, output_tokens: int) -> int:
    """200 ms, 25 ms an output token, 1 ms for 20 input tokens; at most what an event may have."""
    return min(200 + 25 * output_tokens + input_tokens // 20, MAX_LATENCY_MS)
