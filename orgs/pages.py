"""Pages about people and orgs, and the frame that every page of an org stands in."""

import functools
import uuid
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods
from rest_framework.exceptions import APIException

from . import settings_actions
from .access import authorise
from .forms import AcceptForm, InviteForm, KeyForm, OrgForm
from .models import ApiKey, Invitation, Membership, Org, Role, Scope, User

P = ParamSpec("P")
SWITCHER_UP_TO = 10  # orgs; beyond, one searches
LISTED_ORGS = 50  # of a search


def orgs_of(user: User) -> QuerySet[Org]:
    """The orgs a person may look at."""
    return Org.objects.all() if user.is_staff else Org.objects.filter(memberships__user=user)


def org_page(
    scope: str,
) -> Callable[[Callable[Concatenate[HttpRequest, Org, P], HttpResponse]], Callable[..., HttpResponse]]:
    """A page below /orgs/<slug>/: for people who hold `scope` there. No such org and no access are one answer."""

    def decorate(view: Callable[Concatenate[HttpRequest, Org, P], HttpResponse]) -> Callable[..., HttpResponse]:
        @never_cache
        @login_required
        @functools.wraps(view)
        def page(request: HttpRequest, slug: str, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            named = Org.objects.filter(slug=slug).values_list("pk", flat=True).first()
            try:
                org = authorise(request, named or uuid.uuid4(), scope)
            except APIException as error:
                raise PermissionDenied from error
            assert org is not None
            return view(request, org, *args, **kwargs)

        return page

    return decorate


def frame(request: HttpRequest, org: Org, page: str) -> dict[str, Any]:
    """What the frame around a page of an org shows."""
    assert isinstance(request.user, User)
    membership = Membership.objects.filter(user=request.user, org=org).first()
    others = list(orgs_of(request.user)[: SWITCHER_UP_TO + 1])
    return {
        "org": org,
        "page": page,
        "is_guest": membership is None,
        "may_admin": membership is not None and membership.role == Role.ORG_ADMIN,
        "orgs": others if len(others) <= SWITCHER_UP_TO else [],
    }


@login_required
def home(request: HttpRequest) -> HttpResponse:
    """To the usage of the first org; to the list where there are many."""
    assert isinstance(request.user, User)
    found = list(orgs_of(request.user)[: SWITCHER_UP_TO + 1])
    if 1 <= len(found) <= SWITCHER_UP_TO:
        return redirect("usage", found[0].slug)
    return redirect("orgs")


@login_required
def org_list(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    words = request.GET.get("q", "").replace("\0", "").strip()
    found = orgs_of(request.user)
    if words:
        found = found.filter(name__icontains=words)
    return render(request, "orgs/list.html", {"found": found[:LISTED_ORGS], "words": words, "limit": LISTED_ORGS})


@org_page(Scope.ADMIN)
@require_http_methods(["GET", "HEAD", "POST"])
def settings_page(request: HttpRequest, org: Org) -> HttpResponse:
    """Members, keys and the org itself. A post names its action; what it made is shown once, by the next get."""
    wrong: dict[str, Any] = {}
    if request.method == "POST":
        wrong = settings_actions.perform(request, org)
        if not wrong:
            return redirect("settings", org.slug)
    context = frame(request, org, "settings") | {
        "org_form": OrgForm(instance=org),
        "invite_form": InviteForm(),
        "key_form": KeyForm(),
        "members": org.memberships.select_related("user").order_by("user__email"),
        "invitations": org.invitations.filter(accepted_at=None, expires_at__gt=timezone.now()).order_by("email"),
        "keys": ApiKey.objects.filter(org=org, revoked_at=None),
        "revoked": ApiKey.objects.filter(org=org).exclude(revoked_at=None)[:20],
        "roles": Role.choices,
        "now": timezone.now(),
        "secret": request.session.pop("shown_once", None) if request.method == "GET" else None,
    }
    return render(request, "orgs/settings.html", context | wrong, status=400 if wrong else 200)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """Accept an invitation: with the account one is signed in to, or with a new one."""
    found = Invitation.open(token)
    if found is None:
        return render(request, "orgs/invitation.html", {"invitation": None}, status=404)
    existing = User.objects.filter(email=found.email).first()
    # The link proves the address; whoever has an account proves it by signing in.
    if existing is not None and request.user != existing:
        return redirect(f"/login/?next={request.path}")
    form = AcceptForm(existing or User(email=found.email), request.POST or None)
    if request.method == "POST" and (existing is not None or form.is_valid()):
        with transaction.atomic():
            user = existing or form.save()
            if not found.accept(user):
                return render(request, "orgs/invitation.html", {"invitation": None}, status=404)
        login(request, user, backend="django.contrib.auth.backends.ModelBackend")
        return redirect("usage", found.org.slug)
    return render(request, "orgs/invitation.html", {"invitation": found, "existing": existing, "form": form})
