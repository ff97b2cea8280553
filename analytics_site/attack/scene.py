"""An installation made for one attack: a database of its own, two orgs with all that one could steal, and a web process."""

import contextlib
import secrets
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from analytics_site.rig import environment, free_port, scratch_database, wait_for, web
from exports.delivery.folder import FolderStore
from exports.making import attempt
from exports.models import ExportBucket, ExportJob
from ingestion.models import Door
from ingestion.schema import UsageEvent
from ingestion.writing import Delivery, store
from orgs.models import ApiKey, Invitation, Membership, Org, Role, Scope, ServedModel, User
from usage.rollups import roll_up

from .trial import Party, Person, Trial
from .wire import Call, Wire

EVENTS = 40  # of each org


@contextlib.contextmanager
def scene(say: Callable[[str], object]) -> Iterator[Trial]:
    """The service, attacked by nobody yet."""
    with (
        scratch_database(),
        tempfile.TemporaryDirectory(prefix="analytics-attack-") as folder,
        override_settings(EXPORT_FOLDER=folder),
    ):
        attacker, victim = _org("A", list(Role)), _org("B", [Role.ORG_ADMIN])
        roll_up()
        with _web(folder) as wire:
            trial = Trial(wire, attacker, victim, say)
            trial.is_own, trial.roll_up = True, roll_up
            trial.make_export = lambda job_id: _make(victim, job_id)
            yield trial
        connection.close()


def _org(label: str, signing_in: Sequence[Role]) -> Party:
    """An org whose every word is its own, with a member of each role; some of them sign in, which takes a slow hash each."""
    word = secrets.token_hex(4)
    org = Org.objects.create(
        name=f"Company {label} {word} <b>&",
        slug=f"company-{label.lower()}-{word}",
        billing_contact=f"billing-{word}@example.com",
    )
    model = ServedModel.objects.create(display_name=f"Model {word}")
    people = {role: _person(org, role, f"{role}-{word}@example.com") for role in signing_in}
    for role in set(Role) - set(signing_in):
        member = User.objects.create_user(f"{role}-{word}@example.com")
        Membership.objects.create(org=org, user=member, role=role)
    admin = User.objects.get(email=people[Role.ORG_ADMIN].email)
    keys = {
        scope.value: ApiKey.issue(org=org, name=f"{scope.name} {word}", scopes=[scope])[1]
        for scope in Scope
        if scope != Scope.ADMIN
    }
    for name, fields in (
        ("expired", {"expires_at": timezone.now() - timedelta(seconds=1)}),
        ("revoked", {"revoked_at": timezone.now()}),
    ):
        key, keys[name] = ApiKey.issue(org=org, name=f"{name} {word}", scopes=[Scope.ADMIN])
        ApiKey.objects.filter(pk=key.pk).update(**fields)
    Invitation.issue(org, f"invited-{word}@example.com", Role.VIEWER, admin)
    ExportBucket.objects.create(org=org, bucket=f"{org.slug}-exports")
    now = timezone.now()
    events = [
        UsageEvent(
            event_id=uuid.uuid4(),
            org_id=org.pk,
            model_id=model.pk,
            client_id=f"app-{word}",
            occurred_at=now - timedelta(hours=number),
            latency_ms=100 + number,
            status="success",
            input_tokens=1_000 + number,
            output_tokens=10,
            cost_estimate_cents=Decimal("12.3457"),
        )
        for number in range(1, EVENTS + 1)
    ]
    store(Delivery(Door.HTTP, events, registers=True))
    return Party(
        label=label,
        org_id=str(org.pk),
        key=ApiKey.issue(org=org, name=f"all {word}", scopes=[Scope.ADMIN])[1],
        keys=keys,
        people={str(role): person for role, person in people.items()},
        slug=org.slug,
        model_id=str(model.pk),
        secrets={
            org.name: "the name",
            model.display_name: "the model's name",
            f"app-{word}": "a client",
            org.billing_contact: "the contact",
        },
    )


def _person(org: Org, role: Role, email: str) -> Person:
    password = secrets.token_urlsafe(12)
    user = User.objects.create_user(email, password)
    Membership.objects.create(org=org, user=user, role=role)
    return Person(email, password, role)


def _make(victim: Party, job_id: str) -> None:
    """What a worker would do; and of the victim's file a link whose time is over."""
    attempt(job_id)
    job = ExportJob.objects.get(pk=job_id)
    if str(job.org_id) == victim.org_id:
        address = FolderStore(Path(settings.EXPORT_FOLDER)).url(job.key, job.filename, timedelta(seconds=-1))
        victim.links["expired"] = urlsplit(address).path


@contextlib.contextmanager
def _web(folder: str) -> Iterator[Wire]:
    """gunicorn as in production, on loopback. Its log has errors alone: refusals are what is wanted here."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    variables = environment(
        PUBLIC_URL=base, HTTP_PORT=str(port), EXPORT_FOLDER=folder, SECRET_KEY=settings.SECRET_KEY, LOG_LEVEL="CRITICAL"
    )
    process = web(variables, "--log-level", "error")
    process.start()
    wire = Wire(base)
    try:
        wait_for(
            lambda: wire.send(Call("GET", "/analytics/v1/status/readyz")).status == 200,
            "the web process does not start",
        )
        yield wire
    finally:
        process.stop()
