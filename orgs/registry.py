"""The registry of orgs and served models, as ingestion meets it."""

import uuid
from collections.abc import Iterable

from .models import Org, ServedModel


def add_stubs(org_ids: Iterable[uuid.UUID], model_ids: Iterable[uuid.UUID]) -> None:
    """Give orgs and models that events name, and nobody registered, a row that staff can complete.

    Keys go in in order, so that two batches that name the same ones can't deadlock.
    """
    known_orgs = set(org_ids)
    missing = sorted(known_orgs - set(Org.objects.filter(pk__in=known_orgs).values_list("pk", flat=True)))
    Org.objects.bulk_create(
        (Org(id=pk, name=f"Unregistered org {pk}", slug=f"org-{pk}", is_stub=True) for pk in missing),
        ignore_conflicts=True,
    )
    known_models = set(model_ids)
    missing = sorted(known_models - set(ServedModel.objects.filter(pk__in=known_models).values_list("pk", flat=True)))
    ServedModel.objects.bulk_create(
        (ServedModel(id=pk, display_name=f"Unregistered model {pk}", is_stub=True) for pk in missing),
        ignore_conflicts=True,
    )
