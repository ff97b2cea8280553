"""Jobs as the page shows them, in words."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from orgs.models import Org
from usage.display import span_text
from usage.filters import Filters
from usage.formatting import exact_cents, grouped, money
from usage.windows import Window, local_day, previous_month

from . import monthly
from .datasets.usage import Grain
from .forms import FORMATS, GRAINS, OUTCOMES
from .jobs import cancelled
from .models import SCHEDULE, ExportJob, Kind, State

_SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


@dataclass(frozen=True)
class Row:
    """One job. `spend` and `exact_spend` are empty where no file was made."""

    job: ExportJob
    span: str
    what: str
    state: str
    tone: str
    rows: str
    size: str
    spend: str
    exact_spend: str
    error: str
    who: str
    is_available: bool

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.what}, {self.span}"


@dataclass(frozen=True)
class LastMonth:
    """The file of last month: its row, or None where there is none yet."""

    name: str
    row: Row | None


def row(job: ExportJob, zone: ZoneInfo, now: datetime) -> Row:
    cents = job.totals.get("cost_cents") or job.totals.get("cost_estimate_cents")
    is_available = job.is_available(now)
    state, tone = _state(job, is_available)
    return Row(
        job=job,
        span=span_text(Window(job.start_at, job.end_at), Filters(zone=ZoneInfo(job.time_zone or "UTC"), now=now)),
        what=_what(job),
        state=state,
        tone=tone,
        rows=_rows(job),
        size="" if job.byte_count is None else size(job.byte_count),
        spend="" if cents is None else money(Decimal(cents)),
        exact_spend="" if cents is None else exact_cents(Decimal(cents)),
        error="" if job.status == State.RUNNING else job.error,  # what an earlier attempt met
        who=_who(job),
        is_available=is_available,
    )


def _what(job: ExportJob) -> str:
    """Usage by day, 2 models, Excel (XLSX)."""
    if job.dataset == Kind.USAGE:
        parts = [f"Usage {GRAINS[Grain(job.granularity)].lower()}"]
    else:
        parts = [
            "Every call",
            *(f"outcome {label.lower()}" for status, label in OUTCOMES.items() if status.label == job.call_status),
        ]
    if job.model_ids is not None:
        parts.append(f"{len(job.model_ids)} model{'' if len(job.model_ids) == 1 else 's'}")
    if job.month is not None and job.version > 1:
        parts.append(f"version {job.version}")
    return ", ".join([*parts, FORMATS[job.file_format]])


def _state(job: ExportJob, is_available: bool) -> tuple[str, str]:
    """In words, and which colour goes with them."""
    if job.is_open and job.cancelled_by:
        return "Being cancelled", ""
    if job.status == State.PENDING and job.failures:
        return "Will be tried again", "warn"
    if job.status == State.FAILED and job.cancelled_by and job.error == cancelled(job.cancelled_by):
        return "Cancelled", ""
    if job.status == State.SUCCEEDED and not is_available:
        return "Expired", ""
    tones = {State.RUNNING: "moving", State.SUCCEEDED: "good", State.FAILED: "bad"}
    return str(State(job.status).label), tones.get(State(job.status), "")


def _rows(job: ExportJob) -> str:
    """How many a file has; of one that is being made, how many so far."""
    number = job.rows_written if job.status == State.RUNNING else job.row_count
    if number is None:
        return ""
    return f"{grouped(number)} row{'' if number == 1 else 's'}" + (" so far" if job.status == State.RUNNING else "")


def _who(job: ExportJob) -> str:
    if job.initiated_by == SCHEDULE:
        return "Scheduled"
    kind, _, name = job.initiated_by.partition(":")
    return f"Asked for by {'key ' if kind == 'key' else ''}{name}"


def size(number: int) -> str:
    for step, unit in _SIZES:
        if number >= step:
            return f"{number / step:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{number}\N{NO-BREAK SPACE}bytes"


def last_month(org: Org, zone: ZoneInfo, now: datetime) -> LastMonth:
    """Its newest version."""
    first = previous_month(local_day(now, zone))
    job = monthly.latest_of(org, first)
    return LastMonth(f"{first:%B %Y}", row(job, zone, now) if job else None)
