"""A CSV trace as events: by fixed rules, so that a second run adds nothing."""

import hashlib
import uuid
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db.models import Sum
from django.utils import timezone

from ingestion.invented import MODELS, NAMESPACE
from ingestion.models import Batch, Door, QuarantinedMessage, Status, UsageEvent
from ingestion.trace import Trace
from orgs.models import Org, ServedModel
from usage.models import HourlyUsage
from usage.rollups import roll_up
from usage.verification import verify

pytestmark = pytest.mark.django_db

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
ROWS = (
    "2023-11-15 22:59:58.1234567,374,44",
    "2023-11-16 00:00:00.0000000,0,0",
    "2023-11-16 18:15:46.6805900,396,109",
    "2023-11-16 18:15:50.9951690,879,55",
    "2023-11-16 23:59:59.9999999,91,16",
)


@pytest.fixture(autouse=True)
def kept_for_long(settings: LazySettings) -> None:
    """So that the trace's own times, years ago, can be kept."""
    settings.RAW_RETENTION_DAYS, settings.DAILY_RETENTION_MONTHS = 36_500, 1_200


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return written(tmp_path, *ROWS)


def written(folder: Path, *rows: str, header: str = HEADER) -> Path:
    """A trace as its publisher writes it: CRLF, and times with seven digits after the point."""
    path = folder / "trace.csv"
    path.write_bytes("".join(f"{line}\r\n" for line in (header, *rows)).encode())
    return path


def run(path: Path, *arguments: str) -> str:
    out = StringIO()
    call_command("replay_trace", str(path), *arguments, stdout=out)
    return out.getvalue()


def yesterday() -> date:
    return (timezone.now() - timedelta(days=1)).date()


def times() -> list[datetime]:
    return list(UsageEvent.objects.order_by("occurred_at").values_list("occurred_at", flat=True))


def test_every_row_is_an_event_and_a_second_run_finds_them_all_there(trace: Path) -> None:
    assert run(trace) == "5 rows: 5 accepted, 0 duplicates, 0 quarantined\n"
    assert run(trace) == "5 rows: 0 accepted, 5 duplicates, 0 quarantined\n"
    assert UsageEvent.objects.count() == 5
    assert set(Batch.objects.values_list("door", flat=True)) == {Door.TRACE}
    assert not Batch.objects.filter(conflicts__gt=0).exists()
    sums = UsageEvent.objects.aggregate(Sum("input_tokens"), Sum("output_tokens"))
    assert (sums["input_tokens__sum"], sums["output_tokens__sum"]) == (1740, 224)


def test_times_move_by_whole_days_so_that_the_last_row_lies_in_yesterday(trace: Path) -> None:
    run(trace)
    moved = yesterday() - date(2023, 11, 16)
    # What is finer than a microsecond is cut off, so that no row moves to another day.
    assert times() == [
        datetime(2023, 11, 15, 22, 59, 58, 123456, UTC) + moved,
        datetime(2023, 11, 16, tzinfo=UTC) + moved,
        datetime(2023, 11, 16, 18, 15, 46, 680590, UTC) + moved,
        datetime(2023, 11, 16, 18, 15, 50, 995169, UTC) + moved,
        datetime(2023, 11, 16, 23, 59, 59, 999999, UTC) + moved,
    ]


def test_the_last_row_is_the_latest_wherever_it_stands(tmp_path: Path) -> None:
    run(written(tmp_path, "2023-11-16 12:00:00.0000000,1,1", "2023-11-14 12:00:00.0000000,1,1"))
    assert [moment.date() for moment in times()] == [yesterday() - timedelta(days=2), yesterday()]


def test_times_can_be_kept(trace: Path) -> None:
    assert run(trace, "--keep-times") == "5 rows: 5 accepted, 0 duplicates, 0 quarantined\n"
    assert times()[0] == datetime(2023, 11, 15, 22, 59, 58, 123456, UTC)
    assert times()[-1] == datetime(2023, 11, 16, 23, 59, 59, 999999, UTC)
    # These are other events than the moved ones.
    assert run(trace) == "5 rows: 5 accepted, 0 duplicates, 0 quarantined\n"


def test_a_time_with_an_offset_is_understood(tmp_path: Path) -> None:
    run(written(tmp_path, "2023-11-16 02:30:00.0000000+05:30,1,1"), "--keep-times")
    assert times() == [datetime(2023, 11, 15, 21, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("row", "reason", "kept"),
    [
        ("2023-11-16 18:00:00.0000000,many,5", "inputTokens", b'"inputTokens":"many"'),
        ("2023-11-16 18:00:00.0000000,12,4.5", "outputTokens", b'"outputTokens":"4.5"'),
        ("2023-11-16 18:00:00.0000000,-1,5", "inputTokens", b'"inputTokens":"-1"'),
        ("2023-11-16 18:00:00.0000000,2147483648,5", "inputTokens", b'"inputTokens":"2147483648"'),
        (f"2023-11-16 18:00:00.0000000,12,{10**40}", "outputTokens", b"0000000000"),
        ("2023-11-16 18:00:00.0000000,12", "outputTokens", b'"outputTokens":""'),
        ("2023-11-16 18:00:00.0000000", "inputTokens", b'"inputTokens":""'),
        ("2023-11-16 18:00:00.0000000,1,234,5", "outputTokens", b'"outputTokens":"234,5"'),
        ("9999-12-31 18:00:00.0000000,12,5", "occurredAt", b'"occurredAt":"9999-12-31 18:00:00.0000000"'),
        ("0001-01-01 00:00:00.0000000+05:00,12,5", "occurredAt", b'"occurredAt":"0001-01-01 00:00'),
        ("yesterday,12,5", "occurredAt", b'"occurredAt":"yesterday"'),
        (",12,5", "occurredAt", b'"occurredAt":""'),
    ],
)
def test_a_bad_row_is_quarantined_with_its_bytes_and_its_neighbours_are_stored(
    row: str, reason: str, kept: bytes, tmp_path: Path
) -> None:
    path = written(tmp_path, ROWS[2], row, ROWS[3])
    assert run(path) == "3 rows: 2 accepted, 0 duplicates, 1 quarantined\n"
    message = QuarantinedMessage.objects.get()
    assert reason in message.detail
    assert kept in bytes(message.payload)
    assert UsageEvent.objects.aggregate(total=Sum("input_tokens"))["total"] == 396 + 879
    assert run(path) == "3 rows: 0 accepted, 3 duplicates, 0 quarantined\n"
    assert QuarantinedMessage.objects.count() == 1


def test_a_file_without_any_time_loses_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "never,1,2", "soon,3,4")
    assert run(path) == "2 rows: 0 accepted, 0 duplicates, 2 quarantined\n"
    assert run(path) == "2 rows: 0 accepted, 2 duplicates, 0 quarantined\n"


def test_a_file_of_a_header_alone_is_no_event(tmp_path: Path) -> None:
    assert run(written(tmp_path)) == "0 rows: 0 accepted, 0 duplicates, 0 quarantined\n"


def test_identical_lines_are_different_events(tmp_path: Path) -> None:
    path = written(tmp_path, *[ROWS[2]] * 3)
    assert run(path) == "3 rows: 3 accepted, 0 duplicates, 0 quarantined\n"
    assert run(path) == "3 rows: 0 accepted, 3 duplicates, 0 quarantined\n"
    assert len(set(UsageEvent.objects.values_list("event_id", flat=True))) == 3


def test_a_byte_order_mark_and_a_missing_last_line_end_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\n{ROWS[2]}\n\n{ROWS[3]}".encode())
    assert run(path) == "2 rows: 2 accepted, 0 duplicates, 0 quarantined\n"


def test_a_trace_longer_than_a_batch_comes_in_batches(tmp_path: Path, settings: Any) -> None:
    settings.INGESTION_BATCH_SIZE = 2
    path = written(tmp_path, *ROWS)
    assert run(path) == "5 rows: 5 accepted, 0 duplicates, 0 quarantined\n"
    assert sorted(Batch.objects.values_list("accepted", flat=True)) == [1, 2, 2]
    assert run(path) == "5 rows: 0 accepted, 5 duplicates, 0 quarantined\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"time,in,out\r\n1,2,3\r\n", f"the first line must be {HEADER}"),
        (b"", f"the first line must be {HEADER}"),
        (f"{HEADER}\r\n{ROWS[2]}\r\n".encode("utf-16"), "can't decode"),
        (HEADER.encode() + b"\r\n2023-11-16 18:00:00,\xff,1\r\n", "can't decode"),
    ],
)
def test_what_is_no_trace_is_told_in_one_line_and_nothing_is_stored(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(CommandError) as told:
        run(path)
    assert str(path) in str(told.value)
    assert said in str(told.value)
    assert "\n" not in str(told.value)
    assert not Batch.objects.exists()


def test_a_missing_file_and_a_folder_are_told_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(CommandError) as told:
            run(path)
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)


def test_the_largest_counts_are_stored_and_their_sums_are_exact(tmp_path: Path) -> None:
    largest = 2**31 - 1
    path = written(tmp_path, *[f"2023-11-16 18:00:00.0000000,{largest},{largest}"] * 20)
    assert run(path) == "20 rows: 20 accepted, 0 duplicates, 0 quarantined\n"
    # Longer than a day no latency is, and so none is invented.
    assert set(UsageEvent.objects.values_list("latency_ms", flat=True)) == {86_400_000}
    roll_up()
    sums = HourlyUsage.objects.aggregate(
        inputs=Sum("input_tokens"), outputs=Sum("output_tokens"), cost=Sum("cost_cents")
    )
    assert (sums["inputs"], sums["outputs"]) == (20 * largest, 20 * largest)
    assert sums["cost"] == UsageEvent.objects.aggregate(cost=Sum("cost_estimate_cents"))["cost"]
    assert verify() == []


# ── The invented parts ───────────────────────────────────────────────────────────────────────────────────────────


def test_of_ten_rows_six_are_the_first_orgs_three_the_seconds_and_one_the_thirds(tmp_path: Path) -> None:
    path = written(tmp_path, *[ROWS[2]] * 30)
    run(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    ids = [uuid.uuid5(NAMESPACE, f"org/{digest}/{name}") for name in ("Acme", "Globex", "Initech")]
    counts = Counter(UsageEvent.objects.values_list("org_id", flat=True))
    assert [counts[pk] for pk in ids] == [18, 9, 3]
    assert Org.objects.filter(pk__in=ids, is_stub=True).count() == 3, "named by events alone"


def test_model_status_latency_and_cost_follow_from_the_row(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:15:{n % 60:02}.{n:07},{n * 7},{n}" for n in range(300)]
    run(written(tmp_path, *rows), "--keep-times")
    stored = {event.event_id: event for event in UsageEvent.objects.all()}
    # Cents per million tokens, in and out.
    prices = {"Cedar Large": (300, 1500), "Cedar Small": (25, 125), "Willow Code": (150, 600), "Birch Mini": (10, 40)}
    names = list(prices)
    failures = {0: ("error", "internal_error"), 1: ("timeout", "upstream_timeout"), 2: ("throttled", "rate_limited")}
    seen = Counter[str]()
    for number, row in enumerate(rows, start=1):
        event = stored.pop(uuid.uuid5(NAMESPACE, f"2023-11-16/{number}/{row}"))
        throw = hashlib.sha256(f"{number}/{row}".encode()).digest()
        name = names[throw[0] % 4]
        status, error_code = failures.get(throw[1] % 128, ("success", None))
        inputs, outputs = (number - 1) * 7, number - 1
        assert event.model_id == uuid.uuid5(NAMESPACE, f"model/{name}")
        assert (Status(event.status).label, event.error_code) == (status, error_code)
        assert event.client_id == f"client-{throw[2] % 8}"
        assert (event.input_tokens, event.output_tokens) == (inputs, outputs)
        assert event.latency_ms == 200 + 25 * outputs + inputs // 20
        price_in, price_out = prices[name]
        cost = Decimal(inputs * price_in + outputs * price_out) / 1_000_000
        assert event.cost_estimate_cents == cost.quantize(Decimal("0.0001"), ROUND_HALF_EVEN)
        seen[name] += 1
    assert not stored
    assert sorted(seen) == sorted(prices)
    assert ServedModel.objects.filter(pk__in=[model.id for model in MODELS]).count() == 4


def test_another_file_has_orgs_of_its_own(tmp_path: Path) -> None:
    one = Trace(written(tmp_path, ROWS[2]), None).org_id(0)
    assert Trace(written(tmp_path, ROWS[3]), None).org_id(0) != one


def test_the_span_is_that_of_the_moved_rows(trace: Path) -> None:
    span = Trace(trace, date(2026, 1, 31)).span
    assert span == (
        datetime(2026, 1, 30, 22, 59, 58, 123456, UTC),
        datetime(2026, 1, 31, 23, 59, 59, 999999, UTC),
    )
