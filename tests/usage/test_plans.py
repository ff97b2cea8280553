"""Plans are promises: what is read, and by which index, on tables that are filled."""

import json
import uuid
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion import storage
from ingestion.admin import events_of
from ingestion.maintenance import carry_out
from ingestion.models import Batch, UsageEvent
from reliability import exact
from usage.aggregation import MINUTES, ROLLUPS
from usage.recent import minutes
from usage.retention import steps
from usage.rollups import roll_up
from usage.series import Group, Question, points
from usage.windows import DAY, HOUR, UTC_ZONE, Granularity, Window, floor_hour, floor_minute

from ..factories import ingest, make_event

pytestmark = pytest.mark.django_db(transaction=True)

ORG = uuid.UUID(int=7)
RAW_DAYS, EVENTS_A_DAY, ORGS, MODELS = 12, 8_000, 40, 5
TODAY = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)

_EVENTS = """
INSERT INTO usage_events (occurred_at, received_at, batch_id, latency_ms, input_tokens, output_tokens, cached_input_tokens,
    cache_creation_input_tokens, status, org_id, event_id, model_id, cost_estimate_cents)
SELECT %(start)s::timestamptz + n * interval '1 day' / %(count)s, now(), %(batch)s + n * 10 / %(count)s, 100, 10, 5, 0, 0, 0,
    lpad(to_hex(n %% %(orgs)s), 32, '0')::uuid, gen_random_uuid(), lpad(to_hex(n %% %(models)s), 32, '0')::uuid, 1
FROM generate_series(0, %(count)s - 1) n
"""
_ROLLUPS = """
INSERT INTO {table} ({columns}, org_id, model_id, invocations, errors, timeouts, throttled, input_tokens, output_tokens,
    cached_input_tokens, cache_creation_input_tokens, cost_cents, unpriced_invocations, latency_buckets, latency_counts)
SELECT {values}, lpad(to_hex(o), 32, '0')::uuid, lpad(to_hex(m), 32, '0')::uuid, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, '{{1}}', '{{1}}'
FROM generate_series(0, {orgs}) o, generate_series(0, {models}) m, generate_series({span}) t
"""


@pytest.fixture
def filled() -> Iterator[None]:
    storage.ensure_days((TODAY - n * DAY).date() for n in range(RAW_DAYS + 1))
    hours = Window(TODAY - 60 * DAY, TODAY)
    for table in {rollup.partitions.table: rollup.partitions for rollup in ROLLUPS}.values():
        table.forget()
        table.ensure((Window(TODAY - 2 * DAY, TODAY) if table is MINUTES else hours).days(UTC_ZONE))
    with connection.cursor() as cursor:
        for n in range(RAW_DAYS):
            start = TODAY - (n + 1) * DAY
            batch = 1_000_000 - 100 * n
            cursor.execute(
                _EVENTS, {"start": start, "batch": batch, "count": EVENTS_A_DAY, "orgs": ORGS, "models": MODELS}
            )
        span = f"'{hours.start}'::timestamptz, '{hours.end - HOUR}'::timestamptz"
        shared = {"orgs": ORGS - 1, "models": MODELS - 1}
        cursor.execute(
            _ROLLUPS.format(
                table="usage_hourly", columns="bucket_start", values="t", span=f"{span}, interval '1 hour'", **shared
            )
        )
        cursor.execute(
            _ROLLUPS.format(
                table="usage_daily",
                columns="time_zone, day",
                values="'UTC', t::date",
                span=f"{span}, interval '1 day'",
                **shared,
            )
        )
        span = f"'{TODAY - 9 * DAY}'::timestamptz, '{hours.end - HOUR}'::timestamptz"
        for table, columns, value in (("clients", "client_id", "'web'"), ("outcomes", "status, error_code", "0, ''")):
            cursor.execute(
                _ROLLUPS.format(
                    table=f"usage_{table}",
                    columns=f"bucket_start, {columns}",
                    values=f"t, {value}",
                    span=f"{span}, interval '1 hour'",
                    **shared,
                )
            )
        span = f"'{TODAY - 5 * HOUR}'::timestamptz, '{TODAY}'::timestamptz - interval '1 minute'"
        cursor.execute(
            _ROLLUPS.format(
                table="usage_minutes", columns="bucket_start", values="t", span=f"{span}, interval '1 minute'", **shared
            )
        )
        list(carry_out(steps(timezone.now())))
        cursor.execute("VACUUM ANALYZE")
    yield
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE usage_events")


def scans(statement: str, parameters: Any = None) -> list[tuple[str, str]]:
    """The node and the relation of each place where a plan reads a table."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
        (answer,) = cursor.fetchone()
    found: list[tuple[str, str]] = []

    def walk(node: dict[str, Any]) -> None:
        if "Relation Name" in node:
            found.append((node["Node Type"], node["Relation Name"]))
        for child in node.get("Plans", ()):
            walk(child)

    walk((json.loads(answer) if isinstance(answer, str) else answer)[0]["Plan"])
    return found


def scans_of(question: Question, *, histograms: bool = False) -> list[tuple[str, str]]:
    with CaptureQueriesContext(connection) as queries:
        points(question, histograms=histograms)
    return scans(queries.captured_queries[-1]["sql"])


def raw_days(found: list[tuple[str, str]]) -> set[date]:
    """The days of raw events that a plan reads."""
    names = {name for _, name in found}
    return {part.start for part in storage.parts() if part.name.rpartition(".")[2] in names}


def is_raw(name: str) -> bool:
    return not name.startswith((*(rollup.table for rollup in ROLLUPS), "ingestion_"))


def test_whole_buckets_are_read_from_rollups_alone_and_by_index(filled: None) -> None:
    week = Window(TODAY - 8 * DAY, TODAY - DAY)
    for granularity, table in ((Granularity.HOUR, "usage_hourly"), (Granularity.DAY, "usage_daily")):
        for model in (None, uuid.UUID(int=3)):
            found = scans_of(Question(ORG, week, granularity, model))
            assert found
            assert all(name.startswith(table) for _, name in found), found
            assert len(found) <= 2, "a week lies in at most two months"
            assert all("Index" in node or "Bitmap" in node for node, _ in found), found


def test_clients_and_outcomes_are_read_from_their_rollups_alone_and_by_index(filled: None) -> None:
    week = Window(TODAY - 8 * DAY, TODAY - DAY)
    tables = {Group.CLIENT: "usage_clients", Group.STATUS: "usage_outcomes", Group.ERROR_CODE: "usage_outcomes"}
    for group, table in tables.items():
        for question in (
            Question(ORG, week, Granularity.HOUR, group=group),
            Question(ORG, week, Granularity.DAY, uuid.UUID(int=3), group=group),
            Question(ORG, week, group=group, as_one=True),
        ):
            found = scans_of(question)
            assert found
            assert all(name.startswith(table) for _, name in found), found
            assert all("Index" in node or "Bitmap" in node for node, _ in found), found


def test_the_watch_reads_the_last_hours_of_an_org_by_index(filled: None) -> None:
    with CaptureQueriesContext(connection) as queries:
        assert len(list(minutes(Window(TODAY - 2 * HOUR, TODAY - HOUR), ORG))) == 60 * MODELS
    (query,) = queries.captured_queries
    found = scans(query["sql"].partition(" FOR ")[2] if query["sql"].startswith("DECLARE") else query["sql"])
    assert {name for _, name in found} == {f"usage_minutes_p{TODAY - DAY:%Y%m%d}"}
    assert all("Index" in node or "Bitmap" in node for node, _ in found), found


def test_exact_percentiles_read_the_events_of_their_hour_by_index(filled: None) -> None:
    window = Window(TODAY - 2 * DAY + 5 * HOUR, TODAY - 2 * DAY + 6 * HOUR)
    with CaptureQueriesContext(connection) as queries:
        assert exact.percentiles(ORG, window, [0.5, 0.95]) == [100, 100]
    (query,) = queries.captured_queries
    found = scans(query["sql"])
    assert raw_days(found) == {window.start.date()}
    assert not [node for node, name in found if node == "Seq Scan" and is_raw(name) and not is_compressed(name)], found


def test_a_range_that_cuts_hours_reads_fragments_of_the_days_it_cuts_alone(filled: None) -> None:
    window = Window(TODAY - 8 * DAY + timedelta(minutes=11), TODAY - DAY - timedelta(minutes=13))
    found = scans_of(Question(ORG, window, Granularity.HOUR))
    assert raw_days(found) == {window.start.date(), window.end.date()}
    assert not [node for node, name in found if node == "Seq Scan" and is_raw(name) and not is_compressed(name)], found


@pytest.mark.parametrize("histograms", [False, True])
@pytest.mark.parametrize("granularity", Granularity)
def test_a_range_that_ends_lately_reads_minutes_and_of_raw_events_the_last_one_alone(
    filled: None, granularity: Granularity, histograms: bool
) -> None:
    window = Window(TODAY - 8 * DAY, TODAY - timedelta(hours=1, minutes=13, seconds=7))
    found = scans_of(Question(ORG, window, granularity), histograms=histograms)
    assert raw_days(found) == {window.end.date()}
    minutes = f"usage_minutes_p{window.end:%Y%m%d}"
    assert minutes in {name for _, name in found}
    assert not [node for node, name in found if node == "Seq Scan" and (is_raw(name) or name == minutes)], found
    with CaptureQueriesContext(connection) as queries:
        points(Question(ORG, window, granularity), histograms=histograms)
    (_, raw) = queries.captured_queries[-1]["sql"].split("FROM usage_events e WHERE ")
    assert raw.startswith(f"occurred_at >= '{floor_minute(window.end)}'")


def is_compressed(name: str) -> bool:
    return name.endswith("_compressed")


def test_the_events_of_an_incident_are_read_from_the_days_it_touches(filled: None) -> None:
    for start in (TODAY - 9 * DAY, TODAY - 2 * DAY):  # settled, and not
        moment = start + timedelta(hours=22)
        events = UsageEvent.objects.filter(org_id=ORG, occurred_at__gte=moment, occurred_at__lt=moment + 4 * HOUR)
        assert events.count() > 10
        statement, parameters = events.query.sql_with_params()
        found = scans(statement, parameters)
        assert raw_days(found) == {start.date(), (start + DAY).date()}
        assert all(
            "Index" in node or "Bitmap" in node or is_compressed(name) or node == "Custom Scan" for node, name in found
        )


def test_a_batch_is_looked_up_in_the_days_of_its_span(filled: None) -> None:
    moment = floor_hour(TODAY - 9 * DAY + 3 * HOUR)
    batch = ingest([make_event(ORG, occurred_at=moment), make_event(ORG, occurred_at=moment + HOUR)])
    with CaptureQueriesContext(connection) as queries:
        roll_up()
    (collect,) = [query["sql"] for query in queries.captured_queries if "usage_delta ON COMMIT DROP AS" in query["sql"]]
    assert raw_days(scans(collect)) == {moment.date()}
    statement, parameters = events_of(Batch.objects.get(pk=batch.pk)).query.sql_with_params()
    found = scans(statement, parameters)
    assert raw_days(found) == {moment.date()}
    if storage.engine().name == "PostgreSQL":  # a chunk's few rows beside the compressed ones are read as they stand
        assert all("Bitmap" in node or "Index" in node for node, _ in found), found


def test_days_are_touched_by_their_utc_date() -> None:
    assert storage.day_of(datetime.fromisoformat("2026-01-01T23:30:00-05:00")) == date(2026, 1, 2)
