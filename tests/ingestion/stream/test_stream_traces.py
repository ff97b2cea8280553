"""Batches of a stream are traces of their own, linked to those of their messages."""

from pathlib import Path

import pytest

from ingestion.models import Batch
from ingestion.spans import MAX_LINKS
from ingestion.stream.batching import OpenBatch
from ingestion.stream.feed import Message
from ingestion.stream.publishing import Publisher

from ...factories import NOON, make_event
from ...otlp import attributes, receiver
from ...processes import eventually
from .conftest import Publish, encoded
from .test_workers import worker

pytestmark = pytest.mark.django_db(transaction=True)

PRODUCERS = [f"00-{number:032x}-{number:016x}-01" for number in (1, 2)]


def test_a_batch_is_linked_to_the_spans_that_published_its_messages(
    stream: str, publish: Publish, tmp_path: Path
) -> None:
    with Publisher() as publisher:
        for traceparent in (PRODUCERS[0], PRODUCERS[1], PRODUCERS[0], "", "nonsense", "x" * 55):
            publisher.publish(stream, encoded(make_event()), traceparent)
    with receiver() as collector:
        with worker(tmp_path / "log", INGESTION_BATCH_TIMEOUT="5", **collector.settings) as running:
            read = collector.wait_for("read stream", 60)
            stored = collector.wait_for("store batch")
            running.stop()
        roots = {span.name for span in collector.spans if not span.parent_span_id}
    batch = Batch.objects.get()
    assert sorted(link.trace_id.hex() for link in read.links) == [each[3:35] for each in PRODUCERS]
    assert (attributes(read)["analytics.stream"], attributes(read)["analytics.messages"]) == (stream, 6)
    assert stored.parent_span_id == read.span_id
    assert str(batch.traceparent).startswith(f"00-{stored.trace_id.hex()}-{stored.span_id.hex()}-0")
    assert roots == {"read stream"}, "notes of how reading goes are no traces"


def test_what_is_read_is_sent_when_the_reader_ends(stream: str, publish: Publish, tmp_path: Path) -> None:
    publish(make_event())
    with receiver() as collector:
        late = collector.settings | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        with worker(tmp_path / "log", **late) as running:
            eventually(Batch.objects.exists, 60, "the batch is stored")
            assert not collector.bodies
            running.stop()
        assert collector.named("read stream")


def test_links_have_an_end() -> None:
    batch = OpenBatch()
    for number in range(MAX_LINKS + 5):
        batch.add(Message(number, b"[]", number, f"00-{number:032x}-{number:016x}-01"), NOON)
    assert len(batch.traceparents) == MAX_LINKS
