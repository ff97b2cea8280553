"""One table of every route: what each method of it asks for, and what whoever has that gets.

A new route of the API is a line of `test_access.ROUTES`; any other is a line of `PAGES`, `OPEN` or `ADMIN` here, and a
model of the admin one of `MODELS`. Who gets what follows from `orgs.policy`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from django.contrib import admin
from django.urls import URLPattern, URLResolver

from orgs.models import Role, Scope

from .callers import Caller, Place
from .test_access import ROUTES as API_ROUTES
from .test_access import Route


@dataclass(frozen=True)
class Permission:
    """Of the admin, as Django names it; empty: any staff."""

    name: str = ""


EVERYBODY, PERSON, NO_ONE = "everybody", "a person", "no one"
Need = Scope | Permission | Literal["everybody", "a person", "no one"]


@dataclass(frozen=True)
class Ask:
    """One method of a route."""

    need: Need
    answers: int | tuple[int, ...]  # to whoever has what it needs; several where the answer depends on who that is
    sends: Mapping[str, Any] = field(default_factory=dict)  # a form; the query string of a GET
    route: Route | None = None  # of the API: knows its own body


@dataclass(frozen=True)
class Line:
    route: str  # as the URL configuration spells it
    kind: Literal["api", "page", "admin"]
    asks: Mapping[str, Ask]
    otherwise: int | tuple[int, ...] = 405  # any other method, by whoever might ask at all
    admits_unregistered: bool = False  # the platform's keys may name an org before anybody registers it

    def __str__(self) -> str:
        return f"/{self.route}"

    @property
    def names_an_org(self) -> bool:
        return "org_id>" in self.route or "<slug:slug>" in self.route

    @property
    def names_a_thing(self) -> bool:
        return self.names_an_org and self.route.count("<") > 1

    def expected(self, method: str, caller: Caller, place: Place) -> tuple[str, ...]:
        """The answers that are right; "login" stands for being sent to the page that signs people in."""
        ask = self.asks.get(method)
        if self.kind == "api":
            refusal = self._refusal_of_api(method, ask, caller, place)
        else:
            refusal = self._refusal_of_page(method, ask, caller, place)
        if refusal:
            return (refusal,)
        answers = ask.answers if ask else self.otherwise
        return tuple(map(str, answers)) if isinstance(answers, tuple) else (str(answers),)

    @property
    def need(self) -> Need:
        """Asked for before the method is looked at."""
        return next(iter(self.asks.values())).need

    def _refusal_of_api(self, method: str, ask: Ask | None, caller: Caller, place: Place) -> str:
        need = ask.need if ask else self.need
        if need == EVERYBODY:
            return ""
        if caller.is_from_elsewhere and method != "GET":
            return "403"
        if caller.way == "none" or not caller.is_good:
            return "401"
        assert isinstance(need, Scope)
        if not self.names_an_org:
            return "" if caller.holds_somewhere(need) else "403"
        is_registering = self.admits_unregistered and caller.at == "everywhere" and caller.holds(need, "own")
        return "" if caller.holds(need, place) or is_registering else "403"

    def _refusal_of_page(self, method: str, ask: Ask | None, caller: Caller, place: Place) -> str:
        need = ask.need if ask else self.need
        if caller.is_from_elsewhere and method != "GET":
            return "403"
        if need == EVERYBODY or (need == PERSON and ask is None):
            return ""
        if isinstance(need, Permission) or need == NO_ONE:
            if not caller.is_person or caller.staff_role is None:
                return "login"
            return "" if isinstance(need, Permission) and (not need.name or caller.may_in_admin(need.name)) else "403"
        if not caller.is_person:
            return "login"
        return "" if need == PERSON or caller.holds(need, place) else "403"


def page(
    route: str, need: Need, kind: Literal["page", "admin"] = "page", otherwise: int | tuple[int, ...] = 405, **asks: Any
) -> Line:
    """`GET=200`, or `POST=(302, {"a": "form"})`."""

    def ask(told: Any) -> Ask:
        return Ask(need, *told) if isinstance(told, tuple) and isinstance(told[-1], dict) else Ask(need, told)

    return Line(route, kind, {method: ask(told) for method, told in asks.items()}, otherwise)


# ── Pages ────────────────────────────────────────────────────────────────────────────────────────────────────────
SETTINGS = "orgs/<slug:slug>/settings"
EXPORTS = "orgs/<slug:slug>/exports"
INVITED = {"email": "new@example.com", "role": Role.VIEWER}
PAGES = (
    page("", PERSON, GET=(302, 200)),  # to the first org of somebody; who has none is told
    page("orgs/", PERSON, GET=200),
    page("orgs/<slug:slug>/usage/", Scope.USAGE_READ, GET=200),
    page("orgs/<slug:slug>/usage.csv", Scope.USAGE_READ, GET=200),
    page("orgs/<slug:slug>/reliability/", Scope.RELIABILITY_READ, GET=200),
    page(f"{EXPORTS}/", Scope.EXPORTS_READ, GET=200),
    page(f"{EXPORTS}/new", Scope.EXPORTS_CREATE, GET=302, POST=400),
    page(f"{EXPORTS}/<uuid:job_id>/cancel", Scope.EXPORTS_CREATE, POST=302),
    page(f"{EXPORTS}/<uuid:job_id>/rerun", Scope.EXPORTS_CREATE, POST=302),
    page(f"{EXPORTS}/<uuid:job_id>/download", Scope.EXPORTS_DOWNLOAD, GET=302),
    page(f"{SETTINGS}/", Scope.ADMIN, GET=200),
    page(f"{SETTINGS}/audit/", Scope.ADMIN, GET=200),
    page(f"{SETTINGS}/organisation", Scope.ADMIN, POST=(302, {"name": "Other", "time_zone": "UTC"})),
    page(f"{SETTINGS}/members/<int:membership_id>/role", Scope.ADMIN, POST=(302, {"role": Role.FINANCE})),
    page(f"{SETTINGS}/members/<int:membership_id>/remove", Scope.ADMIN, POST=302),
    page(f"{SETTINGS}/invitations", Scope.ADMIN, POST=(302, INVITED)),
    page(f"{SETTINGS}/invitations/<int:invitation_id>/withdraw", Scope.ADMIN, POST=302),
    page(f"{SETTINGS}/keys", Scope.ADMIN, POST=(302, {"name": "new", "scopes": [Scope.ADMIN]})),
    page(f"{SETTINGS}/keys/<int:key_id>/revoke", Scope.ADMIN, POST=302),
)
# Whoever comes: signing in and out, links that are secrets themselves, and what tells nothing about any org.
OPEN = (
    page("login/", EVERYBODY, GET=(200, 302), POST=(200, 302), otherwise=(405, 302, 200)),  # 302: who is in already
    *(
        page(f"login/provider/{step}", EVERYBODY, GET=404) for step in ("", "callback", "connect/")
    ),  # where there is none
    page("logout/", EVERYBODY, POST=302),
    page(
        "invitations/<str:token>/", EVERYBODY, GET=200, POST=((400, 200), {"again": "x"})
    ),  # 200: who is in is asked once more
    page("exports/files/<str:token>", EVERYBODY, GET=200),
    page("metrics", EVERYBODY, GET=200, otherwise=200),
    page("analytics/v1/status/healthz", EVERYBODY, GET=200, otherwise=200),
    page("analytics/v1/status/readyz", EVERYBODY, GET=200, otherwise=200),
    Line("analytics/v1/schema", "api", {"GET": Ask(EVERYBODY, 200)}),
    Line("analytics/v1/docs", "api", {"GET": Ask(EVERYBODY, 200)}),
    Line("static/style.css", "api", {"GET": Ask(EVERYBODY, 200)}),  # the middleware's, not the URL configuration's
)

# ── The admin ────────────────────────────────────────────────────────────────────────────────────────────────────
# What the pages of each model have beside looking; who may is the policy's.
MODELS = {
    "auth.group": "add change delete",
    "django_celery_beat.clockedschedule": "add change delete",
    "django_celery_beat.crontabschedule": "add change delete",
    "django_celery_beat.intervalschedule": "add change delete",
    "django_celery_beat.periodictask": "add change delete",
    "django_celery_beat.solarschedule": "add change delete",
    "exports.exportbucket": "add change delete",
    "exports.exportjob": "add",
    "ingestion.batch": "",
    "ingestion.conflict": "",
    "ingestion.quarantinedmessage": "",
    "ingestion.streamgap": "",
    "ingestion.streamreader": "delete",
    "orgs.apikey": "add",  # pragma: allowlist secret
    "orgs.auditrecord": "",
    "orgs.invitation": "",
    "orgs.membership": "add change delete",
    "orgs.org": "add change",
    "orgs.servedmodel": "add change",
    "orgs.user": "add change",
    "reliability.incident": "",
    "usage.freshness": "",
}
# Actions of lists, and the verb that each needs the permission of. `delete_selected` is Django's, of whatever can be deleted.
ACTIONS = {
    "django_celery_beat.periodictask": {
        "enable_tasks": "change", "disable_tasks": "change", "toggle_tasks": "change", "run_tasks": "change",
    },
    "exports.exportjob": {"run_again": "change", "cancel": "change"},
    "ingestion.quarantinedmessage": {"replay_selected": "change"},
    "orgs.apikey": {"revoke": "change"},
}  # fmt: skip
STAFF = Permission()
OF_MEMBERS = {"app_label": "orgs", "model_name": "membership", "field_name": "org", "term": ""}


def staff(route: str, permission: str = "", **asks: Any) -> Line:
    """Whatever other method is asked, the admin's views take for a look."""
    return page(f"admin/{route}", Permission(permission), "admin", **asks)


ADMIN = (
    staff("", GET=200),
    page("admin/login/", EVERYBODY, "admin", GET=(200, 302), POST=200),
    page("admin/logout/", EVERYBODY, "admin", POST=302),
    staff("password_change/", GET=200, POST=200),
    staff("password_change/done/", GET=200),
    staff("autocomplete/", "orgs.view_org", GET=(200, OF_MEMBERS)),
    staff("jsi18n/", GET=200),
    staff("r/<path:content_type_id>/<path:object_id>/", GET=404),  # nothing of the admin has a page elsewhere
    staff("<app_label>/", GET=200),
    staff("<url>", GET=404),
    staff("orgs/user/<id>/password/", "orgs.change_user", GET=200, POST=200),
    staff("orgs/apikey/revoke/", "orgs.change_apikey", GET=302, POST=302),
    staff("ingestion/quarantinedmessage/replay/", "ingestion.change_quarantinedmessage", GET=302, POST=302),
    staff("ingestion/batch/<int:pk>/events/", "ingestion.view_usageevent", GET=200),
    staff("usage/freshness/rollups/<uuid:org_id>/<slug:grain>/", "usage.view_hourlyusage", GET=200),
    staff("exports/exportjob/<uuid:pk>/download/", "exports.view_exportjob", GET=302),
)


def lines_of(label: str, verbs: str) -> Iterator[Line]:
    """The pages that Django makes for every model of the admin."""
    base = f"admin/{label.replace('.', '/')}/"
    app, model = label.split(".")

    def need(verb: str) -> Need:
        return Permission(f"{app}.{verb}_{model}") if verb == "view" or verb in verbs else NO_ONE

    view, add, change, delete = map(need, ("view", "add", "change", "delete"))
    yield Line(base, "admin", {"GET": Ask(view, 200)})
    yield Line(f"{base}add/", "admin", {"GET": Ask(add, 200), "POST": Ask(add, 200)})  # an empty form: its errors
    yield Line(f"{base}<path:object_id>/change/", "admin", {"GET": Ask(view, 200), "POST": Ask(change, (200, 302))})
    deletion = {"GET": Ask(delete, 200), "POST": Ask(delete, (302, 200), {"post": "yes"})}
    yield Line(f"{base}<path:object_id>/delete/", "admin", deletion)
    yield Line(f"{base}<path:object_id>/history/", "admin", {"GET": Ask(view, 200)})
    yield Line(f"{base}<path:object_id>/", "admin", {"GET": Ask(STAFF, 302)})


def lines_of_api() -> Iterator[Line]:
    asks: dict[str, dict[str, Ask]] = {}
    for route in API_ROUTES:
        asks.setdefault(route.path, {})[route.method] = Ask(route.scope, route.success, route=route)
    for path, of_path in asks.items():
        yield Line(f"analytics/v1/{path}", "api", of_path, admits_unregistered=path.endswith("/events"))


LINES: tuple[Line, ...] = (
    *lines_of_api(),
    *PAGES,
    *OPEN,
    *ADMIN,
    *(line for label, verbs in MODELS.items() for line in lines_of(label, verbs)),
)


def spelt(route: str) -> str:
    """A route with regular expressions named by their groups."""
    for pattern, name in ((r"^(?P<app_label>", "<app_label>/"), ("(?P<url>", "<url>")):
        head, found, _ = route.partition(pattern)
        route = head + name if found else route
    return route


def all_routes(patterns: Any = None, prefix: str = "") -> Iterator[str]:
    """Every route of the URL configuration, as the table spells them."""
    from analytics_site.urls import urlpatterns

    found: list[URLPattern | URLResolver] = list(urlpatterns if patterns is None else patterns)
    for pattern in found:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from all_routes(pattern.url_patterns, route)
        else:
            yield spelt(route)


def models_of_admin() -> dict[str, Any]:
    return {model._meta.label_lower: owner for model, owner in admin.site._registry.items()}
