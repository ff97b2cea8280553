"""Made-up events as their bytes: right ones with every field and odd spellings, resends, and wrong ones of each kind.

All chance comes from one `Random`: a seeded one for many events, Hypothesis's own for few that are to be shrunk.
"""

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from random import Random

_TEXTS = (
    '""', '"app"', '"Ünï ☃ 😀"', r'"\ud83d\ude00 \u00e9 \" \\ \/ \b\f\n\r\t"', f'"{"x" * 128}"', f'"{"😀" * 128}"',
    r'"\u007f\u0085\u2028"',
    '"%s {} \'; DROP TABLE usage_events; --"',
)  # fmt: skip
_NO_TEXTS = (f'"{"x" * 129}"', f'"{"😀" * 129}"', r'"a\u0000b"', "5", "true", "[]", "{}")
_INTEGERS = ("0", "1", "7", "100", "4096", "1000000")
_ODD_INTEGERS = ("-0", "-0.0", "0.0", "1.0", "1e2", "1E+2", "25.000", "1e0", "0e9", "120e-1")
_NO_INTEGERS = (
    "-1",
    "1.5",
    "0.1",
    "1e-7",
    "-1e0",
    "true",
    "false",
    "null",
    '"5"',
    "[]",
    "{}",
    "1e400",
    "99999999999999999999999",
    "9223372036854775808",
)
_COSTS = ("0", "1", "0.25", "0.0001", "12345678.9012", "1000000000", "999999999.9999", "null")
_ODD_COSTS = ("-0", "-0.0", "0.10000000", "1e-4", "1E9", "25e-2", "1000000000.0000", "0.00010", "0e-30")
_NO_COSTS = (
    "-0.0001",
    "-1",
    "0.00001",
    "1000000000.0001",
    "1e10",
    "1e400",
    "1e-5",
    '"0.25"',
    "true",
    "[]",
    "1000000001",
)
_METADATA = (
    "{}", '{"team":"search"}', '{"":""}', r'{"\u00e9\n\"":"\u0001\ud83d\ude00"}', '{"a":"1","b":"2","a":"3"}', "null",
    "{" + ",".join(f'"k{n}":"v"' for n in range(32)) + "}", '{"k":"' + "x" * (4096 - 8) + '"}', '{"k":"' + "é" * 2044 + '"}',
)  # fmt: skip
_NO_METADATA = (
    "{" + ",".join(f'"k{n}":"v"' for n in range(33)) + "}", '{"k":"' + "x" * (4096 - 7) + '"}', '{"k":"' + "é" * 2045 + '"}',
    '{"k":1}', '{"k":null}', '{"k":{}}', r'{"k":"\u0000"}', r'{"\u0000":""}', "[]", '"x"', "5",
)  # fmt: skip
_NO_IDS = (
    '""',
    '"x"',
    "null",
    "5",
    '"00000000-0000-4000-8000-00000000000"',
    '"{00000000-0000-4000-8000-000000000000}"',
    '"g0000000-0000-4000-8000-000000000000"',
)
_NO_STATUS = ('"ok"', '"Success"', '""', "null", "0", "true", r'"success\u0000"')
_NO_TIMES = (
    '""', "null", "0", "1700000000", '"now"', '"2026-01-01"', '"2026-13-01T00:00:00Z"',
    '"2026-02-30T00:00:00Z"', '"2026-01-01T24:00:00Z"',
    '"2026-01-01T23:59:60Z"', '"2026-01-01T00:00Z"', '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"',
    '"0000-01-01T00:00:00Z"',
    '"2026-01-01T00:00:00+24:00"', '"2026-01-01T00:00:00.Z"', '"2026-01-01T00:00:00 Z"',
)  # fmt: skip
_NO_OBJECTS = (b"null", b"5", b'"x"', b"[]", b"true", b"{}", b"[{}]", b"-0")
# No JSON at all. Within an array these spoil the whole of it.
BROKEN = (
    b"{", b"}", b"{]", b'{"eventId":}', b"{'eventId':1}", b'{"a":1,}', b'{"a":01}', b'{"a":NaN}', b'{"a":-Infinity}',
    b'{"a":1.}', b'{"a":+1}',
    b'{"a":"\x01"}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":"\\x"}', b'{"a":1} {}', b"nul", b'"',
    b"\xef\xbb\xbf{}", b"[" * 5_000, b"\x00",
)  # fmt: skip
_SNAKES = {
    "eventId": "event_id", "orgId": "org_id", "modelId": "model_id", "actorId": "actor_id", "clientId": "client_id",
    "occurredAt": "occurred_at", "latencyMs": "latency_ms", "errorCode": "error_code", "inputTokens": "input_tokens",
    "outputTokens": "output_tokens", "cachedInputTokens": "cached_input_tokens",
    "cacheCreationInputTokens": "cache_creation_input_tokens", "costEstimateCents": "cost_estimate_cents",
}  # fmt: skip
_OFFSETS = (0, 0, 0, 330, -210, 840, -720, 1439, -1439, 1, 345)  # minutes

Fields = dict[str, str]  # an event: names, and values as JSON texts


@dataclass
class MadeUp:
    chance: Random
    now: datetime
    retention: timedelta
    org_ids: list[uuid.UUID]  # the first is the one that most events are of
    sent: list[Fields] = field(default_factory=list)

    def batch(self, count: int, *, is_plain: bool, may_break: bool) -> list[bytes]:
        """Payloads. A plain one has what producers usually send, so that the fast way of reading takes it."""
        self._snake = self.chance.random() < 0.3
        return [self._plain() if is_plain else self._any(may_break) for _ in range(count)]

    def _plain(self) -> bytes:
        if self.sent and self.chance.random() < 0.2:
            return self._resend()
        return self._written(self._kept(self._right(odd=False)), odd=False)

    def _any(self, may_break: bool) -> bytes:
        what = self.chance.random()
        if self.sent and what < 0.2:
            return self._resend()
        if what < 0.7:
            return self._written(self._kept(self._right(odd=True)), odd=True)
        if what < 0.72:
            return self.chance.choice(_NO_OBJECTS)
        if may_break and what < 0.75:
            return self.chance.choice(BROKEN)
        return self._written(self._wrong(), odd=True)

    def _kept(self, event: Fields) -> Fields:
        if len(self.sent) < 1_000:
            self.sent.append(event)
        else:
            self.sent[self.chance.randrange(1_000)] = event
        return event

    def _right(self, *, odd: bool) -> Fields:
        pick, integers = self.chance.choice, (*_INTEGERS, *_ODD_INTEGERS) if odd else _INTEGERS
        event = {
            "eventId": self._id(uuid.UUID(int=self.chance.getrandbits(128)), odd),
            "orgId": self._id(self.org_ids[0] if self.chance.random() < 0.97 else pick(self.org_ids), odd),
            "modelId": self._id(uuid.UUID(int=self.chance.randrange(5)), odd),
            "occurredAt": self._time(odd),
            "latencyMs": pick((*integers, "86400000")),
            "status": pick(('"success"', '"success"', '"error"', '"timeout"', '"throttled"')),
            "inputTokens": pick((*integers, "2147483647")),
            "outputTokens": pick((*integers, "2147483647")),
            "costEstimateCents": pick((*_COSTS, *_ODD_COSTS) if odd else _COSTS),
        }
        optional = {
            "actorId": lambda: pick(("null", self._id(uuid.UUID(int=self.chance.getrandbits(128)), odd))),
            "clientId": lambda: pick((*_TEXTS, "null")),
            "errorCode": lambda: "null" if event["status"] == '"success"' else pick((*_TEXTS, "null")),
            "metadata": lambda: pick(_METADATA),
            "cachedInputTokens": lambda: pick(("null", "0", event["inputTokens"])),
            "cacheCreationInputTokens": lambda: pick(("null", "0", *(["-0"] if odd else []))),
        }
        for name, value in optional.items():
            if self.chance.random() < 0.4:
                event[name] = value()
        if self.chance.random() < 0.1:
            del event["costEstimateCents"]
        return event

    def _resend(self) -> bytes:
        """Again, in other words or with something changed."""
        event = dict(self.chance.choice(self.sent))
        if self.chance.random() < 0.5:
            other = self._right(odd=True)
            for name in self.chance.sample(sorted(set(event) - {"eventId", "orgId"}), 2):
                event[name] = other.get(name, event[name])
        return self._written(event, odd=False)

    def _wrong(self) -> Fields:
        event, pick = self._right(odd=True), self.chance.choice
        wrong: dict[str, tuple[str, ...]] = {
            "eventId": _NO_IDS, "orgId": _NO_IDS, "modelId": _NO_IDS, "actorId": tuple(set(_NO_IDS) - {"null"}),
            "clientId": _NO_TEXTS, "occurredAt": (*_NO_TIMES, self._far(), self._far()),
            "latencyMs": (*_NO_INTEGERS, "86400001", "86400000.5", "86400001.0"), "status": _NO_STATUS,
            "errorCode": _NO_TEXTS, "inputTokens": (*_NO_INTEGERS, "2147483648"), "outputTokens": (*_NO_INTEGERS, "2147483648"),
            "cachedInputTokens": tuple(set(_NO_INTEGERS) - {"null"}), "cacheCreationInputTokens": ("-1", "2147483647", "1.5"),
            "costEstimateCents": _NO_COSTS, "metadata": _NO_METADATA,
        }  # fmt: skip
        match self.chance.randrange(8):
            case 0:
                event.pop(
                    pick(
                        (
                            "eventId",
                            "orgId",
                            "modelId",
                            "occurredAt",
                            "latencyMs",
                            "status",
                            "inputTokens",
                            "outputTokens",
                        )
                    )
                )
            case 1:
                event |= {"status": '"success"', "errorCode": pick(_TEXTS)}
            case 2:
                name = pick(sorted(set(event) & set(_SNAKES)))
                event[_SNAKES[name]] = event[name]
                event[name] = event[name]  # both spellings of one field
                return {name: event.pop(name)} | {_SNAKES[name]: event.pop(_SNAKES[name]), "~": "1"} | event
            case 3:
                event |= {
                    "inputTokens": "5",
                    "cachedInputTokens": pick(("5", "6")),
                    "cacheCreationInputTokens": pick(("0", "1")),
                }
            case _:
                for name in self.chance.sample(sorted(wrong), pick((1, 1, 2))):
                    event[name] = pick(wrong[name])
        return event

    def _id(self, value: uuid.UUID, odd: bool) -> str:
        return f'"{str(value).upper() if odd and self.chance.random() < 0.2 else value}"'

    def _time(self, odd: bool) -> str:
        latest, earliest = self.now + timedelta(minutes=5), self.now - self.retention
        near = self.now - timedelta(days=self.chance.randrange(3), seconds=self.chance.randrange(80_000))
        moment = (
            near
            if self.chance.random() < 0.9
            else self.chance.choice((latest, earliest, self.now, latest - timedelta(microseconds=1)))
        )
        return self._told(moment, odd)

    def _far(self) -> str:
        moment = self.chance.choice((self.now + timedelta(minutes=5), self.now - self.retention))
        step = timedelta(microseconds=1) if moment > self.now else -timedelta(microseconds=1)
        return self._told(moment + step * self.chance.choice((1, 1, 10**6, 10**12)), odd=True)

    def _told(self, moment: datetime, odd: bool) -> str:
        offset = self.chance.choice(_OFFSETS) if odd else 0
        local = moment.astimezone(timezone(timedelta(minutes=offset)) if offset else UTC)
        text = local.isoformat(sep=self.chance.choice("Tt ") if odd else "T", timespec="microseconds")
        clock, zone = text[:26], text[26:]
        if odd and self.chance.random() < 0.2:
            clock += self.chance.choice(("0", "000", "1", "4", "49"))  # beyond what is kept: rounded
        return f'"{clock}{self.chance.choice(("Z", "z") if odd else ("Z",)) if zone == "+00:00" else zone}"'

    def _written(self, event: Fields, *, odd: bool) -> bytes:
        spells_both = "~" in event
        pairs = [(name, value) for name, value in event.items() if name != "~"]
        if odd and self.chance.random() < 0.3:
            pairs.insert(0, ("unknown", self.chance.choice(("1", "[]", '{"eventId":"x"}', '"é"'))))
            self.chance.shuffle(pairs)
        snake = not spells_both and (self._snake if not odd else self.chance.random() < 0.3)
        gap = self.chance.choice(("", " ", "\t")) if odd else ""
        body = f",{gap}".join(f'"{_SNAKES.get(name, name) if snake else name}":{gap}{value}' for name, value in pairs)
        return f"{{{gap}{body}{gap}}}".encode()
