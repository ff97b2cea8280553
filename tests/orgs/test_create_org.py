"""`create_org`: what it prints is all that is needed to sign in, to send a first event, and to read it back."""

import json
import re
import shlex
import uuid
from dataclasses import dataclass
from io import StringIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import Client
from rest_framework.test import APIClient

from ingestion.models import UsageEvent
from orgs.models import ApiKey, Membership, Org, Role, Scope, User
from usage.rollups import roll_up

from ..factories import MODEL, make_model, make_org, make_user

pytestmark = pytest.mark.django_db


def create(*arguments: str) -> str:
    out = StringIO()
    call_command("create_org", *arguments, stdout=out)
    return out.getvalue()


def printed(name: str, said: str) -> str:
    """What stands behind a label."""
    found = re.search(rf"^{name}:\s+(.*)$", said, re.MULTILINE)
    assert found
    return found[1]


@dataclass(frozen=True)
class Curl:
    """A printed command, taken apart as a shell does it."""

    url: str
    headers: dict[str, str]
    body: str

    @classmethod
    def read(cls, said: str) -> "Curl":
        words = shlex.split(said[said.index("curl ") :].replace("\\\n", " "))
        assert words.pop(0) == "curl"
        headers, body, urls = {}, "", []
        while words:
            match words.pop(0):
                case "-H":
                    name, value = words.pop(0).split(": ", 1)
                    headers[name] = value
                case "-d":
                    body = words.pop(0)
                case word:
                    urls.append(word)
        (url,) = urls
        return cls(url, headers, body)

    def send(self) -> Any:
        """Through the test client, with exactly what the command says."""
        headers = dict(self.headers)
        content_type = headers.pop("Content-Type")
        return APIClient().generic(
            "POST", urlsplit(self.url).path, self.body, content_type=content_type, headers=headers
        )


def test_the_printed_command_stores_the_event_and_a_repeat_does_not() -> None:
    said = create("Acme Corp")
    org = Org.objects.get(slug="acme-corp")
    curl = Curl.read(said)
    assert curl.url == f"{settings.PUBLIC_URL}/analytics/v1/orgs/{org.pk}/events"
    for accepted in (1, 0):
        response = curl.send()
        assert response.status_code == 200, response.content
        answer = response.json()
        assert (answer["accepted"], answer["duplicates"], answer["rejected"]) == (accepted, 1 - accepted, [])
    stored = UsageEvent.objects.get()
    assert stored.org_id == org.pk
    assert str(stored.event_id) == json.loads(curl.body)[0]["eventId"]


def test_the_printed_key_reads_the_event_back() -> None:
    said = create("Acme")
    org = Org.objects.get()
    curl = Curl.read(said)
    curl.send()
    roll_up()
    token = printed("Key", said).split()[0]
    assert curl.headers["X-API-Key"] == token
    when = json.loads(curl.body)[0]["occurredAt"]
    response = APIClient().get(
        f"/analytics/v1/orgs/{org.pk}/usage",
        {"start": f"{when[:10]}T00:00:00Z", "end": f"{when[:10]}T23:59:59.999999Z"},
        headers={"X-API-Key": token},
    )
    totals = response.json()["totals"]
    assert (totals["invocations"], totals["inputTokens"], totals["outputTokens"]) == (1, 1200, 150)
    assert totals["costEstimate"] == "0.5850"


def test_the_key_has_every_scope_within_its_org_and_none_elsewhere() -> None:
    token = printed("Key", create("Acme")).split()[0]
    key = ApiKey.find(token)
    assert key is not None
    assert (key.org, key.scopes, key.created_by) == (Org.objects.get(), [Scope.ADMIN], User.objects.get())
    other = make_org("Globex")
    query = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
    response = APIClient().get(f"/analytics/v1/orgs/{other.pk}/usage", query, headers={"X-API-Key": token})
    assert response.status_code == 403


def test_the_printed_login_opens_the_printed_page() -> None:
    said = create("Acme", "--email", "Ada@Example.com")
    email, password = printed("Login", said).split(" / ")
    assert email == "ada@example.com"
    path = urlsplit(printed("Page", said)).path
    browser = Client()
    response = browser.post(f"/login/?next={path}", {"username": email, "password": password})
    assert (response.status_code, response["Location"]) == (302, path)
    page = browser.get(path)
    assert page.status_code == 200
    assert "Acme" in page.content.decode()
    assert Client().post("/login/", {"username": email, "password": f"{password}!"}).status_code == 200, "asks again"
    membership = Membership.objects.get()
    assert (membership.user.email, membership.role) == (email, Role.ORG_ADMIN)
    assert not membership.user.is_staff


def test_a_person_who_exists_keeps_the_password() -> None:
    user = make_user("ada@example.com")
    said = create("Acme", "--email", "ADA@example.com")
    assert printed("Login", said) == "ada@example.com (the password it has)"
    user.refresh_from_db()
    assert user.check_password("correct horse")
    assert Membership.objects.get().user == user


def test_the_first_event_names_a_registered_model_where_there_is_one() -> None:
    make_model()
    assert json.loads(Curl.read(create("Acme")).body)[0]["modelId"] == str(MODEL)


def test_slug_and_zone_can_be_named() -> None:
    said = create("Ac/me & Söhne", "--slug", "ac-me", "--time-zone", "Asia/Kolkata")
    org = Org.objects.get()
    assert (org.name, org.slug, org.time_zone) == ("Ac/me & Söhne", "ac-me", "Asia/Kolkata")
    assert f"Organisation Ac/me & Söhne ({org.pk})" in said
    assert printed("Login", said).startswith("admin@ac-me.example / ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Acme",), "Org with this Slug already exists."),
        (("Other", "--slug", "acme"), "Org with this Slug already exists."),
        (("Globex", "--time-zone", "Mars/Olympus"), "is not an IANA time zone"),
        (("Globex", "--slug", "two words"), "Enter a valid “slug”"),
        (("Globex", "--email", "nobody"), "Enter a valid email address."),
        (("企業",), "This field cannot be blank."),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(arguments: tuple[str, ...], said: str) -> None:
    make_org("Acme", slug="acme")
    with pytest.raises(CommandError) as told:
        create(*arguments)
    assert said in str(told.value)
    assert "\n" not in str(told.value)
    assert (Org.objects.count(), User.objects.count(), ApiKey.objects.count()) == (1, 0, 0)


def test_two_orgs_have_keys_of_their_own() -> None:
    tokens = {printed("Key", create(name)).split()[0] for name in ("Acme", "Globex")}
    assert len(tokens) == 2
    assert len({key.org_id for key in map(ApiKey.find, tokens) if key}) == 2


def test_the_event_of_each_command_is_another_one() -> None:
    ids = {uuid.UUID(json.loads(Curl.read(create(name)).body)[0]["eventId"]) for name in ("Acme", "Globex")}
    assert len(ids) == 2
