"""Every org, month by month, for staff: one row per org and month, of orgs without traffic too. `COLUMNS` says what is in it.

Months are those of each org's own zone, or of one zone for all. The month that is not over counts up to now. Orgs are ordered by
slug; memory is that of one org's month by day.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import timezone

from orgs.limits import MAX_SUMMARY_MONTHS
from orgs.models import Org
from usage.retention import daily_horizon
from usage.series import Figures, Question, Unanswerable, total, zone_of
from usage.windows import DAY, UTC_ZONE, Granularity, Window, first_of_month, local_day, month, next_month

from . import Column, Control, Dataset, Row, Type, snapshot
from .usage import added, other_road, read

COLUMNS = (
    Column("org_id", Type.UUID, "", "Which org."),
    Column("org", Type.TEXT, "", "Its name."),
    Column("slug", Type.TEXT, "", "Its name in addresses."),
    Column("month", Type.DATE, "", "First day of the month."),
    Column("time_zone", Type.TEXT, "IANA name", "The zone whose month it is."),
    Column("state", Type.TEXT, "", "`complete`, or `to date` where the month was not over."),
    Column("invocations", Type.INTEGER, "calls", "Calls of any outcome.", is_summed=True),
    Column("failures", Type.INTEGER, "calls", "Those with any status but success.", is_summed=True),
    Column("input_tokens", Type.INTEGER, "tokens", "Tokens sent, cached ones among them.", is_summed=True),
    Column("output_tokens", Type.INTEGER, "tokens", "Tokens that came back.", is_summed=True),
    Column("cost_cents", Type.DECIMAL, "cents", "Exact cost of the calls that have a price.", is_summed=True),
    Column("currency", Type.TEXT, "ISO 4217", "What the cents are of."),
    Column(
        "unpriced_invocations", Type.INTEGER, "calls", "Calls without a price: counted, and not in the cost.",
        is_summed=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The months from that of one day to that of another, both included. `zone` of None is each org's own."""

    first: date
    last: date
    zone: ZoneInfo | None = None

    @property
    def months(self) -> list[date]:
        found = [first_of_month(self.first)]
        while next_month(found[-1]) <= self.last and len(found) <= MAX_SUMMARY_MONTHS:
            found.append(next_month(found[-1]))
        return found


def dataset(request: Request) -> Dataset:
    """Raises `Unanswerable` for months that are too many, no longer kept or not begun."""
    now = timezone.now()
    earliest = local_day(daily_horizon(now + DAY, UTC_ZONE), UTC_ZONE)  # somewhere it is the next day already
    if request.first > request.last:
        raise Unanswerable("end", "lies before start")
    if first_of_month(request.first) < earliest:
        raise Unanswerable("start", f"lies before the months that are kept: the earliest is {earliest:%Y-%m}")
    if len(request.months) > MAX_SUMMARY_MONTHS:
        raise Unanswerable("end", f"lies more than {MAX_SUMMARY_MONTHS} months after start: ask for fewer")
    if first_of_month(request.last) > local_day(now, request.zone or UTC_ZONE):
        raise Unanswerable("end", "lies in a month that has not begun")
    return Dataset("org_summary", COLUMNS, _rows(request, now), control=lambda rows: _control(request, now))


def _months(request: Request, now: datetime) -> Iterator[tuple[Org, date, bool, Question]]:
    """Each org's months: whether one is over, and what is to be asked for it."""
    for org in Org.objects.order_by("slug").iterator():
        zone = request.zone or zone_of(org)
        for first in request.months:
            whole = month(first, zone)
            window = Window(whole.start, max(whole.start, min(whole.end, now)))
            yield org, first, whole.end <= now, Question(org.pk, window, Granularity.DAY, zone=zone)


def _rows(request: Request, now: datetime) -> Generator[Row, None, None]:
    with snapshot():
        for org, first, is_over, question in _months(request, now):
            figures = added(read(question))
            yield (
                str(org.pk),
                org.name,
                org.slug,
                first,
                question.zone.key,
                "complete" if is_over else "to date",
                figures.invocations,
                figures.failures,
                figures.input_tokens,
                figures.output_tokens,
                figures.cost_cents,
                settings.CURRENCY,
                figures.unpriced_invocations,
            )


def _control(request: Request, now: datetime) -> Control:
    sums, rows, roads = Figures(), 0, set()
    for _, _, _, question in _months(request, now):
        road, figures = other_road(question)
        sums = total([sums, figures])
        roads.add(road)
        rows += 1
    return Control(
        " and ".join(sorted(roads)),
        {column.name: getattr(sums, column.name) for column in COLUMNS if column.is_summed},
        rows,
    )
