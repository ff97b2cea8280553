"""Attacks an installation as a member of one org who wants what is another's; counts what was refused and what was had."""

import json
import os
import signal
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from analytics_site.attack import KINDS
from analytics_site.attack.learning import CannotAttack, learn
from analytics_site.attack.trial import Leak, Party, Person, Trial
from analytics_site.attack.wire import Wire

HELP = """Attack an installation over HTTP: org A's key and people go for what is org B's. Changes are made in these two
orgs alone. Without a URL a whole installation is made for it, and removed. Keys and passwords come from the environment, and
are never printed: ATTACK_KEY_A, ATTACK_KEY_B, and where pages are to be attacked too ATTACK_LOGIN_A, ATTACK_LOGIN_B
(address:password of an org admin)."""


class Command(BaseCommand):
    help = HELP

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("url", nargs="?", help="of the installation; none: one is made")
        parser.add_argument("--org-a", help="the id of the org that attacks")
        parser.add_argument("--org-b", help="the id of the org that is attacked")
        parser.add_argument("--only", help=f"some kinds, with commas between: {', '.join(KINDS)}")

    def handle(self, *args: Any, **options: Any) -> None:
        for stop in (signal.SIGINT, signal.SIGTERM):  # what was started is stopped, and the database dropped
            signal.signal(stop, signal.default_int_handler)
        kinds = (options["only"] or ",".join(KINDS)).split(",")
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise CommandError(f"{', '.join(unknown)} is no kind of attack: {', '.join(KINDS)}")
        if options["url"]:
            trial = self._elsewhere(options)
            run(trial, kinds)
        else:
            from analytics_site.attack.scene import scene

            with scene(self.stdout.write) as trial:
                run(trial, kinds)
        self._tell(trial)
        if trial.leaks or trial.failures:
            raise SystemExit(1)

    def _elsewhere(self, options: dict[str, Any]) -> Trial:
        """A running installation, with what the caller knows of it."""
        parties = []
        for label in "AB":
            org_id, key = options[f"org_{label.lower()}"], os.environ.get(f"ATTACK_KEY_{label}", "")
            if not org_id or not key:
                raise CommandError(f"--org-{label.lower()} and the variable ATTACK_KEY_{label} are needed")
            party = Party(label, org_id.lower(), key)
            email, _, password = os.environ.get(f"ATTACK_LOGIN_{label}", "").partition(":")
            if email:
                party.people["org_admin"] = Person(email, password)
            parties.append(party)
        try:
            wire = Wire(options["url"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        return Trial(wire, parties[0], parties[1], self.stdout.write)

    def _tell(self, trial: Trial) -> None:
        say = self.stdout.write
        if trial.throttled:
            say(f"\n{trial.throttled} were held off by a limit (429): they tried that, not what lies behind it.")
        for note in dict.fromkeys(trial.notes):
            say(f"not tried: {note}")
        for name, found in (("LEAK", trial.leaks), ("FAILED", trial.failures)):
            for leak in found:
                say(f"\n{name}  {leak.kind}: {leak.what}\n  {leak.why}\n  {leak.how}")
        tried, refused = trial.tried.total(), trial.refused.total()
        say("\n" + json.dumps({"tried": tried, "refused": refused, "leaked": len(trial.leaks)}))


def run(trial: Trial, kinds: list[str]) -> None:
    """Learn, then attack; a line for each kind."""
    trial.kind = "preparation"
    try:
        learn(trial)
    except CannotAttack as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{trial.wire.base} does not answer: {error}") from error
    trial.say(f"{trial.wire.base}: {len(trial.canaries)} canaries\n")
    trial.say(f"{'kind':<14}{'tried':>7}{'refused':>9}{'leaked':>8}{'seconds':>9}")
    for kind in kinds:
        trial.kind, begun = kind, time.monotonic()
        KINDS[kind](trial)
        leaked = sum(isinstance(leak, Leak) and leak.kind == kind for leak in trial.leaks)
        took = time.monotonic() - begun
        trial.say(f"{kind:<14}{trial.tried[kind]:>7}{trial.refused[kind]:>9}{leaked:>8}{took:>9.1f}")
