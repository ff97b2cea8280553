"""API views of one org: what they read and write is that org's alone, whatever their queries say."""

import uuid
from collections.abc import Iterable
from typing import Any

from rest_framework.request import Request
from rest_framework.views import APIView

from .models import Org
from .tenancy import one_org


def unknown_parameters(request: Request, known: Iterable[str]) -> dict[str, str]:
    """An error for each parameter of the query that nobody reads: a misspelt name would be a wish that is not heard."""
    return dict.fromkeys(sorted(set(request.query_params) - set(known)), "is not known here")


class OrgView(APIView):
    """The path names the org as `org_id`; `HasScope` has found that the caller holds `required_scope` in it."""

    org: Org

    def initial(self, request: Request, org_id: uuid.UUID, *args: Any, **kwargs: Any) -> None:
        super().initial(request, org_id, *args, **kwargs)
        name = (request.method or "").lower()
        handler = getattr(self, name, None)
        if handler is not None:
            setattr(self, name, one_org(org_id)(handler))
