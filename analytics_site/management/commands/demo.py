"""Everything at once, for a newcomer: data in, rolled up, read back, served."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from ingestion.invented import MODELS, ORGS
from ingestion.models import Batch, Door
from ingestion.replaying import Tally, replay
from ingestion.sample import Sample
from ingestion.trace import NotATrace, Trace
from orgs.models import ApiKey, Membership, Org, Role, Scope, ServedModel, User
from reliability.watching import watch
from usage.closing import close_hours
from usage.rollups import roll_up
from usage.verification import verify
from usage.windows import floor_hour

EMAIL = "demo@example.com"
TIME_ZONES = ("America/New_York", "Europe/Berlin", "Asia/Kolkata")
START_TIMEOUT = 60  # seconds that the web processes have to answer
STOP_TIMEOUT = 30  # seconds that a process has to end before it is killed

Totals = dict[Org, dict[str, Any]]


class Command(BaseCommand):
    help = "Load a sample (or a trace), roll it up, print totals read through the API, and serve until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--trace", type=Path, help="a CSV trace instead of the built-in sample")
        parser.add_argument("--no-serve", action="store_true", help="stop everything after the totals")

    def handle(self, *args: Any, **options: Any) -> None:
        for stop in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores the first
            signal.signal(stop, signal.default_int_handler)
        call_command("migrate", verbosity=0)
        source = _source(options["trace"])
        orgs = _register(source)
        try:
            tally = replay(source.messages(), Door.TRACE)
            span = source.span
        except NotATrace as error:
            raise CommandError(str(error)) from error
        _roll_up_everything()
        close_hours(timedelta())
        watch(since=span[0] if span else None)  # what was loaded may be older than what the last run looked at
        serve = not options["no_serve"]
        with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as running:
            base, web = running.enter_context(_web(settings.HTTP_PORT if serve else None))
            token = running.enter_context(_platform_key())
            totals = {org: _usage(base, token, org, span) for org in orgs} if span else {}
            self._print_totals(tally, totals)
            drift = len(verify())
            if serve:
                worker = running.enter_context(
                    _process("celery", "-q", "-A", "analytics_site", "worker", "-B", "-c", "2")
                )
                self._print_addresses(base, token, orgs)
                _wait_while_running(web, worker)
        if settings.EMBEDDED_SERVERS:
            from analytics_site import embedded

            embedded.detach()
        if not serve:
            self.stdout.write(json.dumps(_summary(tally, totals, drift)))

    def _print_totals(self, tally: Tally, totals: Totals) -> None:
        self.stdout.write(
            f"\n{tally.events:,} events: {tally.accepted:,} accepted, {tally.duplicates:,} duplicates,"
            f" {tally.quarantined:,} quarantined\n\n"
            f"{'organisation':<28}{'invocations':>12}{'input tokens':>15}{'output tokens':>15}"
            f"{'cost, ' + settings.CURRENCY:>14}"
        )
        for org, total in totals.items():
            cost = Decimal(total["costEstimate"]) / 100
            self.stdout.write(
                f"{org.name:<28}{total['invocations']:>12,}{total['inputTokens']:>15,}{total['outputTokens']:>15,}"
                f"{cost:>14,.2f}"
            )
        self.stdout.write("")

    def _print_addresses(self, base: str, token: str, orgs: list[Org]) -> None:
        password = secrets.token_urlsafe(9)
        user = User.objects.get(email=EMAIL)
        user.set_password(password)
        user.save()
        self.stdout.write(
            f"Usage:        {base}/orgs/{orgs[0].slug}/usage/?range=24h\n"
            f"Reliability:  {base}/orgs/{orgs[0].slug}/reliability/?range=24h\n"
            f"Exports:      {base}/orgs/{orgs[0].slug}/exports/\n"
            f"Admin:        {base}/admin/\n"
            f"API:          {base}/analytics/v1/docs\n"
            f"Login:        {EMAIL} / {password}\n"
            f"Key:          {token}  (while this runs)\n\n"
            "Ctrl-C stops everything."
        )
        self.stdout.flush()


def _source(trace: Path | None) -> Sample | Trace:
    now = timezone.now()
    return Trace.recent(trace) if trace else Sample(floor_hour(now))


def _register(source: Sample | Trace) -> list[Org]:
    """The invented orgs and models, with names, and a person who sees them all."""
    user = User.objects.filter(email=EMAIL).first() or User.objects.create_superuser(EMAIL)
    for model in MODELS:
        ServedModel.objects.get_or_create(
            pk=model.id, defaults={"display_name": model.name, "billing_tier": model.tier}
        )
    orgs = []
    for index, name in enumerate(ORGS):
        try:
            suffix = f" (trace {source.digest})" if isinstance(source, Trace) else ""
        except OSError as error:
            raise CommandError(f"the trace can't be read: {error}") from error
        slug = f"{name.lower()}-{source.digest}" if isinstance(source, Trace) else name.lower()
        org, _ = Org.objects.get_or_create(
            pk=source.org_id(index),
            defaults={"name": name + suffix, "slug": slug, "time_zone": TIME_ZONES[index]},
        )
        Membership.objects.get_or_create(org=org, user=user, defaults={"role": Role.ORG_ADMIN})
        orgs.append(org)
    return orgs


def _roll_up_everything() -> None:
    """Until nothing waits: another process of this installation may be the writer just now."""
    roll_up()
    while Batch.objects.filter(rolled_up_at=None).exists():
        time.sleep(0.2)
        roll_up()


@contextlib.contextmanager
def _process(module: str, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module as a process of its own session, so that a Ctrl-C reaches this command alone."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=settings.BASE_DIR,
        env=variables | os.environ,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _web(preferred_port: int | None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The web processes on loopback, answering; on another port where the preferred one is taken."""
    port = _free_port(preferred_port)
    base = f"http://127.0.0.1:{port}"
    with _process(
        "gunicorn", "-c", "deploy/gunicorn.conf.py", "-b", f"127.0.0.1:{port}", "--log-level", "warning",
        "analytics_site.wsgi", PUBLIC_URL=base,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/analytics/v1/status/readyz", timeout=5):
                yield base, process
                return
            time.sleep(0.1)
        raise CommandError("the web processes did not start; what they said stands above")


def _free_port(preferred: int | None) -> int:
    for port in (preferred, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            if port is not None:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise CommandError("no TCP port is free")


@contextlib.contextmanager
def _platform_key() -> Iterator[str]:
    key, token = ApiKey.issue(org=None, name="demo", scopes=[Scope.ADMIN])
    try:
        yield token
    finally:
        key.delete()


def _usage(base: str, token: str, org: Org, span: tuple[datetime, datetime]) -> dict[str, Any]:
    """The totals of an org over a span, both ends included, as the API tells them."""
    query = urlencode({"start": span[0].isoformat(), "end": (span[1] + timedelta(microseconds=1)).isoformat()})
    request = urllib.request.Request(f"{base}/analytics/v1/orgs/{org.pk}/usage?{query}", headers={"X-API-Key": token})
    with urllib.request.urlopen(request, timeout=60) as response:
        totals: dict[str, Any] = json.load(response)["totals"]
    return totals


def _wait_while_running(*processes: subprocess.Popen[bytes]) -> None:
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)
    raise CommandError("a process ended; what it said stands above")


def _summary(tally: Tally, totals: Totals, drift: int) -> dict[str, int]:
    def summed(name: str) -> int:
        return sum(total[name] for total in totals.values())

    cost = sum((Decimal(total["costEstimate"]) for total in totals.values()), Decimal())
    return {
        "events": tally.events,
        "accepted": tally.accepted,
        "duplicates": tally.duplicates,
        "quarantined": tally.quarantined,
        "inputTokens": summed("inputTokens"),
        "outputTokens": summed("outputTokens"),
        "costEstimateCents": int(cost.quantize(Decimal(1), ROUND_HALF_EVEN)),
        "invocations": summed("invocations"),
        "drift": drift,
    }
