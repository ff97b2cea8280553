"""Files of datasets, in every format, written row by row: memory is that of some thousand rows, however many there are.

`write` makes a file of a dataset. A writer is a function `write(columns, rows, target, progress) -> Written`; it knows no
dataset, and leaves `target` open. `batches` is how it goes through the rows: they are added up and reported as they pass.
"""

import gzip
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import BinaryIO, Protocol, cast

from exports.datasets import Column, Dataset, Number, Row, Type, snapshot
from orgs.limits import EXPORT_ROWS_AT_ONCE

Progress = Callable[[int], object]  # told how many rows are written, every `EXPORT_ROWS_AT_ONCE` of them and at the end
_GZIP_LEVEL = 4  # twice as fast as 9, Python's own choice, for a file that is 3 % larger
WIDE = Context(prec=60)  # digits: sums are exact, the default context keeps 28


class Unwritable(Exception):
    """A file that can't be made; the text says why, and what to do."""


@dataclass
class Written:
    """How many rows a file has, and the sums of its columns that are summed. The header and a row of totals are no rows."""

    rows: int = 0
    totals: dict[str, Number] = field(default_factory=dict)


class Writer(Protocol):
    def __call__(
        self, columns: Sequence[Column], rows: Iterable[Row], target: BinaryIO, progress: Progress | None = None
    ) -> Written: ...


class Format(StrEnum):
    """What a file can be; the value is its extension."""

    CSV = "csv"
    CSV_GZ = "csv.gz"
    PARQUET = "parquet"
    XLSX = "xlsx"

    @property
    def media_type(self) -> str:
        return _FORMATS[self].media_type

    @property
    def missing(self) -> str:
        """Why this installation can't write it, in words; empty where it can."""
        package = _FORMATS[self].package
        if not package or find_spec(package) is not None:
            return ""
        return (
            f"Files of format {self.value} need the package {package}, which is not installed here:"
            " it comes with the optional dependencies `exports` of analytics-service."
        )


@dataclass(frozen=True)
class _Form:
    media_type: str
    module: str
    function: str = "write"
    package: str = ""  # of the extra `exports`, by its name for import


_FORMATS = {
    Format.CSV: _Form("text/csv; charset=utf-8", "csv_files"),
    Format.CSV_GZ: _Form("application/gzip", "csv_files", "write_compressed"),
    Format.PARQUET: _Form("application/vnd.apache.parquet", "parquet", package="pyarrow"),
    Format.XLSX: _Form(
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx", package="xlsxwriter"
    ),
}


def writer(kind: Format) -> Writer:
    """Raises `Unwritable` where what it needs is not installed."""
    if kind.missing:
        raise Unwritable(kind.missing)
    found = _FORMATS[kind]
    return cast(Writer, getattr(import_module(f"{__name__}.{found.module}"), found.function))


def write(kind: Format, dataset: Dataset, target: BinaryIO, progress: Progress | None = None) -> Written:
    """Make a file of a dataset, of one moment. Raises `Unwritable`, and what reading the dataset raises.

    What is in `target` then is no file. PostgreSQL writes the CSV where the dataset can be had so.
    """
    write_rows = writer(kind)
    with snapshot(), closing(dataset.rows):
        if dataset.copied is None or kind not in (Format.CSV, Format.CSV_GZ):
            return write_rows(dataset.columns, dataset.rows, target, progress)
        written = Written()
        with compressed(target) if kind is Format.CSV_GZ else nullcontext(target) as file:
            reported = 0
            for rows, chunk in dataset.copied.chunks():
                file.write(chunk)
                written.rows += rows
                if progress is not None and written.rows - reported >= EXPORT_ROWS_AT_ONCE:
                    reported = written.rows
                    progress(reported)
        written.totals = dataset.copied.totals(written.rows)
        if progress is not None:
            progress(written.rows)
        return written


def compressed(target: BinaryIO) -> AbstractContextManager[BinaryIO]:
    """What is written to it arrives compressed; the same bytes become the same file, whenever that is."""
    file = gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=target, mtime=0)
    return cast(AbstractContextManager[BinaryIO], file)


def batches(
    columns: Sequence[Column], rows: Iterable[Row], written: Written, progress: Progress | None
) -> Iterator[list[Row]]:
    """The rows, `EXPORT_ROWS_AT_ONCE` together; each batch is counted, added up and reported once it is written."""
    summed = [(place, column.name) for place, column in enumerate(columns) if column.is_summed]
    for place, name in summed:
        written.totals[name] = Decimal("0.0000") if columns[place].type is Type.DECIMAL else 0
    found = iter(rows)
    while batch := list(islice(found, EXPORT_ROWS_AT_ONCE)):
        yield batch
        written.rows += len(batch)
        with localcontext(WIDE):
            for place, name in summed:
                written.totals[name] += sum(row[place] for row in batch if row[place] is not None)
        if progress is not None:
            progress(written.rows)
    if progress is not None and not written.rows:
        progress(0)
