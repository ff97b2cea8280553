"""Export jobs, and the buckets that an org's files may go to."""

import uuid
from datetime import datetime

from django.contrib.postgres.fields import ArrayField
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from orgs.models import Org

from .datasets.usage import Grain
from .writers import Format


class Kind(models.TextChoices):
    """Which dataset."""

    USAGE = "usage", "Usage"
    INCIDENT_EVENTS = "incident_events", "Calls themselves"
    ORG_SUMMARY = "org_summary", "Summary of all orgs"


class State(models.TextChoices):
    PENDING = "pending", "Waiting"
    RUNNING = "running", "Being made"
    SUCCEEDED = "succeeded", "Ready"
    FAILED = "failed", "Failed"
    EXPIRED = "expired", "Expired"


OPEN = (State.PENDING, State.RUNNING)
SCHEDULE = "schedule"  # who asks for the files of a month


class ExportJob(models.Model):
    """One file that was asked for: what is in it, how far it is, where it is. The row outlives the file.

    `jobs`, `claims` and `upkeep` change its status, each with a condition.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    org = models.ForeignKey(
        Org, models.CASCADE, null=True, related_name="export_jobs", help_text="Empty: of the platform, about all orgs."
    )
    status = models.CharField(max_length=16, choices=State, default=State.PENDING)

    # What is in it.
    dataset = models.CharField(max_length=32, choices=Kind)
    format = models.CharField(max_length=16, choices=[(kind.value, kind.value) for kind in Format])
    start_at = models.DateTimeField("from")
    end_at = models.DateTimeField("until")
    granularity = models.CharField(
        max_length=16, choices=[(grain.value, grain.value) for grain in Grain], blank=True, help_text="Of usage alone."
    )
    time_zone = models.CharField(
        max_length=64, default="UTC", help_text="Whose days and months. Empty: each org's own."
    )
    model_ids = ArrayField(models.UUIDField(), null=True, help_text="Empty: all models.")
    call_status = models.CharField(max_length=16, blank=True, help_text="Of calls themselves: how they ended.")
    row_limit = models.PositiveIntegerField(null=True, help_text="Of calls themselves: rows at most, newest first.")

    # Where it goes.
    bucket = models.CharField(max_length=63, blank=True, help_text="Empty: the service's own folder.")
    key = models.CharField(max_length=200, help_text="The path of the file there.")
    month = models.DateField(null=True, help_text="Of a file that the schedule asked for: which month.")
    version = models.PositiveSmallIntegerField(default=1, help_text="Of that month's files.")

    # Who asked.
    initiated_by = models.CharField(max_length=200)
    fingerprint = models.CharField(max_length=64, editable=False)  # of all that was asked for
    idempotency_key = models.CharField(max_length=128, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now)

    # How far it is.
    next_send_at = models.DateTimeField(default=timezone.now, editable=False)  # when its task is sent (again)
    not_before = models.DateTimeField(default=timezone.now, editable=False)  # its next attempt
    attempts = models.PositiveSmallIntegerField(default=0)  # also the fence: only the latest may finish it
    failures = models.PositiveSmallIntegerField(default=0, help_text="Attempts that failed.")
    failed_at = models.DateTimeField(null=True, help_text="When the latest attempt failed.")
    heartbeat_at = models.DateTimeField(null=True, editable=False)
    rows_written = models.PositiveBigIntegerField(default=0)
    cancelled_by = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    error = models.CharField(max_length=500, blank=True)
    is_mismatch = models.BooleanField("differs from the rollups", default=False)

    # What came of it.
    row_count = models.PositiveBigIntegerField(null=True)
    is_truncated = models.BooleanField("cut at its limit", default=False)
    byte_count = models.PositiveBigIntegerField(null=True)
    checksum = models.CharField("SHA-256", max_length=64, blank=True)
    totals = models.JSONField(default=dict, help_text="Sums of its columns; numbers as text, exact.")
    expires_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("-created_at",)
        indexes = (
            # An org's list, newest first, page by page; what was asked for lately.
            models.Index(fields=("org", "-created_at", "-id"), name="export_jobs_by_org"),
            # What waits, runs or was left behind; how many of an org are open.
            models.Index(fields=("org", "next_send_at"), name="export_jobs_open", condition=Q(status__in=OPEN)),
            # Whose time is over.
            models.Index(fields=("expires_at",), name="export_jobs_ready", condition=Q(status=State.SUCCEEDED)),
            # The admin's list.
            models.Index(fields=("-created_at", "-id"), name="export_jobs_newest"),
        )
        constraints = (
            # Two runs of the schedule make one file of a month; one that failed is in nobody's way.
            models.UniqueConstraint(
                fields=("org", "month", "version"),
                name="one_export_a_month_and_version",
                condition=Q(month__isnull=False) & ~Q(status=State.FAILED),
            ),
        )

    def __str__(self) -> str:
        return f"{self.get_dataset_display()} {self.start_at:%Y-%m-%d} to {self.end_at:%Y-%m-%d}, {self.format}"

    @property
    def file_format(self) -> Format:
        return Format(self.format)

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def manifest_key(self) -> str:
        """The manifest lies beside the file."""
        return f"{self.key}.manifest.json"

    @property
    def filename(self) -> str:
        """What a browser saves it as."""
        whose = self.org.slug if self.org else "all-orgs"
        what = self.dataset.replace("_", "-") + (f"-{self.granularity}" if self.granularity else "")
        return f"{what}-{whose}-{self.start_at:%Y%m%d}-{self.pk.hex[:8]}.{self.format}"

    def is_available(self, now: datetime) -> bool:
        return self.status == State.SUCCEEDED and (self.expires_at is None or self.expires_at > now)


class ExportBucket(models.Model):
    """A bucket that an org may have its files put into. Staff keep the list."""

    org = models.ForeignKey(Org, models.CASCADE, related_name="export_buckets")
    bucket = models.CharField(
        max_length=63,
        validators=[RegexValidator(r"\A[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z", "This is not the name of a bucket.")],
        help_text="Its name. The service's own S3 credentials must be allowed to write to it.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("org", "bucket"), name="one_entry_per_bucket"),)

    def __str__(self) -> str:
        return self.bucket
