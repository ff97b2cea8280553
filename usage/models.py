"""The rollups, and how fresh they are. Rows are written by `rollups` alone."""

from django.contrib.postgres.fields import ArrayField
from django.db import models

from orgs.models import Org, ServedModel

# What stands where a client or an error code would: those of an hour that were too many to be named. Private use, so that a
# client that calls itself this is counted among them, which is all that happens.
REST = "\ue000"


class Measures(models.Model):
    """What every rollup row counts. Costs are cents; `cost_cents` sums the priced events, exactly."""

    invocations = models.BigIntegerField()
    errors = models.BigIntegerField(help_text="Calls with status error.")
    timeouts = models.BigIntegerField()
    throttled = models.BigIntegerField()
    input_tokens = models.BigIntegerField(help_text="Cached and cache-creating ones included.")
    output_tokens = models.BigIntegerField()
    cached_input_tokens = models.BigIntegerField()
    cache_creation_input_tokens = models.BigIntegerField()
    cost_cents = models.DecimalField(max_digits=30, decimal_places=4)
    unpriced_invocations = models.BigIntegerField(help_text="Calls whose cost is unknown.")
    # A sparse latency histogram: see `histogram`.
    latency_buckets = ArrayField(models.SmallIntegerField())
    latency_counts = ArrayField(models.BigIntegerField())

    class Meta:
        abstract = True


class HourlyUsage(Measures):
    """One org, UTC hour and model. The key's order serves ranges of an org, and their order in the answer."""

    pk = models.CompositePrimaryKey("org_id", "bucket_start", "model_id")
    org_id = models.UUIDField()
    bucket_start = models.DateTimeField()
    model_id = models.UUIDField()

    class Meta:
        db_table = "usage_hourly"

    def __str__(self) -> str:
        return f"{self.bucket_start:%Y-%m-%d %H:00}"


class DailyUsage(Measures):
    """One org, day and model. Days of UTC for every org; days of its own zone beside them where that is another."""

    pk = models.CompositePrimaryKey("org_id", "time_zone", "day", "model_id")
    org_id = models.UUIDField()
    time_zone = models.TextField()
    day = models.DateField()
    model_id = models.UUIDField()

    class Meta:
        db_table = "usage_daily"

    def __str__(self) -> str:
        return f"{self.day} {self.time_zone}"


class MinuteUsage(Measures):
    """One minute, org and model: for what watches the last hours."""

    pk = models.CompositePrimaryKey("org_id", "bucket_start", "model_id")
    bucket_start = models.DateTimeField()
    org_id = models.UUIDField()
    model_id = models.UUIDField()

    class Meta:
        db_table = "usage_minutes"

    def __str__(self) -> str:
        return f"{self.bucket_start:%Y-%m-%d %H:%M}"


class ClientUsage(Measures):
    """One org, hour, model and client; an hour in which the org's day begins has two rows, one for each day."""

    pk = models.CompositePrimaryKey("org_id", "bucket_start", "model_id", "client_id")
    org_id = models.UUIDField()
    bucket_start = models.DateTimeField()
    model_id = models.UUIDField()
    client_id = models.TextField(help_text="Empty where none was told; the rest together under a name of its own.")

    class Meta:
        db_table = "usage_clients"

    def __str__(self) -> str:
        return f"{self.bucket_start:%Y-%m-%d %H:%M} {self.client_id}"


class OutcomeUsage(Measures):
    """One org, hour, model, status and error code; hours in two as for clients."""

    pk = models.CompositePrimaryKey("org_id", "bucket_start", "model_id", "status", "error_code")
    org_id = models.UUIDField()
    bucket_start = models.DateTimeField()
    model_id = models.UUIDField()
    status = models.SmallIntegerField()
    error_code = models.TextField(help_text="Empty where none was told; the rest together under a name of its own.")

    class Meta:
        db_table = "usage_outcomes"

    def __str__(self) -> str:
        return f"{self.bucket_start:%Y-%m-%d %H:%M} {self.status} {self.error_code}"


class OpenHour(models.Model):
    """An org's hour whose clients and error codes were added to and not folded since."""

    pk = models.CompositePrimaryKey("hour", "org_id")
    hour = models.DateTimeField()
    org_id = models.UUIDField()
    opened_at = models.DateTimeField(help_text="When something was added to it first.")

    class Meta:
        db_table = "usage_open_hours"

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H:00}"


class GroupsKept(models.Model):
    """From when on figures by client, status and error code are whole: later than figures are, where they were kept before
    these were. One row, or none.
    """

    id = models.SmallIntegerField(primary_key=True, default=1)
    since = models.DateTimeField()

    class Meta:
        db_table = "usage_groups_kept"
        constraints = (models.CheckConstraint(condition=models.Q(id=1), name="one_since_of_groups"),)

    def __str__(self) -> str:
        return f"{self.since:%Y-%m-%d}"


class ZoneInForce(models.Model):
    """The zone an org's daily rows are kept in. Follows `Org.time_zone` once the rows have been rebuilt for it."""

    org = models.OneToOneField(Org, models.CASCADE, primary_key=True, related_name="zone_in_force")
    time_zone = models.CharField(max_length=64)
    # Where a change left rows that can't be made again: those of days before `final_day` end at `final_at`.
    final_day = models.DateField(null=True)
    final_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "usage_zones"

    def __str__(self) -> str:
        return self.time_zone


class Freshness(models.Model):
    """Up to where the figures of an org and model reach."""

    org = models.ForeignKey(Org, models.CASCADE, related_name="+", db_constraint=False)
    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="+", db_constraint=False)
    last_event_at = models.DateTimeField(help_text="When the newest call that is counted was completed.")
    last_rollup_at = models.DateTimeField(help_text="When events were last added.")

    class Meta:
        db_table = "usage_freshness"
        verbose_name_plural = "freshness"
        constraints = (models.UniqueConstraint(fields=("org", "model"), name="one_freshness_per_model"),)

    def __str__(self) -> str:
        return f"{self.org_id} {self.model_id}"
