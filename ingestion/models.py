"""The batch ledger, raw events, quarantine and conflicts.

`usage_events` and the dedupe ledger are made by SQL in the migrations; the models here describe them.
"""

import uuid
from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import HashIndex
from django.db import models
from django.db.models import Q

from .spans import TRACEPARENT_LENGTH


class Door(models.TextChoices):
    HTTP = "http", "HTTP"
    STREAM = "stream", "Stream"
    TRACE = "trace", "Trace replay"
    QUARANTINE = "quarantine", "Quarantine replay"


class Status(models.IntegerChoices):
    """How an inference call ended. Stored as a number: there is one in every row."""

    SUCCESS = 0, "success"
    ERROR = 1, "error"
    TIMEOUT = 2, "timeout"
    THROTTLED = 3, "throttled"

    @classmethod
    def called(cls, label: str | None) -> "Status | None":
        """The status of that name; None where none has it."""
        return next((status for status in cls if status.label == label), None)


class Batch(models.Model):
    """One transaction of events: where they came from, what became of them, whether the rollups have them.

    `id` orders the batches and is carried by every event; `public_id` is what clients see.
    """

    id = models.BigAutoField(primary_key=True)
    public_id = models.UUIDField(unique=True, default=uuid.uuid4, editable=False)
    door = models.CharField(max_length=16, choices=Door)
    received = models.PositiveIntegerField(help_text="Events and unreadable messages that came in.")
    accepted = models.PositiveIntegerField(default=0, help_text="Events stored for the first time.")
    duplicates = models.PositiveIntegerField(default=0, help_text="Events that were stored already.")
    conflicts = models.PositiveIntegerField(default=0, help_text="Duplicates whose content differs from the first.")
    rejected = models.PositiveIntegerField(default=0, help_text="Events handed back to the caller with a reason.")
    quarantined = models.PositiveIntegerField(default=0, help_text="Messages kept aside with a reason.")
    stream = models.CharField(max_length=255, blank=True, help_text="Which stream it was read from.")
    first_offset = models.BigIntegerField(null=True, help_text="Of its messages in the stream.")
    last_offset = models.BigIntegerField(null=True)
    messages_read = models.PositiveIntegerField(null=True, help_text="Of the stream; each holds one event or many.")
    org_ids = ArrayField(models.UUIDField(), default=list, help_text="Orgs whose events it carries.")
    first_occurred_at = models.DateTimeField(null=True)
    last_occurred_at = models.DateTimeField(null=True)
    is_late = models.BooleanField("late arrival", default=False, help_text="Carries events of an hour long over.")
    retries = models.PositiveSmallIntegerField(default=0, help_text="Times the transaction was run again.")
    started_at = models.DateTimeField()
    completed_at = models.DateTimeField()
    traceparent = models.CharField(
        max_length=TRACEPARENT_LENGTH,
        null=True,
        editable=False,
        help_text="Of the span that stored it, where that is traced.",
    )
    rolled_up_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "ingestion_batches"
        verbose_name_plural = "batches"
        ordering = ("-id",)
        indexes = (
            # The rollup's work list, and the lag of an org: a handful of rows whatever the table's size.
            models.Index(fields=("id",), name="batches_not_rolled_up", condition=Q(rolled_up_at=None)),
            # The admin's "with trouble" filter.
            models.Index(
                fields=("-id",), name="batches_with_trouble", condition=Q(quarantined__gt=0) | Q(conflicts__gt=0)
            ),
        )

    def __str__(self) -> str:
        return f"batch {self.pk}"


class UsageEvent(models.Model):
    """One inference call, as it is stored. Written by `writing` alone, read by ranges of time."""

    pk = models.CompositePrimaryKey("org_id", "occurred_at", "event_id")
    org_id = models.UUIDField()
    event_id = models.UUIDField()
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField()
    batch_id = models.BigIntegerField()
    model_id = models.UUIDField()
    actor_id = models.UUIDField(null=True)
    client_id = models.TextField(null=True)
    latency_ms = models.IntegerField()
    status = models.SmallIntegerField(choices=Status)
    error_code = models.TextField(null=True)
    input_tokens = models.IntegerField()
    output_tokens = models.IntegerField()
    cached_input_tokens = models.IntegerField()
    cache_creation_input_tokens = models.IntegerField()
    cost_estimate_cents = models.DecimalField(max_digits=18, decimal_places=4, null=True)
    metadata = models.JSONField(null=True)

    class Meta:
        managed = False
        db_table = "usage_events"

    def __str__(self) -> str:
        return str(self.event_id)


class QuarantinedMessage(models.Model):
    """A message that could not be stored as an event: its bytes, and why. Replayed once the cause is mended."""

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        REPLAYED = "replayed", "Replayed"

    id = models.BigAutoField(primary_key=True)
    batch = models.ForeignKey(Batch, models.PROTECT, related_name="messages", help_text="The batch that met it.")
    reason = models.CharField(max_length=64)
    detail = models.TextField()
    payload = models.BinaryField()
    stream_offset = models.BigIntegerField(null=True, help_text="Of the message that it came in.")
    received_at = models.DateTimeField()
    state = models.CharField(max_length=16, choices=State, default=State.WAITING)
    replay_batch = models.ForeignKey(Batch, models.PROTECT, null=True, related_name="+")
    replayed_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "ingestion_quarantine"
        verbose_name = "quarantined message"
        ordering = ("-id",)
        indexes = (
            # What still waits: the admin's default view, and the count that is watched.
            models.Index(fields=("-id",), name="quarantine_waiting", condition=Q(state="waiting")),
            # A replay of a file asks which of its messages are here already.
            HashIndex(fields=("payload",), name="quarantine_by_payload"),
        )

    def __str__(self) -> str:
        return f"message {self.pk}: {self.reason}"


class Conflict(models.Model):
    """A resend whose content differs from the event that was stored first. The first stays; this is what came."""

    id = models.BigAutoField(primary_key=True)
    batch = models.ForeignKey(Batch, models.PROTECT, related_name="conflicting")
    org_id = models.UUIDField()
    event_id = models.UUIDField()
    first_occurred_at = models.DateTimeField(help_text="Of the event that was stored; finds it by index.")
    payload = models.JSONField(help_text="The resend, as it would have been stored.")
    received_at = models.DateTimeField()

    class Meta:
        db_table = "ingestion_conflicts"
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"conflict on {self.event_id}"


class Ledger(models.Model):
    """What is known of resends: which of the two claim tables is the current one, and what was dropped. One row."""

    singleton: ClassVar[int] = 1

    id = models.SmallIntegerField(primary_key=True, default=1)
    current = models.SmallIntegerField(default=0)
    rotated_at = models.DateTimeField(help_text="When the current table of claims began.")
    previous_since = models.DateTimeField(help_text="When the one before began: events stored earlier have no claim.")
    dropped_before = models.DateTimeField(
        null=True, help_text="Raw events before this are gone: none is taken in again."
    )

    class Meta:
        db_table = "ingestion_ledger"
        constraints = (models.CheckConstraint(condition=Q(id=1), name="one_ledger"),)

    def __str__(self) -> str:
        return f"claims {self.current} since {self.rotated_at}"

    def claim_tables(self, tables: tuple[str, str]) -> tuple[str, str]:
        """The current one of the two tables, and the one before."""
        return tables[self.current], tables[1 - self.current]


class StreamReader(models.Model):
    """How far a stream was read, by whom, and how that goes. Moved by `stream.position` alone."""

    stream = models.CharField(max_length=255, primary_key=True)
    committed_offset = models.BigIntegerField(null=True, help_text="Of the last message that a committed batch holds.")
    committed_at = models.DateTimeField(null=True)
    reader = models.UUIDField(null=True, help_text="The mark of the process that reads it.")
    taken_at = models.DateTimeField(null=True, help_text="When that process took over.")
    seen_at = models.DateTimeField(null=True, help_text="When it last said how reading goes.")
    caught_up_at = models.DateTimeField(help_text="All that came in before this was read.")
    backlog = models.BigIntegerField(default=0, help_text="Messages not read yet, as far as the broker tells.")
    messages_per_second = models.FloatField(default=0)
    events_per_second = models.FloatField(default=0)
    last_error = models.TextField(blank=True)
    last_error_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "ingestion_stream_readers"

    def __str__(self) -> str:
        return self.stream


class StreamGap(models.Model):
    """Messages that were never read: retention took them, or the stream was made anew."""

    id = models.BigAutoField(primary_key=True)
    stream = models.CharField(max_length=255)
    first_missing = models.BigIntegerField(help_text="Offset; numbers between may never have been used.")
    last_missing = models.BigIntegerField(
        null=True, help_text="Empty where the stream was made anew: nobody knows how far the old one went."
    )
    noticed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        db_table = "ingestion_stream_gaps"
        ordering = ("-id",)

    def __str__(self) -> str:
        end = "the end of a stream that is no more" if self.last_missing is None else f"{self.last_missing:,}"
        return f"{self.stream} {self.first_missing:,} to {end}"
