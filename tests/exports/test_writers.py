"""Files: typed, harmless, the same twice, made row by row, and refused in words where they can't be made."""

import gzip
import io
import resource
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.db import connection

from exports.csv_writer import FORMULA_STARTS
from exports.datasets import Column, Dataset, Row, Type, incident_events
from exports.datasets.incident_events import Incident
from exports.writers import Format, Unwritable, Written, write, writer
from orgs.limits import EXPORT_ROWS_AT_ONCE
from usage.windows import DAY, Window

from ..factories import at, ingest, make_event, make_org
from .reading import read_back, sheet, totals_row

COLUMNS = (
    Column("id", Type.UUID, "", "Which."),
    Column("name", Type.TEXT, "", "What it is called."),
    Column("at", Type.TIMESTAMP, "UTC", "When."),
    Column("day", Type.DATE, "", "Which day."),
    Column("count", Type.INTEGER, "things", "How many.", is_summed=True),
    Column("cost", Type.DECIMAL, "cents", "How much.", is_summed=True),
)
ID = str(uuid.UUID(int=7, version=4))
MOMENT = datetime(2026, 11, 1, 23, 59, 59, 123000, tzinfo=UTC)
ROW: Row = (ID, "Cedar", MOMENT, date(2026, 11, 1), 3, Decimal("0.2500"))
EMPTY: Row = (ID, *(None,) * 5)
HOSTILE = [
    *(f"{start}1+1" for start in FORMULA_STARTS),
    '=HYPERLINK("http://example.com")', "{=1+1}", "http://example.com", "mailto:a@example.com", "internal:Sheet!A1",
    "1.5", "007", "true", "<r><t>bold</t></r>", "<b>&amp;", "]]>", "_x0041_", "\x01\x1f", "\ufffe", "  spaces  ",
    "line\nbreak", "a\r\nb", "'", '"', "ü😀",
]  # fmt: skip


def file_of(kind: Format, *rows: Row) -> tuple[Written, bytes]:
    target = io.BytesIO()
    written = writer(kind)(COLUMNS, iter(rows), target)
    assert not target.closed
    return written, target.getvalue()


@pytest.mark.parametrize("kind", Format)
def test_values_come_back_as_they_went_in(kind: Format) -> None:
    written, file = file_of(kind, ROW, EMPTY)
    assert read_back(kind, file, COLUMNS) == [ROW, EMPTY]
    assert written == Written(2, {"count": 3, "cost": Decimal("0.2500")})
    assert str(written.totals["cost"]) == "0.2500"


@pytest.mark.parametrize("kind", Format)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_ever_more_than_text(kind: Format, text: str) -> None:
    _, file = file_of(kind, (ID, text, MOMENT, date(2026, 11, 1), 3, Decimal(-1)))
    (row,) = read_back(kind, file, COLUMNS)
    is_csv = kind in (Format.CSV, Format.CSV_GZ)
    expected = f"'{text}" if is_csv and text.startswith(FORMULA_STARTS) else text
    assert row[1] == expected
    assert row[5] == Decimal(-1), "a number below zero is no formula"


def test_csv_is_as_rfc_4180_has_it() -> None:
    _, file = file_of(Format.CSV, (ID, 'a "b", c\nd', MOMENT, date(2026, 11, 1), 3, Decimal(2)), EMPTY)
    assert file.decode() == (
        "id,name,at,day,count,cost\r\n"
        f'{ID},"a ""b"", c\nd",2026-11-01T23:59:59.123000Z,2026-11-01,3,2.0000\r\n'
        f"{ID},,,,,\r\n"
    )
    _, compressed = file_of(Format.CSV_GZ, ROW)
    assert gzip.decompress(compressed) == file_of(Format.CSV, ROW)[1]


@pytest.mark.parametrize("kind", [Format.CSV, Format.CSV_GZ, Format.PARQUET])
def test_the_same_rows_are_the_same_bytes(kind: Format) -> None:
    assert file_of(kind, ROW, EMPTY)[1] == file_of(kind, ROW, EMPTY)[1]


def test_the_bytes_of_a_compressed_file_name_neither_a_time_nor_a_file() -> None:
    assert file_of(Format.CSV_GZ, ROW)[1][3:8] == b"\0\0\0\0\0"


def test_parquet_has_types_units_and_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exports.writers.parquet.ROWS_IN_A_GROUP", 20_000)
    _, file = file_of(Format.PARQUET, *repeat(ROW, 45_000))
    found = pq.ParquetFile(pa.BufferReader(file))
    assert [str(field.type) for field in found.schema_arrow] == [
        "string", "string", "timestamp[us, tz=UTC]", "date32[day]", "int64", "decimal128(38, 4)",
    ]  # fmt: skip
    assert found.schema_arrow.field("cost").metadata == {b"unit": b"cents", b"meaning": b"How much."}
    groups = [found.metadata.row_group(n) for n in range(found.metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [20_000, 20_000, 5_000]
    assert groups[0].column(0).compression == "ZSTD"


def test_a_sheet_is_typed_with_a_frozen_header_and_totals() -> None:
    written, file = file_of(Format.XLSX, ROW, ROW, EMPTY)
    rows = sheet(file)
    assert rows[0] == [column.name for column in COLUMNS]
    assert rows[-1] == ["Total", "", "", "", "6", "0.5000"]
    assert totals_row(file, COLUMNS) == written.totals
    with zipfile.ZipFile(io.BytesIO(file)) as parts:
        text, styles = parts.read("xl/worksheets/sheet1.xml").decode(), parts.read("xl/styles.xml").decode()
    assert '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/>' in text
    assert "<b/>" in styles
    assert "yyyy-mm-dd hh:mm:ss" in styles


def test_a_number_that_a_spreadsheet_would_round_stands_as_text() -> None:
    large, cost = 10**15, Decimal("100000000000.0001")
    _, file = file_of(Format.XLSX, (ID, "", MOMENT, date(2026, 11, 1), large, cost), (*ROW[:4], -large + 1, -cost))
    with zipfile.ZipFile(io.BytesIO(file)) as parts:
        text = parts.read("xl/worksheets/sheet1.xml").decode()
    assert "<t>1000000000000000</t>" in text
    assert "<v>-999999999999999</v>" in text
    assert "<t>100000000000.0001</t>" in text
    assert [row[4:] for row in read_back(Format.XLSX, file, COLUMNS)] == [(large, cost), (-large + 1, -cost)]


def test_more_rows_than_a_sheet_has_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from exports.writers import xlsx

    assert xlsx.MAX_ROWS + 2 == 1_048_576
    monkeypatch.setattr(xlsx, "MAX_ROWS", 2)
    assert file_of(Format.XLSX, ROW, ROW)[0].rows == 2
    with pytest.raises(Unwritable, match=r"A sheet takes 2 rows .* ask for CSV or Parquet"):
        file_of(Format.XLSX, ROW, ROW, ROW)
    with pytest.raises(Unwritable, match="Row 1 has a longer name than a cell takes, 32,767 characters"):
        file_of(Format.XLSX, (ID, "x" * 32_768, *ROW[2:]))


def test_a_total_is_exact_however_long_it_is() -> None:
    cost = Decimal("100000000000000000000000000000.0001")
    written, file = file_of(Format.PARQUET, *repeat((*ROW[:5], cost), 3))
    assert written.totals["cost"] == Decimal("300000000000000000000000000000.0003")
    assert read_back(Format.PARQUET, file, COLUMNS)[0][5] == cost


@pytest.mark.parametrize("kind", Format)
def test_progress_is_told_while_rows_are_written(kind: Format) -> None:
    told: list[int] = []
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for read in range(1, 2 * EXPORT_ROWS_AT_ONCE + 6):
            assert read - (told[-1] if told else 0) <= EXPORT_ROWS_AT_ONCE, (
                "no row is read before the others are written"
            )
            yield ROW

    writer(kind)(COLUMNS, rows(), io.BytesIO(), told.append)
    assert told == [EXPORT_ROWS_AT_ONCE, 2 * EXPORT_ROWS_AT_ONCE, 2 * EXPORT_ROWS_AT_ONCE + 5]


@pytest.mark.parametrize(("kind", "package"), [(Format.PARQUET, "pyarrow"), (Format.XLSX, "xlsxwriter")])
def test_a_format_says_what_is_not_installed(kind: Format, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind.missing == ""
    monkeypatch.setattr("exports.writers.find_spec", lambda name: None)
    assert f"need the package {package}, which is not installed here" in kind.missing
    with pytest.raises(Unwritable, match="optional dependencies `exports`"):
        write(kind, Dataset("any", COLUMNS, (row for row in ())), io.BytesIO())
    assert Format.CSV.missing == ""


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


class Nowhere(io.RawIOBase):
    """Takes everything, keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, chunk: Any) -> int:
        return len(chunk)


@pytest.mark.django_db
def test_memory_is_flat_however_many_events_an_incident_has() -> None:
    """300,000 of them: what is held grows by some batches, and no more in the last third. (A sheet, which is slow: 100,000.)"""
    org = make_org()
    ingest([make_event(org, occurred_at=at(1), client_id="web", metadata={"region": "eu"})])
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO usage_events SELECT (made.event).* FROM (SELECT jsonb_populate_record(u, jsonb_build_object("
            " 'event_id', gen_random_uuid(), 'occurred_at', occurred_at + n * interval '100 milliseconds')) AS event"
            " FROM usage_events u, generate_series(1, 299999) n WHERE org_id = %s) made",
            [org.pk],
        )
    window = Window(at(0), at(0) + DAY)
    for kind in Format:
        held: list[int] = []
        target = cast(BinaryIO, Nowhere())
        write(kind, incident_events.dataset(Incident(org.pk, window, 20_000)), target)
        before = resident()
        rows = 100_000 if kind is Format.XLSX else 300_000
        everything = incident_events.dataset(Incident(org.pk, window, rows))
        written = write(kind, everything, target, lambda _, held=held: held.append(resident()))
        assert (written.rows, written.totals["input_tokens"]) == (rows, 10 * rows)
        assert max(held) - before < 120 * 2**20, kind
        third = len(held) // 3
        assert max(held[-third:]) - max(held[:-third]) < 30 * 2**20, kind


@pytest.mark.django_db(transaction=True)
def test_a_file_that_is_refused_leaves_the_connection_fit_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from exports.writers import xlsx

    org = make_org()
    ingest([make_event(org, occurred_at=at(hour)) for hour in range(9)])
    incident = Incident(org.pk, Window(at(0), at(0) + DAY), 100)
    monkeypatch.setattr(xlsx, "MAX_ROWS", 2)
    with pytest.raises(Unwritable):
        write(Format.XLSX, incident_events.dataset(incident), io.BytesIO())
    assert not connection.in_atomic_block
    ingest([make_event(org, occurred_at=at(9))])
    assert write(Format.PARQUET, incident_events.dataset(incident), io.BytesIO()).rows == 10
    assert write(Format.CSV, incident_events.dataset(incident), io.BytesIO()).totals["input_tokens"] == 100
