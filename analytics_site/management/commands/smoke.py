"""Whether a running instance does its work, asked over HTTP alone: for after a deployment."""

import json
import os
import time
import urllib.error
import urllib.request
import uuid
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.core.management.base import BaseCommand, CommandError

# One model of every installation for all that is sent here: no figure of another has it in it.
MODEL = uuid.uuid5(uuid.NAMESPACE_URL, "urn:analytics:smoke")
FRESH_WITHIN = 5.0  # seconds: the goal for an accepted event
BEYOND = 25.0  # seconds more that a slow one is waited for, to tell slow from broken
TIMEOUT = 10.0  # seconds of one request
METRIC = "analytics_ingestion_events_total"


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: str

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed(f"is no JSON: {self.body[:80]!r}") from None


class Failed(Exception):
    """What was wrong, in words."""


class Command(BaseCommand):
    help = (
        "Try a running instance: health, metrics, refusals, and one event in and out again. The key stands in SMOKE_KEY:"
        " of the org, with analytics:events:write and analytics:usage:read. The event costs 0 and is of a model of its own."
    )
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("url", help="such as https://analytics.example.com")
        parser.add_argument(
            "--org", type=uuid.UUID, required=True, help="whose event it is: best an org for this alone"
        )
        parser.add_argument("--metrics-url", help="where /metrics is, if not there: a proxy should keep it inside")

    def handle(self, *args: Any, **options: Any) -> None:
        key = os.environ.get("SMOKE_KEY", "")
        if not key or urlsplit(options["url"]).scheme not in {"http", "https"}:
            raise CommandError("smoke wants an http(s) URL, and a key in SMOKE_KEY")
        trial = Trial(options["url"].rstrip("/"), key, options["org"])
        metrics = (options["metrics_url"] or f"{trial.url}/metrics").rstrip("/")
        done: list[dict[str, Any]] = []
        for name, check in trial.checks(metrics):
            began = time.monotonic()
            failure = ""
            try:
                said = check()
            except Failed as failed:
                failure = said = str(failed)
            seconds = round(time.monotonic() - began, 3)
            done.append({"check": name, "ok": not failure, "seconds": seconds, "said": said})
            self.stdout.write(f"{'failed' if failure else 'ok':<7}{name:<12}{seconds:>7.3f} s  {said}")
            if failure:
                break
        is_ok = all(check["ok"] for check in done)
        self.stdout.write(json.dumps({"url": trial.url, "ok": is_ok, "checks": done}))
        if not is_ok:
            raise SystemExit(1)


class Trial:
    """One instance, and what is expected of it. Each check raises `Failed`, or returns what it saw."""

    def __init__(self, url: str, key: str, org_id: uuid.UUID) -> None:
        self.url, self.key, self.org_id = url, key, org_id
        self.event_id = uuid.uuid4()
        self.at = datetime.now(UTC)

    def checks(self, metrics: str) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("health", self.health),
            ("readiness", self.readiness),
            ("metrics", lambda: self.metrics(metrics)),
            ("refusal", self.refusal),
            ("problem", self.problem),
            ("event in", self.event_in),
            ("figure out", self.figure_out),
            ("resend", self.resend),
        ]

    def health(self) -> str:
        return self._expected(self._ask("/analytics/v1/status/healthz"), 200).body

    def readiness(self) -> str:
        return self._expected(self._ask("/analytics/v1/status/readyz"), 200).body

    def metrics(self, address: str) -> str:
        answer = self._expected(_send(urllib.request.Request(address)), 200)
        if METRIC not in answer.body:
            raise Failed(f"{METRIC} is not among the metrics")
        unread = [
            line
            for line in answer.body.splitlines()
            if line.startswith("analytics_state_read{") and line.endswith(" 0.0")
        ]
        if unread:
            raise Failed(f"could not be read: {', '.join(unread)}")
        return f"{sum(not line.startswith('#') for line in answer.body.splitlines()):,} samples"

    def refusal(self) -> str:
        """Without credentials, and with a key that is none."""
        for key in ("", "ak_00000000_smoke"):
            self._problem(self._ask(self._usage_path(), key=key), 401)
        return "401 without a key, and with a wrong one"

    def problem(self) -> str:
        found = self._problem(self._ask(self._org_path("usage"), key=self.key), 400)
        if not found.get("errors") or not all({"field", "message"} <= error.keys() for error in found["errors"]):
            raise Failed(f"names no field: {found}")
        return f"400 names {', '.join(error['field'] for error in found['errors'])}"

    def event_in(self) -> str:
        before = self._calls()
        found = self._sent()
        if (found["accepted"], found["duplicates"], found["rejected"]) != (1, 0, []):
            raise Failed(f"was not accepted: {found}")
        self._before, self._sent_at = before, time.monotonic()
        return f"batch {found['batchId']}"

    def figure_out(self) -> str:
        while True:
            calls, seconds = self._calls(), time.monotonic() - self._sent_at
            if calls > self._before and seconds <= FRESH_WITHIN:
                return f"counted after {seconds:.1f} s"
            if calls > self._before:
                raise Failed(f"counted after {seconds:.1f} s; the goal is {FRESH_WITHIN:.0f}")
            if seconds > FRESH_WITHIN + BEYOND:
                raise Failed(f"not counted after {seconds:.0f} s: does the rollup run?")
            time.sleep(0.2)

    def resend(self) -> str:
        found = self._sent()
        if (found["accepted"], found["duplicates"]) != (0, 1):
            raise Failed(f"a resend was not known as one: {found}")
        return "dropped"

    # ── How ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _org_path(self, rest: str) -> str:
        return f"/analytics/v1/orgs/{self.org_id}/{rest}"

    def _usage_path(self) -> str:
        start = self.at.replace(minute=0, second=0, microsecond=0)
        window = {"start": start.isoformat(), "end": (start + timedelta(hours=2)).isoformat(), "granularity": "hour"}
        return self._org_path("usage?" + urlencode(window | {"modelId": MODEL}))

    def _calls(self) -> int:
        return int(self._expected(self._ask(self._usage_path(), key=self.key), 200).json()["totals"]["invocations"])

    def _sent(self) -> Any:
        event = {
            "eventId": str(self.event_id),
            "orgId": str(self.org_id),
            "modelId": str(MODEL),
            "clientId": "smoke",
            "occurredAt": self.at.isoformat(),
            "latencyMs": 0,
            "status": "success",
            "inputTokens": 0,
            "outputTokens": 0,
            "costEstimateCents": 0,
        }
        return self._expected(self._ask(self._org_path("events"), key=self.key, body=json.dumps([event])), 200).json()

    def _ask(self, path: str, key: str = "", body: str | None = None) -> Answer:
        headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
        return _send(urllib.request.Request(self.url + path, body.encode() if body else None, headers))

    @staticmethod
    def _expected(answer: Answer, status: int) -> Answer:
        if answer.status != status:
            raise Failed(f"answered {answer.status}, not {status}: {answer.body[:200]}")
        return answer

    def _problem(self, answer: Answer, status: int) -> dict[str, Any]:
        """A problem document of RFC 9457, with all that the contract names."""
        found: dict[str, Any] = self._expected(answer, status).json()
        if not answer.content_type.startswith("application/problem+json"):
            raise Failed(f"a refusal is {answer.content_type}, no problem document")
        missing = {"type", "title", "status", "detail", "instance"} - found.keys()
        if missing or found["status"] != status:
            raise Failed(f"the problem document lacks {missing}, or another status: {found}")
        return found


def _send(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return Answer(response.status, response.headers.get("Content-Type", ""), response.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers.get("Content-Type", ""), error.read().decode())
    except OSError as error:
        raise Failed(f"does not answer: {error}") from error
