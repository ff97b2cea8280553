"""How fast the service is, each figure beside what it is compared to, measured in turns in one run.

Works in a database of its own on the server that the settings name, and removes it. Rounds alternate between the
candidates, so that a noisy machine slows all of them; the median round counts.
"""

import json
import platform
import random
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch
from urllib.parse import urlencode

import django
import msgspec
import psycopg
from django.core.management.base import BaseCommand
from django.db import connection, transaction
from django.test import Client, override_settings
from django.utils import timezone

from analytics_site.measuring import Line, door_client, timed
from analytics_site.measuring_exports import measure_exports
from analytics_site.measuring_fairness import measure_fairness
from analytics_site.measuring_limits import measure_limits
from analytics_site.measuring_reliability import measure_reliability
from analytics_site.measuring_row_security import measure_row_security
from analytics_site.rig import UNLIMITED, scratch_database
from ingestion.copying import copy_in
from ingestion.dedupe import rotate
from ingestion.models import Door, Ledger, Status, UsageEvent
from ingestion.schema import UsageEvent as Event
from ingestion.schema import read_array, split
from ingestion.writing import Delivery, store
from orgs.limits import MAX_EVENTS_PER_REQUEST
from orgs.models import Org
from usage import rollups
from usage.aggregation import DAILY, DAILY_LOCAL, HOURLY, ROLLUPS
from usage.rollups import roll_up
from usage.windows import DAY, HOUR, floor_hour

ORGS, MODELS = 50, 40
MODELS_OF_AN_ORG = 5  # of all but the busiest, which uses all
HISTORY = timedelta(days=32)  # the longest export, 31 days, and a day to move its window in
NO_CACHE = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}

# What the comparison copies: the columns of the event and ledger tables, by the types of Python's own values.
EVENT_COLUMNS = {
    "org_id": "uuid", "event_id": "uuid", "occurred_at": "timestamptz", "received_at": "timestamptz",
    "batch_id": "int8", "model_id": "uuid", "actor_id": "uuid", "client_id": "text", "latency_ms": "int4",
    "status": "int2", "error_code": "text", "input_tokens": "int4", "output_tokens": "int4",
    "cached_input_tokens": "int4", "cache_creation_input_tokens": "int4", "cost_estimate_cents": "numeric",
}  # fmt: skip
_DECODER = msgspec.json.Decoder(list[Event], float_hook=Decimal)
CLAIM_COLUMNS = {"org_id": "uuid", "event_id": "uuid", "occurred_at": "timestamptz"}


class Command(BaseCommand):
    help = "Measure ingest, rollup, the APIs, the incident CSV and exports; the last line is one JSON object."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--rounds", type=int, default=12, help="of each comparison of writers")
        parser.add_argument("--requests", type=int, default=60, help="to each endpoint")
        parser.add_argument("--events", type=int, default=1_000_000, help="of the org whose reliability is asked for")

    def handle(self, *args: Any, **options: Any) -> None:
        with scratch_database(), override_settings(CACHES=NO_CACHE, **UNLIMITED):
            self.stdout.write(conditions() + "\n\n")
            traffic = Traffic()
            ingest_lines, figures = compare_writers(traffic, options["rounds"])
            rollup_lines, rollup_figures = measure_rollup(traffic, figures["ingest_events_per_s"])
            api_lines, api_figures = measure_api(traffic, options["requests"])
            limit_lines, limit_figures = measure_limits(traffic.busiest)
            fair_lines, fair_figures = measure_fairness(traffic.busiest, traffic.orgs[1])
            guard_lines, guard_figures = measure_row_security(traffic.busiest)
            busiest = Org.objects.get(pk=traffic.busiest)
            called = Org.objects.create(name="Reliability", slug="reliability")
            reliability_lines, reliability_figures = measure_reliability(called, options["events"], options["requests"])
            export_lines, export_figures = measure_exports(busiest, MODELS, called)
        for line in (
            Line("what", "measured", "compared to", "measured", "ratio", "goal"),
            *ingest_lines, *rollup_lines, *api_lines, *limit_lines, *fair_lines, *guard_lines, *reliability_lines, *export_lines,
        ):  # fmt: skip
            self.stdout.write(
                f"{line.what:<34}{line.figure:>16}   {line.compared_to:<44}{line.compared:>14}{line.ratio:>8}   {line.goal}"
            )
        self.stdout.write(
            "\n"
            + json.dumps(
                figures
                | rollup_figures
                | api_figures
                | limit_figures
                | fair_figures
                | guard_figures
                | reliability_figures
                | export_figures
            )
        )


def conditions() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        (version,) = cursor.fetchone()
        cursor.execute(
            "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')"
        )
        durable = ", ".join(f"{name} {setting}" for name, setting in cursor.fetchall())
    return (
        f"PostgreSQL {version} ({durable}), Django {django.__version__}, psycopg {psycopg.__version__},"
        f" Python {platform.python_version()}; no cache"
    )


# ── Traffic ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Traffic:
    """Invented traffic: a busiest org with two fifths of the calls and all models, others with a few; log-normal latencies."""

    def __init__(self, orgs: int = ORGS) -> None:
        self.random = random.Random(20261124)
        self.orgs = [uuid.UUID(int=self.random.getrandbits(128), version=4) for _ in range(orgs)]
        self.models = [uuid.UUID(int=self.random.getrandbits(128), version=4) for _ in range(MODELS)]
        self.busiest = self.orgs[0]
        Org.objects.bulk_create(Org(pk=pk, name=f"Org {n}", slug=f"org-{n}") for n, pk in enumerate(self.orgs))

    def event(self, org: uuid.UUID, model: uuid.UUID, at: datetime) -> dict[str, Any]:
        draw = self.random
        failed = draw.random() < 0.02
        return {
            "eventId": uuid.UUID(int=draw.getrandbits(128), version=4),
            "orgId": org,
            "modelId": model,
            "actorId": self.models[draw.randrange(MODELS)],
            "clientId": f"client-{draw.randrange(20)}",
            "occurredAt": at,
            "latencyMs": int(draw.lognormvariate(6.9, 0.6)),
            "status": "error" if failed else "success",
            "errorCode": "upstream" if failed else None,
            "inputTokens": draw.randrange(1, 6_000),
            "outputTokens": draw.randrange(1, 600),
            "costEstimateCents": draw.randrange(1, 100_000) / 10_000,
        }

    def lately(self, count: int, org: uuid.UUID | None = None) -> list[dict[str, Any]]:
        """Calls of the last minutes, in the order of their arrival."""
        draw, now = self.random, timezone.now()
        found = []
        for n in range(count):
            owner = org or (self.busiest if draw.random() < 0.4 else draw.choice(self.orgs))
            used = self.models if owner == self.busiest else self.models[owner.int % 8 :][:MODELS_OF_AN_ORG]
            found.append(self.event(owner, draw.choice(used), now - timedelta(milliseconds=2 * (count - n))))
        return found

    def history(self) -> Iterator[dict[str, Any]]:
        """Two calls of each model of the busiest org in each hour of `HISTORY`."""
        start = floor_hour(timezone.now()) - HISTORY
        for hour in range(int(HISTORY / HOUR)):
            for minutes in (11, 47):
                for model in self.models:
                    yield self.event(self.busiest, model, start + hour * HOUR + timedelta(minutes=minutes))

    def store(self, documents: Sequence[dict[str, Any]], size: int = 10_000) -> None:
        for first in range(0, len(documents), size):
            events, _ = split(read_array(msgspec.json.encode(documents[first : first + size]), timezone.now()))
            store(Delivery(Door.HTTP, events))


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def compare_writers(traffic: Traffic, rounds: int) -> tuple[list[Line], dict[str, float]]:
    """The HTTP door, middleware to commit, against COPY and `bulk_create` of the same number of events."""
    # A ledger as in operation: rotated days ago, both of its tables filled.
    traffic.store(traffic.lately(100_000))
    rotate(force=True)
    traffic.store(traffic.lately(50_000))
    Ledger.objects.update(previous_since=timezone.now() - 3 * DAY)
    client = door_client(traffic.busiest)
    url = f"/analytics/v1/orgs/{traffic.busiest}/events"
    seconds: dict[str, list[float]] = {"door": [], "decoded and copied": [], "copied": [], "bulk_create": []}

    def send(body: bytes) -> None:
        answer = client.post(url, body, content_type="application/json").json()
        assert answer["accepted"] == MAX_EVENTS_PER_REQUEST, answer

    for _ in range(rounds):
        bodies = [msgspec.json.encode(traffic.lately(MAX_EVENTS_PER_REQUEST, traffic.busiest)) for _ in range(4)]
        seconds["door"].append(timed(send, bodies[0]))
        seconds["decoded and copied"].append(timed(lambda body: copy(decoded(body)), bodies[1]))
        ready = decoded(bodies[2])
        seconds["copied"].append(timed(copy, ready))
        rows = [as_model(event) for event in decoded(bodies[3])]
        seconds["bulk_create"].append(timed(bulk_create, rows))
    rate = {name: MAX_EVENTS_PER_REQUEST / median(found) for name, found in seconds.items()}

    def line(name: str, compared_to: str, goal: str) -> Line:
        ratio = rate["door"] / rate[name]
        return Line(
            "ingest, HTTP door to commit",
            f"{rate['door']:,.0f}/s",
            compared_to,
            f"{rate[name]:,.0f}/s",
            f"{ratio:.2f}",
            goal,
        )

    lines = [
        line("decoded and copied", "binary COPY of the same bodies, decoded", "≥ 0.5"),
        line("copied", "binary COPY alone, of rows made beforehand", ""),
        line("bulk_create", "bulk_create(ignore_conflicts=True)", "≥ 3"),
    ]
    return lines, {
        "ingest_vs_copy": round(rate["door"] / rate["decoded and copied"], 2),
        "ingest_vs_copy_alone": round(rate["door"] / rate["copied"], 2),
        "ingest_vs_bulk_create": round(rate["door"] / rate["bulk_create"], 2),
        "ingest_events_per_s": round(rate["door"]),
    }


def decoded(body: bytes) -> list[Event]:
    return _DECODER.decode(body)


def copy(events: Sequence[Event]) -> None:
    """No rule checked, nothing deduped, no batch: the same tables, indexes and durability."""
    now = timezone.now()
    with transaction.atomic(), connection.cursor() as cursor:
        copy_in(
            cursor,
            "usage_events",
            EVENT_COLUMNS,
            (
                (e.org_id, e.event_id, e.occurred_at, now, 0, e.model_id, e.actor_id, e.client_id, e.latency_ms, 0,
                 e.error_code, e.input_tokens, e.output_tokens, 0, 0, e.cost_estimate_cents)
                for e in events
            ),
        )  # fmt: skip
        claims = ((e.org_id, e.event_id, e.occurred_at) for e in events)
        copy_in(cursor, "ingestion_claims_0", CLAIM_COLUMNS, claims)


def bulk_create(rows: list[UsageEvent]) -> None:
    UsageEvent.objects.bulk_create(rows, ignore_conflicts=True)


def as_model(event: Event) -> UsageEvent:
    fields = msgspec.structs.asdict(event)
    return UsageEvent(
        **fields
        | {
            "received_at": timezone.now(),
            "batch_id": 0,
            "status": Status.SUCCESS,
            "cached_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        }
    )


# ── Rolling up ───────────────────────────────────────────────────────────────────────────────────────────────────


def measure_rollup(
    traffic: Traffic, ingest_rate: float, rounds: int = 4, events: int = 200_000
) -> tuple[list[Line], dict[str, float]]:
    """The rollup task over twenty batches a run, against the same aggregation that is not written anywhere.

    Without and with what is kept of minutes, clients and error codes: every other round leaves them out.
    """
    roll_up()
    rates: dict[bool, list[float]] = {True: [], False: []}
    plain = []
    for number in range(2 * rounds):
        traffic.store(traffic.lately(events))
        plain.append(events / timed(aggregate, events))
        is_whole = number % 2 == 0
        with patch.object(rollups, "ROLLUPS", ROLLUPS if is_whole else (HOURLY, DAILY, DAILY_LOCAL)):
            rates[is_whole].append(events / timed(roll_up))
    rate, whole_rate, plain_rate = median(rates[False]), median(rates[True]), median(plain)
    lines = [
        Line(
            "rollup, counts and histogram", f"{rate:,.0f}/s", "GROUP BY org, model, hour; nothing written",
            f"{plain_rate:,.0f}/s", f"{rate / plain_rate:.2f}", "≥ 150,000/s",
        ),
        Line(
            "rollup, clients, codes, minutes too", f"{whole_rate:,.0f}/s", "ingest, HTTP door to commit",
            f"{ingest_rate:,.0f}/s", f"{whole_rate / ingest_rate:.2f}", "≥ 75,000/s; ≥ 2",
        ),
    ]  # fmt: skip
    return lines, {
        "rollup_events_per_s": round(rate),
        "rollup_whole_events_per_s": round(whole_rate),
        "rollup_vs_ingest": round(whole_rate / ingest_rate, 2),
    }


def aggregate(newest: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT org_id, model_id, date_trunc('hour', occurred_at), count(*), sum(input_tokens), sum(output_tokens),"
            " sum(cost_estimate_cents) FROM (SELECT * FROM usage_events WHERE batch_id > 0"
            " ORDER BY batch_id DESC LIMIT %s) e GROUP BY 1, 2, 3",
            [newest],
        )
        cursor.fetchall()


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_api(traffic: Traffic, requests: int) -> tuple[list[Line], dict[str, float]]:
    """Seven days of the busiest org; every request another window, against the same from raw events."""
    traffic.store(list(traffic.history()))
    roll_up()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    client = door_client(traffic.busiest)
    lines, figures = [], {}
    for granularity, goal in (("hour", 80), ("day", 15)):
        starts = [floor_hour(timezone.now()) - 8 * DAY - n * timedelta(minutes=97) for n in range(requests)]
        asked = [ask(client, traffic.busiest, start, granularity) for start in starts]
        raw = [timed(from_events, traffic.busiest, start, granularity) for start in starts[:10]]
        p95 = 1000 * quantiles(asked, n=20)[-1]
        slow = 1000 * quantiles(raw, n=20)[-1]
        lines.append(
            Line(
                f"usage API, 7 days by {granularity}, p95", f"{p95:.1f} ms", "SQL alone over the raw events, p95",
                f"{slow:.1f} ms", f"{p95 / slow:.2f}", f"≤ {goal} ms",
            )
        )  # fmt: skip
        figures[f"usage_7d_{granularity}_p95_ms"] = round(p95, 1)
    return lines, figures


def ask(client: Client, org_id: uuid.UUID, start: datetime, granularity: str, least: float = 1.0) -> float:
    """Seconds that an answer took. Its points are counted afterwards: at least this part of all there can be."""
    query = urlencode({"start": start.isoformat(), "end": (start + 7 * DAY).isoformat(), "granularity": granularity})
    asked_at = time.perf_counter()
    answer = client.get(f"/analytics/v1/orgs/{org_id}/usage?{query}")
    seconds = time.perf_counter() - asked_at
    points = len(json.loads(answer.content)["series"])
    assert points >= least * 7 * MODELS * (24 if granularity == "hour" else 1), points
    return seconds


def from_events(org_id: uuid.UUID, start: datetime, granularity: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT date_trunc(%s, occurred_at), model_id, count(*), sum(input_tokens), sum(output_tokens),"
            " sum(cost_estimate_cents) FROM usage_events WHERE org_id = %s AND occurred_at >= %s AND occurred_at < %s"
            " GROUP BY 1, 2 ORDER BY 1, 2",
            [granularity, org_id, start, start + 7 * DAY],
        )
        cursor.fetchall()
