"""Invented calls as JSON, made as cheaply as can be: who makes them shares the machine with what they are sent to.

An event's id follows from its number, so that the database can say which are missing.
"""

import hashlib
import math
import random
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta

ORGS, MODELS, CLIENTS = 50, 20, 150  # clients of each org: more than are kept by name once an hour is over
BUSIEST = 20  # times as many calls as another org
TAILS = 400  # different calls of an org
LATE_OF, LATE_AT = 100, 50  # of so many events in a row, the one at this place is late
EARLIEST, LATEST = 60.0, 6 * 3600.0  # seconds by which it is


class Traffic:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = draw = random.Random(seed)
        self.orgs = [uuid.UUID(int=draw.getrandbits(128), version=4) for _ in range(ORGS)]
        self.models = [uuid.UUID(int=draw.getrandbits(128), version=4) for _ in range(MODELS)]
        self._weighted = [0] * BUSIEST + list(range(ORGS))
        self._tails = [
            [self._tail(org, self.models[number % MODELS]) for number in range(TAILS)] for org in range(ORGS)
        ]

    def _tail(self, org: int, model: uuid.UUID) -> str:
        draw = self.random
        failed = draw.random() < 0.02
        return (
            f'","orgId":"{self.orgs[org]}","modelId":"{model}","clientId":"client-{int(CLIENTS * draw.random() ** 2)}",'
            f'"latencyMs":{int(draw.lognormvariate(6.9, 0.6))},"status":"{"error" if failed else "success"}",'
            f"{f'{chr(34)}errorCode{chr(34)}:{chr(34)}upstream-{draw.randrange(5)}{chr(34)},' if failed else ''}"
            f'"inputTokens":{draw.randrange(1, 6_000)},"outputTokens":{draw.randrange(1, 600)},'
            f'"costEstimateCents":{draw.randrange(1, 100_000) / 10_000}}}'
        )

    def prefix(self, what: str) -> str:
        """The id of event n of a kind is the MD5 of this and n."""
        return f"{self.seed}:{what}:"

    def event(self, what: str, number: int, at: datetime, org: int | None = None, kind: int | None = None) -> str:
        """A call of an org, or of any: the busiest has more of them than others."""
        one = hashlib.md5(f"{self.prefix(what)}{number}".encode(), usedforsecurity=False).hexdigest()
        owner = self.random.choice(self._weighted) if org is None else org
        tail = self._tails[owner][self.random.randrange(TAILS) if kind is None else kind]
        event_id = f"{one[:8]}-{one[8:12]}-{one[12:16]}-{one[16:20]}-{one[20:]}"
        return f'{{"eventId":"{event_id}","occurredAt":"{at.isoformat()}{tail}'

    def streamed(self, number: int, at: datetime) -> str:
        """One that a gateway sends; some come minutes to hours late."""
        if number % LATE_OF == LATE_AT:
            at -= timedelta(seconds=math.exp(self.random.uniform(math.log(EARLIEST), math.log(LATEST))))
        return self.event("stream", number, at)

    def history(self, until: datetime, hours: int) -> Iterator[str]:
        """One call an hour of each org and model."""
        for number in range(hours * ORGS * MODELS):
            hour, rest = divmod(number, ORGS * MODELS)
            org, model = divmod(rest, MODELS)
            at = until - timedelta(hours=hours - hour, seconds=-self.random.uniform(0, 3600))
            yield self.event("history", number, at, org, model)
