"""What an event costs that came without a cost."""

import uuid
from collections.abc import Iterable
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal

from orgs.models import ModelPrice

from .schema import UsageEvent

_FOUR_DECIMALS = Decimal("0.0001")


class PriceBook:
    """The dated prices of some models, read once for a batch."""

    def __init__(self, model_ids: Iterable[uuid.UUID]) -> None:
        self._prices: dict[uuid.UUID, list[ModelPrice]] = {}
        for price in ModelPrice.objects.filter(model_id__in=set(model_ids)).order_by("-effective_from"):
            self._prices.setdefault(price.model_id, []).append(price)

    def _at(self, model_id: uuid.UUID, moment: datetime) -> ModelPrice | None:
        return next((p for p in self._prices.get(model_id, ()) if p.effective_from <= moment), None)

    def cost(self, event: UsageEvent) -> Decimal | None:
        """Cents, half-even to four decimals, at the price that held when the call was made; None where none held.

        Input tokens include the cached and the cache-creating ones, so these are taken out before the rest is priced.
        """
        price = self._at(event.model_id, event.occurred_at)
        if price is None:
            return None
        cached, creation = event.cached_input_tokens or 0, event.cache_creation_input_tokens or 0
        millionths = (
            (event.input_tokens - cached - creation) * price.input_tokens
            + cached * price.cached_input_tokens
            + creation * price.cache_creation_input_tokens
            + event.output_tokens * price.output_tokens
        )
        return (millionths / 1_000_000).quantize(_FOUR_DECIMALS, ROUND_HALF_EVEN)
