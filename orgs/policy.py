"""Who may do what: one table of permissions and roles. The API, the pages, the admin and docs/access.md all read it.

Members have scopes within their org. Staff have some of these scopes in every org, and duties in the admin.
"""

from collections.abc import Iterator, Mapping
from functools import cache

from django.apps import apps
from django.contrib.auth.backends import BaseBackend
from django.db.models import Model, TextChoices

from .models import Role, Scope, StaffRole, User


class Duty(TextChoices):
    """What staff do in the admin."""

    LOOK = "look", "See everything but secrets"
    ORGS = "orgs", "Register and change organisations"
    MEMBERS = "members", "Change the members of any organisation"
    PEOPLE = "people", "Add and change accounts, make somebody staff"
    KEYS = "keys", "Make and revoke keys, of organisations and of the platform"
    PRICES = "prices", "Change models and their prices"
    REPLAY = "replay", "Replay what is in quarantine"
    STREAMS = "streams", "Forget a stream that is no longer read"
    EXPORTS = "exports", "Cancel exports and run them again, ask for summaries of all organisations, allow buckets"
    SCHEDULE = "schedule", "Change the schedule"


_MEMBERS = (Role.ORG_ADMIN, Role.ENGINEER, Role.FINANCE, Role.VIEWER)
_STAFF = (StaffRole.SUPPORT, StaffRole.ADMIN)
_WORKERS = (Role.ORG_ADMIN, Role.ENGINEER, Role.FINANCE)
ROLES: tuple[Role | StaffRole, ...] = (*_MEMBERS, *_STAFF)

TABLE: Mapping[Scope | Duty, tuple[Role | StaffRole, ...]] = {
    Scope.USAGE_READ: (*_MEMBERS, *_STAFF),
    Scope.RELIABILITY_READ: (*_MEMBERS, *_STAFF),
    Scope.EXPORTS_CREATE: _WORKERS,
    Scope.EXPORTS_READ: (*_WORKERS, *_STAFF),
    Scope.EXPORTS_DOWNLOAD: (*_WORKERS, *_STAFF),
    Scope.EVENTS_WRITE: (Role.ORG_ADMIN,),
    Scope.ADMIN: (Role.ORG_ADMIN,),
    Duty.LOOK: _STAFF,
    Duty.ORGS: (StaffRole.ADMIN,),
    Duty.MEMBERS: (StaffRole.ADMIN,),
    Duty.PEOPLE: (StaffRole.ADMIN,),
    Duty.KEYS: (StaffRole.ADMIN,),
    Duty.PRICES: (StaffRole.ADMIN,),
    Duty.REPLAY: (StaffRole.ADMIN,),
    Duty.STREAMS: (StaffRole.ADMIN,),
    Duty.EXPORTS: (StaffRole.ADMIN,),
    Duty.SCHEDULE: (StaffRole.ADMIN,),
}


def _scopes(role: Role | StaffRole) -> frozenset[str]:
    return frozenset(what for what, roles in TABLE.items() if isinstance(what, Scope) and role in roles)


ALL_SCOPES: frozenset[str] = frozenset(Scope.values)
ROLE_SCOPES: Mapping[str, frozenset[str]] = {role: _scopes(role) for role in _MEMBERS}
# Of staff in any org: both roles look alike there; what staff change, they change in the admin.
STAFF_SCOPES: frozenset[str] = _scopes(StaffRole.SUPPORT) | _scopes(StaffRole.ADMIN)

# The models whose rows a duty adds, changes and deletes, as far as their page in the admin has that at all.
_MODELS: Mapping[Duty, tuple[str, ...]] = {
    Duty.ORGS: ("orgs.org",),
    Duty.MEMBERS: ("orgs.membership",),
    Duty.PEOPLE: ("orgs.user", "orgs.provideridentity"),
    Duty.KEYS: ("orgs.apikey",),
    Duty.PRICES: ("orgs.servedmodel", "orgs.modelprice"),
    Duty.REPLAY: ("ingestion.quarantinedmessage",),
    Duty.STREAMS: ("ingestion.streamreader",),
    Duty.EXPORTS: ("exports.exportjob", "exports.exportbucket"),
    Duty.SCHEDULE: tuple(
        f"django_celery_beat.{name}"
        for name in ("periodictask", "intervalschedule", "crontabschedule", "solarschedule", "clockedschedule")
    ),
}


def has_duty(user: User, duty: Duty) -> bool:
    return user.staff_role_held in TABLE[duty]


def _named(models: Iterator[type[Model]], *verbs: str) -> Iterator[str]:
    return (f"{model._meta.app_label}.{verb}_{model._meta.model_name}" for model in models for verb in verbs)


@cache
def admin_permissions(role: StaffRole) -> frozenset[str]:
    """What a role's duties are in Django's own terms: the permissions that pages of the admin ask for."""
    duties = [duty for duty in Duty if role in TABLE[duty]]
    found = set(_named(iter(apps.get_models()), "view")) if Duty.LOOK in duties else set()
    for duty in duties:
        models = (apps.get_model(name) for name in _MODELS.get(duty, ()))
        found |= set(_named(models, "add", "change", "delete"))
    return frozenset(found)


class StaffBackend(BaseBackend):
    """Gives staff the permissions of their role. Nothing is stored, so nothing can differ from the table.

    It comes beside Django's own backend, which knows passwords and permissions that were given by hand.
    """

    def get_all_permissions(self, user_obj: object, obj: Model | None = None) -> set[str]:
        role = user_obj.staff_role_held if isinstance(user_obj, User) and obj is None else None
        return set() if role is None else set(admin_permissions(role))

    def has_perm(self, user_obj: object, perm: str, obj: Model | None = None) -> bool:
        return perm in self.get_all_permissions(user_obj, obj)

    def has_module_perms(self, user_obj: object, app_label: str) -> bool:
        return any(perm.startswith(f"{app_label}.") for perm in self.get_all_permissions(user_obj))


def as_markdown() -> str:
    """The table, as it stands in docs/access.md."""
    lines = [["permission", *(str(role.label) for role in ROLES)], ["---"] * (len(ROLES) + 1)]
    for what, roles in TABLE.items():
        name = f"`{what}`: {what.label}" if isinstance(what, Scope) else str(what.label)
        lines.append([name, *("yes" if role in roles else "" for role in ROLES)])
    return "".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) + "\n" for line in lines)
