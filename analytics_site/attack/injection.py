"""What a client calls itself ends on pages, in CSV and in spreadsheets: markup, formulas and templates must stay text."""

import csv
import io
import json
import re
import secrets
import zipfile
from html.parser import HTMLParser
from urllib.parse import quote

from .learning import api, ask_for_export, event, link_of, ready, send_events, window
from .pages import post
from .trial import Trial
from .wire import Answer, Call

MARKUP = (
    "<script>alert('{0}')</script>",
    "\"><img src=x onerror=alert('{0}')>",
    "'-alert(`{0}`)-'",
    "</title><svg onload=alert('{0}')>",
    "javascript:alert('{0}')",
    "<a href='javascript:alert(1)'>{0}</a>",
    "&lt;script&gt;{0}",
    "<!--{0}",
    "\u202e{0}",
)
TEMPLATES = ("{0}{{{{7*7}}}}", "{0}${{7*7}}", "{0}{{% now 'Y' %}}", "{0}#{{7*7}}", "{0}%(x)s", "{0}{{0.__class__}}")
FORMULAS = (
    "=cmd|'/C calc'!A0{0}",
    "+1+1{0}",
    "-2+3{0}",
    "@SUM(1){0}",
    "\t=1+1{0}",
    "\r=1+1{0}",
    '=HYPERLINK("http://evil.example","{0}")',
)
CALCULATES = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def attack(trial: Trial) -> None:
    a, word = trial.a, "z" + secrets.token_hex(4)
    hostile = [text.format(word) for text in (*MARKUP, *TEMPLATES, *FORMULAS)]
    events = [event(a, clientId=text, errorCode=text[:128], metadata={text[:60]: text}) for text in hostile]
    answer = send_events(trial, a, events)
    if answer.status != 200 or not json.loads(answer.body)["accepted"]:
        trial.skip(f"hostile events were not taken: {answer.status}")
        return
    trial.roll_up()
    _on_pages(trial, word)
    _as_json(trial, word)
    _in_csv(trial, word)
    _in_files(trial, word)
    _names(trial, word)


class _Page(HTMLParser):
    """Finds what a browser would run or follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.found += [f"an attribute that runs script: {name}" for name in values if name.startswith("on")]
        for name in ("href", "src", "action", "formaction", "data"):
            if re.match(r"\s*(javascript|vbscript|data:text)", values.get(name, ""), re.IGNORECASE):
                self.found.append(f"a link that runs script: {values[name][:40]}")
        if tag == "script" and "src" not in values and values.get("type") != "application/json":
            self.found.append("a script within the page")
        if tag in ("iframe", "object", "embed", "base"):
            self.found.append(f"a tag {tag}")


def is_harmless(page: str, word: str) -> str | None:
    """What is wrong with a page that shows hostile text: markup of it that is markup, or a template that was worked out."""
    reader = _Page()
    reader.feed(page)
    if f"{word}49" in page:
        return f"a template was worked out: {word}49"
    return reader.found[0] if reader.found else None


def _on_pages(trial: Trial, word: str) -> None:
    a = trial.a
    if a.person is None or not a.slug:
        trial.skip("nobody of A signs in: hostile names are not looked for on pages")
        return
    for path in (
        "usage/?range=24h&group=client",
        "usage/?range=24h&clients=1&kind=client",
        "usage/?range=7d&group=client&granularity=hour",
        "usage/?range=24h&exact=1",
        "reliability/?range=24h&clients=1",
        "reliability/?range=24h&exact=1",
        "reliability/?range=7d",
        "exports/",
        "settings/",
    ):
        for suffix, headers in (("", ()), (" swapped in", (("HX-Request", "true"),))):
            call = Call("GET", f"/orgs/{a.slug}/{path}", (a.person.cookie(), *headers))

            def check(answer: Answer) -> str | None:
                return is_harmless(answer.text, word)

            trial.attempt(f"hostile names on {path}{suffix}", call, expected={200, 400, 403}, check=check)
    # In the address itself: what a page shows of what it was asked.
    for text in MARKUP[:4]:
        for name, page in (
            ("range", "usage/"),
            ("start", "usage/"),
            ("model", "reliability/"),
            ("sort", "usage/"),
            ("page", "exports/"),
        ):
            call = Call(
                "GET", f"/orgs/{a.slug}/{page}?{name}={quote(text.format(word), safe='')}", (a.person.cookie(),)
            )
            trial.attempt(
                f"{text} as {name} of {page}",
                call,
                expected={200, 302, 400},
                check=lambda answer: is_harmless(answer.text, word),
            )
        call = Call("GET", f"/orgs/?q={quote(text.format(word), safe='')}", (a.person.cookie(),))
        trial.attempt(f"{text} as a search", call, expected={200}, check=lambda answer: is_harmless(answer.text, word))
        call = Call("GET", f"/{quote(text.format(word), safe='')}")
        trial.attempt(
            f"{text} as an address", call, expected={400, 404}, check=lambda answer: is_harmless(answer.text, word)
        )


def _as_json(trial: Trial, word: str) -> None:
    """JSON is JSON by its type, so that no browser reads markup in it."""

    def is_json(answer: Answer) -> str | None:
        if "json" not in answer.get("Content-Type"):
            return f"is sent as {answer.get('Content-Type')}"
        return None if answer.get("X-Content-Type-Options") == "nosniff" else "nosniff is missing"

    a = trial.a
    for path in (
        f"usage?{window()}&groupBy=client",
        f"reliability?{window()}&groupBy=errorCode",
        f"reliability/incidents?{window()}",
        f"usage?start=<script>{word}",
    ):
        call = Call("GET", api(a, path), (a.header(), ("Accept", "text/html")))
        trial.attempt(
            f"markup in {path.partition('?')[0]} for a browser", call, expected={200, 400, 406}, check=is_json
        )
    call = Call("GET", f"/analytics/v1/orgs/%3Cscript%3E{word}", (a.header(), ("Accept", "text/html")))
    trial.attempt("markup in an address of the API", call, expected={404}, check=is_json)


def calculates(text: str) -> str | None:
    """The first cell of a CSV that a spreadsheet would work out."""
    for row in csv.reader(io.StringIO(text, newline="")):
        for cell in row:
            if cell.startswith(CALCULATES) and not _NUMBER.fullmatch(cell):
                return f"a cell that a spreadsheet works out: {cell[:40]!r}"
    return None


def _in_csv(trial: Trial, word: str) -> None:
    a = trial.a

    def check(answer: Answer) -> str | None:
        if answer.status != 200:
            return None
        if "csv" not in answer.get("Content-Type") or "attachment" not in answer.get("Content-Disposition"):
            return "is not sent as a file of CSV"
        return calculates(answer.text)

    call = Call("GET", api(a, f"reliability/incident.csv?{window()}"), (a.header(),))
    answer = trial.attempt("formulas in the incident CSV", call, expected={200}, check=check)
    if word not in answer.text:
        trial.skip("hostile events are not in the incident CSV: what it makes of them was not seen")
    if a.person and a.slug:
        for query in ("range=24h&group=client", "range=24h&group=model"):
            call = Call("GET", f"/orgs/{a.slug}/usage.csv?{query}", (a.person.cookie(),))
            trial.attempt(f"formulas in the usage CSV, {query}", call, expected={200}, check=check)


def _in_files(trial: Trial, word: str) -> None:
    a = trial.a
    for format_ in ("csv", "xlsx"):
        job_id = ask_for_export(trial, a, dataset="incident_events", format=format_)
        if not job_id or not ready(trial, a, job_id) or not (link := link_of(trial, a, job_id)):
            trial.skip(f"no file of {format_} was made: formulas in it were not looked for")
            continue

        def check(answer: Answer, kind: str = format_) -> str | None:
            if kind == "csv":
                return calculates(answer.text) if word in answer.text else "the hostile events are not in it"
            with zipfile.ZipFile(io.BytesIO(answer.body)) as book:
                sheets = "".join(book.read(n).decode() for n in book.namelist() if n.startswith("xl/worksheets/"))
                links = [n for n in book.namelist() if "external" in n.lower() or n.startswith("xl/worksheets/_rels")]
            return "a formula" if "<f>" in sheets or "<f " in sheets else f"links: {links}" if links else None

        trial.attempt(f"formulas in an export as {format_}", Call("GET", link), expected={200}, check=check)


def _names(trial: Trial, word: str) -> None:
    """Names that A's admin gives: of a key, and of somebody who is invited."""
    a = trial.a
    if a.admin is None or not a.slug:
        return
    settings = f"/orgs/{a.slug}/settings/"
    for text in (MARKUP[0], MARKUP[1], TEMPLATES[0], FORMULAS[0]):
        call = post(
            trial,
            a.admin,
            f"{settings}keys",
            {"name": text.format(word), "scopes": "analytics:usage:read", "lifetime": "30"},
        )
        made = trial.send(call)
        page = Call("GET", settings, (a.admin.cookie(),))
        shown = trial.attempt(
            f"a key by the name {text}", page, expected={200}, check=lambda answer: is_harmless(answer.text, word)
        )
        if made.status == 302 and (numbers := re.findall(r"/settings/keys/(\d+)/revoke", shown.text)):
            trial.send(post(trial, a.admin, f"{settings}keys/{max(map(int, numbers))}/revoke", {}))
        call = post(
            trial, a.admin, f"{settings}invitations", {"email": f'"{text.format(word)}"@example.com', "role": "viewer"}
        )
        trial.attempt(
            f"an invitation of {text}", call, expected={302, 400}, check=lambda answer: is_harmless(answer.text, word)
        )
        shown = trial.send(page)
        for number in re.findall(r"/settings/invitations/(\d+)/withdraw", shown.text):
            if number != a.ids.get("invitation_id"):
                trial.send(post(trial, a.admin, f"{settings}invitations/{number}/withdraw", {}))
