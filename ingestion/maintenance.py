"""Steps that keep tables in shape: what each would do, what it frees, and the one way they are carried out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import structlog
from django.db import models

from orgs.limits import ROWS_DELETED_AT_ONCE
from orgs.tenancy import owning

from .locks import Lock, hold_for_session, let_go_for_session
from .storage.engine import TABLE

logger = structlog.get_logger(__name__)


class Action(StrEnum):
    SETTLE = "settle"  # bring into its cheapest form
    DROP = "drop"
    DELETE = "delete"


@dataclass(frozen=True)
class Step:
    """One thing to do. `bytes` is what its subject takes on disk now, `rows` how many there are, where they are counted."""

    action: Action
    subject: str
    run: Callable[[], int]  # does it, and returns how many bytes are free then
    bytes: int = 0
    rows: int | None = None

    def __str__(self) -> str:
        size = f"{self.bytes:,} bytes" if self.rows is None else f"{self.rows:,} rows"
        return f"{self.action} {self.subject} ({size})"


class AlreadyRunning(RuntimeError):
    """Another process does maintenance at this moment."""


def carry_out(steps: Iterable[Step]) -> Iterator[tuple[Step, int]]:
    """Do steps one after the other and log each; yields what was done and the bytes it freed.

    One that fails is logged, and leaves the others alone. Raises `AlreadyRunning`.
    """
    if not hold_for_session(Lock.MAINTENANCE, ""):
        raise AlreadyRunning("maintenance is running already")
    try:
        for step in steps:
            try:
                with owning(TABLE):
                    freed = step.run()
            except Exception:
                logger.exception("maintenance_failed", action=step.action, subject=step.subject)
            else:
                logger.info("maintained", action=step.action, subject=step.subject, freed_bytes=freed, rows=step.rows)
                yield step, freed
    finally:
        let_go_for_session(Lock.MAINTENANCE, "")


def delete_step(rows: models.QuerySet[Any], moment: str, before: datetime) -> Iterator[Step]:
    """Delete those of some rows whose `moment` lies before another, where there are any."""
    old = rows.filter(**{f"{moment}__lt": before}).order_by("pk")
    if count := old.count():
        name = rows.model._meta.verbose_name_plural

        def run() -> int:
            while pks := list(old.values_list("pk", flat=True)[:ROWS_DELETED_AT_ONCE]):
                rows.filter(pk__in=pks).delete()
            return 0  # the room is used again, and not given back

        yield Step(Action.DELETE, f"{name} before {before:%Y-%m-%d %H:%M}", run, rows=count)
