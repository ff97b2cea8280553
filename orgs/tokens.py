"""Bearer tokens of the platform's identity provider: whether one is right, and what it says of who holds it.

What a token may do follows from the roles in it (`access`), at each request anew: nothing of it is stored.
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from django.conf import settings

from .limits import MAX_SUBJECT_LENGTH, MAX_TOKEN_LENGTH
from .signing_keys import ALGORITHMS, signing_keys

# What is raised for a wrong one, with what PyJWT lets through of what a stranger may send: nesting without end, an expiry
# of infinity, half a character.
MALFORMED = (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError)


class InvalidToken(Exception):
    """It proves nothing. Why is for the log, never for whoever sent it."""


@dataclass(frozen=True)
class Token:
    """Who holds a verified token."""

    subject: str
    roles: Mapping[uuid.UUID, frozenset[str]]  # ours, by org; only orgs with any
    is_staff: bool = False  # of the platform: may look at every org


def verify(text: str) -> Token:
    """What a token says, where it is right. Raises `InvalidToken`, and `KeysUnavailable` where that can't be known."""
    if not settings.OIDC_ISSUER or not settings.OIDC_AUDIENCE:
        raise InvalidToken("no identity provider is configured")
    if len(text) > MAX_TOKEN_LENGTH:
        raise InvalidToken("too long")
    try:
        return _token(claims_of(text, settings.OIDC_AUDIENCE))
    except MALFORMED as error:
        raise InvalidToken(type(error).__name__) from error


def claims_of(text: str, audience: str, *required: str) -> dict[str, Any]:
    """What a token of the provider says, where it was made for this audience.

    Raises one of `MALFORMED`, `InvalidToken`, `KeysUnavailable`.
    """
    header = jwt.get_unverified_header(text)
    kid, algorithm = header.get("kid"), header.get("alg")
    # Before any key is looked for: what can't be right needs none.
    if algorithm not in ALGORITHMS or not isinstance(kid, str):
        raise InvalidToken("another algorithm, or no key id")
    key = signing_keys(settings.OIDC_ISSUER, settings.OIDC_JWKS_URL).find(kid, algorithm)
    if key is None:
        raise InvalidToken("unknown key")
    return jwt.decode(
        text,
        key,
        algorithms=[algorithm],  # the key's own
        audience=audience,
        issuer=settings.OIDC_ISSUER,
        leeway=settings.OIDC_CLOCK_SKEW,
        options={"require": ["exp", "iss", "aud", *required]},
    )


def _token(claims: Mapping[str, Any]) -> Token:
    subject = _claim(claims, settings.OIDC_SUBJECT_CLAIM)
    # It goes into logs, the audit trail and onto pages.
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_LENGTH or not subject.isprintable():
        raise InvalidToken("no subject")
    roles, is_staff = rights_of(claims)
    return Token(subject, roles, is_staff)


def rights_of(claims: Mapping[str, Any]) -> tuple[Mapping[uuid.UUID, frozenset[str]], bool]:
    """Our roles by org that the provider gives somebody, and whether it makes them staff."""
    names = _names(_claim(claims, settings.OIDC_ROLES_CLAIM))
    orgs = _claim(claims, settings.OIDC_ORGS_CLAIM)
    if isinstance(orgs, dict):
        named = [(org, _names(roles)) for org, roles in orgs.items()]
    else:
        named = [(org, names) for org in orgs] if isinstance(orgs, list) else []
    return _by_org(named), bool(settings.OIDC_STAFF_ROLE) and settings.OIDC_STAFF_ROLE in names


def _by_org(named: Iterable[tuple[Any, list[str]]]) -> dict[uuid.UUID, frozenset[str]]:
    """Our roles in each org. Names and ids that are not ours give nothing: a provider serves others too."""
    found: dict[uuid.UUID, frozenset[str]] = {}
    for org, names in named:
        ours = {settings.OIDC_ROLE_NAMES[name] for name in names if name in settings.OIDC_ROLE_NAMES}
        org_id = _uuid(org)
        if org_id is not None and ours:
            found[org_id] = found.get(org_id, frozenset()) | ours
    return found


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name; where none has it, by the path that its dots make (`realm_access.roles`)."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def has_claim(claims: Mapping[str, Any], name: str) -> bool:
    return _claim(claims, name) is not None


def _names(value: Any) -> list[str]:
    """One name, or a list of them."""
    if isinstance(value, str):
        return [value]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _uuid(value: Any) -> uuid.UUID | None:
    try:
        return uuid.UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
