"""Incidents: windows in which an org, or one model of it, left its own normal. Written by `watching` alone."""

import uuid
from datetime import datetime
from typing import TypedDict

from django.contrib.postgres.fields import ArrayField
from django.db import models

from orgs.models import Org

from .conditions import Condition
from .detection import Measure


class Blame(TypedDict):
    """Which model (its id), client or error code, "" where calls told none; what part of the bad calls beyond the expected
    ones it has, 0 to 1, and how many were bad and expected to be."""

    name: str
    share: float
    bad: int
    expected: float


class Causes(TypedDict):
    """Ranked, the one that explains most first."""

    models: list[Blame]
    clients: list[Blame]
    errorCodes: list[Blame]


def no_causes() -> Causes:
    return {"models": [], "clients": [], "errorCodes": []}


class Incident(models.Model):
    """A half-open window, by the minute. `observed` and `normal` are shares of failed calls, or p95s in ms."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    org = models.ForeignKey(Org, models.CASCADE, related_name="incidents", db_index=False)
    model_id = models.UUIDField(null=True, help_text="Empty: all models of the org together.")
    measure = models.CharField(
        max_length=16, choices=[(Measure.ERROR_RATE, "Error rate"), (Measure.P95, "p95 latency")]
    )
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(help_text="Of the last minute that was not normal, while it is open.")
    is_open = models.BooleanField(default=True)
    observed = models.FloatField()
    normal = models.FloatField()
    score = models.FloatField(help_text="Evidence, in nats: e to it is how much likelier an incident is than chance.")
    invocations = models.BigIntegerField()
    failures = models.BigIntegerField()
    failed_tokens = models.BigIntegerField(default=0, help_text="Input and output tokens of the failed calls.")
    failed_cost_cents = models.DecimalField(max_digits=30, decimal_places=4, default=0)
    causes = models.JSONField(default=no_causes)
    conditions = ArrayField(
        models.CharField(max_length=16, choices=[(condition, condition.text) for condition in Condition]),
        default=list,
        help_text="Those that page a platform team and held meanwhile.",
    )
    explained_at = models.DateTimeField(null=True, help_text="When causes and cost were found last.")
    noticed_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "reliability_incidents"
        ordering = ("-started_at", "id")
        indexes = (
            # An org's incidents of a window, latest first.
            models.Index(fields=("org", "-started_at"), name="incidents_of_an_org"),
            # Those that a run of the watch may change.
            models.Index(fields=("ended_at",), name="incidents_by_end"),
            models.Index(fields=("org",), name="incidents_open", condition=models.Q(is_open=True)),
        )

    def __str__(self) -> str:
        return f"{self.get_measure_display()} from {self.started_at:%Y-%m-%d %H:%M}"

    def overlaps(self, start: datetime, end: datetime) -> bool:
        return self.started_at < end and start < self.ended_at


class Watch(models.Model):
    """Up to which minute incidents were looked for. One row."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    watched_up_to = models.DateTimeField()

    class Meta:
        db_table = "reliability_watch"
        constraints = (models.CheckConstraint(condition=models.Q(id=1), name="one_watch"),)

    def __str__(self) -> str:
        return f"{self.watched_up_to:%Y-%m-%d %H:%M}"
