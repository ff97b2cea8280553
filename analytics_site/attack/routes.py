"""Every address of the service, from its own URL table: a route that is added is attacked without a word here."""

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.urls import URLPattern, URLResolver

from .trial import Party

API = "/analytics/v1/"
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Route:
    template: str
    methods: tuple[str, ...]

    @property
    def is_api(self) -> bool:
        return self.template.startswith(API)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(_PARAMETER.findall(self.template))

    @property
    def names_an_org(self) -> bool:
        return bool(self.names & {"org_id", "slug"})

    @property
    def names_a_thing(self) -> bool:
        """Something of an org, by an id of its own."""
        return self.names_an_org and bool(self.names - {"org_id", "slug"})

    def path(self, org: Party, things: Party | None = None) -> str:
        """Its address in an org, with ids of the same org or of another."""
        things = things or org
        known = {**things.ids, "org_id": org.org_id, "slug": org.slug}

        def fill(match: re.Match[str]) -> str:
            name = match.group(1)
            return known.get(name) or (str(uuid.UUID(int=1)) if "job" in name or "uuid" in match.group() else "1")

        return _PARAMETER.sub(fill, self.template)


def all_routes() -> list[Route]:
    """The service's own: the admin's, whose table is Django's, is attacked by `pages`."""
    from analytics_site.urls import urlpatterns

    return [route for route in _routes(list[Any](urlpatterns)) if not route.template.startswith("/admin/")]


def admin_routes() -> list[str]:
    from analytics_site.urls import urlpatterns

    found = (r.template for r in _routes(list[Any](urlpatterns)) if r.template.startswith("/admin/") and not r.names)
    return sorted({path for path in found if "(" not in path and "\\" not in path})


def of_orgs() -> list[Route]:
    return [route for route in all_routes() if route.names_an_org]


def _routes(patterns: Sequence[URLPattern | URLResolver], prefix: str = "/") -> Iterator[Route]:
    for pattern in patterns:
        template = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _routes(pattern.url_patterns, template)
            continue
        view: Any = getattr(pattern.callback, "view_class", None) or getattr(pattern.callback, "cls", None)
        named = tuple(method for method in METHODS if view and hasattr(view, method.lower()))
        yield Route(template, named or ("GET", "POST"))


_OF_A_RANGE = ("/usage", "/reliability", "/reliability/incidents", "/reliability/incident.csv")


def with_range(path: str, window: str) -> str:
    """With the window, where it is an endpoint that wants one; the others know no such parameters."""
    return f"{path}?{window}" if path.endswith(_OF_A_RANGE) else path
