"""Orgs take turns: one org's exports, however many and however heavy, never keep another's from being made."""

from pathlib import Path

import pytest
from django.conf import LazySettings
from django.utils import timezone
from kombu import Connection

from analytics_site.rig import redis_url
from exports import claims, jobs, making, tasks
from exports.datasets.usage import Grain
from exports.models import ExportJob, State
from orgs.limits import EXPORT_LEASE, MAX_OPEN_EXPORTS
from orgs.models import Org
from usage.windows import HOUR, Window

from ..factories import make_org
from ..held import FREE, HELD, month_locked, with_calls
from ..processes import celery, eventually

pytestmark = pytest.mark.django_db(transaction=True)
BY = "user:fin@example.com"
BROKER = 7  # a Redis database that nobody else's workers listen to


def asked(org: Org | None, window: Window = FREE) -> ExportJob:
    return jobs.ask(jobs.Wanted(org=org, window=window, grain=Grain.HOURLY), BY)


def five(org: Org, window: Window) -> list[ExportJob]:
    """As many as it may have open, no two alike."""
    return [asked(org, Window(window.start, window.end + n * HOUR)) for n in range(MAX_OPEN_EXPORTS)]


@pytest.fixture
def greedy(folder: Path) -> Org:
    return with_calls(make_org("Greedy"))


@pytest.fixture
def modest(folder: Path) -> Org:
    return with_calls(make_org("Modest"))


def states(found: list[ExportJob]) -> list[str]:
    now = dict(ExportJob.objects.values_list("pk", "status"))
    return [now[job.pk] for job in found]


def test_while_one_orgs_heavy_files_wait_anothers_is_made(
    greedy: Org, modest: Org, folder: Path, tmp_path: Path
) -> None:
    """Two exporters, as in production; the database lets nobody finish what the first org asks for."""
    variables = {"REDIS_URL": redis_url(BROKER), "EXPORT_FOLDER": str(folder)}
    url = redis_url(BROKER).replace("unix://", "redis+socket://").replace("db=", "virtual_host=")
    with month_locked(greedy.pk) as held, Connection(url) as broker:
        broker.default_channel.queue_purge("exports")
        heavy = five(greedy, HELD)
        small = asked(modest)
        with celery(tmp_path / "log", "-c", "2", "-Q", "exports", **variables):
            for job in [*heavy, small]:
                tasks.run.apply_async((str(job.pk),), connection=broker)
            eventually(lambda: held.waiting == 1, 60, "the first heavy one has begun")
            eventually(lambda: states([small]) == [State.SUCCEEDED], 60, "the small one is made")
            assert sorted(states(heavy)) == [State.PENDING] * 4 + [State.RUNNING], "and all of the heavy ones wait"
            held.release()
            # Words for these were heard while none of them was in turn; nobody says them again meanwhile.
            eventually(lambda: states(heavy) == [State.SUCCEEDED] * 5, 60, "then these are made, one after the other")
    assert set(ExportJob.objects.values_list("attempts", flat=True)) == {1}


def test_one_worker_serves_orgs_in_turn_whatever_the_order_of_words(greedy: Org, modest: Org) -> None:
    many, few = five(greedy, FREE), [asked(modest), asked(modest, HELD)]
    for job in [*many, *few]:
        making.attempt(str(job.pk))
    order = ExportJob.objects.order_by("started_at").values_list("org__name", flat=True)
    assert list(order) == ["Greedy", "Modest", "Greedy", "Modest", "Greedy", "Greedy", "Greedy"]
    assert states(many + few) == [State.SUCCEEDED] * 7


def test_an_org_has_one_running_and_a_dead_workers_place_is_given_back(greedy: Org) -> None:
    first, second, *_ = five(greedy, FREE)
    assert claims.claim(str(first.pk)) == first
    assert claims.claim(str(second.pk)) is None
    ExportJob.objects.filter(pk=first.pk).update(heartbeat_at=timezone.now() - EXPORT_LEASE)
    assert claims.recover() == 1
    assert claims.claim(str(second.pk)) == second, "of an org's own, the one that is named"


def test_an_operator_with_more_exporters_gives_an_org_more(greedy: Org, settings: LazySettings) -> None:
    settings.ORG_EXPORT_CONCURRENCY = 2
    first, second, third, *_ = five(greedy, FREE)
    assert [claims.claim(str(job.pk)) for job in (first, second, third)] == [first, second, None]


def test_files_about_all_orgs_are_those_of_one_more(greedy: Org) -> None:
    whole = ExportJob.objects.create(**{
        field: value for field, value in vars(jobs.Wanted(org=None, window=FREE).job(BY)).items() if field != "_state"
    })  # fmt: skip
    mine = asked(greedy)
    assert {claims.claim(str(whole.pk)), claims.claim(str(mine.pk))} == {whole, mine}
