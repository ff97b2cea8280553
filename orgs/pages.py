"""Pages about who one is and where one belongs: signing in, invitations, the list of orgs, an org's settings.

`org_page` is the one way onto a page of an org; `frame` is what every such page shows around its own content.
"""

import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.views import LoginView, redirect_to_login
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseNotAllowed
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from rest_framework import exceptions

from . import audit, code_flow, members
from .access import authorise
from .actions import Action
from .forms import ApiKeyForm, InvitationForm, NewPersonForm, OrgForm, RoleForm, SignInForm
from .limits import MAX_PAGE_ROWS
from .models import ApiKey, Invitation, Membership, Org, Role, Scope, User
from .policy import ROLE_SCOPES, STAFF_SCOPES
from .sign_in import Throttled, attempt, buckets_of, conclude
from .tenancy import DatabaseRole, acting_as, one_org
from .throttling import give_back

MAX_SWITCHER = 10  # orgs that the switcher names; beyond, it searches
MAX_AUDIT_ROWS = 50  # of one page of the trail
MAX_LISTED = 50  # orgs of one list; a search narrows it
SECRET_COOKIE = "shown-once"  # noqa: S105  its name
SECRET_SECONDS = 120  # that a browser has to follow the redirect to the page that shows a new secret
FROM_PROVIDER = (
    "This membership comes from the identity provider: it is changed there, and counts from the next sign-in on."
)

P = ParamSpec("P")
OrgView = Callable[Concatenate[HttpRequest, Org, P], HttpResponseBase]


def org_page(scope: str) -> Callable[[OrgView[P]], Callable[Concatenate[HttpRequest, str, P], HttpResponseBase]]:
    """For views of an org's page: they get the org that the slug names, where the person holds `scope` in it.

    Without a session: to the sign-in page. An org that is another's and one that does not exist answer alike.
    """

    def decorate(view: OrgView[P]) -> Callable[Concatenate[HttpRequest, str, P], HttpResponseBase]:
        @wraps(view)
        @cache_control(private=True, no_cache=True)
        def with_org(request: HttpRequest, slug: str, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return redirect_to_login(request.get_full_path() if request.method in ("GET", "HEAD") else "/")
            org_id = Org.objects.filter(slug=slug).values_list("pk", flat=True).first()
            try:
                org = authorise(request, org_id or uuid.uuid4(), scope)
            except exceptions.PermissionDenied as error:
                raise PermissionDenied(str(error)) from error
            assert org is not None
            with one_org(org.pk):
                return view(request, org, *args, **kwargs)

        return with_org  # type: ignore[return-value]  # cache_control forgets the parameters

    return decorate


def visible_orgs(user: User) -> QuerySet[Org]:
    """The orgs a person may look at, by name."""
    return Org.objects.all() if user.staff_role_held else Org.objects.filter(memberships__user=user)


def frame(request: HttpRequest, org: Org | None = None, section: str = "") -> dict[str, Any]:
    """What stands around a page: the orgs to switch to, the sections a person may open, whose data it is."""
    user = request.user
    assert isinstance(user, User)
    membership = Membership.objects.filter(user=user, org=org).first() if org else None
    staff = user.staff_role_held
    scopes = ROLE_SCOPES[membership.role] if membership else STAFF_SCOPES if staff else frozenset()
    return {
        "org": org,
        "section": section,
        "switcher": _switcher(user),
        "max_switcher": MAX_SWITCHER,
        "role": membership.get_role_display() if membership else staff.label if staff else "",
        "may_administer": Scope.ADMIN in scopes,
        "may_see_exports": Scope.EXPORTS_READ in scopes,
        "may_export": Scope.EXPORTS_CREATE in scopes,
        "is_outside": org is not None and membership is None,
    }


def _switcher(user: User) -> list[Org]:
    """Other orgs are not seen from within one."""
    with acting_as(DatabaseRole.WEB):
        return list(visible_orgs(user)[: MAX_SWITCHER + 1])


class SignInView(LoginView):
    form_class = SignInForm
    template_name = "orgs/login.html"
    redirect_authenticated_user = True

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return conclude(request, super().dispatch(request, *args, **kwargs))

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not settings.SIGN_IN_PASSWORD:
            return HttpResponseNotAllowed(("GET", "HEAD"))
        return super().post(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        ways = {
            "with_password": settings.SIGN_IN_PASSWORD,
            "provider": settings.OIDC_NAME if code_flow.is_on() else "",
        }
        return super().get_context_data(**kwargs) | ways


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """To the first org of a person, or, for staff without one, to the list of all."""
    if not request.user.is_authenticated:
        return redirect_to_login("/")
    org = Org.objects.filter(memberships__user=request.user).first()
    if org is not None:
        return redirect("usage", slug=org.slug)
    return redirect("orgs") if request.user.is_staff else render(request, "orgs/none.html", frame(request))


@require_safe
def org_list(request: HttpRequest) -> HttpResponse:
    """The orgs a person may look at, searched by name or slug."""
    user = request.user
    if not isinstance(user, User):
        return redirect_to_login(request.get_full_path())
    text = request.GET.get("q", "").replace("\0", "").strip()[:200]
    found = visible_orgs(user).filter(Q(name__icontains=text) | Q(slug__icontains=text))[: MAX_LISTED + 1]
    context = {"text": text, "found": found[:MAX_LISTED], "has_more": len(found) > MAX_LISTED, "limit": MAX_LISTED}
    return render(request, "orgs/list.html", frame(request) | context)


# ── Invitations ──────────────────────────────────────────────────────────────────────────────────────────────────


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponseBase:
    """A one-time link into an org: who has an account joins with it, who has none makes one.

    It looks the same whether or not the address has an account: whoever made the link sees the page too.
    """
    invited = Invitation.open(token)
    if invited is None:
        return render(request, "orgs/invitation_over.html", status=404)
    context = {"invitation": invited, "next": request.path}
    user = request.user
    if isinstance(user, User):
        if user.email != invited.email:
            return render(request, "orgs/invitation_sign_in.html", context)
        if request.method == "POST":
            return _join(request, invited, user)
        return render(request, "orgs/invitation.html", context)
    form = NewPersonForm(invited.email, request.POST or None) if settings.SIGN_IN_PASSWORD else None
    if request.method == "POST" and form is not None and form.is_valid():
        return _make_account(request, invited, form, context)
    return render(
        request, "orgs/invitation.html", context | {"form": form}, status=400 if form and form.errors else 200
    )


def _make_account(
    request: HttpRequest, invited: Invitation, form: NewPersonForm, context: dict[str, Any]
) -> HttpResponseBase:
    """Whoever asks whether an address has an account in this way leaves a record, and may not ask often."""
    buckets = buckets_of(request, invited.email)
    try:
        attempt(buckets)
        response = _join(request, invited, None, form.cleaned_data["password"])
    except Throttled as error:
        form.add_error(None, error)
        response = render(request, "orgs/invitation.html", context | {"form": form}, status=429)
        response["Retry-After"] = str(error.seconds)
        return response
    except members.AccountExists:
        audit.record(request, Action.INVITATION_MET_ACCOUNT, invited.org.pk, f"{invited.email} as {invited.role}")
        form.add_error(None, "This address has an account already. Sign in with it to join.")
        return render(request, "orgs/invitation.html", context | {"form": form}, status=409)
    give_back(buckets)
    return response


def _join(request: HttpRequest, invited: Invitation, known: User | None, password: str = "") -> HttpResponseBase:
    user = members.accept(invited, known, password)
    if user is None:
        return render(request, "orgs/invitation_over.html", status=404)
    if known is None:
        login(request, user, "django.contrib.auth.backends.ModelBackend")
    audit.record(request, Action.INVITATION_ACCEPTED, invited.org.pk, f"{user.email} as {invited.role}")
    return conclude(request, redirect("usage", slug=invited.org.slug))


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────


@org_page(Scope.ADMIN)
@require_safe
def org_settings(request: HttpRequest, org: Org) -> HttpResponse:
    """Everything an org's admin may change. A secret that was just made is shown this once."""
    response = _settings(request, org, shown_once=_secret(request))
    response.delete_cookie(SECRET_COOKIE, path=reverse("settings", args=[org.slug]), samesite="Strict")
    return response


def _settings(request: HttpRequest, org: Org, status: int = 200, **context: Any) -> HttpResponse:
    """The settings page; `context` brings forms that were filled in wrongly."""
    people = org.memberships.select_related("user").order_by("user__email")
    invitations = org.invitations.filter(accepted_at=None).order_by("-created_at")
    defaults = {
        "zone": org.zone,
        "members": Paginator(people, MAX_PAGE_ROWS).get_page(request.GET.get("members")),
        "keys": Paginator(org.api_keys.select_related("created_by"), MAX_PAGE_ROWS).get_page(request.GET.get("keys")),
        "invitations": invitations[:MAX_PAGE_ROWS],
        "roles": Role.choices,
        "scopes": dict(Scope.choices),
        "org_form": OrgForm(instance=org),
        "invitation_form": InvitationForm(org),
        "key_form": ApiKeyForm(),
    }
    response = render(
        request, "orgs/settings.html", defaults | frame(request, org, "settings") | context, status=status
    )
    response["Cache-Control"] = "private, no-store"  # a page that shows a secret is not shown again by "back"
    return response


def _secret(request: HttpRequest) -> dict[str, str] | None:
    """The new secret that came with the redirect. It is kept nowhere but in the browser that asked for it."""
    value = request.get_signed_cookie(SECRET_COOKIE, "", max_age=SECRET_SECONDS)
    kind, _, secret = str(value).partition(" ")
    return {"kind": kind, "secret": secret} if secret else None


def _show_once(org: Org, kind: str, secret: str) -> HttpResponse:
    page = reverse("settings", args=[org.slug])
    response = redirect(f"{page}#shown-once")
    response.set_signed_cookie(
        SECRET_COOKIE, f"{kind} {secret}", max_age=SECRET_SECONDS, path=page, httponly=True, samesite="Strict",
        secure=settings.SESSION_COOKIE_SECURE,
    )  # fmt: skip
    return response


def _back(org: Org, section: str) -> HttpResponse:
    return redirect(f"{reverse('settings', args=[org.slug])}#{section}")


@org_page(Scope.ADMIN)
@require_POST
def change_org(request: HttpRequest, org: Org) -> HttpResponse:
    form = OrgForm(request.POST, instance=Org.objects.get(pk=org.pk))
    if not form.is_valid():
        return _settings(request, org, 400, org_form=form)
    form.save()
    audit.record(request, Action.ORG_CHANGED, org.pk, ", ".join(form.changed_data))
    messages.success(request, "The organisation was saved.")
    return _back(org, "organisation")


@org_page(Scope.ADMIN)
@require_POST
def change_role(request: HttpRequest, org: Org, membership_id: int) -> HttpResponse:
    form = RoleForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Choose one of the roles.")
        return _back(org, "members")
    try:
        changed = members.change_role(org, membership_id, Role(form.cleaned_data["role"]))
    except Membership.DoesNotExist as error:
        raise Http404 from error
    except members.FromProvider:
        messages.error(request, FROM_PROVIDER)
        return _back(org, "members")
    except members.LastAdmin:
        messages.error(request, "The last admin can't be given another role: make somebody else an admin first.")
        return _back(org, "members")
    audit.record(request, Action.ROLE_CHANGED, org.pk, f"{changed.user.email} as {changed.role}")
    messages.success(request, f"{changed.user.email} is now {changed.get_role_display().lower()}.")
    return _back(org, "members")


@org_page(Scope.ADMIN)
@require_POST
def remove_member(request: HttpRequest, org: Org, membership_id: int) -> HttpResponse:
    try:
        removed = members.remove(org, membership_id)
    except Membership.DoesNotExist as error:
        raise Http404 from error
    except members.FromProvider:
        messages.error(request, FROM_PROVIDER)
        return _back(org, "members")
    except members.LastAdmin:
        messages.error(request, "The last admin can't be removed: make somebody else an admin first.")
        return _back(org, "members")
    audit.record(request, Action.MEMBER_REMOVED, org.pk, f"{removed.user.email} as {removed.role}")
    if removed.user == request.user:
        return redirect("home")
    messages.success(request, f"{removed.user.email} is no longer a member.")
    return _back(org, "members")


@org_page(Scope.ADMIN)
@require_POST
def invite(request: HttpRequest, org: Org) -> HttpResponse:
    form = InvitationForm(org, request.POST)
    if not form.is_valid():
        return _settings(request, org, 400, invitation_form=form)
    assert isinstance(request.user, User)
    invited, token = Invitation.issue(org, form.cleaned_data["email"], form.cleaned_data["role"], request.user)
    audit.record(request, Action.INVITED, org.pk, f"{invited.email} as {invited.role}")
    return _show_once(org, "invitation", f"{settings.PUBLIC_URL}{reverse('invitation', args=[token])}")


@org_page(Scope.ADMIN)
@require_POST
def withdraw(request: HttpRequest, org: Org, invitation_id: int) -> HttpResponse:
    invited = get_object_or_404(Invitation, pk=invitation_id, org=org, accepted_at=None)
    invited.delete()
    audit.record(request, Action.INVITATION_WITHDRAWN, org.pk, invited.email)
    messages.success(request, f"The invitation of {invited.email} no longer works.")
    return _back(org, "members")


@org_page(Scope.ADMIN)
@require_POST
def create_key(request: HttpRequest, org: Org) -> HttpResponse:
    form = ApiKeyForm(request.POST)
    if not form.is_valid():
        return _settings(request, org, 400, key_form=form)
    assert isinstance(request.user, User)
    key, token = ApiKey.issue(
        org=org,
        name=form.cleaned_data["name"],
        scopes=form.cleaned_data["scopes"],
        created_by=request.user,
        expires_at=form.expires_at(),
    )
    audit.record(request, Action.KEY_MADE, org.pk, f"{key.prefix}: {', '.join(key.scopes)}")
    return _show_once(org, "key", token)


@org_page(Scope.ADMIN)
@require_POST
def revoke_key(request: HttpRequest, org: Org, key_id: int) -> HttpResponse:
    key = get_object_or_404(ApiKey, pk=key_id, org=org)
    if key.revoked_at is None:
        key.revoke()
        audit.record(request, Action.KEY_REVOKED, org.pk, key.prefix)
    messages.success(request, f"The key {key.name} was revoked. Requests with it are refused from now on.")
    return _back(org, "keys")


# ── The audit trail ──────────────────────────────────────────────────────────────────────────────────────────────


@org_page(Scope.ADMIN)
@require_safe
def audit_trail(request: HttpRequest, org: Org) -> HttpResponse:
    """Who did what to the org, newest first; further pages go on behind the last record of the one before."""
    actor, action, before = (
        request.GET.get(name, "").replace("\0", "").strip() for name in ("actor", "action", "before")
    )
    found = audit.trail_of(org, actor[:300], action if action in Action.values else "")
    if before.isascii() and before.isdigit() and int(before[:19]) < 2**63:
        found = found.filter(pk__lt=int(before[:19]))
    records = [audit.as_told_to_org(record) for record in found[: MAX_AUDIT_ROWS + 1]]
    context = {
        "zone": org.zone,
        "actor": actor,
        "action": action,
        "actions": Action.choices,
        "before": before,
        "records": records[:MAX_AUDIT_ROWS],
        "older": records[MAX_AUDIT_ROWS - 1].pk if len(records) > MAX_AUDIT_ROWS else None,
        "days": settings.AUDIT_RETENTION_DAYS,
    }
    return render(request, "orgs/audit.html", context | frame(request, org, "settings"))
