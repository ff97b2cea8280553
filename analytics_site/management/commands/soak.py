"""Runs the whole service under load for a long time, restarts each part of it, and counts.

Servers, database, broker and processes of its own, on loopback; the load shares the machine with them.
"""

import json
import multiprocessing
import os
import platform
import random
import signal
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.db.models import Count, Max, Min
from django.test import override_settings
from django.utils import timezone

from analytics_site.rig import own_servers, pointed_at, scratch_broker, wait_for
from analytics_site.soak import counting
from analytics_site.soak.asking import EVENTS_PER_REQUEST, call, read_answers
from analytics_site.soak.figures import (
    Answer,
    Restart,
    failures,
    memories,
    percentile,
    percentiles,
    restart_of,
)
from analytics_site.soak.logs import summarise
from analytics_site.soak.plan import EXPORT, Clock, arrivals, asks, spread
from analytics_site.soak.publishing import Told, publish
from analytics_site.soak.service import PROCESSES, SERVERS, Service
from analytics_site.soak.traffic import CLIENTS, MODELS, ORGS, Traffic
from analytics_site.soak.watching import Watcher
from exports.models import ExportJob, State
from ingestion.models import Batch, Door, StreamReader
from ingestion.schema import read_array, split
from ingestion.stream.connecting import declare
from ingestion.stream.looking import bounds_of
from ingestion.writing import Delivery, store
from orgs.models import ApiKey, Org, Scope, ServedModel
from reliability.models import Watch
from usage.models import OpenHour
from usage.rollups import roll_up
from usage.verification import verify
from usage.windows import floor_hour

HISTORY_HOURS = 30 * 24  # one call of each org and model in each
LOAD = ("gateway", "callers")
SETTLES_WITHIN = 900.0  # seconds to read, roll up and export what is left, once the load is over
WARM_UP = (0.1, 120.0)  # of the run, and seconds at most: so long memory is not looked at in each life of a process
SPEAKS_EVERY = 60.0  # seconds


class Command(BaseCommand):
    help = "Run the whole service under load, with restarts; count and measure. The last line is one JSON object."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--minutes", type=float, default=60)
        parser.add_argument("--events-per-second", type=float, default=3_000, help="through the stream")
        parser.add_argument("--events-per-message", type=int, default=10)
        parser.add_argument("--requests-per-second", type=float, default=20, help="on the API")
        parser.add_argument(
            "--restart", default=",".join((*SERVERS, *PROCESSES)), help="which, in this order, with commas between"
        )
        parser.add_argument("--kill", action="store_true", help="restart by SIGKILL, not in order")
        parser.add_argument("--logs", type=Path, help="a folder for the processes' logs, which stay there")
        parser.add_argument("--seed", type=int, default=None)

    def handle(self, *args: Any, **options: Any) -> None:
        names = [name for name in options["restart"].split(",") if name]
        if unknown := sorted(set(names) - {*SERVERS, *PROCESSES}):
            raise CommandError(f"{', '.join(unknown)} can't be restarted: {', '.join((*SERVERS, *PROCESSES))}")
        for stop in (signal.SIGINT, signal.SIGTERM):  # what was started is stopped, and the servers with their data go
            signal.signal(stop, signal.default_int_handler)
        seed = options["seed"] if options["seed"] is not None else random.randrange(2**32)
        with (
            tempfile.TemporaryDirectory(prefix="analytics-soak-") as scratch,
            own_servers() as servers,
            pointed_at(servers),
            scratch_broker() as broker,
            override_settings(RABBITMQ_URL=broker.url),
        ):
            folder = Path(scratch)
            logs = options["logs"] or folder / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            self.stdout.write(f"{conditions()}; seed {seed}")
            call_command("migrate", verbosity=0)
            traffic = Traffic(seed)
            keys = prepare(traffic)
            soak = Soak(self.stdout.write, Service(broker, folder, logs), traffic, keys, names, options, folder)
            figures = soak.run() | {"log_errors": summarise(logs), "log_warnings": summarise(logs, ("warning",))}
        for process, said in figures["log_errors"].items():
            self.stdout.write(f"{process} said: {said}")
        self.stdout.write("\n" + json.dumps(figures))
        wrong = ("lost", "doubled", "miscounted", "drift", "failed_outside_restarts", "exports_not_made")
        if any(figures[name] for name in wrong):
            raise CommandError(", ".join(f"{name} {figures[name]}" for name in wrong if figures[name]))


def conditions() -> str:
    cores, load = os.cpu_count(), os.getloadavg()[0]
    return (
        f"{cores} cores, which the load shares; load average {load:.1f} before; {psutil.virtual_memory().total >> 30} GB;"
        f" Python {platform.python_version()}; {timezone.now():%Y-%m-%d %H:%M} UTC"
    )


def prepare(traffic: Traffic) -> list[str]:
    """Orgs with a key each, and a history that questions about a month find something in."""
    now = timezone.now()
    orgs = [Org(pk=pk, name=f"Org {number}", slug=f"org-{number}") for number, pk in enumerate(traffic.orgs)]
    Org.objects.bulk_create(orgs)
    ServedModel.objects.bulk_create(
        ServedModel(pk=pk, display_name=f"Model {number}") for number, pk in enumerate(traffic.models)
    )
    history = traffic.history(floor_hour(now), HISTORY_HOURS)
    while some := list(islice(history, 20_000)):
        events, faults = split(read_array(f"[{','.join(some)}]".encode(), now))
        assert not faults
        store(Delivery(Door.TRACE, events))
    roll_up()
    # History is looked after already in an installation that has one: its hours are closed (none has so many clients that a row
    # would change), and its incidents were looked for.
    OpenHour.objects.all().delete()
    Watch.objects.update_or_create(pk=1, defaults={"watched_up_to": now})
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return [ApiKey.issue(org=org, name="soak", scopes=[Scope.ADMIN])[1] for org in orgs]


@dataclass
class Load:
    """What is sent, by two processes beside this one."""

    gateway: multiprocessing.Process
    callers: multiprocessing.Process

    @property
    def both(self) -> tuple[multiprocessing.Process, ...]:
        return self.gateway, self.callers

    def lives(self) -> bool:
        return any(process.is_alive() for process in self.both)


class Soak:
    def __init__(
        self,
        say: Callable[[str], object],
        service: Service,
        traffic: Traffic,
        keys: list[str],
        restarted: list[str],
        options: dict[str, Any],
        folder: Path,
    ) -> None:
        self.say = say
        self.service, self.traffic, self.keys, self.options = service, traffic, keys, options
        self.seconds = options["minutes"] * 60
        draw = random.Random(traffic.seed + 2)
        self.plan = spread(restarted, self.seconds)
        self.messages = arrivals(options["events_per_second"] / options["events_per_message"], self.seconds, draw)
        self.asked = asks(options["requests_per_second"], self.seconds, ORGS, draw)
        self.told = Told(len(self.messages))
        self.answers = folder / "answers"
        self.restarts: list[Restart] = []

    def run(self) -> dict[str, Any]:
        declare(settings.RABBITMQ_URL, settings.RABBITMQ_STREAM)
        self.say(
            f"{self.seconds / 60:g} min: {self.options['events_per_second']:,.0f} events/s,"
            f" {self.options['events_per_message']} a message, {self.options['requests_per_second']:g} requests/s;"
            f" {ORGS} orgs × {MODELS} models, {CLIENTS} clients each"
        )
        with self.service.running():
            clock = Clock()
            with self.loaded(clock) as load:
                watch = Watcher(lambda: self.pids(load), (*SERVERS, *LOAD), self.service.port, clock)
                watch.start()
                spoke = 0.0
                while load.lives():
                    if self.plan and clock.now() >= self.plan[0][0]:
                        self.restart(self.plan.pop(0)[1], clock)
                    elif clock.now() - spoke >= SPEAKS_EVERY:
                        spoke = clock.now()
                        self.tell(clock, watch)
                    time.sleep(0.2)
                ended = clock.now()
                if any(process.exitcode for process in load.both):
                    raise CommandError("the load broke off")
            self.settle()
            self.say(f"all was read, counted and exported {clock.now() - ended:.0f} s after the load ended")
            watch.end()
        return self.figures(clock, watch, ended)

    @contextmanager
    def loaded(self, clock: Clock) -> Iterator[Load]:
        connection.close()  # nobody else's after a fork
        gateway = (
            settings.RABBITMQ_URL, settings.RABBITMQ_STREAM, self.traffic, self.options["events_per_message"],
            self.options["events_per_second"], self.messages, clock, self.told,
        )  # fmt: skip
        callers = (self.service.port, self.keys, self.traffic, self.asked, clock, self.answers)
        fork = multiprocessing.get_context("fork")
        load = Load(
            fork.Process(target=publish, args=gateway, daemon=True),  # type: ignore[arg-type]
            fork.Process(target=call, args=callers, daemon=True),  # type: ignore[arg-type]
        )
        try:
            for process in load.both:
                process.start()
            yield load
        finally:
            for process in load.both:
                process.kill()
                process.join()

    def pids(self, load: Load) -> dict[str, int]:
        mine = {name: process.pid for name, process in zip(LOAD, load.both, strict=True) if process.is_alive()}
        return self.service.pids() | {name: pid for name, pid in mine.items() if pid}

    def restart(self, name: str, clock: Clock) -> None:
        restart = self.service.restart(name, clock, by_kill=self.options["kill"])
        self.restarts.append(restart)
        self.say(f"{restart.began:>6.0f} s  {name} restarted, up again after {restart.up - restart.began:.1f} s")

    def tell(self, clock: Clock, watch: Watcher) -> None:
        lag = [values[-1][1] for name in ("freshness", "stream_lag") if (values := watch.gauges[name])]
        self.say(
            f"{clock.now():>6.0f} s  {self.told.events:,} events confirmed, {len(read_answers(self.answers)):,} answers;"
            f" freshness and stream's lag told: {', '.join(f'{seconds:.1f} s' for seconds in lag)};"
            f" load average {os.getloadavg()[0]:.1f}"
        )

    def settle(self) -> None:
        """Until the service itself has read, rolled up and exported all that it was given."""
        _, end = bounds_of(settings.RABBITMQ_URL, settings.RABBITMQ_STREAM)
        reader = StreamReader.objects.filter(committed_offset__gte=end - 1)
        wait_for(reader.exists, "the stream is not all read", SETTLES_WITHIN, 0.5)
        waiting = Batch.objects.filter(rolled_up_at=None)
        wait_for(lambda: not waiting.exists(), "batches are not rolled up", SETTLES_WITHIN, 0.5)
        opened = ExportJob.objects.filter(completed_at=None)
        wait_for(lambda: not opened.exists(), "exports are not made", SETTLES_WITHIN, 0.5)

    def figures(self, clock: Clock, watch: Watcher, ended: float) -> dict[str, Any]:
        answers = read_answers(self.answers)
        made = {
            "history": HISTORY_HOURS * ORGS * MODELS,
            "stream": self.told.events,
            "http": EVENTS_PER_REQUEST * sum(ask.kind == "events" for ask in self.asked),
        }
        self.say(f"counting {sum(made.values()):,} events")
        count = counting.count({self.traffic.prefix(what): events for what, events in made.items()})
        findings = verify()
        for finding in findings[:10]:
            self.say(str(finding))
        exports = dict(ExportJob.objects.order_by().values_list("status").annotate(Count("pk")))
        read = Batch.objects.filter(door=Door.STREAM).aggregate(first=Min("started_at"), last=Max("completed_at"))
        warm_up = min(WARM_UP[0] * self.seconds, WARM_UP[1])
        memory = memories([sample for sample in watch.samples if sample.at <= ended], warm_up)
        self._tell_memory(memory)
        late = [
            seconds
            for due, seconds in zip(self.messages, self.told.lateness, strict=True)
            if not restart_of(due, due, self.restarts)
        ]
        return {
            "lost": count.lost,
            "doubled": count.doubled,
            "miscounted": count.counted - sum(made.values()),
            "drift": len(findings),
            "minutes": self.options["minutes"],
            "cores": os.cpu_count(),
            "events": made,
            "resent": self.told.resent,
            "broker_interruptions": self.told.interruptions,
            "offered_events_per_s": round(self.told.events / self.seconds),
            "reached_events_per_s": round(self.told.events / (read["last"] - read["first"]).total_seconds()),
            "sent_late_s": percentiles(late, 3),
            "offered_requests_per_s": round(len(self.asked) / self.seconds, 1),
            "answered_requests_per_s": round(sum(not answer.problem for answer in answers) / ended, 1),
            **self._latencies(answers),
            "exports": {str(State(state)): number for state, number in exports.items()},
            "exports_not_made": sum(number for state, number in exports.items() if state != State.SUCCEEDED),
            **counting.freshness(self.traffic.prefix("stream"), self.told.events),
            "freshness_told_by_api_s": percentiles([answer.lag for answer in answers if answer.lag is not None]),
            "freshness_told_by_metrics_s": percentiles([seconds for _, seconds in watch.gauges["freshness"]]),
            "stream_lag_max_s": max((seconds for _, seconds in watch.gauges["stream_lag"]), default=None),
            "stream_backlog_max_messages": max((number for _, number in watch.gauges["stream_backlog"]), default=None),
            "restarts_s": {restart.name: round(restart.up - restart.began, 1) for restart in self.restarts},
            "ended_by_themselves": dict(self.service.ended),
            "killed": dict(+self.service.killed),
            "scrapes_missed": watch.missed,
            "memory_mb": {name: {k: v and round(v, 1) for k, v in asdict(m).items()} for name, m in memory.items()},
            "processor_share": {name: round(seconds / ended, 2) for name, seconds in watch.processor_seconds().items()},
        }

    def _latencies(self, answers: Sequence[Answer]) -> dict[str, Any]:
        served = [answer for answer in answers if not answer.problem]
        outside = [a for a in served if not restart_of(a.due, a.due + a.seconds, self.restarts)]
        failed = failures(answers, self.restarts)
        kinds = sorted({answer.kind for answer in outside} - {EXPORT})
        by_kind = {kind: percentile([a.seconds * 1000 for a in outside if a.kind == kind], 0.95) for kind in kinds}
        return {
            "api_ms": percentiles([answer.seconds * 1000 for answer in served]),
            "api_outside_restarts_ms": percentiles([answer.seconds * 1000 for answer in outside]),
            "api_outside_restarts_p95_ms": {kind: round(value or 0) for kind, value in by_kind.items()},
            "failed": failed,
            "failed_outside_restarts": sum(failed.get("no restart", {}).values()),
        }

    def _tell_memory(self, memory: dict[str, Any]) -> None:
        self.say(f"\n{'memory, MB':<16}{'start':>8}{'end':>8}{'most':>8}{'an hour':>10}")
        for name, found in sorted(memory.items()):
            slope = "" if found.slope is None else f"{found.slope:+.1f}"
            self.say(f"{name:<16}{found.start:>8.0f}{found.end:>8.0f}{found.most:>8.0f}{slope:>10}")
