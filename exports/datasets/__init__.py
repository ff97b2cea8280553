"""What can be exported: a dataset is a list of columns, each with type, unit and meaning, and rows that come one by one.

A module here makes one dataset; `exports.writers` make files of any. Rows are tuples in the order of the columns:

text, uuid      `str` (a UUID as text, as every file has it)
integer         `int`
decimal         `Decimal`, four decimals
timestamp       aware `datetime`, UTC
date            `date`

and None where a value is not known. They are read while they are written, so a dataset is good for one file. `snapshot` holds
what is read, by however many statements, to one moment.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from django.db import connection, transaction

Row = tuple[Any, ...]
Number = Decimal | int


class Type(StrEnum):
    TEXT = "text"
    INTEGER = "integer"
    DECIMAL = "decimal"
    TIMESTAMP = "timestamp"
    UUID = "uuid"
    DATE = "date"


@dataclass(frozen=True)
class Column:
    """`unit` is empty where there is none; of a timestamp it says how fine it is. `is_summed`: its total means something."""

    name: str
    type: Type
    unit: str
    meaning: str
    is_summed: bool = False
    is_whole_seconds: bool = False  # a timestamp that never has a fraction, and is written without

    def __post_init__(self) -> None:
        if self.is_summed and self.type not in (Type.INTEGER, Type.DECIMAL):
            raise ValueError(f"{self.name} has no total: it is of type {self.type}")

    @property
    def as_document(self) -> dict[str, str]:
        """What the API and manifests say of it."""
        return {"name": self.name, "type": self.type, "unit": self.unit, "meaning": self.meaning}


@dataclass(frozen=True)
class Copied:
    """A dataset as the CSV that PostgreSQL makes of it: as fast as it can be had.

    `chunks` are (rows, bytes), the header in the first; `totals` reads those of the same rows, told how many they are. Within one
    `snapshot` they agree.
    """

    chunks: Callable[[], Iterator[tuple[int, bytes]]]
    totals: Callable[[int], dict[str, Number]]


@dataclass(frozen=True)
class Control:
    """What the rows of a file must add up to, read by another road than the rows were: `road` says by which.

    `totals` are of columns that are summed, those that the other road knows; `rows` is None where it knows no number of them.
    """

    road: str
    totals: dict[str, Number]
    rows: int | None = None


@dataclass(frozen=True)
class Dataset:
    """`control` and `is_cut` are told how many rows a file has, within the snapshot that it was made of.

    No control: there is no other road. Cut: there were more rows than it was to have.
    """

    name: str
    columns: tuple[Column, ...]
    rows: Generator[Row, None, None]
    copied: Copied | None = None
    control: Callable[[int], Control | None] = lambda rows: None
    is_cut: Callable[[int], bool] = lambda rows: False


def as_text(totals: Mapping[str, Number]) -> dict[str, str]:
    """Sums as they are kept and told: exact, whatever reads them; decimals with their four places."""
    return {name: f"{value:.4f}" if isinstance(value, Decimal) else str(value) for name, value in totals.items()}


@contextmanager
def snapshot() -> Generator[None, None, None]:
    """A transaction that sees one moment and writes nothing. Within another transaction it is that one, whatever it sees.

    While rows are read it is open: whoever writes meanwhile, how far a file has come for instance, needs another connection.
    """
    if connection.in_atomic_block:  # no savepoint: rows that somebody stopped reading would end it at any time
        yield
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            # A file that is streamed is one COPY for as long as its reader takes: no time-out of a web process cuts it.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0")
        yield
