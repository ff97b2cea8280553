"""Whether anything slows down as events pile up: the same work on a small and on a large database, in turns.

Both are filled by SQL with 30 days of events, in batches of the ledger like any others, rolled up and maintained by the service's
own code; only then are writing, rolling up and reading measured. The same 50 orgs call meanwhile in both.
"""

import json
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median, quantiles
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from analytics_site.measuring import door_client, timed
from analytics_site.rig import UNLIMITED, scratch_database
from ingestion import storage
from ingestion.maintenance import carry_out
from ingestion.models import Batch, Door
from ingestion.schema import read_array, split
from ingestion.writing import Delivery, store
from usage.models import HourlyUsage
from usage.retention import steps
from usage.rollups import roll_up
from usage.windows import DAY, floor_hour

from .bench import MODELS_OF_AN_ORG, NO_CACHE, Traffic, ask, conditions

DAYS = 30
ORGS = (50, 600)  # of the small and of the large one: rollup rows grow with the orgs, by more than ten times
EVENTS_A_BATCH = 250_000  # of what is filled in
BATCH, BATCHES = 10_000, 5  # events of a batch that is measured, and batches of a rollup
READ_GOALS = {"hour": 80, "day": 15}  # ms, by the grain that is asked for

# The busiest org has two fifths of the calls and all models; the others have a few models each.
_FILL = """
INSERT INTO usage_events (occurred_at, received_at, batch_id, latency_ms, input_tokens, output_tokens, cached_input_tokens,
    cache_creation_input_tokens, status, org_id, event_id, model_id, actor_id, client_id, error_code, cost_estimate_cents)
SELECT at, at, %(batch)s, exp(6.9 + 0.6 * sqrt(-2 * ln(1 - random())) * cos(6.283 * random()))::int, (6000 * random())::int,
    (600 * random())::int, 0, 0, failed::int, (%(orgs)s::uuid[])[org], gen_random_uuid(),
    (%(models)s::uuid[])[
        CASE WHEN org = 1 THEN 1 + floor(model * %(count)s)::int ELSE 1 + org %% 8 + floor(model * %(few)s)::int END
    ],
    (%(models)s::uuid[])[1 + floor(random() * %(count)s)::int], 'client-' || (20 * random())::int,
    CASE WHEN failed THEN 'upstream' END, (100000 * random())::int / 10000.0
FROM (
    SELECT %(start)s::timestamptz + n * %(step)s::interval AS at, random() AS model, random() < 0.02 AS failed,
        CASE WHEN random() < 0.4 THEN 1 ELSE 2 + floor(random() * (array_length(%(orgs)s::uuid[], 1) - 1))::int END AS org
    FROM generate_series(0, %(events)s - 1) n OFFSET 0
) drawn
"""


@dataclass
class Scale:
    """One of the two databases."""

    events: int
    name: str
    traffic: Traffic
    orgs: list[uuid.UUID]
    bytes_per_event: float = 0.0
    settled_bytes_per_event: float = 0.0
    hourly_rows: int = 0
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {what: [] for what in ("insert", "rollup", *READ_GOALS)}
    )

    @contextmanager
    def used(self) -> Iterator[None]:
        """Django's connection means this database."""
        connection.close()
        before, connection.settings_dict["NAME"] = connection.settings_dict["NAME"], self.name
        storage.forget()
        try:
            yield
        finally:
            connection.close()
            connection.settings_dict["NAME"] = before

    def p95(self, what: str) -> float:
        """In milliseconds."""
        return 1000 * quantiles(self.seconds[what], n=20)[-1]

    def rate(self, what: str) -> float:
        """Events a second."""
        return BATCH * BATCHES / median(self.seconds[what])


class Command(BaseCommand):
    help = (
        "Measure writing, rolling up and reading beside few and beside many events; the last line is one JSON object."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--events", default="1000000,20000000", help="how many are stored, of both: SMALL,LARGE")
        parser.add_argument("--rounds", type=int, default=10)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            small, large = (int(number) for number in options["events"].split(","))
        except ValueError as error:
            raise CommandError("--events is two numbers: SMALL,LARGE") from error
        with ExitStack() as stack, override_settings(CACHES=NO_CACHE, **UNLIMITED):
            scales = []
            for events, orgs in zip((small, large), ORGS, strict=True):
                stack.enter_context(scratch_database())
                traffic = Traffic(orgs)
                scale = Scale(events, connection.settings_dict["NAME"], traffic, traffic.orgs)
                traffic.orgs = traffic.orgs[: ORGS[0]]
                fill(scale, self.stdout.write)
                scales.append(scale)
            self.stdout.write(f"\n{conditions()}; {storage.engine().name}\n\n")
            for _ in range(options["rounds"]):
                for scale in scales:
                    with scale.used():
                        measure(scale)
            self.report(*scales)

    def report(self, small: Scale, large: Scale) -> None:
        def line(what: str, a: str, b: str, ratio: float, goal: str = "") -> None:
            self.stdout.write(f"{what:<44}{a:>16}{b:>16}{ratio:>8.2f}   {goal}")

        self.stdout.write(f"{'':<44}{small.events:>16,}{large.events:>16,}{'ratio':>8}   goal")
        line(
            "hourly rows",
            f"{small.hourly_rows:,}",
            f"{large.hourly_rows:,}",
            large.hourly_rows / small.hourly_rows,
            "≥ 10",
        )
        reads = {}
        for grain, goal in READ_GOALS.items():
            a, b = small.p95(grain), large.p95(grain)
            reads[grain] = median(large.seconds[grain]) / median(small.seconds[grain])
            line(
                f"usage API, 7 days by {grain}, p95; ratio of medians",
                f"{a:.1f} ms",
                f"{b:.1f} ms",
                reads[grain],
                f"≤ 1.2; ≤ {goal} ms",
            )
        ratios = {}
        for what, words in (("insert", "batches of 10,000 to commit"), ("rollup", "rollup")):
            a, b = small.rate(what), large.rate(what)
            ratios[what] = b / a
            line(words, f"{a:,.0f}/s", f"{b:,.0f}/s", b / a, "≥ 0.8" if what == "insert" else "")
        for words, name in (("before", "bytes_per_event"), ("after", "settled_bytes_per_event")):
            a, b = getattr(small, name), getattr(large, name)
            line(f"bytes an event, {words} its day is settled", f"{a:.0f}", f"{b:.0f}", b / a)
        figures = {
            "read_ratio": round(max(reads.values()), 2),
            "insert_ratio": round(ratios["insert"], 2),
            "rollup_ratio": round(ratios["rollup"], 2),
            "bytes_per_event": round(large.bytes_per_event, 1),
            "bytes_per_event_compressed": round(large.settled_bytes_per_event, 1),
        }
        self.stdout.write("\n" + json.dumps(figures))


def fill(scale: Scale, say: Any) -> None:
    """Events of the last 30 days, rolled up and maintained."""
    started = timezone.now()
    start = started.replace(hour=0, minute=0, second=0, microsecond=0) - DAYS * DAY
    storage.ensure_days((start + n * DAY).date() for n in range(DAYS + 1))
    a_day = scale.events // DAYS
    pieces = -(-a_day // EVENTS_A_BATCH)
    for n in range(DAYS * pieces):
        _fill(scale, start + n * DAY / pieces, DAY / pieces, a_day // pieces)
    filled = timezone.now()
    roll_up()
    rolled_up = timezone.now()
    before = {part.start: part for part in storage.parts() if part.bytes}
    list(carry_out(steps(timezone.now())))
    after = {part.start: part for part in storage.parts() if part.is_settled}
    scale.bytes_per_event = sum(before[day].bytes for day in after) / (a_day * len(after))
    scale.settled_bytes_per_event = sum(part.bytes for part in after.values()) / (a_day * len(after))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    scale.hourly_rows = HourlyUsage.objects.count()
    say(
        f"{scale.events:,} events filled in {(filled - started).total_seconds():.0f} s, rolled up in"
        f" {(rolled_up - filled).total_seconds():.0f} s, settled in {(timezone.now() - rolled_up).total_seconds():.0f} s"
    )


def _fill(scale: Scale, start: datetime, length: timedelta, events: int) -> None:
    traffic = scale.traffic
    batch = Batch.objects.create(
        door=Door.TRACE, received=events, accepted=events, org_ids=scale.orgs, first_occurred_at=start,
        last_occurred_at=start + length, started_at=timezone.now(), completed_at=timezone.now(),
    )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(
            _FILL,
            {
                "batch": batch.pk, "orgs": scale.orgs, "models": traffic.models, "count": len(traffic.models),
                "few": MODELS_OF_AN_ORG, "start": start, "step": str(length / events), "events": events,
            },
        )  # fmt: skip


def measure(scale: Scale) -> None:
    """One round: some batches written, rolled up, and two questions, each of a window that was not asked for before."""
    batches = [
        split(read_array(msgspec.json.encode(scale.traffic.lately(BATCH)), timezone.now()))[0] for _ in range(BATCHES)
    ]
    scale.seconds["insert"].append(timed(lambda: [store(Delivery(Door.HTTP, events)) for events in batches]))
    scale.seconds["rollup"].append(timed(roll_up))
    client = door_client(scale.traffic.busiest)
    for grain in READ_GOALS:
        for _ in range(3):
            asked = len(scale.seconds[grain])
            start = floor_hour(timezone.now()) - 8 * DAY - asked * timedelta(minutes=97)
            scale.seconds[grain].append(ask(client, scale.traffic.busiest, start, grain, 0.7))
