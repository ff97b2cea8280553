"""Batches, quarantine and conflicts in the admin: all there to see, nothing to spoil, quick at any size."""

import json
import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from ingestion import admin as ingestion_admin
from ingestion.admin import events_of, readable
from ingestion.models import Batch, Conflict, Door, QuarantinedMessage, UsageEvent
from ingestion.replaying import replay as replay_messages
from orgs import admin_base
from orgs.limits import MAX_PAGE_ROWS
from orgs.models import AuditRecord

from ..factories import NOON, as_json, at, ingest, make_event, make_org, make_user

pytestmark = pytest.mark.django_db

State = QuarantinedMessage.State
BATCHES = "ingestion_batch_changelist"
QUARANTINE = "ingestion_quarantinedmessage_changelist"
REPLAY = "ingestion_quarantinedmessage_replay"


def page(name: str, *args: object) -> str:
    return reverse(f"admin:{name}", args=args)


def ahead(minutes: int) -> bytes:
    return json.dumps(as_json(make_event(occurred_at=timezone.now() + timedelta(minutes=minutes)))).encode()


def quarantine(*payloads: bytes) -> list[QuarantinedMessage]:
    replay_messages(payloads, Door.TRACE)
    return list(QuarantinedMessage.objects.order_by("pk"))


def make_batches(count: int) -> None:
    """Batches without events; one in a thousand with trouble, the newest ten not rolled up."""
    with connection.cursor() as cursor:
        # A new file: the rows lie in the order of their ids, as they do in operation, and not in gaps that tests before
        # left. The planner looks at that.
        cursor.execute("TRUNCATE ingestion_batches CASCADE")
        cursor.execute(
            "INSERT INTO ingestion_batches (public_id, door, received, accepted, duplicates, conflicts, rejected,"
            " quarantined, stream, org_ids, is_late, retries, started_at, completed_at, rolled_up_at)"
            " SELECT gen_random_uuid(), CASE WHEN i %% 500 = 0 THEN 'trace' ELSE 'http' END, 100, 100, 0, 0, 0,"
            " CASE WHEN i %% 1000 = 0 THEN 1 ELSE 0 END, '', '{}', false, 0, now(), now(),"
            " CASE WHEN i <= %s - 10 THEN now() END FROM generate_series(1, %s) i",
            [count, count],
        )
        cursor.execute("ANALYZE ingestion_batches")


def listed(client: Client, name: str, **query: object) -> list[int]:
    return [row.pk for row in client.get(page(name), query).context["cl"].result_list]


def statements(client: Client, name: str, table: str, **query: object) -> list[str]:
    with CaptureQueriesContext(connection) as queries:
        assert client.get(page(name), query).status_code == 200
    return [q["sql"] for q in queries if table in q["sql"]]


def plan(sql: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + sql.replace("%", "%%"))
        return "\n".join(line for (line,) in cursor.fetchall())


# ── Batches ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_batch_shows_what_became_of_its_events(boss: Client) -> None:
    org = make_org()
    first = make_event(org)
    ingest([first])
    batch = ingest([first, make_event(org, event_id=first.event_id, latency_ms=7), make_event(org)])
    html = boss.get(page("ingestion_batch_change", batch.pk)).content.decode()
    assert "1 accepted, 2 duplicates" in html
    assert f'<a href="{page("orgs_org_change", org.pk)}">Acme</a>' in html
    assert f"{page('ingestion_conflict_changelist')}?batch__id__exact={batch.pk}" in html.replace("&amp;", "&")
    assert page("ingestion_batch_events", batch.pk) in html


def test_the_outcome_bar_fills_its_width_and_shows_slivers(boss: Client) -> None:
    batch = Batch(accepted=99_999, quarantined=1)
    html = ingestion_admin.outcome_bar(batch)
    widths = [(float(x), float(width)) for x, width in re.findall(r'x="([\d.]+)" width="([\d.]+)"', html)]
    assert len(widths) == 2
    assert widths[1][1] >= 2
    assert all(x + width <= 100.01 for x, width in widths)


def test_batches_events_and_conflicts_cannot_be_changed(boss: Client) -> None:
    event = make_event()
    ingest([event])
    batch = ingest([make_event(event.org_id, event_id=event.event_id, latency_ms=7)])
    (message,) = quarantine(b"nonsense")
    conflict = Conflict.objects.get()
    for name, pk in (("batch", batch.pk), ("conflict", conflict.pk), ("quarantinedmessage", message.pk)):
        assert boss.get(page(f"ingestion_{name}_add")).status_code == 403
        assert boss.post(page(f"ingestion_{name}_add"), {"received": 1}).status_code == 403
        assert boss.post(page(f"ingestion_{name}_change", pk), {"received": 1}).status_code == 403
        assert boss.post(page(f"ingestion_{name}_delete", pk), {"post": "yes"}).status_code == 403
    assert boss.post(page("ingestion_batch_events", batch.pk)).status_code == 405


def test_a_batch_is_found_by_number_public_id_and_org(boss: Client) -> None:
    org = make_org()
    batch, _ = ingest([make_event(org)]), ingest([make_event()])
    for term in (batch.pk, batch.public_id, org.pk, f" {batch.pk} "):
        assert listed(boss, BATCHES, q=term) == [batch.pk]
    for term in (uuid.uuid4(), "9" * 30, "nonsense", "-1", "²"):
        assert listed(boss, BATCHES, q=term) == []


def test_filters_find_what_waits_and_what_went_wrong(boss: Client) -> None:
    late = ingest([make_event()], Door.TRACE)
    Batch.objects.filter(pk=late.pk).update(rolled_up_at=timezone.now())
    fresh = ingest([make_event(occurred_at=timezone.now())])
    quarantine(b"nonsense")
    bad = Batch.objects.latest("pk")
    assert listed(boss, BATCHES, rollup="waiting") == [bad.pk, fresh.pk]
    assert listed(boss, BATCHES, rollup="done") == [late.pk]
    assert listed(boss, BATCHES, trouble="quarantined") == listed(boss, BATCHES, trouble="any") == [bad.pk]
    assert listed(boss, BATCHES, trouble="conflicts") == []
    assert listed(boss, BATCHES, door="http") == [fresh.pk]
    assert listed(boss, BATCHES, is_late="True") == [late.pk]
    assert listed(boss, BATCHES, door="nonsense") == [bad.pk, fresh.pk, late.pk]


def test_lookups_that_no_index_serves_are_refused(boss: Client) -> None:
    for query in ("accepted__gt=5", "received=1", "org_ids__contains=1"):
        response = boss.get(f"{page(BATCHES)}?{query}")
        assert response.status_code == 400
    response = boss.get(f"{page(QUARANTINE)}?detail__icontains=x")
    assert response.status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"p": 100},
        {"o": "5"},
        {"_facets": "True"},
        {"rollup": "waiting"},
        {"rollup": "done"},
        {"trouble": "any"},
        {"trouble": "conflicts"},
        {"door": "trace"},
        {"is_late": "True"},
        {"q": "17"},
        {"q": "00000000-0000-4000-8000-00000000000a"},
    ],
)
def test_no_list_of_batches_counts_or_sorts_or_reads_the_whole_table(
    boss: Client, monkeypatch: pytest.MonkeyPatch, query: dict[str, object]
) -> None:
    monkeypatch.setattr(admin_base, "NEWEST", 2_000)
    make_batches(60_000)
    seen = statements(boss, BATCHES, "ingestion_batches", **query)
    assert seen
    for sql in seen:
        shown = plan(sql)
        assert "DISTINCT" not in sql
        # A page that is known to be the only one has no LIMIT: its rows were counted, up to the limit.
        assert "LIMIT" in sql or "COUNT" not in sql, sql
        if not sql.startswith("SELECT COUNT"):  # a count may read the first rows in any order: it stops
            assert "Seq Scan" not in shown, f"{sql}\n{shown}"
            assert "Sort" not in shown, f"{sql}\n{shown}"


def test_a_list_says_more_instead_of_counting(boss: Client) -> None:
    make_batches(10_200)
    response = boss.get(page(BATCHES), {"p": 100})
    assert "10,000+ batches" in " ".join(response.content.decode().split())
    assert len(response.context["cl"].result_list) == 100


# ── Events of a batch ────────────────────────────────────────────────────────────────────────────────────────────
def test_the_events_of_a_batch_are_listed_up_to_the_limit(boss: Client) -> None:
    org = make_org()
    batch = ingest([make_event(org, occurred_at=NOON + timedelta(seconds=i)) for i in range(MAX_PAGE_ROWS + 50)])
    ingest([make_event(org, occurred_at=NOON)])
    with CaptureQueriesContext(connection) as queries:
        response = boss.get(page("ingestion_batch_events", batch.pk))
    assert len(response.context["listing"].rows) == MAX_PAGE_ROWS
    assert response.context["listing"].rows[0][:2] == (f"{NOON:%Y-%m-%d %H:%M:%S}.000", "Acme")
    (sql,) = [q["sql"] for q in queries if 'FROM "usage_events"' in q["sql"]]
    assert "LIMIT 200" in sql
    assert not any("COUNT" in q["sql"] for q in queries)


def test_the_events_of_a_batch_touch_the_partitions_of_its_span_only() -> None:
    for days in range(6):
        ingest([make_event(occurred_at=NOON - timedelta(days=days))])
    batch = ingest([make_event(occurred_at=at(1)), make_event(occurred_at=at(2, day=NOON - timedelta(days=1)))])
    shown = events_of(batch).explain()
    touched = set(re.findall(r"usage_events_p(\d{8})", shown))
    assert touched == {f"{NOON:%Y%m%d}", f"{NOON - timedelta(days=1):%Y%m%d}"}
    assert {event.batch_id for event in events_of(batch)} == {batch.pk}
    assert events_of(batch).count() == 2


def test_a_batch_without_events_has_none_to_list(boss: Client) -> None:
    (message,) = quarantine(b"nonsense")
    response = boss.get(page("ingestion_batch_events", message.batch_id))
    assert list(response.context["listing"].rows) == []
    assert boss.get(page("ingestion_batch_events", 10**12)).status_code == 404


def test_support_sees_events(client: Client) -> None:
    batch = ingest([make_event()])
    client.force_login(make_user(is_staff=True))
    events = page("ingestion_batch_events", batch.pk)
    assert events in client.get(page("ingestion_batch_change", batch.pk)).content.decode()
    assert client.get(events).status_code == 200


# ── Quarantine ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_list_shows_what_waits_and_reads_no_payload(boss: Client) -> None:
    waiting, done = quarantine(b"nonsense", b"[1")
    QuarantinedMessage.objects.filter(pk=done.pk).update(state=State.REPLAYED, replay_batch=done.batch)
    assert listed(boss, QUARANTINE) == [waiting.pk]
    assert listed(boss, QUARANTINE, state="replayed") == [done.pk]
    assert listed(boss, QUARANTINE, state="all", batch__id__exact=done.batch_id) == [done.pk, waiting.pk]
    assert listed(boss, QUARANTINE, reason="unreadable") == [waiting.pk]
    for sql in statements(boss, QUARANTINE, "ingestion_quarantine"):
        assert '"payload" AS' not in sql
        assert '"ingestion_quarantine"."payload",' not in sql


@pytest.mark.parametrize(
    ("payload", "kind", "expected"),
    [
        (
            b'{"cost":0.10000000000000000001,"a":1,"a":2}',
            "JSON",
            "&quot;cost&quot;: 0.10000000000000000001,\n  &quot;a&quot;: 1,\n  &quot;a&quot;: 2",
        ),
        (b'{"note": "<script>alert(1)</script>"}', "JSON", "&lt;script&gt;"),
        ("grüße".encode(), "Text", "grüße"),
        (b"\xff\x00A", "Bytes", "ff 00 41"),
        (b"\x00", "Bytes", "000000  00"),
        (b"", "Bytes", ""),
        (b"[" * 200_000, "Text", "the first 65,536 are shown"),
        (b"\xff" * 200_000, "Bytes", "the first 4,096 are shown"),
    ],
)
def test_a_payload_is_readable_whatever_it_is(payload: bytes, kind: str, expected: str) -> None:
    html = readable(payload)
    assert f"<p>{kind}, {len(payload):,} bytes" in html
    assert expected in html
    assert "<script" not in html
    assert len(html) < 100_000


def test_a_replay_asks_first_and_says_how_many(boss: Client) -> None:
    messages = quarantine(ahead(10), b"nonsense")
    form = {"action": "replay_selected", "_selected_action": [m.pk for m in messages]}
    response = boss.post(page(QUARANTINE), form)
    assert "Replay 2 messages?" in response.content.decode()
    assert response.context["question"].ids == ",".join(str(m.pk) for m in messages)
    assert boss.get(page(REPLAY), {"ids": messages[0].pk}).context["question"].ids == str(messages[0].pk)
    assert (
        f"{page(REPLAY)}?ids={messages[0].pk}"
        in boss.get(page("ingestion_quarantinedmessage_change", messages[0].pk)).content.decode()
    )
    assert not QuarantinedMessage.objects.exclude(state=State.WAITING).exists()


def test_a_replay_stores_what_is_right_now_and_the_rest_goes_on_waiting(boss: Client) -> None:
    soon, later, never = quarantine(ahead(10), ahead(60 * 24), b"nonsense")
    with time_machine.travel(timezone.now() + timedelta(minutes=10), tick=False):
        response = boss.post(page(REPLAY), {"ids": f"{soon.pk},{later.pk},{never.pk},x,"}, follow=True)
    done, waits = (str(message) for message in response.context["messages"])
    soon.refresh_from_db()
    assert soon.replay_batch is not None
    assert re.sub(r"<[^>]*>", "", done) == (
        f"Replayed 1 of 3 in batch {soon.replay_batch.pk}. Events stored: 1; stored already: 0."
    )
    assert waits == "2 still waiting, because of: occurredAt (1), unreadable (1)."
    assert listed(boss, QUARANTINE) == [never.pk, later.pk]
    record = AuditRecord.objects.get()
    assert (record.actor, record.action, record.org_id) == ("user:boss@example.com", "quarantine replayed", None)
    assert record.target == f"1 replayed, 2 still waiting; batch {soon.replay_batch.pk}"
    assert LogEntry.objects.get().object_id == str(soon.pk)
    assert UsageEvent.objects.count() == 1


def test_a_replay_that_stores_nothing_says_why(boss: Client) -> None:
    (message,) = quarantine(b"nonsense")
    response = boss.post(page(REPLAY), {"ids": message.pk}, follow=True)
    assert [str(m) for m in response.context["messages"]] == ["1 still waiting, because of: unreadable (1)."]
    assert AuditRecord.objects.get().target == "0 replayed, 1 still waiting; batch none"


def test_one_replay_is_no_larger_than_a_batch(boss: Client, settings: Any) -> None:
    settings.INGESTION_BATCH_SIZE = 2
    messages = quarantine(b"a", b"b", b"c")
    form = {"action": "replay_selected", "_selected_action": messages[0].pk, "select_across": "1"}
    question = boss.post(page(QUARANTINE), form).context["question"]
    assert question.ids == f"{messages[0].pk},{messages[1].pk}"
    assert "You selected more" in question.text


def test_staff_who_may_only_look_cannot_replay(client: Client) -> None:
    (message,) = quarantine(ahead(1_000))
    staff = make_user(is_staff=True)
    staff.user_permissions.set(Permission.objects.filter(codename="view_quarantinedmessage"))
    client.force_login(staff)
    html = client.get(page("ingestion_quarantinedmessage_change", message.pk)).content.decode()
    assert page(REPLAY) not in html
    assert client.get(page(REPLAY), {"ids": message.pk}).status_code == 403
    assert client.post(page(REPLAY), {"ids": message.pk}).status_code == 403


# ── Conflicts ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_conflict_shows_both_sides_and_what_differs(boss: Client) -> None:
    event = make_event(make_org())
    first = ingest([event])
    ingest([make_event(event.org_id, event_id=event.event_id, latency_ms=7, status="timeout")])
    conflict = Conflict.objects.get()
    html = boss.get(page("ingestion_conflict_change", conflict.pk)).content.decode()
    assert page("ingestion_batch_change", first.pk) in html
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)]
    assert [row[0] for row in rows if row[-1] == "Differs"] == ["latency_ms", "status"]
    assert ["latency_ms", "100", "7", "Differs"] in rows
    assert ["status", "success", "timeout", "Differs"] in rows
    for term in (event.event_id, event.org_id, conflict.pk):
        assert listed(boss, "ingestion_conflict_changelist", q=term) == [conflict.pk]


def test_a_conflict_outlives_the_event_it_is_about(boss: Client) -> None:
    event = make_event()
    ingest([event])
    ingest([make_event(event.org_id, event_id=event.event_id, latency_ms=7)])
    UsageEvent.objects.all().delete()
    html = boss.get(page("ingestion_conflict_change", Conflict.objects.get().pk)).content.decode()
    assert "no longer kept" in html
