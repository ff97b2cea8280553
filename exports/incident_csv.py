"""The raw events of an incident as CSV, newest first: what an engineer takes into it.

Columns:

event_id, org_id            which call; together its identity
occurred_at, received_at    RFC 3339, UTC, microseconds: when it was completed, and when it came in here
model_id, actor_id, client_id   what was called, by which user, through which key or application; empty where not told
input_tokens, output_tokens     input includes cached tokens
latency_ms                  end to end
status, error_code          success, error, timeout or throttled; the producer's code
cost_estimate_cents         exact cents, four decimals; empty where unknown
metadata                    JSON object; empty where there is none

PostgreSQL writes the lines (`COPY`), so that a million rows pass through without becoming objects here.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from django.db import connection, transaction
from psycopg import sql

from ingestion.models import Status
from usage.windows import Window

from .csv_writer import FORMULA_STARTS

CHUNK = 64 * 1024  # bytes handed on at once

_TIME = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
# What `csv_writer.harmless` does, by PostgreSQL.
_TEXT = "CASE WHEN left({0}, 1) IN ('" + "', '".join(FORMULA_STARTS) + "') THEN '''' || {0} ELSE {0} END"
COLUMNS = {
    "event_id": "event_id",
    "org_id": "org_id",
    "occurred_at": _TIME.format("occurred_at"),
    "received_at": _TIME.format("received_at"),
    "model_id": "model_id",
    "actor_id": "actor_id",
    "client_id": _TEXT.format("client_id"),
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "latency_ms": "latency_ms",
    "status": "(ARRAY[" + ", ".join(f"'{status.label}'" for status in Status) + "])[status + 1]",
    "error_code": _TEXT.format("error_code"),
    "cost_estimate_cents": "cost_estimate_cents",
    "metadata": "metadata",
}


@dataclass(frozen=True)
class Incident:
    """Which events are meant."""

    org_id: uuid.UUID
    window: Window
    limit: int
    model_id: uuid.UUID | None = None
    status: Status | None = None

    @property
    def _events(self) -> sql.Composed:
        """The primary key serves it, read backwards; days outside of the window are left out.

        The order names the table: columns of the file have the same names, and would be sorted as the text that they are.
        """
        events = sql.SQL(
            "FROM usage_events e WHERE org_id = {org} AND occurred_at >= {start} AND occurred_at < {end}"
        ).format(org=self.org_id, start=self.window.start, end=self.window.end)
        if self.model_id is not None:
            events += sql.SQL(" AND model_id = {}").format(self.model_id)
        if self.status is not None:
            events += sql.SQL(" AND status = {}").format(int(self.status))
        return events + sql.SQL(" ORDER BY e.org_id DESC, e.occurred_at DESC, e.event_id DESC")

    @property
    def query(self) -> sql.Composed:
        """The file's columns of these events."""
        columns = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(sql.SQL(how), sql.Identifier(name)) for name, how in COLUMNS.items()
        )
        return sql.SQL("SELECT {} {} LIMIT {}").format(columns, self._events, self.limit)

    def is_cut(self) -> bool:
        """Whether there are more events than the limit."""
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("SELECT 1 {} OFFSET {} LIMIT 1").format(self._events, self.limit))
            return cursor.fetchone() is not None

    def file(self) -> Iterator[bytes]:
        """The file, some lines at a time. Memory is that of a chunk."""
        statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT CSV, HEADER)").format(self.query)
        rows: list[bytes | memoryview] = []
        size = 0
        with transaction.atomic(), connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in copy:
                rows.append(row)
                size += len(row)
                if size > CHUNK:
                    yield _terminated(rows)
                    rows, size = [], 0
        if rows:
            yield _terminated(rows)


def _terminated(rows: list[bytes | memoryview]) -> bytes:
    """Rows, each with a line feed at its end, as RFC 4180 wants them; line feeds within text stay what they are."""
    text = b"".join(rows)
    if text.count(b"\n") == len(rows):
        return text.replace(b"\n", b"\r\n")
    return b"".join(bytes(row)[:-1] + b"\r\n" for row in rows)
