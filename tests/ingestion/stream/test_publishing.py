"""Putting messages on a stream: a trace, by the command; one event, as the README shows it."""

import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import LazySettings, settings
from django.core.management import CommandError, call_command

from ingestion.models import QuarantinedMessage, UsageEvent
from ingestion.stream import connecting
from ingestion.stream.looking import bounds_of
from ingestion.stream.publishing import NotConfirmed, Publisher, publish_all

from ...factories import make_event
from ...processes import NOWHERE, eventually
from .conftest import RABBITMQ, Reading, encoded

pytestmark = pytest.mark.django_db(transaction=True)

ReadAll = Callable[[int], None]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [f"2024-05-10 00:00:{n:02d}.123456,{100 + n},{10 + n}" for n in range(30)]
    file = tmp_path / "trace.csv"
    file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    return file


def totals() -> tuple[int, int, int]:
    rows = list(UsageEvent.objects.values_list("input_tokens", "output_tokens"))
    return len(rows), sum(row[0] for row in rows), sum(row[1] for row in rows)


def test_a_trace_on_the_stream_is_the_trace_replayed(
    stream: str, trace: Path, reading: Reading, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("publish_trace", trace, per_message=4)
    assert "30 events in 8 messages, all confirmed" in capsys.readouterr().out
    with reading():
        eventually(lambda: totals()[0] == 30, 30, "it is read")
    published = totals()
    assert published == (30, sum(range(100, 130)), sum(range(10, 40)))
    call_command("replay_trace", trace)
    assert totals() == published, "the same events by another door are duplicates"
    assert not QuarantinedMessage.objects.exists()


def test_a_rate_is_kept_and_the_broker_hears_of_us_meanwhile(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "HEARTBEAT", 2)
    messages = [(stream, encoded(make_event()), 1)] * 3
    started = time.monotonic()
    with Publisher() as publisher:
        assert publish_all(publisher, messages, 0.5) == (3, 3)
    assert time.monotonic() - started > 5.5
    assert bounds_of(RABBITMQ, stream) == (0, 3)


def test_what_the_broker_does_not_keep_is_not_confirmed(stream: str) -> None:
    with pytest.raises(NotConfirmed, match="no stream"), Publisher() as publisher:
        publisher.publish(f"{stream}.none", b"{}")


@pytest.mark.parametrize(
    ("options", "words"), [({"per_message": 0}, "1 or more"), ({"rate": -1.0}, "0 or more"), ({}, "the broker at")]
)
def test_a_wrong_call_is_told(trace: Path, settings: LazySettings, options: dict[str, float], words: str) -> None:
    settings.RABBITMQ_URL = f"amqp://guest:guest@{NOWHERE}//"
    with pytest.raises(CommandError, match=words):
        call_command("publish_trace", trace, **options)


def test_the_producer_of_the_readme_works(
    stream: str, read_all: ReadAll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (settings.BASE_DIR / "README.md").read_text()
    code = re.search(r"```python\n(import .*?basic_publish.*?)```", text, re.DOTALL)
    assert code is not None
    if "127.0.0.1:5672" not in RABBITMQ:
        pytest.skip("the README's producer speaks to 127.0.0.1:5672")
    file = tmp_path / "producer.py"
    file.write_text(code[1].replace("analytics.usage.v1", stream).replace("20 * 1024**3", "10**8"))
    org = uuid.uuid4()
    for _ in range(2):
        subprocess.run([sys.executable, file, str(org)], check=True, timeout=30)
    read_all(1)
    assert set(UsageEvent.objects.values_list("org_id", flat=True)) == {org}
    assert UsageEvent.objects.count() == 2
