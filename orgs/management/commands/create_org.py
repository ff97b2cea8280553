import secrets
import uuid
from argparse import ArgumentParser
from typing import Any

import msgspec
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from orgs import audit
from orgs.actions import Action
from orgs.models import ApiKey, Membership, Org, Role, Scope, ServedModel, User


class Command(BaseCommand):
    help = "Register an org with its first admin and a key; print the login, the key and how to send a first event."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--slug", help="default: made from the name")
        parser.add_argument("--email", help="of the first admin; default: admin@<slug>.example")
        parser.add_argument("--time-zone", default="UTC", help="IANA name, such as Europe/Berlin")

    def handle(self, *args: Any, **options: Any) -> None:
        slug = options["slug"] or slugify(options["name"])
        email = (options["email"] or f"admin@{slug}.example").lower()
        password = secrets.token_urlsafe(12)
        org = Org(name=options["name"], slug=slug, time_zone=options["time_zone"], billing_contact=email)
        try:
            org.full_clean()
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        with transaction.atomic():
            org.save()
            user = User.objects.filter(email=email).first()
            login = f"{email} (the password it has)" if user else f"{email} / {password}"
            user = user or User.objects.create_user(email, password)
            Membership.objects.create(org=org, user=user, role=Role.ORG_ADMIN)
            key, token = ApiKey.issue(org=org, name="first key", scopes=[Scope.ADMIN], created_by=user)
            audit.record_command("create_org", Action.MEMBER_ADDED, org.pk, f"{email} as {Role.ORG_ADMIN}")
            audit.record_command("create_org", Action.KEY_MADE, org.pk, f"{key.prefix}: {Scope.ADMIN}")
        self.stdout.write(
            f"Organisation {org.name} ({org.pk})\n"
            f"Page:  {settings.PUBLIC_URL}/orgs/{org.slug}/usage/\n"
            f"Login: {login}\n"
            f"Key:   {token}  (shown once)\n\n"
            f"Send a first event:\n\n{first_event(org, token)}"
        )


def first_event(org: Org, token: str) -> str:
    """A command that sends one event of an org."""
    model = ServedModel.objects.filter(is_stub=False).first()
    event = {
        "eventId": uuid.uuid4(),
        "orgId": org.pk,
        "modelId": model.pk if model else uuid.uuid4(),
        "occurredAt": timezone.now(),
        "latencyMs": 840,
        "status": "success",
        "inputTokens": 1200,
        "outputTokens": 150,
        "costEstimateCents": 0.585,
    }
    return (
        f"curl -H 'X-API-Key: {token}' -H 'Content-Type: application/json' \\\n"
        f"  -d '[{msgspec.json.encode(event).decode()}]' \\\n"
        f"  {settings.PUBLIC_URL}/analytics/v1/orgs/{org.pk}/events"
    )
