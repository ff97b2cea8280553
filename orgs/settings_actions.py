"""What an org admin can change, one function an action. Each checks, changes, and leaves an audit record."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest
from django.urls import reverse

from . import audit
from .forms import InviteForm, KeyForm, OrgForm, RoleForm, is_last_admin
from .models import ApiKey, Invitation, Membership, Org, Role, User

# Context for the page where something was wrong; empty where it was done.
Wrong = dict[str, Any]


def perform(request: HttpRequest, org: Org) -> Wrong:
    """Do what the form asks for, in one transaction."""
    action = _ACTIONS.get(request.POST.get("action", ""))
    if action is None:
        return {"refusal": "This form is not known; reload the page."}
    with transaction.atomic():
        return action(request, org)


def _save_org(request: HttpRequest, org: Org) -> Wrong:
    # A form writes into its instance, right or wrong: the page goes on showing the org as it is.
    form = OrgForm(request.POST, instance=Org.objects.select_for_update().get(pk=org.pk))
    if not form.is_valid():
        return {"org_form": form}
    form.save()
    audit.record(request, "org changed", org.pk, ", ".join(form.changed_data))
    messages.success(request, "Saved. A new time zone shows in the figures once its days are counted again.")
    return {}


def _invite(request: HttpRequest, org: Org) -> Wrong:
    form = InviteForm(request.POST)
    if not form.is_valid():
        return {"invite_form": form}
    email = form.cleaned_data["email"].lower()
    if Membership.objects.filter(org=org, user__email=email).exists():
        form.add_error("email", "is a member already")
        return {"invite_form": form}
    assert isinstance(request.user, User)
    org.invitations.filter(email=email, accepted_at=None).delete()
    _, token = Invitation.issue(org, email, form.cleaned_data["role"], request.user)
    audit.record(request, "member invited", org.pk, f"{email} as {form.cleaned_data['role']}")
    _show_once(request, f"Invitation for {email}", settings.PUBLIC_URL + reverse("invitation", args=[token]))
    return {}


def _withdraw(request: HttpRequest, org: Org) -> Wrong:
    invitation = org.invitations.filter(pk=_number(request, "invitation"), accepted_at=None).first()
    if invitation is not None:
        invitation.delete()
        audit.record(request, "invitation withdrawn", org.pk, invitation.email)
    return {}


def _change_role(request: HttpRequest, org: Org) -> Wrong:
    form = RoleForm(request.POST)
    member = org.memberships.filter(pk=_number(request, "member")).select_related("user").first()
    if not form.is_valid() or member is None:
        return {"refusal": "This member or role is not known; reload the page."}
    role = form.cleaned_data["role"]
    if role != Role.ORG_ADMIN and is_last_admin(member):
        return {"refusal": "An organisation needs an admin: make somebody else admin first."}
    member.role = role
    member.save(update_fields=("role",))
    audit.record(request, "role changed", org.pk, f"{member.user.email} to {role}")
    messages.success(request, f"{member.user.email} is now {member.get_role_display()}.")
    return {}


def _remove_member(request: HttpRequest, org: Org) -> Wrong:
    member = org.memberships.filter(pk=_number(request, "member")).select_related("user").first()
    if member is None:
        return {}
    if is_last_admin(member):
        return {"refusal": "An organisation needs an admin: make somebody else admin first."}
    member.delete()
    audit.record(request, "member removed", org.pk, member.user.email)
    messages.success(request, f"{member.user.email} has no access any more.")
    return {}


def _create_key(request: HttpRequest, org: Org) -> Wrong:
    form = KeyForm(request.POST)
    if not form.is_valid():
        return {"key_form": form}
    assert isinstance(request.user, User)
    key, token = ApiKey.issue(
        org=org,
        name=form.cleaned_data["name"],
        scopes=form.cleaned_data["scopes"],
        created_by=request.user,
        expires_at=form.expires_at(),
    )
    audit.record(request, "key made", org.pk, f"{key.prefix}: {', '.join(key.scopes)}")
    _show_once(request, f"API key “{key.name}”", token)
    return {}


def _revoke_key(request: HttpRequest, org: Org) -> Wrong:
    key = ApiKey.objects.filter(org=org, pk=_number(request, "key"), revoked_at=None).first()
    if key is not None:
        key.revoke()
        audit.record(request, "key revoked", org.pk, key.prefix)
        messages.success(request, f"The key “{key.name}” no longer works.")
    return {}


_ACTIONS: dict[str, Callable[[HttpRequest, Org], Wrong]] = {
    "save-org": _save_org,
    "invite": _invite,
    "withdraw": _withdraw,
    "change-role": _change_role,
    "remove-member": _remove_member,
    "create-key": _create_key,
    "revoke-key": _revoke_key,
}


def _number(request: HttpRequest, name: str) -> int:
    text = request.POST.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def _show_once(request: HttpRequest, what: str, secret: str) -> None:
    """Hand a secret to the next page, which shows it and forgets it."""
    request.session["shown_once"] = {"what": what, "secret": secret}
