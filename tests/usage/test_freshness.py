"""Freshness: how far the figures trail what was accepted, not how long an org has been idle."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.cache import cache
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings
from redis.exceptions import RedisError
from rest_framework.test import APIClient

from ingestion.models import Batch, StreamReader
from orgs.models import Org, Scope
from usage.models import Freshness
from usage.rollups import roll_up

from ..factories import MODEL, NOON, OTHER_MODEL, ROLE_QUERIES, at, ingest, make_event, make_key, make_org

pytestmark = pytest.mark.django_db

Ask = Callable[..., Any]
NOWHERE = "redis://127.0.0.1:1/0"  # nothing listens there


@pytest.fixture
def org() -> Org:
    return make_org()


@pytest.fixture
def ask(api: APIClient, org: Org) -> Ask:
    token = make_key(org, Scope.USAGE_READ)

    def get(of: Org = org, **query: Any) -> Any:
        return api.get(f"/analytics/v1/orgs/{of.pk}/freshness", query, headers={"X-API-Key": token})

    return get


def waits_for(batch: Batch, waited: timedelta) -> None:
    Batch.objects.filter(pk=batch.pk).update(completed_at=timezone.now() - waited)


def standing(answer: Any) -> tuple[str, set[str]]:
    """The status of the org, and those of its entries."""
    assert answer.status_code == 200, answer.content
    body = answer.json()
    return body["status"], {entry["status"] for entry in body["entries"]}


def test_the_answer_is_that_of_the_contract(ask: Ask, org: Org) -> None:
    ingest([make_event(org, occurred_at=at(9)), make_event(org, occurred_at=at(10), model_id=OTHER_MODEL)])
    roll_up()
    body = ask().json()
    moments = [entry.pop("lastRollupAt") for entry in body["entries"]]
    assert all(moment.endswith("Z") for moment in moments)
    assert all(timezone.now() - datetime.fromisoformat(moment) < timedelta(minutes=1) for moment in moments)
    assert body == {
        "orgId": str(org.pk),
        "status": "fresh",
        "entries": [
            {"modelId": str(MODEL), "lastEventAt": f"{NOON:%Y-%m-%d}T09:00:00Z", "lagSeconds": 0, "status": "fresh"},
            {
                "modelId": str(OTHER_MODEL),
                "lastEventAt": f"{NOON:%Y-%m-%d}T10:00:00Z",
                "lagSeconds": 0,
                "status": "fresh",
            },
        ],
    }


def test_one_model_can_be_asked_for(ask: Ask, org: Org) -> None:
    ingest([make_event(org), make_event(org, model_id=OTHER_MODEL)])
    roll_up()
    assert [entry["modelId"] for entry in ask(modelId=str(OTHER_MODEL).upper()).json()["entries"]] == [str(OTHER_MODEL)]
    assert ask(modelId=uuid.uuid4()).json() == {"orgId": str(org.pk), "status": "delayed", "entries": []}


def test_an_org_without_data_is_delayed_and_has_no_entries(ask: Ask, org: Org) -> None:
    assert ask().json() == {"orgId": str(org.pk), "status": "delayed", "entries": []}


def test_events_that_were_never_rolled_up_are_delayed_from_the_first_second(ask: Ask, org: Org) -> None:
    ingest([make_event(org)])
    assert standing(ask()) == ("delayed", set())


@pytest.mark.parametrize(
    ("waited", "status"),
    [
        (0, "fresh"),
        (299, "fresh"),
        (300, "fresh"),
        (301, "stale"),
        (600, "stale"),
        (601, "delayed"),
        (86_400, "delayed"),
    ],
)
def test_the_status_follows_the_oldest_batch_that_waits(ask: Ask, org: Org, waited: int, status: str) -> None:
    ingest([make_event(org)])
    roll_up()
    with time_machine.travel(datetime.now(UTC), tick=False):
        waits_for(ingest([make_event(org)]), timedelta(seconds=waited))
        waits_for(ingest([make_event(org)]), timedelta())
        answer = ask()
    assert standing(answer) == (status, {status})
    assert answer.json()["entries"][0]["lagSeconds"] == waited


def test_what_another_org_waits_for_is_not_a_lag(ask: Ask, org: Org) -> None:
    ingest([make_event(org)])
    roll_up()
    waits_for(ingest([make_event(make_org("Globex"))]), timedelta(hours=1))
    assert standing(ask()) == ("fresh", {"fresh"})


def test_an_idle_org_stays_fresh(ask: Ask, org: Org) -> None:
    ingest([make_event(org)])
    roll_up()
    with time_machine.travel(datetime.now(UTC) + timedelta(days=30)):
        answer = ask()
    assert standing(answer) == ("fresh", {"fresh"})
    assert answer.json()["entries"][0]["lagSeconds"] == 0


def test_a_rollup_makes_a_delayed_org_fresh_again(ask: Ask, org: Org) -> None:
    ingest([make_event(org)])
    roll_up()
    waits_for(ingest([make_event(org)]), timedelta(hours=1))
    assert standing(ask())[0] == "delayed"
    roll_up()
    assert standing(ask()) == ("fresh", {"fresh"})


@pytest.mark.django_db(transaction=True)
def test_a_rollup_puts_what_it_committed_into_the_cache(ask: Ask, org: Org) -> None:
    ingest([make_event(org, occurred_at=at(9))])
    roll_up()
    assert ask().json()["entries"][0]["lastEventAt"] == f"{NOON:%Y-%m-%d}T09:00:00Z"
    ingest([make_event(org, occurred_at=at(10))])
    roll_up()
    assert ask().json()["entries"][0]["lastEventAt"] == f"{NOON:%Y-%m-%d}T10:00:00Z"


def test_the_cache_is_asked_first_but_never_for_the_lag(
    ask: Ask, org: Org, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    ingest([make_event(org)])
    roll_up()
    first = ask().json()
    Freshness.objects.all().delete()
    with django_assert_num_queries(
        ROLE_QUERIES + 6
    ):  # the key, the org, and twice the batches that wait and the streams
        assert ask().json() == first
    waits_for(ingest([make_event(org)]), timedelta(hours=1))
    assert standing(ask()) == ("delayed", {"delayed"})


@pytest.mark.parametrize(("behind", "status"), [(1, "fresh"), (400, "stale"), (700, "delayed")])
def test_what_waits_on_a_stream_is_every_orgs_lag(ask: Ask, org: Org, behind: int, status: str) -> None:
    ingest([make_event(org)])
    roll_up()
    now = timezone.now()
    StreamReader.objects.create(stream="read", caught_up_at=now)
    StreamReader.objects.create(stream="behind", caught_up_at=now - timedelta(seconds=behind))
    assert standing(ask()) == (status, {status})
    assert behind <= ask().json()["entries"][0]["lagSeconds"] <= behind + 30


def test_without_redis_the_database_answers(ask: Ask, org: Org, settings: Settings) -> None:
    ingest([make_event(org)])
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": NOWHERE}}
    with pytest.raises(RedisError):
        cache.get("anything")
    roll_up()
    assert standing(ask()) == ("fresh", {"fresh"})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"modelId": "gpt"}, "must be a UUID"),
        ({"modelId": "\0"}, "must be a UUID"),
        ({"modelId": [str(MODEL), str(MODEL)]}, "is given more than once"),
    ],
)
def test_a_model_that_is_wrong_is_named(ask: Ask, query: dict[str, Any], message: str) -> None:
    answer = ask(**query)
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert answer.json()["errors"] == [{"field": "modelId", "message": message}]
