"""The gateway's part: events onto the stream when they are due, each confirmed, and sent again where the broker was away."""

import random
import time
from array import array
from ctypes import c_double, c_longlong
from multiprocessing.sharedctypes import RawArray
from typing import Any

from ingestion.stream.connecting import BROKER_ERRORS
from ingestion.stream.publishing import NotConfirmed, Publisher

from .plan import Clock
from .traffic import Traffic

RESENT = 0.01  # of the events
RESENT_AFTER = 60.0  # seconds, on average
CONFIRM_EVERY = 0.5  # seconds
CONFIRM_AT_MOST = 500  # messages
RETRY = 0.5  # seconds
_AWAY = (NotConfirmed, *BROKER_ERRORS)


class Told:
    """What the publisher tells the others, in memory that they share."""

    def __init__(self, messages: int) -> None:
        self._numbers: Any = RawArray(c_longlong, 3)
        self.lateness: Any = RawArray(c_double, messages)  # seconds after it was due that a message was sent

    @property
    def events(self) -> int:
        """Different ones that the broker confirmed."""
        return int(self._numbers[0])

    @property
    def resent(self) -> int:
        """Events that were sent a second time on purpose."""
        return int(self._numbers[1])

    @property
    def interruptions(self) -> int:
        return int(self._numbers[2])

    def tell(self, events: int, resent: int, interruptions: int) -> None:
        self._numbers[:] = [events, resent, interruptions]


class Gateway:
    """Sends every message of a plan, however long the broker is away: what could not be sent when it was due is sent then."""

    def __init__(self, url: str, stream: str, traffic: Traffic, per_message: int, rate: float, told: Told) -> None:
        self.url, self.stream, self.traffic, self.per_message, self.told = url, stream, traffic, per_message, told
        self.random = random.Random(traffic.seed + 1)
        self.kept_back = int(rate * RESENT * RESENT_AFTER)
        self.again: list[str] = []
        self.unconfirmed: list[bytes] = []
        self.made = self.resent = self.interruptions = 0
        self.publisher = Publisher(url)

    def run(self, plan: "array[float]", clock: Clock) -> None:
        confirmed_at = clock.now()
        for number, due in enumerate(plan):
            while (left := due - clock.now()) > 0:
                if self.unconfirmed and clock.now() - confirmed_at >= CONFIRM_EVERY:
                    confirmed_at = self._confirm(clock)
                self._pause(min(left, CONFIRM_EVERY))
            body = self._message(due, clock)
            self.told.lateness[number] = max(0.0, clock.now() - due)
            self._send(body)
            if len(self.unconfirmed) >= CONFIRM_AT_MOST:
                confirmed_at = self._confirm(clock)
        self._confirm(clock)

    def _message(self, due: float, clock: Clock) -> bytes:
        at = clock.at(due)
        events = [self.traffic.streamed(self.made + n, at) for n in range(self.per_message)]
        self.made += self.per_message
        if self.random.random() < RESENT * self.per_message:
            self.again.append(events[0])
            if len(self.again) > self.kept_back:
                events.append(self.again.pop(self.random.randrange(len(self.again))))
                self.resent += 1
        return f"[{','.join(events)}]".encode()

    def _send(self, body: bytes) -> None:
        self.unconfirmed.append(body)
        try:
            self.publisher.publish(self.stream, body)
        except _AWAY:
            self._begin_anew()

    def _pause(self, seconds: float) -> None:
        try:
            self.publisher.pause(seconds)
        except _AWAY:
            self._begin_anew()

    def _confirm(self, clock: Clock) -> float:
        try:
            self.publisher.confirm()
        except _AWAY:
            self._begin_anew()
        self.unconfirmed.clear()
        self.told.tell(self.made, self.resent, self.interruptions)
        return clock.now()

    def _begin_anew(self) -> None:
        """Connect again, and send again what nobody confirmed: some of it the broker may hold already."""
        self.interruptions += 1
        while True:
            try:
                self.publisher = Publisher(self.url)
                for body in self.unconfirmed:
                    self.publisher.publish(self.stream, body)
                self.publisher.confirm()
            except _AWAY:
                time.sleep(RETRY)
            else:
                return


def publish(
    url: str,
    stream: str,
    traffic: Traffic,
    per_message: int,
    rate: float,
    plan: "array[float]",
    clock: Clock,
    told: Told,
) -> None:
    """In a process of its own."""
    Gateway(url, stream, traffic, per_message, rate, told).run(plan, clock)
