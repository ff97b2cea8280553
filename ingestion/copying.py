"""Binary COPY, the fast way in."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper
from psycopg import sql
from psycopg.types.string import BytesBinaryDumper


def copy_in(cursor: CursorWrapper, table: str, columns: Mapping[str, str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write rows to a table. `columns` are the names and, for each, the psycopg type whose wire form the rows hold.

    Raises Django's database errors, as any statement does.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    # By type, psycopg would take the dumper of its DB-API `Binary`, which is Python; this one is C.
    cursor.adapters.register_dumper(bytes, BytesBinaryDumper)
    with connection.wrap_database_errors, cursor.copy(statement) as copy:
        copy.set_types(list(columns.values()))
        for row in rows:
            copy.write_row(row)
