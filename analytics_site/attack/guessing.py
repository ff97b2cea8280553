"""What can be learnt from the kind and the time of refusals: whether an org, an export or a person exists.

The test of times: two kinds of request take turns, in an order drawn by lot. The figure is the difference of their medians. It
counts where shuffling the names of the kinds gives one as large in fewer than 1 of 1,000 shuffles, where it is larger than what a
network hides, and where a second, independent series says the same. So it finds differences that are steady and not small; one
that is smaller than the least that counts is not found, nor is one that thousands of tries would show.
"""

import random
import re
import statistics
import uuid
from collections.abc import Callable

from .learning import api, window
from .pages import post
from .trial import Trial
from .wire import Answer, Call, form

TRIES = 40  # of each kind, in a series
SIGN_INS = 6  # each costs a slow hash
SHUFFLES = 2_000
LEAST = 0.002  # seconds that count
LEAST_SIGN_IN = 0.05


def attack(trial: Trial) -> None:
    _orgs(trial)
    _people(trial)
    _invited(trial)


def _orgs(trial: Trial) -> None:
    a, b = trial.a, trial.b
    header = (a.header(),)
    job = b.ids.get("job_id", str(uuid.uuid4()))

    def unreal(path: str) -> Callable[[], Call]:
        return lambda: Call("GET", f"/analytics/v1/orgs/{uuid.uuid4()}/{path}", header)

    for name, real, other in (
        ("a real org's usage", lambda: Call("GET", api(b, f"usage?{window()}"), header), unreal(f"usage?{window()}")),
        ("a real org's exports", lambda: Call("GET", api(b, "exports"), header), unreal("exports")),
        (
            "another org's export at one's own address",
            lambda: Call("GET", api(a, f"exports/{job}"), header),
            lambda: Call("GET", api(a, f"exports/{uuid.uuid4()}"), header),
        ),
    ):
        _compare(trial, f"the time of a refusal of {name}", real, other, TRIES, LEAST)
    key = b.key[:-4] + "AAAA"
    _compare(
        trial,
        "the time of a key whose prefix is known",
        lambda: Call("GET", api(b, "usage"), (("X-API-Key", key),)),
        lambda: Call("GET", api(b, "usage"), (("X-API-Key", f"ak_{uuid.uuid4().hex[:8]}_{key[12:]}"),)),
        TRIES,
        LEAST,
    )
    if a.person and b.slug:
        cookie = (a.person.cookie(),)
        _compare(
            trial,
            "the time of a page of a real org",
            lambda: Call("GET", f"/orgs/{b.slug}/usage/", cookie),
            lambda: Call("GET", f"/orgs/{uuid.uuid4().hex[: len(b.slug)]}/usage/", cookie),
            TRIES,
            LEAST,
        )
        there = trial.send(Call("GET", f"/orgs/{b.slug}/usage/", cookie))
        nowhere = trial.send(Call("GET", f"/orgs/{uuid.uuid4().hex}/usage/", cookie))
        same = (there.status, _plain(there, b.slug)) == (nowhere.status, _plain(nowhere, ""))
        trial.verdict(
            "the page of a real org, and of none",
            None if same else "they differ",
            Call("GET", f"/orgs/{b.slug}/usage/", cookie),
        )


def _compare(
    trial: Trial, what: str, one: Callable[[], Call], other: Callable[[], Call], tries: int, least: float
) -> None:
    complaint = None
    for _ in range(2):
        times: tuple[list[float], list[float]] = ([], [])
        order = [0] * tries + [1] * tries
        random.shuffle(order)
        for which in order:
            answer = trial.wire.send((one, other)[which]())
            if answer.status == 429:
                trial.skip(f"{what}: held off by a limit, not measured")
                return
            times[which].append(answer.seconds)
        difference = statistics.median(times[0]) - statistics.median(times[1])
        chance = _chance(times, abs(difference))
        if abs(difference) < least or chance > 0.001:
            complaint = None
            break
        complaint = f"{difference * 1000:+.1f} ms, by chance in {chance:.1%} of shuffles"
    trial.verdict(what, complaint, one())


def _chance(times: tuple[list[float], list[float]], difference: float) -> float:
    """How often names drawn by lot give a difference as large."""
    pool, size = [*times[0], *times[1]], len(times[0])
    larger = 0
    for _ in range(SHUFFLES):
        random.shuffle(pool)
        larger += abs(statistics.median(pool[:size]) - statistics.median(pool[size:])) >= difference
    return larger / SHUFFLES


def _plain(answer: Answer, *said: str) -> str:
    """A page without what differs each time: tokens, ids of requests, and what was typed in."""
    text = re.sub(r'(name="csrfmiddlewaretoken" value=")[^"]*', r"\1", answer.text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID", text)
    for word in said:
        text = text.replace(word, "WORD") if word else text
    return text


def _people(trial: Trial) -> None:
    """Signing in with a wrong password: as somebody who is there, and as nobody."""
    known = trial.b.person
    if known is None:
        trial.skip("nobody of B signs in: whether an address has an account is not tried")
        return
    token = "A" * 32
    stranger = f"nobody-{uuid.uuid4().hex[:8]}@example.com"

    def sign_in(email: str) -> Call:
        headers, body = form({"username": email, "password": "wrong password", "csrfmiddlewaretoken": token})
        return Call("POST", "/login/", (*headers, ("Cookie", f"csrftoken={token}"), ("Origin", trial.wire.base)), body)

    answers = [trial.send(sign_in(email)) for email in (known.email, stranger)]
    texts = [_plain(answer, email) for answer, email in zip(answers, (known.email, stranger), strict=True)]
    same = answers[0].status == answers[1].status and texts[0] == texts[1]
    trial.verdict("signing in as somebody who is there", None if same else "the answer differs", sign_in(known.email))
    _compare(
        trial,
        "the time of signing in as somebody who is there",
        lambda: sign_in(known.email),
        lambda: sign_in(stranger),
        SIGN_INS,
        LEAST_SIGN_IN,
    )


def _invited(trial: Trial) -> None:
    """Inviting somebody of B, and nobody: the answer is the same. (Who holds the link learns more; see docs/security.md.)"""
    admin, known = trial.a.admin, trial.b.person
    if admin is None or known is None or not trial.a.slug:
        return
    settings = f"/orgs/{trial.a.slug}/settings/"
    before = set(_invitations(trial))
    stranger = f"nobody-{uuid.uuid4().hex[:8]}@example.com"
    answers = [
        trial.send(post(trial, admin, f"{settings}invitations", {"email": email, "role": "viewer"}))
        for email in (known.email, stranger)
    ]
    kinds = [(answer.status, answer.get("Location")) for answer in answers]
    call = post(trial, admin, f"{settings}invitations", {"email": known.email, "role": "viewer"})
    trial.verdict("inviting somebody of B", None if kinds[0] == kinds[1] else f"answered {kinds}", call)
    for number in set(_invitations(trial)) - before:
        trial.send(post(trial, admin, f"{settings}invitations/{number}/withdraw", {}))


def _invitations(trial: Trial) -> list[str]:
    admin = trial.a.admin
    assert admin is not None
    page = trial.send(Call("GET", f"/orgs/{trial.a.slug}/settings/", (admin.cookie(),)))
    return re.findall(r"/settings/invitations/(\d+)/withdraw", page.text)
