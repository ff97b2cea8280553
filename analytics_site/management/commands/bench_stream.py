"""How fast a stream is read, how fresh figures are meanwhile, and in how much memory.

A broker and a database of its own, one stream worker, one rollup worker, and whoever publishes, all on this machine.
"""

import json
import multiprocessing
import os
import random
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles
from threading import Event, Thread
from typing import Any
from urllib.parse import urlencode

import psutil
from django.core.management.base import BaseCommand
from django.db import connection
from django.test import Client, override_settings
from django.utils import timezone

from analytics_site.rig import (
    UNLIMITED,
    Process,
    environment,
    rollup_worker,
    scratch_broker,
    scratch_database,
    stream_worker,
    wait_for,
)
from ingestion.models import Batch, StreamReader
from ingestion.stream.connecting import declare
from ingestion.stream.publishing import Publisher
from orgs.models import ApiKey, Org, Scope
from usage.rollups import roll_up
from usage.verification import verify

BACKLOGS = {1: 60_000, 10: 300_000, 100: 600_000}  # events read for a rate, by events a message
ORGS, MODELS = 50, 40
STEADY = 3_000  # events/s
PROBE_INTERVAL = 0.5  # seconds
POLL_INTERVAL = 0.05  # seconds; how exact a probe's time is


class Command(BaseCommand):
    help = "Measure the stream's door; the last line is one JSON object."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--minutes", type=float, default=2, help="of five times the steady rate")
        parser.add_argument("--steady-minutes", type=float, default=2, help=f"of {STEADY:,} events/s")
        parser.add_argument("--backlog", type=int, default=0, help="events that wait before reading begins")

    def handle(self, *args: Any, **options: Any) -> None:
        with scratch_database(), scratch_broker() as broker:
            self.url = broker.url
            loads = {per_message: self.rate(per_message, events) for per_message, events in BACKLOGS.items()}
            steady = self.hold(STEADY, options["steady_minutes"])
            held = self.hold(5 * STEADY, options["minutes"])
            backlog = self.backlog(options["backlog"]) if options["backlog"] else None
            roll_up()
            drift = len(verify())
        figures: dict[str, float] = {f"events_per_s_{n}": round(load.rate) for n, load in loads.items()}
        figures["freshness_p95_s"] = held.p95
        figures["peak_rss_mb"] = max(load.peak_mb for load in (*loads.values(), steady, held, backlog) if load)
        figures |= {"steady_freshness_p95_s": steady.p95, "held_events_per_s": round(held.rate), "drift": drift}
        if backlog:
            figures["backlog_events_per_s"] = round(backlog.rate)
        self.stdout.write("\n" + json.dumps(figures))

    def rate(self, per_message: int, events: int) -> "Load":
        """Events a second from stream to commit: what waits is read, nobody publishes, nothing is rolled up."""
        stream = f"bench.{per_message}"
        with self.consuming(stream, events, per_message) as load:
            batches = list(Batch.objects.filter(stream=stream).order_by("id"))
        seconds = (batches[-1].completed_at - batches[0].completed_at).total_seconds()
        load.rate = (sum(batch.accepted for batch in batches) - batches[0].accepted) / seconds
        self.stdout.write(f"{per_message:>4} events a message: {load.rate:>9,.0f} events/s of {events:,}; {load}")
        return load

    def backlog(self, events: int) -> "Load":
        started = time.monotonic()
        with self.consuming("bench.backlog", events, 100) as load:
            load.rate = events / (time.monotonic() - load.started)
        self.stdout.write(
            f"backlog of {events:,}: {load.rate:,.0f} events/s; {load}; {time.monotonic() - started:,.0f} s in all"
        )
        return load

    @contextmanager
    def consuming(self, stream: str, events: int, per_message: int) -> Iterator["Load"]:
        """Publish, then read it all; the body runs once that is done."""
        declare(self.url, stream)
        flood(self.url, stream, 0, events, per_message)
        worker = stream_worker(environment(RABBITMQ_URL=self.url, RABBITMQ_STREAM=stream))
        worker.start()
        load = Load(worker)
        try:
            with load.watched():
                wait_for(lambda: accepted(stream) >= events, f"{stream} is not read", timeout=900, pause=0.1)
                yield load
        finally:
            worker.stop()
            StreamReader.objects.filter(pk=stream).delete()

    def hold(self, rate: int, minutes: float) -> "Load":
        """Publish at a rate, with rollups running, and see when what was published is in the usage API."""
        stream = f"bench.hold.{rate}"
        declare(self.url, stream)
        shared = environment(RABBITMQ_URL=self.url, RABBITMQ_STREAM=stream)
        worker, rollup = stream_worker(shared), rollup_worker(shared)
        worker.start()
        rollup.start()
        load = Load(worker)
        events = int(rate * minutes * 60)
        publisher = multiprocessing.Process(target=flood, args=(self.url, stream, rate, events, 100))
        try:
            wait_for(lambda: StreamReader.objects.filter(pk=stream).exists(), "the consumer does not start")
            publisher.start()
            with load.watched(), override_settings(RABBITMQ_URL=self.url, **UNLIMITED):
                probe(self.url, stream, publisher, load)
            publisher.join()
            wait_for(lambda: accepted(stream) >= events, f"{stream} is not read", timeout=120, pause=0.2)
            load.rate = events / (load.ended - load.started)
        finally:
            if publisher.pid:
                publisher.kill()
            worker.stop()
            rollup.stop()
            StreamReader.objects.filter(pk=stream).delete()
        found = quantiles(load.freshness, n=100)
        load.p95 = round(found[94], 2)
        self.stdout.write(
            f"{rate:>6,} events/s for {minutes:g} min: held {load.rate:,.0f}; published → in the usage API:"
            f" p50 {median(load.freshness):.2f} s, p95 {found[94]:.2f} s, p99 {found[98]:.2f} s"
            f" of {len(load.freshness)} probes; {load}"
        )
        return load


@dataclass
class Load:
    """What was seen of a run: the stream worker's memory, and how fresh figures were."""

    worker: Process
    freshness: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    rate: float = 0.0
    p95: float = 0.0
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        done = Event()

        def look() -> None:
            process = psutil.Process(self.worker.pid)
            while not done.wait(1.0):
                self.memory.append(process.memory_info().rss / 2**20)

        thread = Thread(target=look, daemon=True)
        thread.start()
        self.started = time.monotonic()
        try:
            yield
        finally:
            self.ended = time.monotonic()
            done.set()
            thread.join()

    @property
    def peak_mb(self) -> float:
        return round(max(self.memory, default=0.0), 1)

    def __str__(self) -> str:
        tenth = max(1, len(self.memory) // 10)
        early, late = self.memory[tenth : 2 * tenth] or [0.0], self.memory[-tenth:] or [0.0]
        return f"memory {median(early):.0f} MB early, {median(late):.0f} MB late, {self.peak_mb:.0f} MB at most"


def accepted(stream: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(sum(accepted), 0) FROM ingestion_batches WHERE stream = %s", [stream])
        (events,) = cursor.fetchone()
    return int(events)


def flood(url: str, stream: str, rate: float, events: int, per_message: int) -> None:
    """Publish events as fast as it goes, or at a rate. The bodies are made as cheaply as can be: they share a machine."""
    draw = random.Random(stream)
    orgs = [uuid.UUID(int=draw.getrandbits(128), version=4) for _ in range(ORGS)]
    models = [uuid.UUID(int=draw.getrandbits(128), version=4) for _ in range(MODELS)]
    tails = [
        f'","orgId":"{draw.choice(orgs[:1] * 20 + orgs)}","modelId":"{draw.choice(models)}","clientId":"client-{n % 20}",'
        f'"latencyMs":{int(draw.lognormvariate(6.9, 0.6))},"status":"{"error" if n % 50 == 0 else "success"}",'
        f'"inputTokens":{draw.randrange(6_000)},"outputTokens":{draw.randrange(600)},'
        f'"costEstimateCents":{draw.randrange(100_000) / 10_000}}}'
        for n in range(2_000)
    ]
    started, sent = time.monotonic(), 0
    with Publisher(url) as publisher:
        while sent < events:
            count = min(per_message, events - sent)
            ids, now = os.urandom(16 * count).hex(), datetime.now(UTC).isoformat()
            parts = []
            for n in range(count):
                one = ids[32 * n : 32 * n + 32]
                event_id = f"{one[:8]}-{one[8:12]}-4{one[13:16]}-8{one[17:20]}-{one[20:]}"
                parts.append(f'{{"eventId":"{event_id}","occurredAt":"{now}{tails[(sent + n) % len(tails)]}')
            body = parts[0] if per_message == 1 else f"[{','.join(parts)}]"
            publisher.publish(stream, body.encode())
            sent += count
            if rate:
                publisher.pause(sent / rate - (time.monotonic() - started))


def probe(url: str, stream: str, publisher: multiprocessing.Process, load: Load) -> None:
    """Publish an event of an org of its own now and then, and ask the usage API until it is counted."""
    org = Org.objects.create(name=f"Probe {stream}", slug=f"probe-{uuid.uuid4().hex[:8]}")
    _, token = ApiKey.issue(org=org, name="probe", scopes=[Scope.ADMIN])
    client = Client(headers={"X-API-Key": token}, SERVER_NAME="localhost")
    model = uuid.uuid4()
    waiting: list[float] = []
    counted, due = 0, time.monotonic()
    with Publisher(url) as mine:
        while publisher.is_alive() or waiting:
            now = time.monotonic()
            if publisher.is_alive() and now >= due:
                mine.publish(stream, event_of(org.pk, model))
                mine.confirm()
                waiting.append(time.monotonic())
                due = now + PROBE_INTERVAL
            visible = invocations(client, org.pk)
            seen_at = time.monotonic()
            for _ in range(visible - counted):
                load.freshness.append(seen_at - waiting.pop(0))
            counted = visible
            time.sleep(POLL_INTERVAL)


def event_of(org_id: uuid.UUID, model_id: uuid.UUID) -> bytes:
    return json.dumps(
        {
            "eventId": str(uuid.uuid4()), "orgId": str(org_id), "modelId": str(model_id),
            "occurredAt": timezone.now().isoformat(), "latencyMs": 1, "status": "success", "inputTokens": 1,
            "outputTokens": 1, "costEstimateCents": 1,
        }
    ).encode()  # fmt: skip


def invocations(client: Client, org_id: uuid.UUID) -> int:
    now = timezone.now()
    query = urlencode({"start": (now - timedelta(hours=2)).isoformat(), "end": (now + timedelta(hours=1)).isoformat()})
    return int(client.get(f"/analytics/v1/orgs/{org_id}/usage?{query}").json()["totals"]["invocations"])
