"""Figures outlive what they were made of: 26 months of days through the maintenance, and what may be made again."""

import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.conf import LazySettings
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from ingestion import storage
from ingestion.dedupe import rotate
from ingestion.horizon import raw_horizon
from ingestion.maintenance import carry_out
from ingestion.models import Batch, QuarantinedMessage, UsageEvent
from ingestion.tasks import prepare_storage
from orgs.models import Org
from usage import retention
from usage.aggregation import DAYS, HOURS
from usage.models import DailyUsage, HourlyUsage
from usage.retention import daily_horizon, hourly_horizon, rebuild_horizon
from usage.rollups import rebuild, roll_up
from usage.series import Question, points, total, zone_of
from usage.verification import verify
from usage.windows import DAY, UTC_ZONE, Granularity, Window, midnight

from ..factories import ingest, make_event, make_org

pytestmark = pytest.mark.django_db(transaction=True)

MONTHS = 26
START = datetime(2024, 1, 1, 3, tzinfo=UTC)
END = datetime(2026, 3, 3, 3, tzinfo=UTC)  # so that the first month is past its retention
KOLKATA = ZoneInfo("Asia/Kolkata")


def maintain() -> None:
    list(carry_out(retention.steps(timezone.now())))


@pytest.fixture
def clean() -> Iterator[None]:
    """Without the partitions that other tests left, and without ours afterwards."""
    yield
    for table in (HOURS, DAYS):
        for partition in table.partitions():
            table.drop(partition)
    for part in storage.parts():
        storage.drop(part)
    storage.forget()


def months_of(org: Org, zone: ZoneInfo, first: date) -> dict[date, tuple[int, Decimal]]:
    """Calls and cost of each month that is kept in days, as the API would say."""
    answer: dict[date, tuple[int, Decimal]] = {}
    month = first
    while midnight(month, zone) < timezone.now():
        following = (month + timedelta(days=31)).replace(day=1)
        window = Window(midnight(month, zone), midnight(following, zone))
        figures = total(points(Question(org.pk, window, Granularity.DAY, zone=zone)))
        answer[month] = (figures.invocations, figures.cost_cents)
        month = following
    return answer


def test_twenty_six_months_day_by_day(clean: None) -> None:
    org, other = make_org(), make_org("Bombay", time_zone="Asia/Kolkata")
    calls: Counter[tuple[uuid.UUID, date]] = Counter()
    cost: Counter[tuple[uuid.UUID, date]] = Counter()
    now = START
    told: dict[tuple[uuid.UUID, date], tuple[int, Decimal]] = {}
    while now < END:
        with time_machine.travel(now, tick=False):
            events = [make_event(org, occurred_at=now - timedelta(minutes=7)), make_event(other, occurred_at=now)]
            if now.day % 10 == 0:  # late by 30 days: into a day that is settled
                events.append(
                    make_event(org, occurred_at=now - timedelta(days=30), cost_estimate_cents=Decimal("0.0001"))
                )
            prepare_storage()
            ingest(events)
            roll_up()
            rotate()
            maintain()
            for event in events:
                zone = UTC_ZONE if event.org_id == org.pk else KOLKATA
                month = event.occurred_at.astimezone(zone).date().replace(day=1)
                calls[event.org_id, month] += 1
                cost[event.org_id, month] += event.cost_estimate_cents  # type: ignore[assignment]
            if now.day == 1:
                for whose, zone in ((org, UTC_ZONE), (other, KOLKATA)):
                    first = daily_horizon(now, zone).astimezone(zone).date()
                    for month, figures in months_of(whose, zone, max(first, START.date())).items():
                        told[whose.pk, month] = figures
                        assert figures == (calls[whose.pk, month], cost[whose.pk, month]), (now, month)
        now += DAY
    assert len(told) == 2 * (MONTHS + 1)
    now -= DAY
    with time_machine.travel(now, tick=False):
        assert storage.parts()[0].start == raw_horizon(now).date()
        assert UsageEvent.objects.order_by("occurred_at").first().occurred_at.date() == raw_horizon(now).date()  # type: ignore[union-attr]
        hours, days = hourly_horizon(now), daily_horizon(now, UTC_ZONE)
        assert HOURS.partitions()[0].start == (hours - DAY).date().replace(day=1)
        assert HourlyUsage.objects.filter(bucket_start__gte=hours).count() >= 2 * 90
        assert DAYS.partitions()[0].start == days.date() == date(2024, 2, 1)
        assert Batch.objects.order_by("id").first().completed_at >= raw_horizon(now) - 2 * DAY  # type: ignore[union-attr]
        assert verify() == []
        call_command("verify")


def test_figures_that_outlive_raw_events_are_not_made_again_nor_compared(clean: None, settings: LazySettings) -> None:
    org = make_org()
    now = timezone.now()
    old, young = now - timedelta(days=60), now - timedelta(days=2)
    ingest([make_event(org, occurred_at=moment) for moment in (old, old, young)])
    roll_up()
    before = set(DailyUsage.objects.values_list("day", "invocations"))
    settings.RAW_RETENTION_DAYS = 30
    settings.HOURLY_RETENTION_DAYS = 20
    maintain()
    assert UsageEvent.objects.count() == 1
    assert set(DailyUsage.objects.values_list("day", "invocations")) == before
    assert verify() == []
    done = rebuild(Window(now - timedelta(days=90), now))
    assert done.start == rebuild_horizon(now)
    assert set(DailyUsage.objects.values_list("day", "invocations")) == before
    assert verify() == []
    assert not rebuild(Window(now - timedelta(days=90), now - timedelta(days=50)))


def test_an_hour_past_its_retention_is_counted_in_its_day_alone(settings: LazySettings) -> None:
    settings.HOURLY_RETENTION_DAYS = 10
    now = timezone.now()
    ingest([make_event(occurred_at=now - timedelta(days=days)) for days in (5, 20)])
    roll_up()
    assert HourlyUsage.objects.count() == 1
    assert DailyUsage.objects.count() == 2
    assert verify() == []


@pytest.mark.parametrize(
    "zones",
    [
        ("UTC", "Asia/Kolkata"),
        ("Asia/Kolkata", "America/New_York"),
        ("Asia/Kolkata", "UTC"),
        ("Pacific/Pago_Pago", "Pacific/Kiritimati"),  # 25 hours apart
        ("Pacific/Kiritimati", "Pacific/Pago_Pago"),
        ("Asia/Tokyo", "America/New_York", "Asia/Tokyo"),  # a mistake, and back
        ("UTC", "America/New_York", "Pacific/Auckland"),
    ],
)
@pytest.mark.parametrize("days_between", [0, 1, 2])
def test_a_change_of_zone_loses_no_figure_whose_events_are_gone(
    clean: None, settings: LazySettings, zones: tuple[str, ...], days_between: int
) -> None:
    org = make_org(time_zone=zones[0])
    now = timezone.now()
    hours = [now - timedelta(hours=n) for n in range(0, 24 * 25, 3)]
    ingest([make_event(org, occurred_at=moment) for moment in hours])
    roll_up()
    settings.RAW_RETENTION_DAYS = settings.HOURLY_RETENTION_DAYS = 15
    for number, name in enumerate(zones[1:]):
        with time_machine.travel(now + number * days_between * DAY, tick=False):
            maintain()
            org.time_zone = name
            org.save()
            roll_up()
            assert verify() == []
    assert UsageEvent.objects.count() < len(hours)
    zone = zone_of(org)
    assert zone.key == zones[-1]
    window = Window(now - timedelta(days=30), now + DAY).whole_days(zone)
    found = points(Question(org.pk, window, Granularity.DAY, zone=zone))
    assert total(found).invocations == len(hours), "every call is in exactly one day"
    recent = [point for point in found if point.bucket_start > now - timedelta(days=5)]
    by_day = Counter(midnight(moment.astimezone(zone).date(), zone) for moment in hours)
    assert recent
    assert all(point.invocations == by_day[point.bucket_start] for point in recent)


def test_a_retention_that_is_raised_neither_makes_figures_of_nothing_nor_counts_twice(
    clean: None, settings: LazySettings
) -> None:
    org = make_org()
    now = timezone.now()
    old = make_event(org, occurred_at=now - timedelta(days=60), cost_estimate_cents=Decimal("0.1234"))
    ingest([old, make_event(org, occurred_at=now)])
    roll_up()
    before = set(DailyUsage.objects.values_list("day", "invocations"))
    settings.RAW_RETENTION_DAYS = settings.HOURLY_RETENTION_DAYS = settings.QUARANTINE_RETENTION_DAYS = 30
    maintain()
    assert UsageEvent.objects.count() == 1
    settings.RAW_RETENTION_DAYS = 400
    assert verify() == []
    rebuild(Window(now - timedelta(days=90), now))
    with connection.cursor() as cursor:  # the claim is long gone
        cursor.execute("TRUNCATE ingestion_claims_0, ingestion_claims_1")
    batch = ingest([old, make_event(org, occurred_at=now)])
    assert (batch.accepted, batch.quarantined, batch.received) == (1, 1, 2)
    message = QuarantinedMessage.objects.get()
    assert message.reason == "expired"
    assert b'"costEstimateCents":0.1234' in bytes(message.payload)
    roll_up()
    assert {day: calls for day, calls in before if day < now.date()} == {
        day: calls for day, calls in DailyUsage.objects.values_list("day", "invocations") if day < now.date()
    }
    assert verify() == []
