"""Incidents and paging conditions of an org, as pages and the API tell them."""

import uuid
from datetime import datetime, timedelta

from django.db.models import Q

from orgs.limits import MAX_INCIDENTS
from orgs.models import Org
from usage.freshness import complete_up_to
from usage.recent import minutes
from usage.windows import MINUTE, Window, floor_minute

from .conditions import Held, held
from .models import Incident
from .watching import Subject, samples_of

# Conditions look back 10 minutes, and 5 that ended 15 before; those that hold longer are told from the earliest seen.
_LOOKED_AT = timedelta(minutes=30)


def incidents_of(org: Org, window: Window, model_id: uuid.UUID | None = None) -> list[Incident]:
    """Those that a window touches, latest first; of a model, also those of all models together. One more than the limit
    where there are more. Index incidents_of_an_org.
    """
    found = Incident.objects.filter(org=org, started_at__lt=window.end).filter(
        Q(ended_at__gt=window.start) | Q(is_open=True)
    )
    if model_id is not None:
        found = found.filter(Q(model_id=model_id) | Q(model_id=None))
    return list(found.order_by("-started_at", "id")[: MAX_INCIDENTS + 1])


def holding(org: Org, now: datetime, model_id: uuid.UUID | None = None) -> list[tuple[Subject, Held]]:
    """The conditions that page a platform team and hold at the last minute that is counted, of the org and its models."""
    until = floor_minute(complete_up_to(now))
    subjects = samples_of(minutes(Window(until - _LOOKED_AT, until), org.pk, model_id))
    return [
        (subject, each)
        for subject, samples in sorted(subjects.items(), key=lambda item: str(item[0] or ""))
        if subject is not None or model_id is None
        for each in held(samples)
        if each.end >= until - MINUTE
    ]
