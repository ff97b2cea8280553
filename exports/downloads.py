"""How a finished file is handed out: through an address that is signed, and is good for a while. Each is recorded."""

from datetime import timedelta

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from orgs import audit
from orgs.actions import Action

from .delivery import store_of
from .models import ExportJob


def hand_out(request: HttpRequest | Request, job: ExportJob) -> str | None:
    """The address of a job's file, for the caller of a request; None where there is no file. May raise `Undeliverable`."""
    now = timezone.now()
    if not job.is_available(now) or job.expires_at is None:
        return None
    lifetime = min(timedelta(seconds=settings.EXPORT_SIGNED_URL_TTL), job.expires_at - now)
    address = store_of(job.bucket).url(job.key, job.filename, lifetime)
    audit.record(request, Action.EXPORT_DOWNLOADED, job.org_id, str(job.pk))
    return address
