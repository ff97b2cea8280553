"""XLSX: one sheet, its header bold and frozen, numbers and times typed, and a last row of totals.

Text is text, whatever it looks like; there is no formula in the file. Times are UTC, since a sheet knows no zones. A
spreadsheet keeps 15 digits of a number: a longer one stands as text, exact, instead of being rounded.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from xlsxwriter import Workbook
from xlsxwriter.exceptions import FileCreateError
from xlsxwriter.worksheet import Worksheet

from exports.datasets import Column, Number, Row, Type
from orgs.limits import MAX_XLSX_DIGITS, MAX_XLSX_ROWS, MAX_XLSX_TEXT

from . import WIDE, Progress, Unwritable, Written, batches

MAX_ROWS = MAX_XLSX_ROWS - 2  # without the header and the totals
WIDTHS = {Type.TEXT: 24, Type.INTEGER: 14, Type.DECIMAL: 18, Type.TIMESTAMP: 20, Type.UUID: 38, Type.DATE: 12}
_EXACT = 10**MAX_XLSX_DIGITS
_PLACES = Decimal("0.0001")


def write(
    columns: Sequence[Column], rows: Iterable[Row], target: BinaryIO, progress: Progress | None = None
) -> Written:
    """Raises `Unwritable` where there are more rows than a sheet has, or a text longer than a cell takes."""
    written = Written()
    with _beside(target) as folder:  # rows wait there until the file is put together
        archive = _Archive(target)
        book = Workbook(archive, {"constant_memory": True, "tmpdir": folder, "in_memory": False, "use_zip64": True})
        sheet = book.add_worksheet("Export", worksheet_class=_Sheet)
        try:
            _fill(_Paper(book, sheet, columns), batches(columns, rows, written, progress), written)
        except BaseException:
            sheet._opt_close()
            raise
        try:
            book.close()
        except BaseException as error:
            archive.target = BytesIO()
            if isinstance(error, FileCreateError):
                raise error.args[0] from error  # the OSError that it was
            raise
    return written


def _beside(target: BinaryIO) -> "TemporaryDirectory[str]":
    """Beside the file, with its name before its own: whoever clears up after a process that was killed finds both."""
    name = getattr(target, "name", None)
    if not isinstance(name, str | Path):
        return TemporaryDirectory()
    return TemporaryDirectory(dir=Path(name).parent, prefix=f"{Path(name).name}.")


class _Archive:
    """The target, as the library has it. What it left half made it ends when it is thrown away: `target` is another then."""

    def __init__(self, target: BinaryIO) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


class _Sheet(Worksheet):  # type: ignore[misc]
    """The library takes text of the form `<r>…</r>` for markup of its own; here none is."""

    def _xml_rich_inline_string(self, string: str, attributes: Any = ()) -> None:
        self._xml_inline_string(string, True, attributes)


class _Paper:
    """A sheet with columns; `put` writes one row."""

    def __init__(self, book: Workbook, sheet: Worksheet, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.sheet = sheet
        self.bold = book.add_format({"bold": True})
        looks = {
            Type.TEXT: {"num_format": "@"},
            Type.INTEGER: {"num_format": "#,##0"},
            Type.DECIMAL: {"num_format": "#,##0.0000"},
            Type.TIMESTAMP: {"num_format": "yyyy-mm-dd hh:mm:ss"},
            Type.UUID: {"num_format": "@"},
            Type.DATE: {"num_format": "yyyy-mm-dd"},
        }
        self.looks = {kind: book.add_format(look) for kind, look in looks.items()}
        self.bold_looks = {kind: book.add_format({**look, "bold": True, "top": 1}) for kind, look in looks.items()}
        self.writers = [self._writer(column.type) for column in columns]
        self.next = 0
        sheet.freeze_panes(1, 0)
        for place, column in enumerate(columns):
            sheet.set_column(place, place, max(WIDTHS[column.type], len(column.name) + 2))

    def put(self, values: Iterable[Any], looks: dict[Type, Any] | None = None) -> None:
        looks = looks or self.looks
        for place, (value, column, writer) in enumerate(zip(values, self.columns, self.writers, strict=True)):
            if value is not None:
                writer(self.next, place, value, looks[column.type])
        self.next += 1

    def header(self) -> None:
        for place, column in enumerate(self.columns):
            self.sheet.write_string(self.next, place, column.name, self.bold)
        self.next += 1

    def _writer(self, kind: Type) -> Callable[[int, int, Any, Any], object]:
        if kind in (Type.INTEGER, Type.DECIMAL):
            return self._number
        if kind is Type.TIMESTAMP:
            return self._moment
        return self.sheet.write_datetime if kind is Type.DATE else self._text

    def _number(self, row: int, place: int, value: Number, look: Any) -> None:
        exact = WIDE.quantize(value, _PLACES) if isinstance(value, Decimal) else value
        digits = exact.scaleb(4, WIDE) if isinstance(exact, Decimal) else exact
        if -_EXACT < digits < _EXACT:
            self.sheet.write_number(row, place, exact, look)
        else:
            self.sheet.write_string(row, place, f"{exact:f}" if isinstance(exact, Decimal) else str(exact), look)

    def _moment(self, row: int, place: int, value: datetime, look: Any) -> None:
        self.sheet.write_datetime(row, place, value.astimezone(UTC).replace(tzinfo=None), look)

    def _text(self, row: int, place: int, value: str, look: Any) -> None:
        if len(value) > MAX_XLSX_TEXT:
            name = self.columns[place].name
            raise Unwritable(
                f"Row {row} has a longer {name} than a cell takes, {MAX_XLSX_TEXT:,} characters: ask for CSV."
            )
        self.sheet.write_string(row, place, value, look)


def _fill(paper: _Paper, found: Iterable[list[Row]], written: Written) -> None:
    paper.header()
    for batch in found:
        if written.rows + len(batch) > MAX_ROWS:
            raise Unwritable(
                f"A sheet takes {MAX_ROWS:,} rows beside its header and totals, and there are more:"
                " ask for CSV or Parquet, or for a shorter range."
            )
        for row in batch:
            paper.put(row)
    paper.put([written.totals.get(column.name) for column in paper.columns], paper.bold_looks)
    if not paper.columns[0].is_summed:
        paper.sheet.write_string(paper.next - 1, 0, "Total", paper.bold)
