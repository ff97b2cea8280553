"""Files of exports read back, each by the plainest reader of its format."""

import csv
import gzip
import io
import re
import zipfile
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree as ET

import pyarrow as pa
import pyarrow.parquet as pq

from exports.datasets import Column, Dataset, Row, Type
from exports.writers import Format, Written, write

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def made(kind: Format, dataset: Dataset) -> tuple[Written, bytes]:
    target = io.BytesIO()
    return write(kind, dataset, target), target.getvalue()


def read_back(kind: Format, file: bytes, columns: Sequence[Column]) -> list[Row]:
    """The rows, typed, with text as a person sees it; the header is held against the columns."""
    names = tuple(column.name for column in columns)
    if kind is Format.PARQUET:
        table = pq.read_table(pa.BufferReader(file))
        assert tuple(table.column_names) == names
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    if kind is Format.XLSX:
        header, *rows, _ = sheet(file)
    else:
        text = (gzip.decompress(file) if kind is Format.CSV_GZ else file).decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert tuple(header) == names
    return [tuple(_typed(value, column) for value, column in zip(row, columns, strict=True)) for row in rows]


def totals_row(file: bytes, columns: Sequence[Column]) -> dict[str, Any]:
    """What the last row of a sheet says of the columns that are summed."""
    *_, last = sheet(file)
    return {column.name: _typed(value, column) for value, column in zip(last, columns, strict=True) if column.is_summed}


def sheet(file: bytes) -> list[list[str]]:
    """The cells of an XLSX file as they stand: text as text, numbers as they are written."""
    with zipfile.ZipFile(io.BytesIO(file)) as parts:
        root = ET.fromstring(parts.read("xl/worksheets/sheet1.xml"))
    assert next(root.iter(f"{_MAIN}f"), None) is None, "there is no formula in it"
    width = max((_place(cell) for cell in root.iter(f"{_MAIN}c")), default=-1) + 1
    rows = []
    for row in root.iter(f"{_MAIN}row"):
        found = [""] * width
        for cell in row.iter(f"{_MAIN}c"):
            found[_place(cell)] = _content(cell)
        rows.append(found)
    return rows


def _place(cell: ET.Element) -> int:
    place = 0
    for letter in re.sub(r"\d", "", cell.attrib["r"]):
        place = place * 26 + ord(letter) - ord("A") + 1
    return place - 1


def _content(cell: ET.Element) -> str:
    if cell.get("t") == "inlineStr":
        (text,) = cell.iter(f"{_MAIN}t")
        return re.sub(r"_x([0-9A-F]{4})_", lambda match: chr(int(match[1], 16)), text.text or "")
    assert cell.get("t") in (None, "n")
    value = cell.find(f"{_MAIN}v")
    assert value is not None
    return value.text or ""


def _typed(value: str, column: Column) -> Any:
    if value == "":
        return None
    if column.type is Type.INTEGER:
        assert Decimal(value) == int(Decimal(value))
        return int(Decimal(value))
    if column.type is Type.DECIMAL:
        return Decimal(value)
    if column.type is Type.TIMESTAMP:
        return _moment(value)
    if column.type is Type.DATE:
        return date.fromisoformat(value) if "-" in value else date(1899, 12, 30) + timedelta(days=int(value))
    return value


def _moment(value: str) -> datetime:
    """RFC 3339, or days since 1899-12-30, which are good to about a microsecond."""
    if "T" in value:
        assert value.endswith("Z")
        return datetime.fromisoformat(value)
    milliseconds = (Decimal(value) * 86_400_000).to_integral_value()
    return datetime(1899, 12, 30, tzinfo=UTC) + timedelta(milliseconds=int(milliseconds))
