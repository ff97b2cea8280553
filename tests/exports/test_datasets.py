"""What is in a dataset: its columns are documented, its buckets are those of a zone, and no range is too large to be read."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.db import InternalError, connection
from django.test.utils import CaptureQueriesContext

from exports.datasets import Column, Dataset, Type, incident_events, org_summary, snapshot, usage
from exports.datasets.incident_events import Incident
from exports.datasets.usage import Grain, Request
from exports.writers import Format, writer
from ingestion.models import Status
from orgs.models import Org
from usage.rollups import roll_up
from usage.series import Unanswerable, points
from usage.windows import DAY, Window

from ..factories import MODEL, OTHER_MODEL, at, ingest, make_event, make_model, make_org
from .reading import made, read_back

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 10, 12, tzinfo=UTC)
DATASETS = {"usage": usage.COLUMNS, "org_summary": org_summary.COLUMNS, "incident_events": incident_events.COLUMNS}


def moment(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def counted(org: Org, *moments: datetime, **fields: Any) -> None:
    ingest([make_event(org, occurred_at=moment, **fields) for moment in moments])
    roll_up()


def told(dataset: Dataset, *names: str) -> list[tuple[Any, ...]]:
    places = [[column.name for column in dataset.columns].index(name) for name in names]
    return [tuple(row[place] for place in places) for row in dataset.rows]


# ── Columns ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", DATASETS)
def test_the_documentation_lists_the_columns_that_are_written(name: str) -> None:
    document = Path("docs/exports.md").read_text(encoding="utf-8")
    section = document.split(f"## `{name}`")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    assert listed == [(column.name, column.type, column.unit, column.meaning) for column in DATASETS[name]]


def test_only_numbers_have_totals() -> None:
    with pytest.raises(ValueError, match="name has no total"):
        Column("name", Type.TEXT, "", "", is_summed=True)


# ── Usage ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("zone", "last", "first"),
    [
        ("UTC", "2026-10-31 23:59:59", "2026-11-01 00:00"),
        ("Asia/Kolkata", "2026-10-31 23:59:59", "2026-11-01 00:00"),
        ("Europe/Berlin", "2026-10-31 23:59:59", "2026-11-01 00:00"),  # its October has an hour more
        ("America/Havana", "2026-10-31 23:59:59", "2026-11-01 00:00"),  # its clocks go back on the first of November
    ],
)
@time_machine.travel(NOW, tick=False)
def test_a_month_is_one_of_the_zone(zone: str, last: str, first: str) -> None:
    org = make_org(time_zone=zone)
    begins, ends = moment("2026-10-05", zone), moment("2026-11-05", zone)
    counted(org, begins - timedelta(seconds=1), begins, moment(last, zone), moment(first, zone), ends)
    request = Request(org.pk, Window(begins, ends), Grain.MONTHLY, ZoneInfo(zone))
    assert told(usage.dataset(request), "bucket_start", "invocations", "cost_cents") == [
        (moment("2026-10-01", zone), 2, Decimal("0.5000")),
        (moment("2026-11-01", zone), 1, Decimal("0.2500")),
    ], "October is cut, and counts its part"


@time_machine.travel(NOW, tick=False)
def test_the_longest_month_is_one_request_and_a_day_more_is_refused() -> None:
    org, zone = make_org(time_zone="Europe/Berlin"), ZoneInfo("Europe/Berlin")
    october = Window(moment("2026-10-01", zone.key), moment("2026-11-01", zone.key))
    assert october.end - october.start == timedelta(days=31, hours=1), "the clocks went back"
    for grain in Grain:
        assert told(usage.dataset(Request(org.pk, october, grain, zone)), "invocations") == []
    for window, days in (
        (Window(october.start, october.end + timedelta(microseconds=1)), zone),
        (october, ZoneInfo("UTC")),
    ):
        with pytest.raises(Unanswerable, match="more than 31 days after start") as refused:
            usage.dataset(Request(org.pk, window, Grain.DAILY, days))
        assert refused.value.field == "end"


@time_machine.travel(NOW, tick=False)
def test_what_is_not_kept_is_refused_before_anything_is_written() -> None:
    window = Window(moment("2026-05-01"), moment("2026-05-31"))
    with pytest.raises(Unanswerable, match="before the hours that are kept"):
        usage.dataset(Request(uuid.uuid4(), window, Grain.HOURLY))
    usage.dataset(Request(uuid.uuid4(), window, Grain.MONTHLY))


@time_machine.travel(NOW, tick=False)
def test_models_are_named_and_can_be_chosen() -> None:
    org, third = make_org(), uuid.UUID(int=12, version=4)
    make_model(MODEL, "=Cedar")
    for model in (MODEL, OTHER_MODEL, third):
        counted(org, moment("2026-11-05 10:30"), model_id=model)
    window = Window(moment("2026-11-05"), moment("2026-11-06"))

    def names(*models: uuid.UUID) -> list[str]:
        found = told(usage.dataset(Request(org.pk, window, model_ids=frozenset(models) or None)), "model")
        return [name for (name,) in found]

    assert names() == ["=Cedar", *(f"Unregistered model {str(model)[:8]}…" for model in (OTHER_MODEL, third))]
    assert names(MODEL) == ["=Cedar"]
    assert names(MODEL, third) == [names()[0], names()[2]]
    assert names(uuid.uuid4()) == []
    with pytest.raises(Unanswerable, match="names no model"):
        usage.dataset(Request(org.pk, window, model_ids=frozenset()))


@pytest.mark.parametrize("kind", Format)
def test_an_empty_range_is_a_file_with_columns_and_zeros(kind: Format) -> None:
    moment = at(0)
    written, file = made(kind, usage.dataset(Request(make_org().pk, Window(moment, moment + DAY))))
    assert read_back(kind, file, usage.COLUMNS) == []
    assert written.rows == 0
    assert set(written.totals.values()) == {0}
    assert str(written.totals["cost_cents"]) == "0.0000"


@time_machine.travel(NOW, tick=False)
def test_more_points_than_an_answer_may_have_are_a_file() -> None:
    """120 models, each hour of three weeks: 60,480 points."""
    org = make_org()
    counted(org, moment("2026-10-10 00:30"))
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO usage_hourly SELECT (h).* FROM ("
            "  SELECT jsonb_populate_record(u, jsonb_build_object('bucket_start', bucket, 'model_id', model::uuid)) AS h"
            "  FROM usage_hourly u, generate_series(%s, %s - interval '1 hour', interval '1 hour') bucket,"
            "  (SELECT lpad(to_hex(n), 32, '0') AS model FROM generate_series(1, 120) n) models WHERE org_id = %s) made",
            [moment("2026-10-11"), moment("2026-11-01"), org.pk],
        )
    window = Window(moment("2026-10-11"), moment("2026-11-01"))
    request = Request(org.pk, window, Grain.HOURLY)
    with pytest.raises(Unanswerable, match="more than 50,000 points"):
        points(request.question)
    written, _ = made(Format.CSV, usage.dataset(request))
    assert written.rows == 21 * 24 * 120 == 60_480
    assert written.totals["cost_cents"] == 60_480 * Decimal("0.25")


@time_machine.travel(NOW, tick=False)
def test_the_names_of_models_are_asked_for_once() -> None:
    org = make_org()
    counted(org, *(moment(f"2026-11-0{day} 08:00") for day in range(1, 10)))
    dataset = usage.dataset(Request(org.pk, Window(moment("2026-11-01"), moment("2026-11-10"))))
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert len(list(dataset.rows)) == 9
    assert len([query for query in queries if not query["sql"].startswith(("SAVEPOINT", "RELEASE"))]) == 2


@pytest.mark.django_db(transaction=True)
def test_all_of_a_file_is_of_one_moment() -> None:
    """Events that are counted while it is read are in none of its rows, though it is read in pieces."""
    org, window = make_org(), Window(at(0), at(0) + 3 * DAY)
    counted(org, at(9), at(9) + DAY)

    def count_more() -> None:
        try:
            counted(org, at(10), at(10) + DAY, at(10) + 2 * DAY)
        finally:
            connection.close()

    rows = usage.dataset(Request(org.pk, window, Grain.HOURLY)).rows
    assert next(rows)[0] == at(9)
    with ThreadPoolExecutor(1) as other:
        other.submit(count_more).result()
    assert [row[0] for row in rows] == [at(9) + DAY]
    assert len(list(usage.dataset(Request(org.pk, window, Grain.HOURLY)).rows)) == 5


@pytest.mark.django_db(transaction=True)
def test_nothing_is_written_while_rows_are_read() -> None:
    with snapshot(), pytest.raises(InternalError, match="read-only transaction"):
        make_org()


# ── Orgs by month ────────────────────────────────────────────────────────────────────────────────────────────────


@time_machine.travel(NOW, tick=False)
def test_every_org_has_a_row_for_every_month_of_its_own_zone() -> None:
    acme = make_org("Acme", slug="acme", time_zone="Asia/Kolkata")
    make_org("=Idle", slug="idle")
    begins = moment("2026-11-01", "Asia/Kolkata")
    counted(acme, begins - timedelta(seconds=1), begins, NOW - timedelta(seconds=1))
    counted(acme, begins, status="timeout", cost_estimate_cents=None)
    request = org_summary.Request(date(2026, 10, 17), date(2026, 11, 10))
    names = ("slug", "month", "time_zone", "state", "invocations", "failures", "cost_cents", "unpriced_invocations")
    october, november, nothing = date(2026, 10, 1), date(2026, 11, 1), (0, 0, Decimal("0.0000"), 0)
    assert told(org_summary.dataset(request), *names) == [
        ("acme", october, "Asia/Kolkata", "complete", 1, 0, Decimal("0.2500"), 0),
        ("acme", november, "Asia/Kolkata", "to date", 3, 1, Decimal("0.5000"), 1),
        ("idle", october, "UTC", "complete", *nothing),
        ("idle", november, "UTC", "to date", *nothing),
    ]
    in_utc = org_summary.dataset(org_summary.Request(october, october, ZoneInfo("UTC")))
    assert told(in_utc, "slug", "time_zone", "invocations") == [("acme", "UTC", 3), ("idle", "UTC", 0)]


@pytest.mark.parametrize("kind", Format)
@time_machine.travel(NOW, tick=False)
def test_every_format_has_the_orgs_with_their_months(kind: Format) -> None:
    org = make_org()
    counted(org, NOW - timedelta(hours=1))
    request = org_summary.Request(date(2026, 11, 1), date(2026, 11, 1))
    written, file = made(kind, org_summary.dataset(request))
    (row,) = read_back(kind, file, org_summary.COLUMNS)
    assert row[:7] == (str(org.pk), "Acme", org.slug, date(2026, 11, 1), "UTC", "to date", 1)
    assert written.totals["cost_cents"] == Decimal("0.2500")


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (date(2026, 11, 1), date(2026, 10, 1), "lies before start"),
        (date(2024, 1, 1), date(2024, 2, 1), "the earliest is 2024-10"),
        (date(2025, 11, 1), date(2026, 11, 1), "more than 12 months after start"),
        (date(2026, 11, 1), date(2026, 12, 1), "has not begun"),
    ],
)
@time_machine.travel(NOW, tick=False)
def test_months_that_can_not_be_had_are_refused(first: date, last: date, words: str) -> None:
    with pytest.raises(Unanswerable, match=words):
        org_summary.dataset(org_summary.Request(first, last))


# ── The events of an incident ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", Format)
def test_every_format_has_the_events_of_an_incident(kind: Format) -> None:
    org = make_org()
    ingest([
        make_event(
            org, occurred_at=at(9, 30) + timedelta(milliseconds=7), actor_id=uuid.uuid4(), client_id='web, "eu"\nnorth',
            status="throttled", error_code="limit", metadata={"region": "eü"}, cost_estimate_cents=Decimal("0.0001"),
        ),
        make_event(org, occurred_at=at(9), cost_estimate_cents=None),
        make_event(org, occurred_at=at(8), model_id=OTHER_MODEL, status="error"),
    ])  # fmt: skip
    incident = Incident(org.pk, Window(at(0), at(0) + DAY), 2, MODEL)
    written, file = made(kind, incident_events.dataset(incident))
    expected = list(incident_events.dataset(incident).rows)
    found = read_back(kind, file, incident_events.COLUMNS)
    if kind is Format.XLSX:  # which has no microseconds
        expected, found = ([(*row[:2], row[2], *row[4:]) for row in rows] for rows in (expected, found))
    assert found == expected
    assert [row[2] for row in found] == [at(9, 30) + timedelta(milliseconds=7), at(9)]
    assert written.rows == 2
    assert written.totals == {"input_tokens": 20, "output_tokens": 10, "cost_estimate_cents": Decimal("0.0001")}


def test_the_csv_that_the_database_makes_is_the_one_that_the_writer_makes() -> None:
    org = make_org()
    ingest([
        make_event(org, occurred_at=at(9), status=status.label, client_id=text, error_code=text if status else None)
        for status in Status for text in ("=1", "+1", "-1", "@1", "\t1", "\r1", "\n1", "plain", 'a"b', "a,b", "ü", None)
    ])  # fmt: skip
    incident = Incident(org.pk, Window(at(0), at(0) + DAY), 100)
    written, file = made(Format.CSV, incident_events.dataset(incident))
    plain = BytesIO()
    again = writer(Format.CSV)(incident_events.COLUMNS, incident_events.dataset(incident).rows, plain)
    assert again == written
    assert plain.getvalue() == file
