"""Kills everything, over and over, while events flow in; then counts.

A real broker, database, stream worker and rollup worker, each of its own. The stream worker is killed only while a transaction
with an uncommitted batch is open: it is stopped first, looked at, and let go on where none is.
"""

import json
import os
import random
import signal
import threading
import time
import uuid
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, connection
from django.test import override_settings
from django.utils import timezone

from analytics_site.rig import (
    environment,
    offsets_of,
    rollup_worker,
    scratch_broker,
    scratch_database,
    stream_worker,
    wait_for,
)
from ingestion.models import Batch, QuarantinedMessage, StreamReader
from ingestion.stream.connecting import BROKER_ERRORS, declare
from ingestion.stream.publishing import NotConfirmed, Publisher
from usage.rollups import roll_up
from usage.verification import verify

CONSUMER = "crashtest-consumer"  # the name of its connection to the database
ORGS, MODELS = 20, 8
DUPLICATES = 0.05  # of the messages' events are sent a second time, later
SETTLE_TIMEOUT = 180.0  # seconds to read what is left, once the killing is over


class Command(BaseCommand):
    help = "Publish while killing consumer, database, broker and rollup worker; every event must be there once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--events", type=int, default=200_000, help="distinct ones, at least")
        parser.add_argument("--kills", type=int, default=20, help="of the consumer, with a batch in hand")
        parser.add_argument("--database-restarts", type=int, default=2)
        parser.add_argument("--broker-restarts", type=int, default=1)
        parser.add_argument("--rollup-kills", type=int, default=5)
        parser.add_argument("--seed", type=int, default=None)

    def handle(self, *args: Any, **options: Any) -> None:
        seed = options["seed"] if options["seed"] is not None else random.randrange(2**32)
        self.stdout.write(f"seed {seed}")
        with scratch_database(), scratch_broker() as broker, override_settings(RABBITMQ_URL=broker.url):
            figures = Crash(self, broker, random.Random(seed), options).run()
        self.stdout.write(json.dumps(figures))
        if figures["lost"] or figures["doubled"] or figures["drift"] or figures["kills"] < options["kills"]:
            raise CommandError("not every event is there once")


class Crash:
    def __init__(self, command: BaseCommand, broker: Any, draw: random.Random, options: dict[str, Any]) -> None:
        self.say = command.stdout.write
        self.broker, self.random, self.options = broker, draw, options
        shared = environment(
            RABBITMQ_URL=broker.url,
            INGESTION_BATCH_SIZE="2000",
            INGESTION_BATCH_TIMEOUT="0.2",
            LOG_LEVEL="CRITICAL",  # that servers are away is what is tried here
        )
        separator = "&" if "?" in shared["DATABASE_URL"] else "?"
        named = f"{shared['DATABASE_URL']}{separator}application_name={CONSUMER}"
        self.consumer = stream_worker(shared | {"DATABASE_URL": named})
        self.rollup = rollup_worker(shared)
        self.events = Events(draw)
        self.kills = 0
        self.held: list[int] = []

    def run(self) -> dict[str, int]:
        lives = self.options["kills"]
        restarts = spread(self.options["database_restarts"], lives)
        broker_restarts = spread(self.options["broker_restarts"], lives, shift=1)
        rollup_kills = spread(self.options["rollup_kills"], lives, shift=2)
        declare(self.broker.url, settings.RABBITMQ_STREAM)
        self.rollup.start()
        try:
            publisher = None
            for life in range(lives):
                killed = threading.Event()
                publisher = threading.Thread(target=self.feed, args=(self.options["events"] // (lives + 1), killed))
                publisher.start()
                self.consumer.start()
                if life in restarts:
                    self.restart_database()
                if life in broker_restarts:
                    self.say("broker killed, and started again")
                    self.broker.kill()
                    self.broker.start()
                if life in rollup_kills:
                    self.rollup.kill()
                    self.rollup.start()
                try:
                    self.kill_with_a_batch_in_hand()
                finally:
                    killed.set()
                publisher.join()
            self.publish(self.options["events"] - len(self.events.ids))
            self.consumer.start()
            self.settle()
        finally:
            self.consumer.stop()
            self.rollup.stop()
        return self.count()

    def feed(self, count: int, killed: threading.Event) -> None:
        """So many events; then more, a few at a time: a reader that has nothing to read has no batch in hand."""
        self.publish(count)
        while not killed.wait(0.1):
            self.publish(250)

    def publish(self, count: int) -> None:
        """So many events, each message confirmed; what was not, when the broker died, is sent again."""
        for bodies in self.events.messages(count):
            while True:
                try:
                    with Publisher(self.broker.url) as publisher:
                        for body in bodies:
                            publisher.publish(settings.RABBITMQ_STREAM, body)
                    break
                except (NotConfirmed, *BROKER_ERRORS):
                    time.sleep(0.5)

    def kill_with_a_batch_in_hand(self) -> None:
        wait_for(self.has_committed_since(committed()), "the consumer does not commit")
        time.sleep(self.random.uniform(0, 0.4))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.consumer.signal_all(signal.SIGSTOP)
            if self.has_open_transaction():
                self.consumer.kill()
                self.kills += 1
                return
            self.consumer.signal_all(signal.SIGCONT)
            time.sleep(self.random.uniform(0.005, 0.05))
        self.consumer.kill()  # does not count

    def has_committed_since(self, before: int) -> Any:
        return lambda: committed() > before

    def has_open_transaction(self) -> bool:
        """Whether the consumer, which stands still, has written something that is not committed."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND backend_xid IS NOT NULL",
                [CONSUMER],
            )
            return bool(cursor.fetchone()[0])

    def restart_database(self) -> None:
        """As hard as it goes: the servers that come along are started again by their keeper."""
        if not settings.EMBEDDED_SERVERS:
            self.say("database not restarted: it is not ours to kill")
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int")
            (pid,) = cursor.fetchone()
        connection.close()
        os.kill(pid, signal.SIGKILL)
        self.say("database killed, and started again")
        wait_for(lambda: committed() is not None, "the database does not come back")

    def settle(self) -> None:
        """Until the consumer has read what the stream holds."""
        self.held = offsets_of(self.broker.url, settings.RABBITMQ_STREAM)
        last = self.held[-1]
        wait_for(lambda: committed() >= last, f"the stream up to {last:,} is not all read", SETTLE_TIMEOUT, 0.2)

    def count(self) -> dict[str, int]:
        connection.close()
        roll_up()
        spans = [
            (batch.first_offset or 0, batch.last_offset or 0, batch.messages_read or 0)
            for batch in Batch.objects.filter(door="stream").order_by("first_offset")
        ]
        times = Counter(offset for first, last, _ in spans for offset in range(first, last + 1))
        twice = sum(1 for offset in self.held if times[offset] > 1)
        never = sum(1 for offset in self.held if not times[offset])
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*), count(DISTINCT (org_id, event_id)) FROM usage_events")
            rows, stored = cursor.fetchone()
        findings = verify()
        for finding in findings[:10]:
            self.say(str(finding))
        self.say(
            f"{len(spans):,} batches hold {sum(messages for _, _, messages in spans):,} of {len(self.held):,} messages:"
            f" {twice} in two batches, {never} in none; {QuarantinedMessage.objects.count()} quarantined"
        )
        return {
            "published": self.events.sent,
            "distinct": len(self.events.ids),
            "stored": stored,
            "lost": len(self.events.ids) - stored + never,
            "doubled": rows - stored + twice,
            "kills": self.kills,
            "drift": len(findings),
        }


def committed() -> int:
    """The offset that is committed; -1 before the first, or while the database is away."""
    try:
        offset = StreamReader.objects.values_list("committed_offset", flat=True).first()
    except (DatabaseError, InterfaceError):
        connection.close()
        return -1
    return -1 if offset is None else offset


def spread(count: int, lives: int, shift: int = 0) -> set[int]:
    """Which lives something happens in: evenly, not in the first."""
    return {min(lives - 1, (number + 1) * lives // (count + 1) + shift) for number in range(count)}


class Events:
    """Distinct events in messages of one to five, a part of them sent twice."""

    def __init__(self, draw: random.Random) -> None:
        self.random = draw
        self.orgs = [uuid.UUID(int=draw.getrandbits(128), version=4) for _ in range(ORGS)]
        self.models = [uuid.UUID(int=draw.getrandbits(128), version=4) for _ in range(MODELS)]
        self.ids: set[uuid.UUID] = set()
        self.sent = 0
        self.again: list[bytes] = []

    def messages(self, left: int) -> Iterator[list[bytes]]:
        """So many new events in lists of bodies, to be confirmed a list at a time."""
        while left > 0:
            bodies = []
            for _ in range(200):
                size = min(left, self.random.randint(1, 5))
                if not size:
                    break
                left -= size
                events = [self.event() for _ in range(size)]
                if self.again and self.random.random() < DUPLICATES * 4:
                    events.append(self.again.pop(self.random.randrange(len(self.again))))
                if self.random.random() < DUPLICATES * 4:
                    self.again.append(events[0])
                self.sent += len(events)
                bodies.append(b"[" + b",".join(events) + b"]")
            yield bodies

    def event(self) -> bytes:
        draw = self.random
        event_id = uuid.UUID(int=draw.getrandbits(128), version=4)
        self.ids.add(event_id)
        return msgspec.json.encode(
            {
                "eventId": event_id,
                "orgId": draw.choice(self.orgs),
                "modelId": draw.choice(self.models),
                "occurredAt": timezone.now() - timedelta(seconds=draw.uniform(0, 7_200)),
                "latencyMs": int(draw.lognormvariate(6.9, 0.6)),
                "status": "error" if draw.random() < 0.02 else "success",
                "inputTokens": draw.randrange(6_000),
                "outputTokens": draw.randrange(600),
                "costEstimateCents": draw.randrange(100_000) / 10_000,
            }
        )
