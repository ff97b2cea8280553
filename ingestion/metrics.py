"""What Prometheus is told of ingestion: counters of the process that does it, and the state that stands in the database."""

from collections.abc import Iterable, Iterator

from django.db.models import Count
from django.utils import timezone
from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from orgs.limits import MAX_ADMIN_COUNT

from .models import Batch, Door, QuarantinedMessage, StreamGap, StreamReader
from .schema import Invalid, reason_of

EVENTS = Counter("analytics_ingestion_events", "Events by door and what became of them", ("door", "outcome"))
QUARANTINED = Counter("analytics_ingestion_quarantined", "Messages quarantined, by the field at fault", ("reason",))
REJECTED = Counter(
    "analytics_ingestion_rejected", "Events handed back to who sent them, by the field at fault", ("reason",)
)
BATCH_EVENTS = Histogram(
    "analytics_ingestion_batch_events",
    "Events of a batch",
    ("door",),
    buckets=(1, 10, 100, 500, 1_000, 5_000, 10_000, 20_000),
)
COMMIT_SECONDS = Histogram(
    "analytics_ingestion_commit_seconds",
    "From the start of a batch's transaction to its end",
    ("door",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
STREAM_RECONNECTS = Counter(
    "analytics_stream_interruptions", "Times that reading broke off and began again", ("stream",)
)

OUTCOMES = ("accepted", "duplicates", "conflicts", "rejected", "quarantined")
for _door in Door:  # a rise is seen only from a number that was there before
    for _outcome in OUTCOMES:
        EVENTS.labels(_door, _outcome)


def note_batch(batch: Batch, quarantined: Iterable[Invalid]) -> None:
    """Count a batch that was stored. A caller's transaction may still undo it: these are counters, not figures."""
    for outcome in OUTCOMES:
        if number := getattr(batch, outcome):
            EVENTS.labels(batch.door, outcome).inc(number)
    BATCH_EVENTS.labels(batch.door).observe(batch.received)
    COMMIT_SECONDS.labels(batch.door).observe((batch.completed_at - batch.started_at).total_seconds())
    for message in quarantined:
        QUARANTINED.labels(reason_of(message.faults)).inc()


def note_rejected(rejected: Iterable[Invalid]) -> None:
    """Count what a door handed back."""
    for event in rejected:
        REJECTED.labels(reason_of(event.faults)).inc()


class IngestionState:
    """How readers of streams and quarantine are doing, read from the database when it is asked for.

    The one process that is asked tells it, whichever process reads. Collected by the web process's registry.
    """

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = timezone.now()
        backlog = GaugeMetricFamily("analytics_stream_backlog_messages", "Messages not read yet", labels=("stream",))
        lag = GaugeMetricFamily("analytics_stream_lag_seconds", "Age of what was read last", labels=("stream",))
        rate = GaugeMetricFamily("analytics_stream_events_per_second", "Events read lately", labels=("stream",))
        for row in StreamReader.objects.all():
            backlog.add_metric((row.stream,), row.backlog)
            lag.add_metric((row.stream,), max(0.0, (now - row.caught_up_at).total_seconds()))
            rate.add_metric((row.stream,), row.events_per_second)
        gaps = GaugeMetricFamily(
            "analytics_stream_gaps", "Gaps recorded: messages that were never read", labels=("stream",)
        )
        found = dict.fromkeys(StreamReader.objects.values_list("stream", flat=True), 0)
        found |= dict(StreamGap.objects.order_by().values_list("stream").annotate(count=Count("id")))
        for stream, count in found.items():
            gaps.add_metric((stream,), count)
        waiting = GaugeMetricFamily(
            "analytics_quarantine_waiting_messages", "Messages in quarantine, as far as counted"
        )
        messages = QuarantinedMessage.objects.filter(state=QuarantinedMessage.State.WAITING)  # quarantine_waiting
        waiting.add_metric((), messages[:MAX_ADMIN_COUNT].count())
        oldest = messages.order_by("id").values_list("received_at", flat=True).first()
        age = GaugeMetricFamily(
            "analytics_quarantine_oldest_age_seconds",
            "How long the message that came first has waited in quarantine; 0 where none waits",
            value=max(0.0, (now - oldest).total_seconds()) if oldest else 0.0,
        )
        yield from (backlog, lag, rate, gaps, waiting, age)
