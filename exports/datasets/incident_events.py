"""The raw events of an incident, newest first: what an engineer takes into it. `COLUMNS` says what is in it.

One query serves two readers. PostgreSQL writes the lines of a CSV itself (`COPY`), so that a million rows pass through without
becoming objects here; other formats read typed rows through a server-side cursor.
"""

import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from django.db import connection
from django.utils import timezone
from psycopg import ServerCursor, sql

from exports.csv_writer import FORMULA_STARTS
from ingestion.horizon import complete_since
from ingestion.models import Status
from orgs.limits import EXPORT_ROWS_AT_ONCE
from usage.aggregation import ROLLED_UP
from usage.series import Group, Question, Unanswerable, points, total
from usage.windows import DAY, UTC_ZONE, Window, local_day, midnight

from . import Column, Control, Copied, Dataset, Number, Row, Type, snapshot

CHUNK = 64 * 1024  # bytes handed on at once

COLUMNS = (
    Column("event_id", Type.UUID, "", "Which call; with org_id its identity."),
    Column("org_id", Type.UUID, "", "Whose call."),
    Column("occurred_at", Type.TIMESTAMP, "UTC, microseconds", "When it was completed."),
    Column("received_at", Type.TIMESTAMP, "UTC, microseconds", "When it came in here."),
    Column("model_id", Type.UUID, "", "Which model was called."),
    Column("actor_id", Type.UUID, "", "By which user; empty where not told."),
    Column("client_id", Type.TEXT, "", "Through which key or application; empty where not told."),
    Column("input_tokens", Type.INTEGER, "tokens", "Tokens sent, cached ones among them.", is_summed=True),
    Column("output_tokens", Type.INTEGER, "tokens", "Tokens that came back.", is_summed=True),
    Column("latency_ms", Type.INTEGER, "ms", "End to end."),
    Column("status", Type.TEXT, "", "`success`, `error`, `timeout` or `throttled`."),
    Column("error_code", Type.TEXT, "", "The producer's code; empty where there is none."),
    Column("cost_estimate_cents", Type.DECIMAL, "cents", "Exact cost; empty where unknown.", is_summed=True),
    Column("metadata", Type.TEXT, "JSON object", "What the producer told beside; empty where there is none."),
)

# What a row has for a column, where that is not the table's column itself.
_VALUES = {
    "status": "(ARRAY[" + ", ".join(f"'{status.label}'" for status in Status) + "])[status + 1]",
    "metadata": "metadata::text",
}
# What stands in a CSV for a value, by PostgreSQL: what the writer of CSV makes of it, `csv_writer.harmless` too.
_TIME = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
# Characters by their numbers: comparing them as text would cost a tenth of the time that a file takes.
_STARTS = ", ".join(str(ord(start)) for start in FORMULA_STARTS)
_TEXT = f"CASE WHEN ascii({{0}}) IN ({_STARTS}) THEN '''' || {{0}} ELSE {{0}} END"
_NEVER_A_FORMULA = ("status", "metadata")  # one of four words; an object, which begins with a brace


def _value(column: Column) -> str:
    value = _VALUES.get(column.name, column.name)
    return f"{value}::text" if column.type is Type.UUID else value


def _in_csv(column: Column) -> str:
    value = _VALUES.get(column.name, column.name)
    if column.type is Type.TIMESTAMP:
        return _TIME.format(value)
    if column.type is Type.TEXT and column.name not in _NEVER_A_FORMULA:
        return _TEXT.format(value)
    return value


_SUMMED = [column.name for column in COLUMNS if column.is_summed]


def _sums(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("coalesce(sum({0}), 0)").format(sql.Identifier(name)) for name in names)


@dataclass(frozen=True)
class Incident:
    """Which events are meant."""

    org_id: uuid.UUID
    window: Window
    limit: int
    model_id: uuid.UUID | None = None
    status: Status | None = None

    def is_cut(self) -> bool:
        """Whether there are more events than the limit."""
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("SELECT 1 {} OFFSET {} LIMIT 1").format(self._events, self.limit))
            return cursor.fetchone() is not None

    @property
    def _events(self) -> sql.Composed:
        """The primary key serves it, read backwards; days outside of the window are left out.

        The order names the table: columns of the file have the same names, and would be sorted as the text that they are.
        """
        return self._unordered + sql.SQL(" ORDER BY e.org_id DESC, e.occurred_at DESC, e.event_id DESC")

    @property
    def _unordered(self) -> sql.Composed:
        events = sql.SQL(
            "FROM usage_events e WHERE org_id = {org} AND occurred_at >= {start} AND occurred_at < {end}"
        ).format(org=self.org_id, start=self.window.start, end=self.window.end)
        if self.model_id is not None:
            events += sql.SQL(" AND model_id = {}").format(self.model_id)
        if self.status is not None:
            events += sql.SQL(" AND status = {}").format(int(self.status))
        return events

    def sums(self, names: Sequence[str], *, is_whole: bool) -> sql.Composed:
        """The query of some columns' sums. Where nothing is cut off, in whatever order is fastest."""
        if is_whole:
            return sql.SQL("SELECT {} {}").format(_sums(names), self._unordered)
        return sql.SQL("SELECT {} FROM (SELECT * {} LIMIT {}) events").format(_sums(names), self._events, self.limit)

    @property
    def not_rolled_up(self) -> sql.Composed:
        """The query of how many events are in no rollup yet, and the sums of their columns that are summed."""
        return sql.SQL("SELECT count(*), {} {} AND NOT ({})").format(
            _sums(_SUMMED), self._unordered, sql.SQL(ROLLED_UP)
        )

    @property
    def query(self) -> sql.Composed:
        """What the CSV is made of."""
        return self.selected(_in_csv)

    def selected(self, how: Callable[[Column], str]) -> sql.Composed:
        """The query, each column written as somebody wants it."""
        columns = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(sql.SQL(how(column)), sql.Identifier(column.name)) for column in COLUMNS
        )
        return sql.SQL("SELECT {} {} LIMIT {}").format(columns, self._events, self.limit)


def dataset(incident: Incident) -> Dataset:
    """Raises `Unanswerable` for a window whose events are no longer kept."""
    check_kept(incident.window)
    return Dataset(
        "incident_events",
        COLUMNS,
        _rows(incident),
        Copied(partial(copied, incident), partial(totals, incident)),
        partial(_control, incident),
        partial(_is_cut, incident),
    )


def check_kept(window: Window) -> None:
    """Raises `Unanswerable` where some events of a window are no longer there."""
    earliest = midnight(local_day(complete_since(timezone.now()), UTC_ZONE) + DAY, UTC_ZONE)
    if window.start < earliest:
        raise Unanswerable(
            "start", f"lies before the events that are kept: the earliest is {earliest:%Y-%m-%dT%H:%M:%SZ}"
        )


def _rows(incident: Incident) -> Generator[Row, None, None]:
    # In binary, which Django's own cursors have not: times that come as text are read in Python, which takes twice as long.
    name = f"incident_{uuid.uuid4().hex}"
    with snapshot(), connection.wrap_database_errors, ServerCursor(connection.connection, name) as cursor:
        cursor.execute(incident.selected(_value), binary=True)
        while rows := cursor.fetchmany(EXPORT_ROWS_AT_ONCE):
            yield from rows


def copied(incident: Incident) -> Iterator[tuple[int, bytes]]:
    """The CSV, some lines at a time, each with how many rows they are. Memory is that of a chunk."""
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT CSV, HEADER)").format(incident.query)
    lines: list[bytes | memoryview] = []
    size, header = 0, 1
    with snapshot(), connection.wrap_database_errors, connection.cursor() as cursor, cursor.copy(statement) as copy:
        for line in copy:
            lines.append(line)
            size += len(line)
            if size > CHUNK:
                yield len(lines) - header, _terminated(lines)
                lines, size, header = [], 0, 0
    if lines:
        yield len(lines) - header, _terminated(lines)


def totals(incident: Incident, rows: int) -> dict[str, Number]:
    """Of the columns that are summed, over the rows of a file that has so many."""
    with connection.cursor() as cursor:
        cursor.execute(incident.sums(_SUMMED, is_whole=rows < incident.limit))
        return dict(zip(_SUMMED, cursor.fetchone(), strict=True))


def _is_cut(incident: Incident, rows: int) -> bool:
    return rows >= incident.limit and incident.is_cut()


def _control(incident: Incident, rows: int) -> Control | None:
    """What the rollups say of the same calls, and the newest events, which are in no rollup yet, beside them.

    Of a file that its limit cut, the number of rows alone. None where the rollups can't tell: they keep statuses by the hour, and
    an hour that the window cuts may have lost its events.
    """
    group = Group.MODEL if incident.status is None else Group.STATUS
    question = Question(incident.org_id, incident.window, model_id=incident.model_id, group=group, as_one=True)
    try:
        found = points(question)
    except Unanswerable:
        return None
    figures = total([point for point in found if group is Group.MODEL or point.key == incident.status])
    with connection.cursor() as cursor:
        cursor.execute(incident.not_rolled_up)
        calls, *newest = cursor.fetchone()
    calls += figures.invocations
    road = "hours, and events that are not rolled up yet"
    if calls > incident.limit:
        return Control(road, {}, incident.limit)
    known = (figures.input_tokens, figures.output_tokens, figures.cost_cents)
    return Control(road, {name: old + new for name, old, new in zip(_SUMMED, known, newest, strict=True)}, calls)


def _terminated(lines: list[bytes | memoryview]) -> bytes:
    """Lines, each with a line feed at its end, as RFC 4180 wants them; line feeds within text stay what they are."""
    text = b"".join(lines)
    if text.count(b"\n") == len(lines):
        return text.replace(b"\n", b"\r\n")
    return b"".join(bytes(line)[:-1] + b"\r\n" for line in lines)
