"""CSV: RFC 4180, UTF-8, a header, CRLF; text that a spreadsheet would run is made harmless.

Times are RFC 3339, UTC; decimals have four places; what is not known is empty.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, BinaryIO

from exports.csv_writer import lines
from exports.datasets import Column, Row, Type

from . import WIDE, Progress, Written, batches, compressed

_PLACES = Decimal("0.0001")


def write(
    columns: Sequence[Column], rows: Iterable[Row], target: BinaryIO, progress: Progress | None = None
) -> Written:
    """The header is there where no row is."""
    written = Written()
    found = batches(columns, rows, written, progress)
    target.write("".join(lines([column.name for column in columns], ())).encode())
    for batch in found:
        _, *text = lines((), _texts(columns, batch))
        target.write("".join(text).encode())
    return written


def write_compressed(
    columns: Sequence[Column], rows: Iterable[Row], target: BinaryIO, progress: Progress | None = None
) -> Written:
    with compressed(target) as file:
        return write(columns, rows, file, progress)


def _texts(columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[tuple[object, ...]]:
    """Rows as the file has them. A number stays one, and a time begins with a digit: neither is ever taken for a formula."""
    special = [(place, how) for place, column in enumerate(columns) if (how := _how(column)) is not None]
    for row in rows:
        values = list(row)
        for place, how in special:
            if values[place] is not None:
                values[place] = how(values[place])
        yield tuple(values)


def _how(column: Column) -> Callable[[Any], object] | None:
    if column.type is Type.TIMESTAMP:
        return _whole_seconds if column.is_whole_seconds else _microseconds
    if column.type is Type.DECIMAL:
        return _four_places
    return None


def _four_places(value: Decimal) -> Decimal:
    return WIDE.quantize(value, _PLACES)


def _whole_seconds(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _microseconds(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
