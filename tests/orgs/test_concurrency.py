"""One org's heavy questions and the other orgs: as many of one at once as it may have, and the rest are answered meanwhile."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
from django.conf import LazySettings
from django.test import Client
from rest_framework.test import APIClient

from orgs import concurrency
from orgs.models import Org
from usage.windows import Window

from ..factories import as_json, make_event, make_key, make_org, make_user
from ..held import FREE, HELD, Held, month_locked, with_calls
from ..processes import eventually, gunicorn

pytestmark = pytest.mark.django_db(transaction=True)

PROCESSES, THREADS = 2, 8  # as in production
BOUND = 4


@dataclass(frozen=True)
class Answer:
    status: int
    retry_after: str | None
    body: bytes


def ask(web: str, key: str, org: Org, window: Window, timeout: float = 60, **query: str) -> Answer:
    times = {"start": window.start.isoformat(), "end": window.end.isoformat(), "granularity": "hour"}
    url = f"{web}/analytics/v1/orgs/{org.pk}/usage?{urlencode(times | query)}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"X-API-Key": key}), timeout=timeout) as found:
            return Answer(found.status, found.headers["Retry-After"], found.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers["Retry-After"], error.read())


@dataclass
class Flood:
    """Many clients of one org, each with a key of its own, that ask for what takes long and ask again when refused."""

    web: str
    org: Org
    keys: list[str]
    answers: list[Answer] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def client(self, key: str) -> None:
        while not self.over.is_set():
            self.answers.append(ask(self.web, key, self.org, HELD))
            self.over.wait(0.25)

    @contextmanager
    def running(self, held: Held) -> Iterator[None]:
        """Until it is over, or a test fails: who waits is let go then."""
        with ThreadPoolExecutor(len(self.keys)) as clients:
            asked = [clients.submit(self.client, key) for key in self.keys]
            try:
                yield
            finally:
                self.over.set()
                held.release()
        for each in asked:
            each.result()


def test_while_one_org_floods_all_others_are_answered(tmp_path: Path) -> None:
    flooding, other = with_calls(make_org("Flooding")), with_calls(make_org("Other"))
    keys = [make_key(flooding) for _ in range(2 * PROCESSES * THREADS)]
    other_key, platform_key = make_key(other), make_key(None)
    with gunicorn(tmp_path / "log", ORG_CONCURRENCY=str(BOUND), WEB_STATEMENT_TIMEOUT="0") as web:
        flood = Flood(web, flooding, keys)
        with month_locked(flooding.pk) as held, flood.running(held):
            eventually(lambda: held.waiting == PROCESSES * BOUND, 60, "both processes serve all that they may")
            with ThreadPoolExecutor(4) as clients:
                answers = list(clients.map(lambda _: ask(web, other_key, other, FREE), range(40)))
            assert [answer.status for answer in answers] == [200] * 40
            assert json.loads(answers[0].body)["totals"]["invocations"] == 1
            assert ask(web, platform_key, other, FREE).status == 200
            refused = ask(web, platform_key, flooding, FREE)
            assert refused.status == 429, "whoever reads an org counts for it"
            assert held.waiting == PROCESSES * BOUND, "all the while"
            assert {answer.status for answer in flood.answers} == {429}
        assert sum(answer.status == 200 for answer in flood.answers) == PROCESSES * BOUND, (
            "those are answered in the end"
        )
        assert (refused.retry_after, json.loads(refused.body)["detail"]) == (
            "1", "Too many requests of this organisation at once. Nothing was done; repeat in 1 second.",
        )  # fmt: skip
        # Nothing is left behind, whatever was answered.
        after = [ask(web, keys[0], flooding, FREE, granularity=grain).status for grain in ("hour", "week") * 20]
        assert after == [200, 400] * 20


def test_without_a_bound_the_same_flood_holds_a_whole_process(tmp_path: Path) -> None:
    flooding, other = with_calls(make_org("Flooding")), with_calls(make_org("Other"))
    keys, other_key = [make_key(flooding) for _ in range(2 * PROCESSES * THREADS)], make_key(other)
    with gunicorn(tmp_path / "log", WEB_CONCURRENCY="1", ORG_CONCURRENCY="0", WEB_STATEMENT_TIMEOUT="0") as web:
        flood = Flood(web, flooding, keys)
        with month_locked(flooding.pk) as held, flood.running(held):
            eventually(lambda: held.waiting == THREADS, 60, "all threads are held")
            with pytest.raises(TimeoutError):
                ask(web, other_key, other, FREE, timeout=2)


# ── Who is counted, and what is said ─────────────────────────────────────────────────────────────────────────────
@contextmanager
def busy(org: Org) -> Iterator[None]:
    """Another thread serves a request of the org."""
    entered, over = threading.Event(), threading.Event()

    def serve() -> None:
        concurrency.enter(org.pk)
        entered.set()
        over.wait()
        concurrency._leave()

    thread = threading.Thread(target=serve)
    thread.start()
    entered.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(autouse=True)
def one_at_once(settings: LazySettings) -> None:
    settings.ORG_CONCURRENCY = 1


def test_a_page_says_what_to_do_and_other_orgs_have_theirs(client: Client) -> None:
    org = make_org()
    client.force_login(make_user(org=org))
    with busy(make_org("Other")):
        assert client.get(f"/orgs/{org.slug}/usage/").status_code == 200
    with busy(org):
        refused = client.get(f"/orgs/{org.slug}/usage/")
    assert (refused.status_code, refused["Retry-After"]) == (429, "1")
    assert "Your organisation is asking for a lot at once" in refused.content.decode()
    assert client.get(f"/orgs/{org.slug}/usage/").status_code == 200


def test_events_count_and_nothing_of_a_refused_body_is_stored(api: APIClient) -> None:
    org = make_org()
    api.credentials(HTTP_X_API_KEY=make_key(org))
    url, body = f"/analytics/v1/orgs/{org.pk}/events", [as_json(make_event(org))]
    with busy(org):
        assert api.post(url, body, format="json").status_code == 429
    assert api.post(url, body, format="json").json()["accepted"] == 1


def test_who_may_not_read_an_org_takes_none_of_its_places(api: APIClient) -> None:
    org = make_org()
    api.credentials(HTTP_X_API_KEY=make_key(make_org("Other")))
    with busy(org):
        assert api.get(f"/analytics/v1/orgs/{org.pk}/freshness").status_code == 403


def test_a_file_that_nobody_reads_to_its_end_is_given_up_with_the_next_request(api: APIClient) -> None:
    org = make_org()
    api.credentials(HTTP_X_API_KEY=make_key(org))
    for _ in range(3):
        assert api.get(f"/analytics/v1/orgs/{org.pk}/audit.csv").status_code == 200
