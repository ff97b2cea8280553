"""What is in a job's file: the dataset that its row asks for."""

from zoneinfo import ZoneInfo

from ingestion.models import Status
from orgs.limits import MAX_INCIDENT_ROWS
from usage.series import Unanswerable, zone_of
from usage.windows import DAY, UTC_ZONE, Window, local_day

from .datasets import Column, Dataset, incident_events, org_summary, usage
from .models import ExportJob, Kind

COLUMNS: dict[Kind, tuple[Column, ...]] = {
    Kind.USAGE: usage.COLUMNS,
    Kind.INCIDENT_EVENTS: incident_events.COLUMNS,
    Kind.ORG_SUMMARY: org_summary.COLUMNS,
}


def dataset_of(job: ExportJob) -> Dataset:
    """Nothing is read yet. Raises `Unanswerable` for what can't be had, naming the parameter."""
    zone = ZoneInfo(job.time_zone) if job.time_zone else None
    if job.dataset == Kind.ORG_SUMMARY:
        whose = zone or UTC_ZONE
        last = local_day(job.end_at, whose) - DAY
        return org_summary.dataset(org_summary.Request(local_day(job.start_at, whose), last, zone))
    assert job.org is not None
    window = Window(job.start_at, job.end_at)
    model_ids = None if job.model_ids is None else frozenset(job.model_ids)
    if job.dataset == Kind.USAGE:
        if zone not in (UTC_ZONE, zone_of(job.org)):  # days are kept in these alone
            raise Unanswerable("timeZone", "is no longer the organisation's: ask for the file anew")
        return usage.dataset(
            usage.Request(job.org.pk, window, usage.Grain(job.granularity), zone or UTC_ZONE, model_ids)
        )
    if model_ids is not None and len(model_ids) != 1:
        raise Unanswerable("models", "must name one model, or be left out: the calls themselves are of one, or of all")
    found = incident_events.dataset(
        incident_events.Incident(
            org_id=job.org.pk,
            window=window,
            limit=job.row_limit or MAX_INCIDENT_ROWS,
            model_id=None if model_ids is None else next(iter(model_ids)),
            status=Status.called(job.call_status),
        )
    )
    usage.check_length(window, UTC_ZONE)
    return found
