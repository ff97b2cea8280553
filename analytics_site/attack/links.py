"""Signed links to files: altered, cut, mixed, past their time; and file names that lead elsewhere."""

from urllib.parse import quote

from .trial import Trial
from .wire import Answer, Call

ALTERED = 30  # characters of a link that are changed, one at a time
NAMES = (
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "..%5c..%5cetc%5cpasswd",
    "%00",
    ".secret_key",
    "..%252f..%252f.secret_key",
    "file:%2f%2f%2fetc%2fpasswd",
    "%c0%ae%c0%ae/etc/passwd",
)


def attack(trial: Trial) -> None:
    link = trial.b.links.get("good", "")
    if link:
        _altered(trial, link)
    else:
        trial.skip("B has no signed link of the service's own: altered ones are not tried")
    if expired := trial.b.links.get("expired"):
        trial.attempt("a link past its time", Call("GET", expired), expected={403})
    else:
        trial.skip("no link past its time is at hand")
    for name in NAMES:
        call = Call("GET", f"/exports/files/{name}", (trial.a.header(),))
        trial.attempt(f"a file by the name {name}", call, expected={301, 400, 403, 404}, check=_is_no_file)
        call = Call("GET", f"/static/{name}")
        trial.attempt(f"a static file by the name {name}", call, expected={301, 400, 403, 404}, check=_is_no_file)


def _is_no_file(answer: Answer) -> str | None:
    return (
        "a file of the machine" if "root:" in answer.text or "attachment" in answer.get("Content-Disposition") else None
    )


def _altered(trial: Trial, link: str) -> None:
    folder, _, token = link.rpartition("/")
    for number in range(ALTERED):
        at = number * (len(token) - 1) // (ALTERED - 1)
        other = "B" if token[at] != "B" else "C"
        changed = token[:at] + other + token[at + 1 :]
        trial.attempt(
            f"B's link with another character at {at}", Call("GET", f"{folder}/{changed}"), expected={403, 404}
        )
    for length in (0, 1, len(token) // 2, len(token) - 1):
        trial.attempt(f"B's link cut at {length}", Call("GET", f"{folder}/{token[:length]}"), expected={403, 404})
    parts = token.split(":")
    mine = trial.a.links.get("good", "").rpartition("/")[2].split(":")
    if len(parts) == len(mine) == 3:
        for name, mixed in (
            ("B's file under A's signature", [parts[0], mine[1], mine[2]]),
            ("B's file and time under A's signature", [parts[0], parts[1], mine[2]]),
            ("A's file under B's signature", [mine[0], parts[1], parts[2]]),
            ("no signature", [*parts[:2], ""]),
            ("no time", [parts[0], "", parts[2]]),
        ):
            trial.attempt(name, Call("GET", f"{folder}/{':'.join(mixed)}"), expected={403, 404})
    for name, changed in (
        ("in the other case", token.swapcase()),
        ("twice", token + token),
        ("with a space", token + "%20"),
        ("with NUL", token + "%00"),
        ("encoded twice", quote(quote(token, safe=""), safe="")),
        ("with a path behind", token + "/../x"),
    ):
        trial.attempt(f"B's link {name}", Call("GET", f"{folder}/{changed}"), expected={301, 400, 403, 404})
