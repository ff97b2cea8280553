"""None lost, none stored wrong: made-up events at both doors, and a model of the contract that says what must come of each."""

import gzip
import os
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
import time_machine
from django.conf import LazySettings
from django.db.models import Sum
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from ingestion.models import Batch, Conflict, QuarantinedMessage, UsageEvent
from ingestion.stream.batching import OpenBatch, commit
from ingestion.stream.feed import Message
from ingestion.stream.position import Position, let_go, take_over

from ..factories import make_key, make_org
from .contract_model import FIELDS, Contract, Model, Row
from .made_up import BROKEN, MadeUp

pytestmark = pytest.mark.django_db

EVENTS = int(os.environ.get("PROPERTY_EVENTS", "100000"))
SEED = int(os.environ.get("PROPERTY_SEED", "1"))
# The last half second of a day of summer time, half a second before a leap day: every edge of a clock is near.
NOW = datetime.combine(timezone.now().date(), datetime.min.time(), UTC) - timedelta(microseconds=500_000)


@dataclass
class Doors:
    """Both doors of the service, the made-up events that go through them, and the model that keeps count."""

    made_up: MadeUp
    model: Model
    key: str
    position: Position
    client: APIClient = field(default_factory=APIClient)
    quarantined: list[bytes] = field(default_factory=list)
    sent: int = 0

    def send(self, count: int) -> None:
        chance = self.made_up.chance
        is_plain = chance.random() < 0.4
        door = chance.choice((self._array, self._lines, self._messages))
        payloads = self.made_up.batch(count, is_plain=is_plain, may_break=door != self._array)
        door(payloads)
        self.sent += count

    # ── HTTP ──
    def _array(self, payloads: list[bytes]) -> None:
        body = b"[" + b",".join(payloads) + b"]"
        if self.made_up.chance.random() < 0.1:
            self._spoilt(body)
        self._post(body, "application/json", payloads)

    def _lines(self, payloads: list[bytes]) -> None:
        self._post(b"\n".join(payloads) + b"\n\n", "application/x-ndjson", payloads)

    def _spoilt(self, body: bytes) -> None:
        """An array that is none leaves nothing behind."""
        spoil = self.made_up.chance.choice(BROKEN)
        for text in (body[:-1], body + b"]", body[:-1] + b"," + spoil + b"]", body[:-1] + b",]", b"[]", b"{}", b""):
            assert self._answer(text, "application/json").status_code == 400, text[-80:]

    def _post(self, body: bytes, media_type: str, payloads: list[bytes]) -> None:
        answer = self._answer(body, media_type)
        assert answer.status_code == 200, answer.content
        told = answer.json()
        accepted, duplicates, rejected = self.model.send(payloads, self.made_up.org_ids[0])
        wrong = {item["index"] for item in told["rejected"]} ^ set(rejected)
        assert not wrong, [payloads[index] for index in sorted(wrong)[:3]]
        assert (told["accepted"], told["duplicates"]) == (accepted, duplicates)
        assert all(item["errors"] for item in told["rejected"])

    def _answer(self, body: bytes, media_type: str) -> Any:
        headers = {"X-API-Key": self.key}
        if self.made_up.chance.random() < 0.3:
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        address = f"/analytics/v1/orgs/{self.made_up.org_ids[0]}/events"
        return self.client.generic("POST", address, body, media_type, headers=headers)

    # ── The stream ──
    def _messages(self, payloads: list[bytes]) -> None:
        """Some alone, some in arrays; one that is no JSON is always alone, since it would spoil its array."""
        batch, arrays, at = OpenBatch(), self.made_up.chance, 0
        while at < len(payloads):
            size = arrays.choice((1, 1, 2, 50))
            part = payloads[at : at + size]
            if any(payload in BROKEN for payload in part):
                size, part = 1, payloads[at : at + 1]
            is_array = size > 1 or (part[0][:1] == b"[" and part[0] not in BROKEN)
            body = b"[" + b", ".join(part) + b"]" if is_array else part[0]
            batch.add(Message(self.position.next_offset + batch.messages, body, 1), timezone.now())
            at += size
        commit(batch, self.position)
        *_, refused = self.model.send(payloads)
        self.quarantined += [payloads[position] for position in refused]

    # ── What came of it ──
    def check(self, since: int) -> None:
        """The database holds what the model says, field by field, and all counts add up."""
        batches = Batch.objects.filter(pk__gt=since)
        found = stored(batches.values_list("pk", flat=True))
        wrong = [
            (
                key,
                {
                    name: (right.get(name), held.get(name))
                    for name in FIELDS.values()
                    if right.get(name) != held.get(name)
                },
            )
            for key in sorted(self.model.rows.keys() | found.keys())
            if (right := self.model.rows.get(key, {})) != (held := found.get(key, {}))
        ]
        assert not wrong, wrong[:2]
        counted = batches.aggregate(
            *map(Sum, ("received", "accepted", "duplicates", "conflicts", "rejected", "quarantined"))
        )
        rejected = len(self.model.refused) - len(self.quarantined)
        assert {name.removesuffix("__sum"): number or 0 for name, number in counted.items()} == {
            "received": self.sent,
            "accepted": len(self.model.rows),
            "duplicates": self.model.duplicates,
            "conflicts": self.model.conflicts,
            "rejected": rejected,
            "quarantined": len(self.quarantined),
        }
        assert self.sent == len(self.model.rows) + self.model.duplicates + rejected + len(self.quarantined)
        assert Conflict.objects.filter(batch__in=batches).count() == self.model.conflicts
        kept = QuarantinedMessage.objects.filter(batch__in=batches).values_list("payload", flat=True)
        assert Counter(map(bytes, kept)) == Counter(self.quarantined)


def stored(batch_ids: Any) -> dict[Any, Row]:
    names = tuple(FIELDS.values())
    rows = UsageEvent.objects.filter(batch_id__in=list(batch_ids)).values_list(*names).iterator()
    return {(row[1], row[0]): dict(zip(names, row, strict=True)) for row in rows}


NewDoors = Callable[[Random], Doors]


@pytest.fixture
def new_doors(settings: LazySettings) -> Iterator[NewDoors]:
    """Doors to an org of their own, at a clock that stands still: so the edges of time are exact."""
    retention = timedelta(days=settings.RAW_RETENTION_DAYS)
    with time_machine.travel(NOW, tick=False):
        position = take_over("made-up")
        assert position is not None

        def new_doors(chance: Random) -> Doors:
            orgs = [make_org(name).pk for name in ("Acme", "Globex")] + [uuid.UUID(int=chance.getrandbits(128))]
            made_up = MadeUp(chance, NOW, retention, orgs)
            return Doors(made_up, Model(Contract(NOW, retention)), make_key(None), position)

        yield new_doors
        let_go()


@hypothesis_settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)
@given(chance=st.randoms(use_true_random=False), sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_few_events_of_every_kind(new_doors: NewDoors, chance: Random, sizes: list[int]) -> None:
    """Few, so that what fails is shrunk to the least that does."""
    doors, since = new_doors(chance), last_batch()
    for size in sizes:
        doors.send(size)
    doors.check(since)


def test_a_hundred_thousand_events(new_doors: NewDoors) -> None:
    """`PROPERTY_EVENTS` and `PROPERTY_SEED` ask for more, and for others."""
    doors, since = new_doors(random.Random(SEED)), last_batch()
    while doors.sent < EVENTS:
        doors.send(min(doors.made_up.chance.choice((1, 20, 500, 2_000)), EVENTS - doors.sent))
    doors.check(since)


def last_batch() -> int:
    return Batch.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
