"""The watch, from events to incidents: found with their window, cause and cost; carried on, ended, refuted."""

import random
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from threading import Barrier, Thread
from typing import Any

import pytest
import time_machine
from django.conf import LazySettings
from django.db import connection
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from ingestion.schema import UsageEvent
from orgs.models import Org, Scope
from reliability import watching
from reliability.models import Incident, Watch
from reliability.tasks import forget_incidents
from reliability.watching import watch
from usage.rollups import roll_up
from usage.windows import DAY

from ..factories import MODEL, OTHER_MODEL, ingest, make_event, make_key, make_org

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)
NOW = (timezone.now() - 2 * DAY).replace(hour=15, minute=0, second=30, microsecond=0)
Change = Callable[[random.Random, datetime, dict[str, Any]], None]


def traffic(org: Org, start: datetime, minutes: int, calls: float, change: Change | None = None) -> list[UsageEvent]:
    """Calls of two models and four clients, 1 % of them errors; `change` says what is wrong with one."""
    draw = random.Random(f"{NOW - start} {calls}")  # the same on every day
    found = []
    for number in range(round(minutes * calls)):
        moment = start + number * (minutes * MINUTE / round(minutes * calls))
        failed = draw.random() < 0.01
        fields: dict[str, Any] = {
            "event_id": uuid.UUID(int=draw.getrandbits(128), version=4),
            "model_id": draw.choice((MODEL, OTHER_MODEL)),
            "client_id": draw.choice(("web", "app", "batch", None)),
            "occurred_at": moment,
            "latency_ms": int(draw.lognormvariate(6.9, 0.4)),
            "status": "error" if failed else "success",
            "error_code": "internal_error" if failed else None,
        }
        if change is not None:
            change(draw, moment, fields)
        found.append(make_event(org, **fields))
    return found


def history(org: Org, days: int = 7, calls: float = 1.5) -> None:
    """Quiet days, up to three hours before now."""
    start = (NOW - timedelta(hours=3)).replace(minute=0, second=0)
    for number in range(days, 0, -1):
        ingest(traffic(org, start - number * DAY, 24 * 60, calls))
    roll_up()


def lately(org: Org, change: Change | None, calls: float = 30, minutes: int = 180) -> None:
    """The last hours, up to the minute before now."""
    ingest(traffic(org, NOW.replace(second=0) - minutes * MINUTE, minutes, calls, change))
    roll_up()


def between(start: int, end: int) -> Callable[[datetime], bool]:
    """Whether a moment lies between so many minutes before now."""
    now = NOW.replace(second=0)
    return lambda moment: now - start * MINUTE <= moment < now - end * MINUTE


def fail(fields: dict[str, Any], status: str = "error", code: str = "overloaded") -> None:
    fields.update(status=status, error_code=code)


def windows(org: Org) -> list[tuple[str, uuid.UUID | None, int, int]]:
    """Measure, model, and minutes before now of start and end."""
    now = NOW.replace(second=0)
    return [
        (one.measure, one.model_id, (now - one.started_at) // MINUTE, (now - one.ended_at) // MINUTE)
        for one in Incident.objects.filter(org=org).order_by("measure", "started_at")
    ]


def assert_window(
    found: tuple[str, uuid.UUID | None, int, int], expected: tuple[str, uuid.UUID | None, int, int]
) -> None:
    """The same subject, and edges within a minute."""
    assert found[:2] == expected[:2]
    assert abs(found[2] - expected[2]) <= 1
    assert abs(found[3] - expected[3]) <= 1


def test_errors_of_one_model_are_found_with_window_cause_and_cost() -> None:
    org = make_org()
    is_wrong = between(60, 45)

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if is_wrong(moment) and fields["model_id"] == OTHER_MODEL and draw.random() < 0.4:
            fail(fields)

    with time_machine.travel(NOW, tick=False):
        history(org)
        lately(org, change)
        assert watch() == 0, "it is over"
        (incident,) = Incident.objects.filter(org=org)
        assert_window(windows(org)[0], ("errorRate", OTHER_MODEL, 60, 45))
        assert not incident.is_open
        assert incident.observed == pytest.approx(incident.failures / incident.invocations)
        assert 0.3 < incident.observed < 0.5
        assert incident.normal == pytest.approx(0.01, abs=0.005)
        assert incident.causes["models"][0]["name"] == str(OTHER_MODEL)
        assert incident.causes["errorCodes"][0]["name"] == "overloaded"
        assert incident.causes["errorCodes"][0]["share"] > 0.9
        assert incident.failed_tokens == incident.failures * 15
        assert incident.failed_cost_cents == incident.failures * Decimal("0.25")
        assert {"errorRate", "errorRateRose"} <= set(incident.conditions)


def test_one_client_that_times_out_is_the_first_cause() -> None:
    org = make_org()
    is_wrong = between(90, 60)

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if is_wrong(moment) and fields["client_id"] == "batch" and draw.random() < 0.8:
            fail(fields, "timeout", "upstream_timeout")
            fields["latency_ms"] = 30_000

    with time_machine.travel(NOW, tick=False):
        history(org)
        lately(org, change)
        watch()
        errors, latency = Incident.objects.filter(org=org).order_by("measure")
        assert_window(windows(org)[0], ("errorRate", None, 90, 60))
        assert_window(windows(org)[1], ("p95", None, 90, 60))
        for incident in (errors, latency):
            assert incident.causes["clients"][0]["name"] == "batch"
            assert incident.causes["clients"][0]["share"] > 0.9
        assert latency.observed == pytest.approx(30_000, rel=0.01)


def test_latency_that_doubles_for_twenty_minutes() -> None:
    org = make_org()
    is_wrong = between(40, 20)

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if is_wrong(moment):
            fields["latency_ms"] *= 2

    with time_machine.travel(NOW, tick=False):
        history(org)
        lately(org, change)
        watch()
        (found,) = windows(org)
        assert_window(found, ("p95", None, 40, 20))
        incident = Incident.objects.get(org=org)
        assert incident.observed == pytest.approx(2 * incident.normal, rel=0.15)
        assert {cause["name"] for cause in incident.causes["models"]} == {str(MODEL), str(OTHER_MODEL)}


def test_a_quiet_org_has_no_incident_of_a_few_failures_and_one_of_an_outage() -> None:
    quiet, down = make_org(), make_org("Globex")
    is_down = between(120, 60)

    def a_few(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if between(31, 28)(moment):
            fail(fields)

    def an_outage(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if is_down(moment):
            fail(fields)

    with time_machine.travel(NOW, tick=False):
        for org, change in ((quiet, a_few), (down, an_outage)):
            history(org, calls=0.5)
            lately(org, change, calls=1)
        watch()
        assert windows(quiet) == []
        (found,) = windows(down)
        assert_window(found, ("errorRate", None, 120, 60))


def test_a_new_model_is_no_incident_unless_it_fails() -> None:
    healthy, failing = make_org(), make_org("Globex")
    new = uuid.uuid4()

    def appears(fails: float) -> Change:
        def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
            if between(50, 0)(moment) and draw.random() < 0.3:
                fields["model_id"] = new
                if draw.random() < fails:
                    fail(fields)

        return change

    with time_machine.travel(NOW, tick=False):
        for org, fails in ((healthy, 0.0), (failing, 0.3)):
            history(org)
            lately(org, appears(fails))
        assert watch() == 1
        assert windows(healthy) == []
        (found,) = windows(failing)
        assert_window(found, ("errorRate", new, 50, 0))
        assert Incident.objects.get(org=failing).is_open


def test_an_incident_is_carried_on_and_ends_and_stays_where_it_was() -> None:
    """Longer than what one run looks at, and with its first id."""
    org = make_org()
    began = NOW.replace(second=0) - 15 * MINUTE

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if began <= moment < began + 4 * 60 * MINUTE and draw.random() < 0.3:
            fail(fields)

    with time_machine.travel(NOW, tick=False) as clock:
        history(org)
        lately(org, change)
        assert watch() == 1
        first = Incident.objects.get()
        for hours in range(1, 5):
            start = NOW.replace(second=0) + (hours - 1) * 60 * MINUTE
            clock.move_to(NOW + hours * 60 * MINUTE)
            ingest(traffic(org, start, 60, 20, change))
            roll_up()
            watch()
        incident = Incident.objects.get()
        assert incident.pk == first.pk
        assert not incident.is_open
        assert abs(incident.started_at - began) <= MINUTE
        assert abs(incident.ended_at - (began + 4 * 60 * MINUTE)) <= 2 * MINUTE
        assert incident.invocations == pytest.approx(4 * 60 * 20, rel=0.05), "of the whole window"
        clock.move_to(NOW + 24 * 60 * MINUTE)
        watch()
        kept = Incident.objects.get()
        assert (kept.started_at, kept.ended_at, kept.changed_at) == (
            incident.started_at, incident.ended_at, incident.changed_at,
        )  # fmt: skip


def test_a_run_twice_in_a_minute_and_at_a_full_hour_is_as_good_as_once() -> None:
    org = make_org()
    with time_machine.travel(NOW.replace(second=1), tick=False) as clock:
        history(org)
        lately(org, lambda draw, moment, fields: fail(fields) if between(20, 0)(moment) else None)
        for _ in range(2):
            assert watch() == 1
        before = Incident.objects.get()
        clock.move_to(NOW.replace(second=1) + MINUTE)
        assert watch() == 1
        assert Incident.objects.get().pk == before.pk


def test_an_incident_that_is_over_is_left_alone_when_its_beginning_is_no_longer_looked_at() -> None:
    org = make_org()

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        rate = 0.5 if fields["model_id"] == MODEL else 0.2
        if between(110, 60)(moment) and draw.random() < rate:
            fail(fields)

    with time_machine.travel(NOW, tick=False) as clock:
        history(org)
        lately(org, change)
        watch()
        kept = list(Incident.objects.values_list())
        assert len(kept) == 1
        for minutes in range(10, 80, 10):
            clock.move_to(NOW + minutes * MINUTE)
            watch()
            assert list(Incident.objects.values_list()) == kept


def test_what_is_loaded_long_after_it_happened_is_looked_at_where_that_is_asked() -> None:
    org = make_org()
    with time_machine.travel(NOW + 5 * 60 * MINUTE, tick=False):
        history(org)
        watch()
        lately(org, lambda draw, moment, fields: fail(fields) if between(90, 60)(moment) else None)
        watch()
        assert windows(org) == []
        watch(since=NOW - 180 * MINUTE)
        assert_window(windows(org)[0], ("errorRate", None, 90, 60))
        first = Incident.objects.get()
        watch(since=NOW - 180 * MINUTE)
        assert Incident.objects.get() == first
        assert Watch.objects.get().watched_up_to == (NOW + 5 * 60 * MINUTE).replace(second=0)


def test_days_without_a_watch_leave_nothing_open() -> None:
    org = make_org()
    with time_machine.travel(NOW, tick=False) as clock:
        history(org)
        lately(org, lambda draw, moment, fields: fail(fields) if between(20, 0)(moment) else None)
        assert watch() == 1
        clock.move_to(NOW + 4 * DAY)
        assert watch() == 0


def test_a_short_outage_of_one_model_within_a_long_incident_of_another_is_told_apart() -> None:
    org = make_org()

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if fields["model_id"] == MODEL and between(110, 10)(moment) and draw.random() < 0.2:
            fail(fields)
        if fields["model_id"] == OTHER_MODEL and between(60, 50)(moment):
            fail(fields, code="down")

    with time_machine.travel(NOW, tick=False):
        history(org)
        lately(org, change)
        watch()
        outage = next(found for found in windows(org) if found[1] == OTHER_MODEL)
        assert_window(outage, ("errorRate", OTHER_MODEL, 60, 50))
        assert len(windows(org)) == 2


def test_what_goes_wrong_with_one_org_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, fine = make_org(), make_org("Globex")
    real = watching.find

    def find(org_id: uuid.UUID, *arguments: Any) -> Any:
        if org_id == broken.pk:
            raise RuntimeError("something nobody thought of")
        return real(org_id, *arguments)

    monkeypatch.setattr(watching, "find", find)
    with time_machine.travel(NOW, tick=False):
        for org in (broken, fine):
            lately(org, lambda draw, moment, fields: fail(fields) if between(20, 0)(moment) else None)
        assert watch() == 1
    assert Incident.objects.get().org == fine


def test_hours_that_are_kept_no_longer_than_minutes(settings: LazySettings) -> None:
    settings.HOURLY_RETENTION_DAYS = settings.MINUTE_RETENTION_DAYS = 2
    org = make_org()
    with time_machine.travel(NOW, tick=False):
        lately(org, lambda draw, moment, fields: fail(fields) if between(20, 0)(moment) else None)
        assert watch() == 1
    with time_machine.travel(NOW, tick=False):
        Watch.objects.all().delete()
        assert watch() == 1


def test_what_comes_late_refutes_an_incident() -> None:
    org = make_org()
    is_wrong = between(20, 10)

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if is_wrong(moment) and draw.random() < 0.3:
            fail(fields)

    with time_machine.travel(NOW, tick=False) as clock:
        history(org)
        lately(org, change, calls=20)
        watch()
        assert len(windows(org)) == 1
        ingest(traffic(org, NOW.replace(second=0) - 20 * MINUTE, 10, 900))
        roll_up()
        clock.move_to(NOW + MINUTE)
        watch()
        assert windows(org) == []


def test_what_is_not_counted_yet_is_no_recovery() -> None:
    org = make_org()
    with time_machine.travel(NOW, tick=False) as clock:
        history(org)
        lately(org, lambda draw, moment, fields: fail(fields) if between(30, 0)(moment) else None)
        assert watch() == 1
        clock.move_to(NOW + timedelta(seconds=40))
        ingest(traffic(org, NOW, 1, 10, lambda draw, moment, fields: fail(fields)))
        clock.move_to(NOW + 20 * MINUTE)
        assert watch() == 1, "a batch waits that nobody has counted"
        roll_up()
        assert watch() == 0, "twenty minutes without a failure"


def test_a_watch_that_did_not_run_catches_up() -> None:
    org = make_org()

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if between(170, 150)(moment) and draw.random() < 0.5:
            fail(fields)

    with time_machine.travel(NOW - 200 * MINUTE, tick=False):
        history(org)
        watch()
    with time_machine.travel(NOW + 6 * 60 * MINUTE, tick=False):
        lately(org, change)
        watch()
        assert_window(windows(org)[0], ("errorRate", None, 170, 150))
        assert Watch.objects.get().watched_up_to == (NOW + 6 * 60 * MINUTE).replace(second=0)


def test_what_a_run_has_no_time_for_is_left_to_the_next() -> None:
    org = make_org()
    now, hour = NOW.replace(second=0), 60 * MINUTE
    with time_machine.travel(NOW - 5 * hour, tick=False):
        history(org)
        watch()
    with time_machine.travel(NOW, tick=False):
        lately(org, lambda draw, moment, fields: fail(fields) if between(30, 0)(moment) else None)
        for hours_left in (4, 3, 2, 1, 0):
            assert not Incident.objects.exists()
            watch(at_once=timedelta())
            assert Watch.objects.get().watched_up_to == now - hours_left * hour
        assert_window(windows(org)[0], ("errorRate", None, 30, 0))


@pytest.mark.django_db(transaction=True)
def test_two_that_watch_at_once_keep_one_incident() -> None:
    org = make_org()
    with time_machine.travel(NOW, tick=False):
        lately(org, lambda draw, moment, fields: fail(fields) if between(30, 0)(moment) else None)
        barrier = Barrier(2)

        def work() -> None:
            barrier.wait()
            watch()
            connection.close()

        threads = [Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Incident.objects.count() == 1


def test_nothing_to_look_at(django_assert_max_num_queries: DjangoAssertNumQueries) -> None:
    Watch.objects.create(watched_up_to=timezone.now() - 2 * MINUTE)
    with django_assert_max_num_queries(20):
        assert watch() == 0
    assert not Incident.objects.exists()


def test_incidents_are_kept_as_long_as_days() -> None:
    org = make_org()
    fields: dict[str, Any] = {"org": org, "observed": 1, "normal": 0, "score": 20, "invocations": 1, "failures": 1}
    old, young = timezone.now() - timedelta(days=31 * 27), timezone.now() - timedelta(days=31 * 24)
    for moment in (old, young):
        Incident.objects.create(measure="errorRate", started_at=moment, ended_at=moment + MINUTE, **fields)
    forget_incidents()
    assert [one.started_at for one in Incident.objects.all()] == [young]


# ── By API ───────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(org: Org, **query: Any) -> Any:
    asked = {"start": (NOW - DAY).isoformat(), "end": (NOW + DAY).isoformat()} | query
    return APIClient().get(
        f"/analytics/v1/orgs/{org.pk}/reliability/incidents",
        asked,
        headers={"X-API-Key": make_key(org, Scope.RELIABILITY_READ)},
    )


def test_the_api_tells_incidents_and_what_holds_now() -> None:
    org = make_org()

    def change(draw: random.Random, moment: datetime, fields: dict[str, Any]) -> None:
        if between(30, 0)(moment) and fields["model_id"] == MODEL and draw.random() < 0.5:
            fail(fields)

    with time_machine.travel(NOW, tick=False):
        history(org)
        lately(org, change)
        watch()
        answer = ask(org).json()
        (incident,) = answer["incidents"]
        stored = Incident.objects.get()
        assert incident["incidentId"] == str(stored.pk)
        assert (incident["modelId"], incident["measure"], incident["isOpen"]) == (str(MODEL), "errorRate", True)
        assert incident["causes"]["errorCodes"][0]["errorCode"] == "overloaded"
        assert incident["causes"]["models"][0]["modelId"] == str(MODEL)
        assert incident["failedCostEstimate"] == f"{stored.failed_cost_cents:.4f}"
        held = {(one["condition"], one["modelId"]) for one in answer["holding"]}
        assert {("errorRate", None), ("errorRate", str(MODEL))} <= held
        assert ("errorRate", str(OTHER_MODEL)) not in held
        assert ask(org, modelId=str(OTHER_MODEL)).json()["incidents"] == []
        assert ask(org, modelId=str(OTHER_MODEL)).json()["holding"] == []
        assert len(ask(org, modelId=str(MODEL)).json()["incidents"]) == 1
        before = {"start": (NOW - 2 * DAY).isoformat(), "end": (NOW - DAY).isoformat()}
        assert ask(org, **before).json()["incidents"] == []


def test_an_org_without_calls_has_none() -> None:
    org = make_org()
    assert ask(org).json() == {"orgId": str(org.pk), "incidents": [], "holding": []}
