"""Every route × every way in × every role × own org, foreign org, no such org: `route_table` says what is right."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pytest_django.plugin import DjangoDbBlocker
from rest_framework.test import APIClient

from .callers import PLACES, Caller, People, Place
from .identity_provider import IdentityProvider
from .route_table import ACTIONS, EVERYBODY, LINES, MODELS, PAGES, Ask, Line, all_routes, models_of_admin
from .things import Things

pytestmark = pytest.mark.django_db

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# Some of each way in try what is anybody's, and what a route does not take.
SOME = re.compile(
    "nobody|org_admin by .*|org_admin .* another site|viewer by session|superuser.*|key for admin|expired .*"
)
_WRITE = re.compile(r'\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+"?(\w+)"?(?:\s+SET\s+"(\w+)")?', re.IGNORECASE)
# What a request may write that is refused: the record of that, and when a key was used last.
_OF_REFUSALS = {("orgs_auditrecord", None), ("orgs_apikey", "last_used_at")}


class World:
    """Made once, and as it was after every request: each is rolled back."""

    def __init__(self, provider: IdentityProvider, folder: Path) -> None:
        self.folder = folder
        self.people = People(provider)
        self.things = Things(self.people, folder)

    def ask(self, line: Line, method: str, caller: Caller, place: Place, **extra: Any) -> tuple[str, Any, set[Any]]:
        """The outcome in a word, the answer, and what was written."""
        client = self.people.client(caller)
        with transaction.atomic(), CaptureQueriesContext(connection) as queries:
            answer = self._answer(client, line, method, place, **extra)
            if answer.streaming:
                b"".join(answer.streaming_content)
            transaction.set_rollback(True)
        written = {found.groups() for query in queries if (found := _WRITE.match(str(query["sql"])))}
        is_login = answer.status_code == 302 and "login/?next=" in answer["Location"]
        return "login" if is_login else str(answer.status_code), answer, written

    def _answer(
        self, client: APIClient, line: Line, method: str, place: Place, things_of: Place | None = None, **headers: str
    ) -> Any:
        ask: Ask | None = line.asks.get(method)
        if ask and ask.route:
            return ask.route.call(client, self.people.org_id(place))
        address = self.things.address(line, place, things_of)
        sends = dict(ask.sends) if ask else None
        return getattr(client, method.lower())(address, sends, headers=headers)


@pytest.fixture(scope="module")
def made(
    django_db_setup: None,
    django_db_blocker: DjangoDbBlocker,
    shared_provider: IdentityProvider,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    with django_db_blocker.unblock(), transaction.atomic():
        yield World(shared_provider, tmp_path_factory.mktemp("files"))
        transaction.set_rollback(True)


@pytest.fixture
def world(made: World, steady_provider: IdentityProvider, settings: LazySettings) -> World:
    settings.EXPORT_FOLDER = str(made.folder)
    return made


def test_every_route_is_in_the_table() -> None:
    """A new one needs its line: see `route_table`."""
    static = {line.route for line in LINES if line.route.startswith("static/")}
    assert sorted(all_routes()) == sorted({line.route for line in LINES} - static)
    assert len({line.route for line in LINES}) == len(LINES)


def test_every_model_and_action_of_the_admin_is_in_the_table() -> None:
    found = models_of_admin()
    assert set(found) == set(MODELS)
    assert {label: set(owner.actions) for label, owner in found.items() if owner.actions} == {
        label: set(actions) for label, actions in ACTIONS.items()
    }


def cells(line: Line, callers: Iterable[Caller]) -> Iterator[tuple[str, Caller, Place]]:
    """What can make a difference: of the admin no org does, and its views take every other method for a look."""
    for caller in callers:
        is_one_of_some = SOME.fullmatch(caller.name)
        if line.need == EVERYBODY and not is_one_of_some:
            continue
        for method in METHODS:
            if method in line.asks:
                places = PLACES if line.names_an_org and line.kind != "admin" else PLACES[:1]
                yield from ((method, caller, place) for place in places)
            elif line.kind != "admin" and is_one_of_some:
                yield method, caller, "own"


@pytest.mark.parametrize("line", LINES, ids=str)
def test_every_caller_gets_what_the_policy_says(world: World, line: Line) -> None:
    wrong = {}
    for method, caller, place in cells(line, world.people.known):
        found, _, written = world.ask(line, method, caller, place)
        right = line.expected(method, caller, place)
        if found not in right:
            wrong[method, str(caller), place] = f"{found} for {' or '.join(right)}"
        elif found in ("401", "403", "login", "405") and written - _OF_REFUSALS:
            wrong[method, str(caller), place] = f"{found}, and yet it wrote {written - _OF_REFUSALS}"
    assert wrong == {}


@pytest.mark.parametrize("line", PAGES, ids=str)
def test_an_org_that_is_anothers_and_one_that_does_not_exist_answer_alike(world: World, line: Line) -> None:
    for caller in world.people.known:
        if not caller.is_person or caller.staff_role or not line.names_an_org:
            continue
        others: list[Place] = [place for place in PLACES if place != caller.at]
        for method in ("GET", "POST"):
            told = set()
            for place in others:
                outcome, answer, _ = world.ask(line, method, caller, place)
                body = answer.content.replace(world.things.address(line, place).encode(), b"")
                told.add((outcome, re.sub(rb"[0-9a-f-]{36}|csrfmiddlewaretoken[^>]*", b"", body)))
            assert len(told) == 1, (str(caller), method)


@pytest.mark.parametrize("line", [line for line in PAGES if line.names_a_thing], ids=str)
def test_a_thing_that_is_anothers_and_one_that_does_not_exist_are_not_there(world: World, line: Line) -> None:
    admin = next(caller for caller in world.people.known if caller.name == "org_admin by session")
    for method in line.asks:
        for things_of in PLACES[1:]:
            outcome, _, written = world.ask(line, method, admin, "own", things_of=things_of)
            assert (outcome, written - _OF_REFUSALS) == ("404", set()), (method, things_of)


@pytest.mark.parametrize("line", [line for line in PAGES if "GET" in line.asks], ids=str)
def test_a_part_of_a_page_is_had_by_who_may_have_the_page(world: World, line: Line) -> None:
    for caller in world.people.known:
        for place in PLACES:
            found, _, _ = world.ask(line, "GET", caller, place, **{"HX-Request": "true"})
            assert found in line.expected("GET", caller, place), (str(caller), place)


@pytest.mark.parametrize(
    ("label", "action"),
    [(label, action) for label, actions in ACTIONS.items() for action in actions]
    + [(label, "delete_selected") for label, verbs in MODELS.items() if "delete" in verbs],
)
def test_an_action_of_a_list_is_for_who_may_do_it(world: World, label: str, action: str) -> None:
    app, model = label.split(".")
    verb = ACTIONS.get(label, {}).get(action, "delete")
    rows = [world.things.rows[label]] + [world.things.open_job] * (label == "exports.exportjob")
    sends = {"action": action, "_selected_action": [row.pk for row in rows]}
    line = Line(f"admin/{app}/{model}/", "admin", {"POST": Ask("no one", 0, sends)})
    for caller in world.people.known:
        _, answer, written = world.ask(line, "POST", caller, "own")
        is_asked_back = "confirm" in str(getattr(answer, "template_name", ""))
        is_done = is_asked_back or bool(written - _OF_REFUSALS)
        may = caller.may_in_admin(f"{app}.{verb}_{model}")
        assert is_done == may, (str(caller), answer.status_code, written)
