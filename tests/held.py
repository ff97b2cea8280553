"""Questions that take as long as a test wants: a month of one org's figures is locked, and nobody else's."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
from django.db import connection

from orgs.models import Org
from usage.rollups import roll_up
from usage.windows import HOUR, Window

from .factories import NOON, ingest, make_event
from .processes import database_url

LONG_AGO = NOON - timedelta(days=40)  # in another month than NOON
HELD = Window(LONG_AGO, LONG_AGO + HOUR)  # by the hour; what asks for it waits
FREE = Window(NOON, NOON + HOUR)


def with_calls(org: Org) -> Org:
    """A call of either hour, counted."""
    ingest([make_event(org, occurred_at=LONG_AGO), make_event(org)])
    roll_up()
    return org


@contextmanager
def month_locked(org_id: uuid.UUID) -> Iterator["Held"]:
    with psycopg.connect(database_url()) as session:
        with session.cursor() as cursor:
            cursor.execute(
                "SELECT tableoid::regclass::text FROM usage_hourly WHERE org_id = %s AND bucket_start = %s",
                [org_id, LONG_AGO],
            )
            found = cursor.fetchone()
            assert found is not None
            cursor.execute(f"LOCK TABLE {found[0]} IN ACCESS EXCLUSIVE MODE")
        try:
            yield Held(found[0], session)
        finally:
            session.rollback()


class Held:
    def __init__(self, table: str, session: psycopg.Connection) -> None:
        self.table = table
        self.session = session

    def release(self) -> None:
        self.session.rollback()

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE relation = %s::text::regclass AND NOT granted", [self.table]
            )
            (waiting,) = cursor.fetchone()
        return int(waiting)
