"""The callers' part: requests when they are due, whatever became of those before."""

import http.client
import json
import queue
import re
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from .figures import Answer
from .plan import EXPORT, Ask, Clock
from .traffic import Traffic

THREADS = 64  # requests at once; those beyond wait, and their time counts
TIMEOUT = 30.0  # seconds
EVENTS_PER_REQUEST = 10
SENT_AGAIN_FOR = 120.0  # seconds that what was not accepted is tried again, in the end
_LAG = re.compile(rb'"lagSeconds": ?(\d+)')


class Callers:
    def __init__(self, port: int, keys: Sequence[str], traffic: Traffic, clock: Clock, answers: Path) -> None:
        self.port, self.keys, self.traffic, self.clock = port, keys, traffic, clock
        self.answers = answers.open("wb")
        self.lock = threading.Lock()
        self.waiting: queue.SimpleQueue[tuple[Ask, bytes] | None] = queue.SimpleQueue()
        self.batches = 0
        self.refused: list[tuple[Ask, bytes]] = []

    def run(self, plan: Sequence[Ask]) -> None:
        threads = [threading.Thread(target=self._answer_all, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for ask in plan:
            if (left := ask.due - self.clock.now()) > 0:
                time.sleep(left)
            self.waiting.put((ask, self._body(ask)))
        for _ in threads:
            self.waiting.put(None)
        for thread in threads:
            thread.join()
        self._send_again()
        self.answers.close()

    def _answer_all(self) -> None:
        while (taken := self.waiting.get()) is not None:
            ask, body = taken
            problem, lag = self._ask(ask, body)
            answer = Answer(ask.due, ask.kind, self.clock.now() - ask.due, problem, lag)
            with self.lock:
                self.answers.write(msgspec.json.encode(answer) + b"\n")
                self.answers.flush()
                if problem and ask.kind == "events":
                    self.refused.append((ask, body))

    def _send_again(self) -> None:
        """Who sends events repeats what was not accepted, as it may have been."""
        until = self.clock.now() + SENT_AGAIN_FOR
        while self.refused and self.clock.now() < until:
            ask, body = self.refused.pop()
            if self._ask(ask, body)[0]:
                self.refused.append((ask, body))
                time.sleep(1)

    def _body(self, ask: Ask) -> bytes:
        at = self.clock.at(ask.due)
        if ask.kind == "events":
            numbers = range(self.batches * EVENTS_PER_REQUEST, (self.batches + 1) * EVENTS_PER_REQUEST)
            self.batches += 1
            return f"[{','.join(self.traffic.event('http', n, at, ask.org) for n in numbers)}]".encode()
        if ask.kind == EXPORT:
            days = {"start": midnight(at - timedelta(days=7)).isoformat(), "end": midnight(at).isoformat()}
            return json.dumps({"timeRange": days, "granularity": "hourly"}).encode()
        return b""

    def _ask(self, ask: Ask, body: bytes) -> tuple[str, int | None]:
        """What was wrong, if anything, and the lag that is told. A connection a request, as behind a proxy."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        headers = {"X-API-Key": self.keys[ask.org]} | ({"Content-Type": "application/json"} if body else {})
        path = f"/analytics/v1/orgs/{self.traffic.orgs[ask.org]}/{self._path(ask)}"
        try:
            connection.request("POST" if body else "GET", path, body or None, headers)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return f"{ask.kind}: {type(error).__name__}", None
        finally:
            connection.close()
        if answer.status >= 300:
            return f"{ask.kind}: {answer.status}", None
        lag = _LAG.search(said)
        return "", int(lag[1]) if lag else None

    def _path(self, ask: Ask) -> str:
        now = self.clock.at(ask.due)
        week = {"start": (now - timedelta(days=7)).isoformat(), "end": now.isoformat(), "granularity": "hour"}
        month = {"start": midnight(now - timedelta(days=30)).isoformat(), "end": now.isoformat(), "granularity": "day"}
        return {
            "usage by hour": f"usage?{urlencode(week)}",
            "usage by day": f"usage?{urlencode(month)}",
            "reliability": f"reliability?{urlencode(week)}",
            "freshness": "freshness",
            "incidents": f"reliability/incidents?{urlencode({'start': week['start'], 'end': week['end']})}",
            "events": "events",
            EXPORT: "exports",
        }[ask.kind]


def midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def call(port: int, keys: Sequence[str], traffic: Traffic, plan: Sequence[Ask], clock: Clock, answers: Path) -> None:
    """In a process of its own."""
    Callers(port, keys, traffic, clock, answers).run(plan)


def read_answers(path: Path) -> list[Answer]:
    return [msgspec.json.decode(line, type=Answer) for line in path.read_bytes().splitlines()]
