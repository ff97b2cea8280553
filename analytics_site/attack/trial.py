"""Who attacks whom, and what an answer is worth: the attempts, one by one, judged and counted."""

import re
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from urllib.parse import unquote, urljoin, urlsplit

from .wire import NO_ANSWER, Answer, Call, Wire

# What a request that should not succeed may be answered with, where an attempt does not say more exactly.
REFUSALS = frozenset({400, 401, 403, 404, 405, 406, 409, 411, 413, 414, 415, 422, 429, 431})
# What no answer may ever say: it would tell how the service is made, or what was read went wrong within.
TELLTALES = (
    "traceback (most recent call last)",
    "psycopg.errors",
    "django_settings_module",
    "syntax error at or near",
    "you have debug = true",
)
SHORTEST_CANARY = 6  # characters: shorter ones occur by chance
FOLLOWED = 3  # redirects
LONGEST_WAIT = 5  # seconds that a 429 is waited for

Check = Callable[[Answer], str | None]  # what is wrong with an answer that has the right status


@dataclass
class Person:
    """Somebody who signs in. The cookies are those of a session that is open."""

    email: str
    password: str = field(repr=False)
    role: str = "org_admin"
    session: str = field(default="", repr=False)
    csrf: str = field(default="", repr=False)

    def cookie(self) -> tuple[str, str]:
        return ("Cookie", f"sessionid={self.session}; csrftoken={self.csrf}")


@dataclass
class Party:
    """An org, what is known of it, and who acts for it."""

    label: str
    org_id: str
    key: str = field(repr=False)
    keys: dict[str, str] = field(default_factory=dict, repr=False)  # further ones, by what they are
    people: dict[str, Person] = field(default_factory=dict)  # by role
    slug: str = ""
    model_id: str = ""
    # By the name that a route has for it: job_id, membership_id, key_id, invitation_id and so on.
    ids: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict, repr=False)  # signed ones: "good", "expired"
    secrets: dict[str, str] = field(default_factory=dict, repr=False)  # further words that only the org knows

    def header(self, key: str = "") -> tuple[str, str]:
        return ("X-API-Key", key or self.key)

    @property
    def person(self) -> Person | None:
        return next(iter(self.people.values()), None)

    @property
    def admin(self) -> Person | None:
        return self.people.get("org_admin")


@dataclass(frozen=True)
class Leak:
    kind: str
    what: str
    why: str
    how: str  # the request that repeats it, secrets masked


class Trial:
    """One run against one installation: `attempt` sends, judges and counts."""

    def __init__(self, wire: Wire, attacker: Party, victim: Party, say: Callable[[str], object]) -> None:
        self.wire, self.a, self.b, self.say = wire, attacker, victim, say
        self.kind = ""
        self.tried: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.leaks: list[Leak] = []
        self.failures: list[Leak] = []  # answers of 5xx
        self.throttled = 0
        self.notes: list[str] = []
        self.canaries: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.roll_up: Callable[[], object] = lambda: None
        self.make_export: Callable[[str], object] = lambda job_id: None
        self.is_own = False  # the installation was made for this run

    # ── Sending ──────────────────────────────────────────────────────────────────────────────────────────────────
    def send(self, call: Call) -> Answer:
        """Without a judgement: what the suite itself needs. Waits once where it is asked to slow down."""
        answer = self.wire.send(call)
        wait = answer.get("Retry-After")
        if answer.status == 429 and wait.isdecimal() and int(wait) <= LONGEST_WAIT:
            time.sleep(int(wait))
            answer = self.wire.send(call)
        return answer

    def attempt(
        self,
        what: str,
        call: Call,
        *,
        expected: Collection[int] = REFUSALS,
        check: Check | None = None,
        answer: Answer | None = None,
    ) -> Answer:
        """Send what should not succeed. `expected` are the statuses of a refusal, `check` says what else is wrong.

        `answer` is one that was had otherwise, over a socket.
        """
        answer = answer or self.send(call)
        self.tried[self.kind] += 1
        why = self._complaint(call, answer, expected, check)
        if answer.status == 429 and 429 not in expected and why is not None and why.startswith("answered"):
            why = None  # held off before it was looked at
        self.throttled += answer.status == 429
        if why is None:
            self.refused[self.kind] += 1
        elif answer.status >= 500:
            self.failures.append(self._leak(what, why, call))
        else:
            self.leaks.append(self._leak(what, why, call))
        return answer

    def verdict(self, what: str, complaint: str | None, call: Call) -> None:
        """Count an attempt that took many requests; `call` is one of them."""
        self.tried[self.kind] += 1
        if complaint is None:
            self.refused[self.kind] += 1
        else:
            self.leaks.append(self._leak(what, complaint, call))

    def skip(self, why: str) -> None:
        self.notes.append(f"{self.kind}: {why}")

    # ── Judging ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _complaint(self, call: Call, answer: Answer, expected: Collection[int], check: Check | None) -> str | None:
        if found := self.canaries_in(answer, call.text()):
            return f"the answer holds {', '.join(found)}"
        if found := self._behind_redirects(call, answer):
            return f"the redirect leads to {', '.join(found)}"
        low = answer.everything().lower()
        if told := [text for text in TELLTALES if text in low]:
            return f"the answer says {told[0]!r}"
        if answer.status not in expected:
            status = "nothing" if answer.status == NO_ANSWER else str(answer.status)
            return f"answered {status}, expected {' or '.join(map(str, sorted(expected)))}"
        return check(answer) if check else None

    def canaries_in(self, answer: Answer, said: str = "") -> list[str]:
        """What only the other org knows and the answer holds, but for what the request itself said."""
        return self.canaries_in_text(answer.everything(), said)

    def canaries_in_text(self, text: str, said: str = "") -> list[str]:
        low = text.lower()
        low += unquote(low)
        carried = said.lower()
        carried += unquote(carried)
        return sorted({name for value, name in self.canaries.items() if value in low and value not in carried})

    def _behind_redirects(self, call: Call, answer: Answer) -> list[str]:
        """What stands where the answer leads, with the same credentials, on the same host."""
        kept = tuple(h for h in call.headers if h[0].lower() in ("x-api-key", "cookie", "authorization"))
        said, path = call.text(), call.path
        for _ in range(FOLLOWED):
            location = answer.get("Location")
            if not 300 <= answer.status < 400 or not location:
                break
            target = urlsplit(urljoin(self.wire.base + path, location))
            if target.netloc != self.wire.host:
                break
            path = target.path + (f"?{target.query}" if target.query else "")
            answer = self.wire.send(Call("GET", path, kept))
            if found := self.canaries_in(answer, said):
                return found
        return []

    # ── Telling ──────────────────────────────────────────────────────────────────────────────────────────────────
    def mask(self, text: str) -> str:
        """Without keys, passwords, sessions and signed links."""
        for secret, name in sorted(self.secrets.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(secret, f"<{name}>")
        return re.sub(
            r"((?:sessionid|csrftoken|csrfmiddlewaretoken|X-CSRFToken)[=:]\s?)[A-Za-z0-9]+", r"\1<masked>", text
        )

    def _leak(self, what: str, why: str, call: Call) -> Leak:
        return Leak(self.kind, self.mask(what), self.mask(why), self.mask(call.curl(self.wire.base)))

    def is_canary(self, value: str, name: str) -> None:
        """From now on this must not be in any answer to the attacker."""
        if len(value) >= SHORTEST_CANARY:
            self.canaries[value.lower()] = f"{name} of {self.b.label}"

    def is_secret(self, value: str, name: str) -> None:
        if value:
            self.secrets[value] = name
