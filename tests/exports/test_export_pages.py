"""The exports page: what is asked for by its form, how each state of a file is told, and who may do what."""

import re
from datetime import UTC, date, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from exports import jobs, making
from exports.datasets.usage import Grain
from exports.models import SCHEDULE, ExportJob, Kind, State
from exports.writers import Format
from ingestion.models import Status
from orgs.limits import MAX_INCIDENT_ROWS, MAX_OPEN_EXPORTS
from orgs.models import AuditRecord, Org, Role, User
from usage.models import ZoneInForce
from usage.rollups import roll_up
from usage.series import zone_of
from usage.windows import DAY, HOUR, Window, first_of_month, local_day

from ..factories import MODEL, NOON, OTHER_MODEL, ROLE_QUERIES, ingest, make_event, make_model, make_org, make_user

pytestmark = pytest.mark.django_db
committed = pytest.mark.django_db(transaction=True)  # what the making of a file needs
WINDOW = Window(NOON - DAY, NOON + DAY)
WISH = {"dataset": "usage", "range": "7d", "granularity": "daily", "format": "csv"}
DAY_TEXT = f"{NOON:%Y-%m-%d}"
# In Kolkata it is the 1st of April already.
EVE = datetime(2026, 3, 31, 20, 0, tzinfo=UTC)


@pytest.fixture
def org(folder: Path) -> Org:
    """With calls of two models."""
    org = make_org("Acme", slug="acme", time_zone="Asia/Kolkata")
    make_model()
    make_model(OTHER_MODEL, "Birch Mini")
    ingest([make_event(org, model_id=model) for model in (MODEL, OTHER_MODEL)])
    roll_up()
    return org


@pytest.fixture
def owner(org: Org) -> User:
    return make_user("fin@example.com", org, Role.FINANCE)


def visit(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def path(org: Org, rest: str = "") -> str:
    return f"/orgs/{org.slug}/exports/{rest}"


def words(html: str) -> str:
    """What a person reads, without what only screen readers are told."""
    html = re.sub(r'<span class="visually-hidden">.*?</span>', "", html.split("<main")[1], flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def page(user: User, org: Org, query: str = "") -> str:
    answer = visit(user).get(path(org, query))
    assert answer.status_code == 200
    return str(answer.content.decode())


def row_of(html: str, job: ExportJob) -> str:
    """What the page says about one job."""
    found = re.search(rf'<article[^>]*\sid="job-{job.pk}".*?</article>', html, re.DOTALL)
    assert found is not None
    return words(f"<main>{found[0]}")


def chosen(html: str) -> dict[str, list[str]]:
    """What the form would send, but for what is typed."""
    inputs = re.findall(r"<input[^>]*>", html, re.DOTALL)
    checked = [found for found in inputs if re.search(r"\schecked\b", found)]
    selects = re.findall(r'<select[^>]*name="(\w+)".*?</select>', html, re.DOTALL)
    said: dict[str, list[str]] = {}
    for found in checked:
        name, value = (re.search(rf'{key}="([^"]*)"', found) for key in ("name", "value"))
        assert name is not None
        assert value is not None
        said.setdefault(name[1], []).append(value[1])
    for name in selects:
        body = re.search(rf'<select[^>]*name="{name}".*?</select>', html, re.DOTALL)
        assert body is not None
        said[name] = re.findall(r'<option value="([^"]*)"\s+selected', body[0])
    return said


def typed(html: str, name: str) -> tuple[str, str]:
    """The type and the value of an input."""
    found = re.search(rf'<input[^>]*name="{name}"[^>]*>', html)
    assert found is not None
    kind, value = re.search(r'type="([^"]*)"', found[0]), re.search(r'value="([^"]*)"', found[0])
    return (kind[1] if kind else "", value[1] if value else "")


def last_month(org: Org) -> date:
    """Its first day."""
    return first_of_month(first_of_month(local_day(timezone.now(), zone_of(org))) - DAY)


def make_job(org: Org, status: State = State.SUCCEEDED, by: str = "user:fin@example.com", **fields: Any) -> ExportJob:
    """A row in some state, without a file."""
    wish = {name: fields.pop(name) for name in ("dataset", "format", "month", "call_status") if name in fields}
    job = jobs.Wanted(**{"org": org, "window": WINDOW, "zone": org.time_zone} | wish).job(by)
    job.status = status
    now = timezone.now()
    if status in (State.SUCCEEDED, State.EXPIRED):
        job.row_count, job.byte_count, job.checksum = 1_234, 20_480, "ab" * 32
        job.totals = {"cost_cents": "1739.2500"}
        job.expires_at = now + (DAY if status == State.SUCCEEDED else -DAY)
    for name, value in fields.items():
        setattr(job, name, value)
    job.save(force_insert=True)
    return job


# ── Asking ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_where_nothing_was_asked_for_the_page_says_what_to_do(org: Org, owner: User) -> None:
    said = words(page(owner, org))
    assert "Nothing here yet. A file that you create appears here" in said
    assert f"{last_month(org):%B %Y} No file yet." in said
    assert "Create file" in said
    assert "Time zone: Asia/Kolkata (UTC+5:30)" in said


def test_asking_makes_a_job_and_leads_to_it(org: Org, owner: User) -> None:
    answer = visit(owner).post(path(org, "new"), WISH)
    job = ExportJob.objects.get()
    assert (answer.status_code, answer["Location"]) == (302, path(org, f"#job-{job.pk}"))
    assert (job.org, job.initiated_by, job.status) == (org, "user:fin@example.com", State.PENDING)
    assert (job.dataset, job.granularity, job.format) == (Kind.USAGE, Grain.DAILY, Format.CSV)
    assert (job.time_zone, job.model_ids) == ("Asia/Kolkata", None)
    assert AuditRecord.objects.filter(action="asked for export", org=org, target=str(job.pk)).exists()
    assert "Waiting" in row_of(page(owner, org), job)


def test_who_clicks_twice_gets_one_file(org: Org, owner: User) -> None:
    client = visit(owner)
    assert client.post(path(org, "new"), WISH)["Location"] == client.post(path(org, "new"), WISH)["Location"]
    assert ExportJob.objects.count() == 1


@pytest.mark.parametrize(
    ("wish", "start", "end"),
    [
        ({"range": "last_month"}, (2026, 2, 28), (2026, 3, 31)),
        ({"range": "month"}, (2026, 3, 31), (2026, 4, 1)),
        ({"range": "7d"}, (2026, 3, 25), (2026, 4, 1)),
        ({"range": "30d"}, (2026, 3, 2), (2026, 4, 1)),
        ({"range": "custom", "start": "2026-03-10", "end": "2026-03-11"}, (2026, 3, 9), (2026, 3, 11)),
    ],
)
def test_days_and_months_are_those_of_the_org(
    folder: Path, wish: dict[str, str], start: tuple[int, int, int], end: tuple[int, int, int]
) -> None:
    with time_machine.travel(EVE, tick=False):
        org = make_org(time_zone="Asia/Kolkata")
        ZoneInForce.objects.create(org=org, time_zone=org.time_zone)
        answer = visit(make_user(org=org)).post(path(org, "new"), WISH | wish)
    assert answer.status_code == 302
    midnight = timedelta(hours=18, minutes=30)  # of India, in UTC
    job = ExportJob.objects.get()
    assert job.start_at == datetime(*start, tzinfo=UTC) + midnight
    assert job.end_at == datetime(*end, tzinfo=UTC) + midnight


def test_models_are_all_or_those_that_were_chosen(org: Org, owner: User) -> None:
    visit(owner).post(path(org, "new"), WISH | {"models": [str(OTHER_MODEL)]})
    job = ExportJob.objects.get()
    assert job.model_ids == [OTHER_MODEL]
    assert "Usage by day, 1 model, CSV" in row_of(page(owner, org), job)


def test_every_call_is_asked_for_with_its_outcome_and_how_many(org: Org, owner: User) -> None:
    wish = WISH | {"dataset": "incident_events", "status": "timeout", "limit": "500", "format": "parquet"}
    visit(owner).post(path(org, "new"), wish)
    job = ExportJob.objects.get()
    assert (job.dataset, job.call_status, job.row_limit) == (Kind.INCIDENT_EVENTS, Status.TIMEOUT.label, 500)
    assert "Every call, outcome timed out, Parquet" in row_of(page(owner, org), job)


CUSTOM = {"range": "custom", "start": "2026-01-05", "end": "2026-01-02"}
REFUSED = {
    "The end must not lie before the start.": CUSTOM,
    "The start is needed for a custom range.": CUSTOM | {"start": ""},
    "The start must be a date such as 2026-01-31, or a time such as 2026-01-31T14:00.": CUSTOM | {"start": "soon"},
    "A file has 31 days at most: choose a shorter range, or ask for several.": CUSTOM | {"end": "2026-02-05"},
    "The start lies before the hours that are kept: the earliest is": CUSTOM | {"start": "2001-01-01", "end": "2001-01-02"},
    "A file of every call has one model, or all of them: choose one, or none.": {
        "dataset": "incident_events", "models": [str(MODEL), str(OTHER_MODEL)],
    },
    f"The number of calls must lie between 1 and {MAX_INCIDENT_ROWS:,}.": {"dataset": "incident_events", "limit": "0"},
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_wrong_is_said_beside_the_form_which_keeps_what_was_chosen(org: Org, owner: User, said: str) -> None:
    wish = WISH | {"granularity": "hourly", "models": [str(MODEL)], "format": "csv.gz"} | REFUSED[said]
    answer = visit(owner).post(path(org, "new"), wish)
    html = answer.content.decode()
    assert answer.status_code == 400
    note = re.search(r'id="export-errors".*?</div>', html, re.DOTALL)
    assert note is not None
    assert said in words(f"<main>{note[0]}")
    kept = chosen(html)
    assert kept["dataset"] == [wish["dataset"]]
    assert kept["range"] == [wish["range"]]
    assert (kept["granularity"], kept["format"]) == (["hourly"], ["csv.gz"])
    assert set(kept["models"]) == set(wish["models"])
    assert not ExportJob.objects.exists()


def test_how_many_calls_matters_only_where_it_is_shown(org: Org, owner: User) -> None:
    assert visit(owner).post(path(org, "new"), WISH | {"limit": "0"}).status_code == 302


def test_too_many_at_once_are_refused_in_words(org: Org, owner: User) -> None:
    open_ones = [make_job(org, State.PENDING, by="user:other@example.com") for _ in range(MAX_OPEN_EXPORTS)]
    client = visit(owner)
    answer = client.post(path(org, "new"), WISH)
    assert answer.status_code == 400
    assert f"{MAX_OPEN_EXPORTS} exports that are not finished" in words(answer.content.decode())
    failed = make_job(org, State.FAILED)
    answer = client.post(path(org, f"{failed.pk}/rerun"), follow=True)
    assert f"{MAX_OPEN_EXPORTS} exports that are not finished" in words(answer.content.decode())
    assert ExportJob.objects.count() == len(open_ones) + 1


def test_the_address_of_the_form_leads_back_to_the_page(org: Org, owner: User) -> None:
    assert visit(owner).get(path(org, "new"), {"page": "2"})["Location"] == path(org, "?page=2")


# ── From the figures of another page ─────────────────────────────────────────────────────────────────────────────
def test_the_form_begins_with_last_month(org: Org, owner: User) -> None:
    html = page(owner, org)
    assert chosen(html) == {
        "dataset": ["usage"], "range": ["last_month"], "granularity": ["daily"], "status": [""], "format": [],
    }  # fmt: skip
    assert typed(html, "start") == ("date", last_month(org).isoformat())


def test_the_form_begins_with_the_figures_that_a_link_names(org: Org, owner: User) -> None:
    html = page(owner, org, f"?range=30d&granularity=hour&model={OTHER_MODEL}")
    assert chosen(html)["range"] == ["30d"]
    assert chosen(html)["granularity"] == ["hourly"]
    assert chosen(html)["models"] == [str(OTHER_MODEL)]
    html = page(owner, org, f"?range=custom&start={DAY_TEXT}T10:30&end={DAY_TEXT}T12:00")
    assert chosen(html)["range"] == ["custom"]
    assert typed(html, "start") == ("datetime-local", f"{DAY_TEXT}T10:30")
    assert ">From</label>" in html
    html = page(owner, org, f"?start={DAY_TEXT}T10:00%2B00:00&end={DAY_TEXT}")
    assert typed(html, "start") == ("datetime-local", f"{DAY_TEXT}T15:30")  # as clocks in India say it
    assert typed(html, "end") == ("date", DAY_TEXT)


@pytest.mark.parametrize(
    "link",
    ["?range=ever", "?range=custom&start=soon&end=later", "?range=custom", "?model=x&granularity=%00",
     f"?model={MODEL.hex}x", "?start=2026-01-02&end=2026-01-01", "?page=x"],
)  # fmt: skip
def test_a_link_that_can_not_be_read_is_left_out(org: Org, owner: User, link: str) -> None:
    assert chosen(page(owner, org, link)) == chosen(page(owner, org))


def test_the_usage_page_leads_to_an_export_of_what_it_shows(org: Org, owner: User) -> None:
    asked = f"range=custom&start={DAY_TEXT}T00:00&end={DAY_TEXT}T23:00&model={MODEL}"
    html = visit(owner).get(f"/orgs/{org.slug}/usage/?{asked}").content.decode()
    link = re.search(r'href="([^"]*)"\s+id="export-range"', html)
    assert link is not None
    form = visit(owner).get(unescape(link[1])).content.decode()
    assert chosen(form) == {
        "dataset": ["usage"], "range": ["custom"], "granularity": ["hourly"], "models": [str(MODEL)], "status": [""],
        "format": [],
    }  # fmt: skip
    assert typed(form, "end") == ("datetime-local", f"{DAY_TEXT}T23:00")
    viewer = make_user(org=org, role=Role.VIEWER)
    assert "export-range" not in visit(viewer).get(f"/orgs/{org.slug}/usage/?{asked}").content.decode()


# ── What is told ─────────────────────────────────────────────────────────────────────────────────────────────────
STATES: dict[str, tuple[State, dict[str, Any]]] = {
    "Waiting": (State.PENDING, {}),
    "Being made": (State.RUNNING, {}),
    "Being cancelled": (State.RUNNING, {"cancelled_by": "user:fin@example.com"}),
    "Will be tried again": (State.PENDING, {"failures": 1, "error": "The store did not answer."}),
    "Failed": (State.FAILED, {"error": "The store did not answer."}),
    "Cancelled": (
        State.FAILED,
        {"cancelled_by": "user:fin@example.com", "error": jobs.cancelled("user:fin@example.com")},
    ),
    "Ready": (State.SUCCEEDED, {}),
    "Expired": (State.EXPIRED, {}),
}


@pytest.mark.parametrize("state", STATES)
def test_each_state_has_words_and_what_can_be_done(org: Org, owner: User, state: str) -> None:
    status, fields = STATES[state]
    job = make_job(org, status, **fields)
    said = row_of(page(owner, org), job)
    assert f" {state} Usage by day, CSV" in said
    assert ("Cancel" in said.split()) == (job.is_open and not job.cancelled_by)
    assert ("Run again" in said) == (not job.is_open)
    assert ("Download" in said) == (state == "Ready")
    assert ("kept until" in said) == (state == "Ready")
    assert ("· expired" in said) == (state == "Expired")
    assert ("ab" * 32 in said) == (state in ("Ready", "Expired"))
    assert job.error in said


def test_a_file_whose_time_is_over_can_not_be_had_even_before_it_is_cleared_away(org: Org, owner: User) -> None:
    job = make_job(org, expires_at=timezone.now() - HOUR)
    assert " Expired " in row_of(page(owner, org), job)
    answer = visit(owner).get(path(org, f"{job.pk}/download"), follow=True)
    assert "There is no file to download" in words(answer.content.decode())


def test_a_file_is_told_with_rows_size_spend_checksum_and_who_asked(org: Org, owner: User) -> None:
    job = make_job(org)
    said = row_of(page(owner, org), job)
    assert "Usage by day, CSV · 1,234 rows · 20.5 kB · spend $17.39" in said
    assert "SHA-256 " + "ab" * 32 in said
    assert "Asked for by fin@example.com" in said
    others = {who: make_job(org, by=who) for who in ("key:1f3a9c2b", SCHEDULE)}
    html = page(owner, org)
    assert "Asked for by key 1f3a9c2b" in row_of(html, others["key:1f3a9c2b"])
    assert "Scheduled, " in row_of(html, others[SCHEDULE])


def test_how_far_a_file_is_is_shown_while_it_is_made(org: Org, owner: User) -> None:
    job = make_job(org, State.RUNNING, rows_written=412_000, error="What the attempt before met.")
    waits = make_job(org, State.PENDING)
    assert "so far" not in row_of(page(owner, org), waits)
    said = row_of(page(owner, org), job)
    assert "412,000 rows so far" in said
    assert "What the attempt before met." not in said


def test_only_what_moves_is_asked_for_again(org: Org, owner: User) -> None:
    make_job(org)
    assert "hx-get" not in page(owner, org).split("<main")[1]
    moving = [make_job(org, State.PENDING), make_job(org, State.RUNNING, month=last_month(org))]
    html = page(owner, org)
    asked = re.search(r'hx-select-oob="([^"]*)"', html)
    assert asked is not None
    assert set(asked[1].split(",")) == {f"#job-{job.pk}" for job in moving}
    assert f'hx-get="{path(org)}"' in html
    refused = visit(owner).post(path(org, "new"), WISH | CUSTOM).content.decode()
    assert f'hx-get="{path(org)}"' in refused  # not the address of the form


def test_last_month_stands_on_top_with_its_newest_version_and_nowhere_else(org: Org, owner: User) -> None:
    month = last_month(org)
    old, new = (make_job(org, month=month, by=SCHEDULE, version=version) for version in (1, 2))
    html = page(owner, org)
    assert html.count(f'id="job-{new.pk}"') == 1
    top, rest = html.split('id="jobs-title"')
    assert f"{month:%B %Y} Ready Usage by day, version 2, CSV" in row_of(top, new)
    assert "Ready Usage by day, CSV" in row_of(rest, old)


def test_a_long_list_has_pages_and_a_bounded_number_of_queries(
    org: Org, owner: User, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(45):
        make_job(org, created_at=timezone.now() - number * HOUR)
    client = visit(owner)
    with django_assert_max_num_queries(2 * ROLE_QUERIES + 13):
        html = client.get(path(org)).content.decode()
    assert html.count('class="job"') == 20
    assert "1–20 of 45" in html
    assert client.get(path(org, "?page=3")).content.decode().count('class="job"') == 5


# ── What is done ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_file_that_waits_is_cancelled(org: Org, owner: User) -> None:
    job, client = make_job(org, State.PENDING), visit(owner)
    assert client.post(path(org, f"{job.pk}/cancel"))["Location"] == path(org, f"#job-{job.pk}")
    said = row_of(page(owner, org), job)
    assert "Cancelled by fin@example.com." in said
    assert AuditRecord.objects.filter(action="cancelled export", target=str(job.pk)).count() == 1
    again = client.post(path(org, f"{job.pk}/cancel"), follow=True).content.decode()
    assert "there was nothing to cancel" in words(again)
    assert AuditRecord.objects.filter(action="cancelled export", target=str(job.pk)).count() == 1


def test_a_file_is_made_again_as_a_job_of_its_own(org: Org, owner: User) -> None:
    old, client = make_job(org, State.EXPIRED, created_at=timezone.now() - DAY), visit(owner)
    answer = client.post(path(org, f"{old.pk}/rerun"))
    new = ExportJob.objects.exclude(pk=old.pk).get()
    assert answer["Location"] == path(org, f"#job-{new.pk}")
    assert (new.start_at, new.end_at, new.format, new.status) == (old.start_at, old.end_at, old.format, State.PENDING)
    client.post(path(org, f"{new.pk}/rerun"))  # it is being made: that is what was wanted
    assert ExportJob.objects.count() == 2
    assert AuditRecord.objects.filter(action="asked for export").count() == 1


def test_what_can_not_be_made_again_says_why(org: Org, owner: User) -> None:
    long_ago = NOON - 3_000 * DAY
    old = make_job(org, State.EXPIRED, start_at=long_ago, end_at=long_ago + DAY)
    said = words(visit(owner).post(path(org, f"{old.pk}/rerun"), follow=True).content.decode())
    assert "This file can't be made again: start lies before the days that are kept" in said


@committed
def test_a_download_leads_to_a_signed_address_and_is_recorded(org: Org, owner: User, folder: Path) -> None:
    job = jobs.ask(jobs.Wanted(org=org, window=WINDOW), "user:fin@example.com")
    making.attempt(str(job.pk))
    job.refresh_from_db()
    client = visit(owner)
    answer = client.get(path(org, f"{job.pk}/download"))
    assert answer.status_code == 302
    assert "/exports/files/" in answer["Location"]
    file = Client().get(answer["Location"])  # whoever has it
    assert b"".join(file.streaming_content) == (folder / job.key).read_bytes()  # type: ignore[attr-defined]
    assert file["Content-Disposition"] == f'attachment; filename="{job.filename}"'
    assert AuditRecord.objects.filter(action="downloaded export", org=org, target=str(job.pk)).count() == 1
    assert job.checksum in page(owner, org)


# ── Who ──────────────────────────────────────────────────────────────────────────────────────────────────────────
ACTS = ("cancel", "rerun")


def test_viewers_are_refused_and_not_led_there(org: Org) -> None:
    job, client = make_job(org), visit(make_user(org=org, role=Role.VIEWER))
    assert client.get(path(org)).status_code == 403
    assert client.get(path(org, f"{job.pk}/download")).status_code == 403
    assert client.post(path(org, "new"), WISH).status_code == 403
    assert [client.post(path(org, f"{job.pk}/{act}")).status_code for act in ACTS] == [403, 403]
    assert path(org) not in client.get(f"/orgs/{org.slug}/usage/").content.decode()


@committed
def test_staff_from_outside_look_and_download_and_that_is_recorded(org: Org) -> None:
    job = jobs.ask(jobs.Wanted(org=org, window=WINDOW), "user:fin@example.com")
    making.attempt(str(job.pk))
    make_job(org, State.RUNNING)
    staff = make_user("staff@example.com", is_staff=True)
    html, client = page(staff, org), visit(staff)
    assert "Create file" not in html
    assert "Run again" not in html
    assert "hx-get" not in html  # each look is recorded
    assert client.get(path(org, f"{job.pk}/download")).status_code == 302
    mine = AuditRecord.objects.filter(org=org, actor="user:staff@example.com").order_by("id")
    assert list(mine.values_list("action", flat=True)) == [
        "read from outside: analytics:exports:read",
        "read from outside: analytics:exports:download",
        "downloaded export",
    ]
    assert client.post(path(org, "new"), WISH).status_code == 403
    assert [client.post(path(org, f"{job.pk}/{act}")).status_code for act in ACTS] == [403, 403]
    assert ExportJob.objects.count() == 2


def test_the_job_of_another_org_is_not_there(org: Org, owner: User) -> None:
    other = make_job(make_org("Other"), State.PENDING)
    client = visit(owner)
    assert client.get(path(org, f"{other.pk}/download")).status_code == 404
    assert [client.post(path(org, f"{other.pk}/{act}")).status_code for act in ACTS] == [404, 404]
    assert str(other.pk) not in page(owner, org)
    other.refresh_from_db()
    assert other.status == State.PENDING
