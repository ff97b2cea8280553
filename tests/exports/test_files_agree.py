"""Whatever was called and whatever range is asked for: every file, of every format, has the figures that Python adds up."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings as django_settings
from django.test import Client
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from exports.contents import COLUMNS
from exports.datasets import usage
from exports.datasets.usage import Grain, Request
from exports.jobs import Wanted, ask
from exports.making import attempt
from exports.models import Kind, State
from exports.writers import Format
from orgs.models import Org
from usage.rollups import roll_up
from usage.series import points, total
from usage.windows import Window

from ..factories import ingest, make_org, make_user
from ..usage.test_properties import (
    AUTUMN,
    SPRING,
    TEST,
    ZONES,
    Call,
    _partitions,  # noqa: F401  a fixture
    all_calls,
    day_of,
    grouped,
    hour_of,
    rolled_back,
    sums,
    windows,
)
from .reading import made, read_back, totals_row

pytestmark = pytest.mark.django_db

LONGEST = timedelta(days=31, hours=-1)  # 31 days of any zone: one of them may be short


def start_of(call: Call, grain: Grain, zone: str) -> datetime:
    """When the bucket began that a call is counted in."""
    if grain is Grain.HOURLY:
        return hour_of(call.moment)
    day = day_of(call.moment, zone)
    if grain is Grain.DAILY:
        return day
    local = day.astimezone(ZoneInfo(zone))
    return datetime(local.year, local.month, 1, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def expected(calls: Sequence[Call], grain: Grain, zone: str) -> list[tuple[object, ...]]:
    """Rows without names and currency."""
    found = grouped(calls, lambda call: (start_of(call, grain, zone), str(call.model)))
    return [(*key, *sums(those)) for key, those in sorted(found.items())]


@pytest.mark.usefixtures("_partitions")
@settings(TEST, max_examples=40)
@given(st.sampled_from([SPRING, AUTUMN]), st.data())
def test_a_file_of_usage_has_what_python_adds_up(now: datetime, data: st.DataObject) -> None:
    zone = data.draw(st.sampled_from(ZONES), "zone")
    calls = data.draw(all_calls(now, [zone]), "calls")
    window = data.draw(windows(now, [zone], calls), "window")
    window = Window(window.start, min(window.end, window.start + LONGEST))
    grain, days = data.draw(st.sampled_from(list(Grain)), "grain"), data.draw(st.sampled_from(["UTC", zone]), "days")
    models = data.draw(st.none() | st.frozensets(st.sampled_from([call.model for call in calls]), min_size=1), "models")
    with rolled_back(now):
        org: Org = make_org(time_zone=zone)
        ingest([call.event([org]) for call in calls])
        roll_up()
        request = Request(org.pk, window, grain, ZoneInfo(days), models)
        asked = [
            call
            for call in calls
            if window.start <= call.moment < window.end and (models is None or call.model in models)
        ]
        rows, whole = expected(asked, grain, days), sums(asked)
        answered = total([p for p in points(request.question) if models is None or p.key in models])
        assert (answered.invocations, answered.cost_cents) == (whole[0], whole[6])
        for kind in Format:
            written, file = made(kind, usage.dataset(request))
            found = read_back(kind, file, usage.COLUMNS)
            assert [(*row[:2], *row[3:10], row[11]) for row in found] == rows
            totals = dict(
                zip(
                    ("invocations", "errors", "timeouts", "throttled", "input_tokens", "output_tokens", "cost_cents"),
                    whole[:7],
                    strict=True,
                ),
                unpriced_invocations=whole[7],
            )
            assert (written.rows, written.totals) == (len(rows), totals)
            if kind is Format.XLSX:
                assert totals_row(file, usage.COLUMNS) == totals
            if kind is Format.CSV:
                assert all(f",{row[8]:.4f}," in file.decode() for row in rows)


@pytest.mark.usefixtures("_partitions")
@settings(TEST, max_examples=20)
@given(st.sampled_from([SPRING, AUTUMN]), st.data())
def test_pieces_are_what_one_answer_would_be(now: datetime, data: st.DataObject) -> None:
    """Read in pieces, and those in halves as where points are too many: the same points in the same order."""
    zone = data.draw(st.sampled_from(ZONES), "zone")
    calls = data.draw(all_calls(now, [zone]), "calls")
    window = data.draw(windows(now, [zone], calls), "window")
    window = Window(window.start, min(window.end, window.start + LONGEST))
    grain, days = (
        data.draw(st.sampled_from([Grain.HOURLY, Grain.DAILY]), "grain"),
        data.draw(st.sampled_from(["UTC", zone])),
    )
    limit = data.draw(st.integers(3, 6), "points of an answer")  # a bucket has at most three
    with rolled_back(now), pytest.MonkeyPatch.context() as patch:
        org = make_org(time_zone=zone)
        ingest([call.event([org]) for call in calls])
        roll_up()
        question = Request(org.pk, window, grain, ZoneInfo(days)).question
        whole = points(question)
        patch.setattr("usage.series.MAX_SERIES_POINTS", limit)
        assert list(usage.read(question)) == whole
        assert total(whole).cost_cents == sum((point.cost_cents for point in whole), Decimal(0))


@pytest.mark.usefixtures("_partitions")
@settings(TEST, max_examples=25)
@given(st.sampled_from([SPRING, AUTUMN]), st.data())
def test_a_finished_export_says_what_api_page_and_python_say(now: datetime, data: st.DataObject) -> None:
    """The whole way: a job that was asked for, held against the rollups, and brought into a folder."""
    zone = data.draw(st.sampled_from(ZONES), "zone")
    calls = data.draw(all_calls(now, [zone]), "calls")
    window = data.draw(windows(now, [zone], calls), "window")
    window = Window(window.start, min(window.end, window.start + LONGEST))
    assume(window)
    kind, grain = data.draw(st.sampled_from(list(Format)), "format"), data.draw(st.sampled_from(list(Grain)), "grain")
    days = data.draw(st.sampled_from(["UTC", zone]), "days")
    is_calls = data.draw(st.booleans(), "the calls themselves")
    with rolled_back(now), pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        # What is done here is seen by no other connection, so signs of life would find no job.
        patch.setattr("exports.claims.EXPORT_PULSE", timedelta(hours=1))
        patch.setattr(django_settings, "EXPORT_FOLDER", folder)
        org = make_org(time_zone=zone)
        ingest([call.event([org]) for call in calls])
        roll_up()
        dataset = Kind.INCIDENT_EVENTS if is_calls else Kind.USAGE
        job = ask(
            Wanted(org=org, window=window, dataset=dataset, format=kind, grain=grain, zone=days), "user:fin@example.com"
        )
        attempt(str(job.pk))
        job.refresh_from_db()
        assert (job.status, job.error) == (State.SUCCEEDED, "")
        rows = read_back(kind, (Path(folder) / job.key).read_bytes(), COLUMNS[dataset])
        place = [column.name for column in COLUMNS[dataset]].index("cost_estimate_cents" if is_calls else "cost_cents")
        cents = sum((row[place] for row in rows if row[place] is not None), Decimal("0.0000"))

        whole = sums([call for call in calls if window.start <= call.moment < window.end])
        edges = {"start": window.start.isoformat(), "end": window.end.isoformat()}
        user = make_user(org=org)
        api, page = APIClient(), Client()
        api.force_login(user)
        page.force_login(user)
        answered = api.get(f"/analytics/v1/orgs/{org.pk}/usage", edges).json()["totals"]
        html = page.get(f"/orgs/{org.slug}/usage/", edges).content.decode()
        assert (
            answered["costEstimate"]
            == f"{cents:.4f}"
            == f"{whole[6]:.4f}"
            == job.totals["cost_estimate_cents" if is_calls else "cost_cents"]
        )
        assert (f'data-exact="{cents:.4f}"' in html) == bool(whole[0])
        assert len(rows) == job.row_count
        if is_calls:
            assert job.row_count == whole[0]
