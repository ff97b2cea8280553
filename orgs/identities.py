"""Whose account it is that somebody signs in to by the identity provider, and what the provider's word gives them.

An account is found by issuer and subject. One that stands here already is taken by its address alone where the provider
vouches for the address and so did somebody here, and never one of staff, nor one that belongs to another subject; else its
owner signs in to it first and connects it. What the provider gives is brought up to date at each sign-in: what it no
longer says is gone, what was given here stays.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction

from .actions import Action
from .code_flow import Assertion, SignInRefused
from .limits import MAX_EMAIL_LENGTH
from .models import Membership, Org, ProviderIdentity, Role, User
from .tokens import rights_of

# Of several roles in an org the first of these: it allows what all of them do.
_STRONGEST = (Role.ORG_ADMIN, Role.ENGINEER, Role.FINANCE, Role.VIEWER)


@dataclass(frozen=True)
class Change:
    """Something for the audit trail."""

    action: Action
    org_id: uuid.UUID | None
    target: str


class _OtherWasFaster(Exception):
    """The same person's other first sign-in is done meanwhile."""


@dataclass
class Entrance:
    user: User
    changes: list[Change] = field(default_factory=list)


def enter(said: Assertion, connects: User | None = None) -> Entrance:
    """The account of whom the provider speaks of, with the rights that it gives. Raises `SignInRefused`.

    `connects` is the account that its owner, who is signed in, wants to be connected.
    """
    try:
        return _enter(said, connects)
    except (IntegrityError, _OtherWasFaster):
        return _enter(said, connects)


@transaction.atomic
def _enter(said: Assertion, connects: User | None) -> Entrance:
    # Held, so that two sign-ins of one person bring their rights up to date one after the other.
    identity = (
        ProviderIdentity.objects.select_for_update(of=("self",))
        .select_related("user")
        .filter(issuer=said.issuer, subject=said.subject)
        .first()
    )
    changes: list[Change] = []
    if identity is None:
        user = _account(said, connects)
        identity = ProviderIdentity.objects.create(user=user, issuer=said.issuer, subject=said.subject)
        changes.append(Change(Action.IDENTITY_CONNECTED, None, f"{user.email}: {said.subject}"))
    user = identity.user
    if connects is not None and user.pk != connects.pk:
        raise SignInRefused("connected")
    if not user.is_active:
        raise SignInRefused("inactive")
    for other in user.identities.exclude(pk=identity.pk):  # of a provider that was there before
        other.delete()
        user.refresh_from_db()
    roles, is_staff = rights_of(said.claims)
    if identity.give_staff(is_staff):
        changes.append(Change(Action.STAFF_CHANGED, None, f"{user.email} as {'staff' if is_staff else 'no staff'}"))
    changes += _bring_up_to_date(identity, roles)
    return Entrance(user, changes)


def _account(said: Assertion, connects: User | None) -> User:
    """For somebody who was never here: an account that stands here, or a new one."""
    email = _confirmed_address(said)
    user = User.objects.select_for_update().filter(email=email).first()
    if user is None:
        if connects is not None:
            raise SignInRefused("address")
        return User.objects.create_user(email, email_confirmed=True)
    subject = user.identities.filter(issuer=said.issuer).values_list("subject", flat=True).first()
    if subject is not None:  # of another, as a rule: the address was somebody else's before
        raise _OtherWasFaster if subject == said.subject else SignInRefused("taken")
    if connects is not None and connects.pk != user.pk:
        raise SignInRefused("address")
    if connects is None and (user.is_staff or user.is_superuser or not user.email_confirmed):
        raise SignInRefused("account")
    # What is known of the password may be known to others, and what the provider gives must not outlive its sessions:
    # other sessions of this account end with it.
    user.set_unusable_password()
    user.email_confirmed = True
    user.save(update_fields=("password", "email_confirmed"))
    return user


def _confirmed_address(said: Assertion) -> str:
    email = said.claims.get("email")
    if not isinstance(email, str) or len(email) > MAX_EMAIL_LENGTH:
        raise SignInRefused("no address")
    try:
        validate_email(email)
    except ValidationError as error:
        raise SignInRefused("no address") from error
    if said.claims.get("email_verified") not in (True, "true"):  # some providers write claims as texts
        raise SignInRefused("unverified")
    return User.objects.normalize_email(email).lower()


def _bring_up_to_date(identity: ProviderIdentity, roles: Mapping[uuid.UUID, frozenset[str]]) -> list[Change]:
    """Memberships as the provider names them. One that was given here is its org's admins' to change, whatever that says."""
    changes: list[Change] = []

    def note(action: Action, member: Membership) -> None:
        target = f"{identity.user.email} as {member.role}, by the identity provider"
        changes.append(Change(action, member.org_id, target))

    held = {member.org_id: member for member in Membership.objects.filter(user=identity.user)}
    known = set(Org.objects.filter(pk__in=roles).values_list("pk", flat=True))
    for org_id in sorted(known):
        role = next(role for role in _STRONGEST if role in roles[org_id])
        member = held.get(org_id)
        if member is None:
            member = Membership.objects.create(org_id=org_id, user=identity.user, role=role, identity=identity)
            note(Action.MEMBER_ADDED, member)
        elif member.identity_id == identity.pk and member.role != role:
            member.role = role
            member.save(update_fields=("role",))
            note(Action.ROLE_CHANGED, member)
    for org_id, member in held.items():
        if member.identity_id == identity.pk and org_id not in known:
            note(Action.MEMBER_REMOVED, member)
            member.delete()
    return changes
