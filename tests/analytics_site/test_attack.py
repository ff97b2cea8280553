"""The attack suite: it finds nothing in the service, and does find what is broken on purpose."""

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.middleware.csrf import CsrfViewMiddleware
from pytest_django.live_server_helper import LiveServer

import exports.csv_writer
import exports.job_views
import ingestion.views
import orgs.access
import usage.views
from analytics_site.attack import KINDS, injection, learning
from analytics_site.attack.learning import learn
from analytics_site.attack.trial import Leak, Party, Person, Trial
from analytics_site.attack.wire import Answer, Call, Wire
from exports.models import ExportJob
from orgs.models import Org, Role, Scope
from usage.rollups import roll_up

from ..factories import NOON, ingest, make_event, make_key, make_model, make_org, make_user
from ..processes import environment


@pytest.mark.django_db
def test_a_member_of_one_org_gets_nothing_of_another_by_any_attack() -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "attack"],
        cwd=django_settings.BASE_DIR,
        env=environment(LOG_LEVEL="ERROR"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-4_000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["leaked"] == 0
    assert summary["tried"] == summary["refused"] > 1_500
    rows = [line.split() for line in done.stdout.splitlines()]
    tried = {row[0]: int(row[1]) for row in rows if row and row[0] in KINDS}
    assert set(tried) == set(KINDS)
    assert min(tried.values()) > 5
    assert "not tried" not in done.stdout
    assert "held off" not in done.stdout


def test_a_running_installation_is_attacked_with_two_keys_which_are_not_printed(live_server: LiveServer) -> None:
    owners = {label: make_org(f"Company {label}") for label in "AB"}
    keys = {label: make_key(org) for label, org in owners.items()}
    model = make_model(uuid.uuid4())
    for org in owners.values():
        ingest([make_event(org, model_id=model.pk)])
    roll_up()
    words = [
        live_server.url,
        "--org-a",
        str(owners["A"].pk),
        "--org-b",
        str(owners["B"].pk),
        "--only",
        "reading,tokens",
    ]
    secrets = {f"ATTACK_KEY_{label}": key for label, key in keys.items()}

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", "attack", *arguments],
            cwd=django_settings.BASE_DIR,
            env=environment(LOG_LEVEL="ERROR", **variables),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    with roll_up_meanwhile():
        done = run(*words, **secrets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["leaked"] == 0
    assert "not tried: preparation: B has no admin who signs in" in done.stdout  # what was left out is told
    assert not any(key in done.stdout + done.stderr for key in keys.values())
    assert "ATTACK_KEY_B" in run(*words, ATTACK_KEY_A=keys["A"]).stderr
    wrong = run(*words, ATTACK_KEY_A=keys["A"], ATTACK_KEY_B=keys["A"])
    assert "B's key can't read its own usage: 403" in wrong.stderr
    assert wrong.returncode == 1


@contextmanager
def roll_up_meanwhile() -> Iterator[None]:
    """What a worker does in an installation that runs."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.5):
            roll_up()
        connection.close()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()


# ── What is broken is found ──────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def trial(live_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Two orgs behind a real socket; nothing attacked yet. No worker makes files here."""
    monkeypatch.setattr(learning, "EXPORTED_IN", 0)
    parties = []
    for label in "AB":
        org = make_org(f"Company {label}")
        model = make_model(uuid.uuid4(), f"Model of {label} {uuid.uuid4().hex[:6]}")
        ingest([make_event(org, model_id=model.pk, client_id=f"app-{label}", occurred_at=NOON)])
        admin = make_user(org=org, role=Role.ORG_ADMIN)
        party = Party(label, str(org.pk), make_key(org))
        party.people["org_admin"] = Person(admin.email, "correct horse")
        parties.append(party)
    roll_up()
    found = Trial(Wire(live_server.url), *parties, say=lambda line: None)
    found.roll_up = roll_up
    return found


def attack(trial: Trial, kind: str) -> list[Leak]:
    """What one kind of attack finds."""
    learn(trial)
    trial.kind = kind
    KINDS[kind](trial)
    return trial.leaks


def ignore_the_org(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(orgs.access, "scopes_in", lambda request, org_id: (orgs.access.ALL_SCOPES, False))


def look_up_jobs_of_any_org(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exports.job_views, "_job", lambda org, job_id: ExportJob.objects.select_related("org").get(pk=job_id))


def take_events_of_any_org(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ingestion.views, "_of_org", lambda item, org_id: item)


def check_no_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CsrfViewMiddleware, "process_view", lambda *args: None)


def put_sql_together(patch: pytest.MonkeyPatch) -> None:
    right = usage.views.FreshnessView.get

    def get(self: Any, request: Any, org_id: uuid.UUID) -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT '" + request.query_params.get("modelId", "") + "'")
        return right(self, request, org_id)

    patch.setattr(usage.views.FreshnessView, "get", get)


def leave_formulas(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exports.csv_writer, "harmless", lambda value: value)


def allow_inline_script(patch: pytest.MonkeyPatch) -> None:
    policy = {"DIRECTIVES": {"default-src": ["'self'"], "script-src": ["'self'", "'unsafe-inline'"]}}
    patch.setattr(django_settings, "CONTENT_SECURITY_POLICY", policy)


def take_longer_for_orgs_that_are_there(patch: pytest.MonkeyPatch) -> None:
    right = orgs.access.scopes_in

    def scopes_in(request: Any, org_id: uuid.UUID) -> Any:
        if Org.objects.filter(pk=org_id).exists():
            time.sleep(0.02)
        return right(request, org_id)

    patch.setattr(orgs.access, "scopes_in", scopes_in)


def accept_any_bearer(patch: pytest.MonkeyPatch) -> None:
    right = orgs.access.is_authenticated
    patch.setattr(orgs.access, "is_authenticated", lambda r: "Bearer" in r.headers.get("Authorization", "") or right(r))
    patch.setattr(orgs.access, "scopes_in", lambda request, org_id: (frozenset(Scope.values), False))


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "the org is ignored": (ignore_the_org, "reading"),
    "jobs of any org are looked up": (look_up_jobs_of_any_org, "ids"),
    "events of any org are taken": (take_events_of_any_org, "writing"),
    "no token is asked for": (check_no_token, "pages"),
    "SQL is put together": (put_sql_together, "sql"),
    "formulas stay formulas": (leave_formulas, "injection"),
    "pages allow inline script": (allow_inline_script, "browsers"),
    "orgs that are there take longer": (take_longer_for_orgs_that_are_there, "guessing"),
    "any bearer token is accepted": (accept_any_bearer, "tokens"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_found(trial: Trial, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    break_it, kind = BROKEN[broken]
    break_it(monkeypatch)
    found = attack(trial, kind)
    assert found or trial.failures
    for leak in found:
        assert trial.b.key not in leak.how + leak.why + leak.what
        assert trial.a.key not in leak.how + leak.why + leak.what


def test_a_canary_is_found_wherever_it_stands_but_not_where_the_request_said_it(trial: Trial) -> None:
    trial.is_canary("Secret Company", "the name")
    call = Call("GET", "/x")
    for answer in (
        Answer(403, (), b"<p>secret company</p>"),
        Answer(403, (("X-Org", "Secret Company"),)),
        Answer(302, (("Location", "https://elsewhere.example/?q=Secret%20Company"),)),
    ):
        trial.attempt("a test", call, expected={302, 403}, answer=answer)
    assert [leak.why for leak in trial.leaks] == ["the answer holds the name of B"] * 3
    trial.attempt(
        "said by itself", Call("GET", "/?q=Secret%20Company"), expected={403}, answer=Answer(403, (), b"secret company")
    )
    assert len(trial.leaks) == 3


def test_what_succeeds_though_it_should_not_is_a_leak_and_an_error_of_the_server_is_told(trial: Trial) -> None:
    trial.attempt("success", Call("GET", "/"), answer=Answer(200))
    trial.attempt("failure", Call("GET", "/"), answer=Answer(500))
    trial.attempt("refusal", Call("GET", "/"), answer=Answer(403))
    assert (len(trial.leaks), len(trial.failures), trial.refused.total(), trial.tried.total()) == (1, 1, 1, 3)


HARMLESS = (
    "<p>&lt;script&gt;z1</p>",
    '<input value="&quot;&gt;&lt;img src=x onerror=z1">',
    "<p>z1{{7*7}}</p>",
    "<script src='/x.js'></script>",
)
HARMFUL = (
    "<p><script>z1</script>",
    "<img src=x onerror=z1>",
    "<a href=' javascript:z1'>",
    "z149",
    "<base href='//evil'>",
)


@pytest.mark.parametrize("page", [*HARMLESS, *HARMFUL])
def test_markup_is_told_from_text_that_looks_like_it(page: str) -> None:
    assert (injection.is_harmless(page, "z1") is None) == (page in HARMLESS)


@pytest.mark.parametrize(
    ("cell", "is_fine"),
    [("-1.5", True), ("'=1+1", True), ("=1+1", False), ('"\t=1"', False), ("@SUM(1)", False), ("-2+3", False)],
)
def test_a_cell_that_a_spreadsheet_works_out_is_noticed(cell: str, is_fine: bool) -> None:
    assert (injection.calculates(f"a,{cell},b\r\n") is None) == is_fine
