"""Jobs as the page shows them, in words."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from orgs.models import Org
from usage.display import span_text
from usage.filters import Filters
from usage.formatting import exact_cents, grouped, money
from usage.windows import DAY, Window, first_of_month, local_day

from .forms import FORMATS
from .models import SCHEDULE, ExportJob, Kind, State

_STEPS = {"hourly": "by hour", "daily": "by day", "monthly": "by month"}
_SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


@dataclass(frozen=True)
class Row:
    """One job. `spend` and `exact_spend` are empty where its file is not there."""

    job: ExportJob
    span: str
    what: str
    state: str
    tone: str
    rows: str
    size: str
    spend: str
    exact_spend: str
    who: str
    is_available: bool


@dataclass(frozen=True)
class LastMonth:
    """The file of last month: its row, or in words why it is not there."""

    name: str
    row: Row | None
    why: str


def row(job: ExportJob, zone: ZoneInfo, now: datetime) -> Row:
    cents = job.totals.get("cost_cents") or job.totals.get("cost_estimate_cents")
    is_available = job.is_available(now)
    written = job.rows_written if job.is_open else job.row_count
    return Row(
        job=job,
        span=span_text(Window(job.start_at, job.end_at), Filters(zone=ZoneInfo(job.time_zone or "UTC"), now=now)),
        what=_what(job),
        state=_state(job, is_available),
        tone={State.FAILED: "bad", State.SUCCEEDED: "good" if is_available else ""}.get(State(job.status), ""),
        rows="" if written is None else f"{grouped(written)} row{'' if written == 1 else 's'}",
        size="" if job.byte_count is None else size(job.byte_count),
        spend="" if cents is None else money(Decimal(cents)),
        exact_spend="" if cents is None else exact_cents(Decimal(cents)),
        who="the schedule" if job.initiated_by == SCHEDULE else job.initiated_by.partition(":")[2],
        is_available=is_available,
    )


def _what(job: ExportJob) -> str:
    """Usage by day, 2 models, Excel (XLSX)."""
    if job.dataset == Kind.USAGE:
        parts = [f"Usage {_STEPS[job.granularity]}"]
    else:
        parts = ["Every call", *([f"status {job.call_status}"] if job.call_status else [])]
    if job.model_ids is not None:
        parts.append(f"{len(job.model_ids)} model{'' if len(job.model_ids) == 1 else 's'}")
    if job.month is not None and job.version > 1:
        parts.append(f"version {job.version}")
    return ", ".join([*parts, FORMATS[job.file_format]])


def _state(job: ExportJob, is_available: bool) -> str:
    if job.is_open and job.cancelled_by:
        return "Being cancelled"
    if job.status == State.PENDING and job.failures:
        return "Failed, will be tried again"
    if job.status == State.SUCCEEDED and not is_available:
        return "Expired"
    return str(State(job.status).label)


def size(number: int) -> str:
    for step, unit in _SIZES:
        if number >= step:
            return f"{number / step:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{number}\N{NO-BREAK SPACE}bytes"


def last_month(org: Org, zone: ZoneInfo, now: datetime) -> LastMonth:
    """Its newest version."""
    first = first_of_month(first_of_month(local_day(now, zone)) - DAY)
    job = (
        ExportJob.objects.select_related("org").filter(org=org, month=first).order_by("-version", "-created_at").first()
    )
    found = row(job, zone, now) if job else None
    why = "" if found else "It is made once the month is over and all its calls are counted."
    return LastMonth(f"{first:%B %Y}", found, why)
