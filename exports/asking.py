"""What somebody who makes a request wants of jobs, and the record of it: whichever way in they came."""

from django.http import HttpRequest
from rest_framework.request import Request

from orgs import audit
from orgs.actions import Action

from . import jobs
from .models import ExportJob


def ask(request: HttpRequest | Request, wanted: jobs.Wanted, idempotency_key: str = "") -> ExportJob:
    """As `jobs.ask`."""
    return _recorded(request, jobs.ask(wanted, audit.actor_of(request), idempotency_key))


def again(request: HttpRequest | Request, job: ExportJob) -> ExportJob:
    """As `jobs.again`."""
    return _recorded(request, jobs.again(job, audit.actor_of(request)))


def cancel(request: HttpRequest | Request, job: ExportJob) -> bool:
    """As `jobs.cancel`."""
    is_cancelled = jobs.cancel(job, audit.actor_of(request))
    if is_cancelled:
        audit.record(request, Action.EXPORT_CANCELLED, job.org_id, str(job.pk))
    return is_cancelled


def _recorded(request: HttpRequest | Request, job: ExportJob) -> ExportJob:
    audit.record(request, Action.EXPORT_ASKED_FOR, job.org_id, str(job.pk))
    return job
