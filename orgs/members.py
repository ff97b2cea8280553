"""Who belongs to an org: accepting invitations, changing roles, removing people. An org never loses its last admin."""

from django.contrib.auth.hashers import make_password
from django.db import transaction

from .models import Invitation, Membership, Org, Role, User


class LastAdmin(Exception):
    """The change would leave an org without an admin."""


class AccountExists(Exception):
    """The address has an account: whoever it belongs to signs in."""


class FromProvider(Exception):
    """The identity provider said so, and would say it again: it is changed there."""


def _keep_an_admin(membership: Membership) -> None:
    """Called under the lock on the org's row, so that two admins can't remove each other at once."""
    others = Membership.objects.filter(org_id=membership.org_id, role=Role.ORG_ADMIN).exclude(pk=membership.pk)
    if membership.role == Role.ORG_ADMIN and not others.exists():
        raise LastAdmin


def _locked(org: Org, membership_id: int) -> Membership:
    """A membership of an org, with the org's members held still. Raises `Membership.DoesNotExist`, `FromProvider`."""
    Org.objects.select_for_update(no_key=True).get(pk=org.pk)
    membership = Membership.objects.select_related("user").get(pk=membership_id, org=org)
    if membership.identity_id is not None:
        raise FromProvider
    return membership


@transaction.atomic
def change_role(org: Org, membership_id: int, role: Role) -> Membership:
    """Raises `Membership.DoesNotExist`, `LastAdmin`, `FromProvider`."""
    membership = _locked(org, membership_id)
    if role != Role.ORG_ADMIN:
        _keep_an_admin(membership)
    membership.role = role
    membership.save(update_fields=("role",))
    return membership


@transaction.atomic
def remove(org: Org, membership_id: int) -> Membership:
    """Raises `Membership.DoesNotExist`, `LastAdmin`, `FromProvider`."""
    membership = _locked(org, membership_id)
    _keep_an_admin(membership)
    membership.delete()
    return membership


@transaction.atomic
def accept(invitation: Invitation, user: User | None = None, password: str = "") -> User | None:
    """Make a person a member: one who exists, or a new one with a password, whose address that does not confirm.

    None where the link was used meanwhile. Raises `AccountExists` where the new person's address has an account.
    """
    if user is None:
        user, created = User.objects.get_or_create(
            email=invitation.email, defaults={"password": make_password(password)}
        )
        if not created:  # not this visitor's to enter
            raise AccountExists
    if not invitation.accept(user):
        transaction.set_rollback(True)
        return None
    return user
