"""Organisations, the registry of served models, people and their roles, API keys, and the audit trail."""

import hashlib
import hmac
import secrets
import uuid
import zoneinfo
from datetime import datetime
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone

from .limits import INVITATION_LIFETIME, KEY_USE_RESOLUTION, MAX_IDENTITY_LENGTH, MAX_ISSUER_LENGTH


class Role(models.TextChoices):
    ORG_ADMIN = "org_admin", "Org admin"
    ENGINEER = "engineer", "Engineer"
    FINANCE = "finance", "Finance"
    VIEWER = "viewer", "Viewer"


class StaffRole(models.TextChoices):
    SUPPORT = "staff_support", "Staff support"
    ADMIN = "staff_admin", "Staff admin"


class Scope(models.TextChoices):
    USAGE_READ = "analytics:usage:read", "Read usage"
    RELIABILITY_READ = "analytics:reliability:read", "Read reliability"
    EXPORTS_CREATE = "analytics:exports:create", "Create exports"
    EXPORTS_READ = "analytics:exports:read", "List exports"
    EXPORTS_DOWNLOAD = "analytics:exports:download", "Download exports"
    EVENTS_WRITE = "analytics:events:write", "Send events"
    ADMIN = "admin", "Everything within the org"


def token_hash(token: str) -> str:
    """SHA-256 of a random token, as hex. Tokens have 256 bits, so a fast hash is safe."""
    return hashlib.sha256(token.encode()).hexdigest()


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email=(username or "").lower())


class User(AbstractUser):
    """A person. Staff (`is_staff`) belong to the platform and may look at every org; their role says what they change."""

    username = None  # type: ignore[assignment]  # people sign in with their address
    email = models.EmailField("email address", unique=True)
    staff_role = models.CharField(
        max_length=16,
        choices=StaffRole,
        default=StaffRole.SUPPORT,
        db_default=StaffRole.SUPPORT,
        help_text="Of staff alone. Support looks; admins also change things. A superuser is a staff admin.",
    )

    email_confirmed = models.BooleanField(
        "email address is confirmed",
        default=False,
        db_default=False,
        help_text=(
            "Somebody made sure that the address is this person's: staff, or the identity provider. An account that was made by"
            " the link of an invitation proves nothing of its address."
        ),
    )

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []
    objects: ClassVar[UserManager] = UserManager()  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.email

    @property
    def staff_role_held(self) -> StaffRole | None:
        """The role that counts; None where the person is no staff."""
        if not (self.is_staff and self.is_active):
            return None
        return StaffRole.ADMIN if self.is_superuser else StaffRole(self.staff_role)


class ProviderIdentity(models.Model):
    """Who a person is at the identity provider. An address may pass to somebody else there; issuer and subject never do."""

    user = models.ForeignKey(User, models.CASCADE, related_name="identities")
    issuer = models.CharField(max_length=MAX_ISSUER_LENGTH)
    subject = models.CharField(max_length=MAX_IDENTITY_LENGTH)
    gives_staff = models.BooleanField(
        "makes staff", default=False, help_text="The person is staff because the provider said so, and for as long."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "identity at the provider"
        verbose_name_plural = "identities at the provider"
        constraints = (
            models.UniqueConstraint(fields=("issuer", "subject"), name="one_account_per_identity"),
            models.UniqueConstraint(fields=("user", "issuer"), name="one_identity_per_issuer"),
        )

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"

    def give_staff(self, is_staff: bool) -> bool:
        """Make the person staff as the provider says, or take back what it gave. What was given here stays.

        Tells whether that changed anything.
        """
        if is_staff == self.gives_staff or (is_staff and self.user.is_staff):
            return False
        self.gives_staff = self.user.is_staff = is_staff
        self.user.staff_role = StaffRole.SUPPORT  # more is given here, and goes with it
        self.user.save(update_fields=("is_staff", "staff_role"))
        self.save(update_fields=("gives_staff",))
        return True

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """What the provider gave goes with it: memberships by the database, being staff here."""
        self.give_staff(False)
        return super().delete(*args, **kwargs)


# Without the names that mean no place: the server's own zone, and none at all.
TIME_ZONES = frozenset(zoneinfo.available_timezones() - {"localtime", "posixrules", "Factory"})


def validate_time_zone(name: str) -> None:
    if name not in TIME_ZONES:
        raise ValidationError(f"{name!r} is not an IANA time zone, such as Europe/Berlin.")


class Org(models.Model):
    """A tenant. A stub is an org that events named before anybody registered it; staff complete it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=200)
    slug = models.SlugField(unique=True, max_length=64)
    billing_contact = models.EmailField(blank=True)
    time_zone = models.CharField(
        max_length=64, default="UTC", validators=[validate_time_zone], help_text="IANA name; days are counted in it."
    )
    is_stub = models.BooleanField("to be completed", default=False, help_text="Made because events named it.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        return zoneinfo.ZoneInfo(self.time_zone)


class ServedModel(models.Model):
    """A model the platform serves. One registry for all orgs."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    display_name = models.CharField(max_length=200)
    billing_tier = models.CharField(max_length=64, blank=True)
    is_stub = models.BooleanField("to be completed", default=False, help_text="Made because events named it.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "model"
        ordering = ("display_name",)

    def __str__(self) -> str:
        return self.display_name


class ModelPrice(models.Model):
    """What a model's tokens cost from a moment on, in cents per million tokens. Prices events that carry no cost."""

    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="prices")
    effective_from = models.DateTimeField()
    input_tokens = models.DecimalField(max_digits=14, decimal_places=4, help_text="Cents per million; neither cached.")
    cached_input_tokens = models.DecimalField(max_digits=14, decimal_places=4, help_text="Cents per million.")
    cache_creation_input_tokens = models.DecimalField(max_digits=14, decimal_places=4, help_text="Cents per million.")
    output_tokens = models.DecimalField(max_digits=14, decimal_places=4, help_text="Cents per million.")

    class Meta:
        verbose_name = "model price"
        ordering = ("model", "-effective_from")
        constraints = (models.UniqueConstraint(fields=("model", "effective_from"), name="one_price_at_a_time"),)

    def __str__(self) -> str:
        return f"{self.model} from {self.effective_from:%Y-%m-%d}"


class Membership(models.Model):
    org = models.ForeignKey(Org, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role, default=Role.VIEWER)
    identity = models.ForeignKey(
        ProviderIdentity,
        models.CASCADE,
        null=True,
        blank=True,
        editable=False,
        related_name="memberships",
        help_text="Whose word this membership is, where it comes from the identity provider; it goes when that goes.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "member"
        constraints = (models.UniqueConstraint(fields=("org", "user"), name="one_role_per_member"),)

    def __str__(self) -> str:
        return f"{self.user} in {self.org}"


class Invitation(models.Model):
    """A one-time link into an org. Only the hash of its token is kept."""

    org = models.ForeignKey(Org, models.CASCADE, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=16, choices=Role, default=Role.VIEWER)
    token_hash = models.CharField(max_length=64, unique=True, editable=False)
    invited_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.email} to {self.org}"

    @classmethod
    def issue(cls, org: Org, email: str, role: str, invited_by: User) -> tuple["Invitation", str]:
        """A new invitation and its token; the token can't be had again."""
        token = secrets.token_urlsafe(32)
        invitation = cls.objects.create(
            org=org,
            email=email.lower(),
            role=role,
            invited_by=invited_by,
            token_hash=token_hash(token),
            expires_at=timezone.now() + INVITATION_LIFETIME,
        )
        return invitation, token

    @classmethod
    def open(cls, token: str) -> "Invitation | None":
        """The invitation behind a token, while it can still be accepted."""
        return (
            cls.objects.select_related("org")
            .filter(token_hash=token_hash(token), accepted_at=None, expires_at__gt=timezone.now())
            .first()
        )

    def accept(self, user: User) -> bool:
        """Make a person a member; only the first to try succeeds. A role that they have already stays."""
        taken = Invitation.objects.filter(pk=self.pk, accepted_at=None).update(accepted_at=timezone.now())
        if taken:
            Membership.objects.get_or_create(org=self.org, user=user, defaults={"role": self.role})
        return bool(taken)


class ApiKey(models.Model):
    """A machine's credential. It belongs to one org, or to the platform (`org` empty). Shown once, stored hashed."""

    org = models.ForeignKey(
        Org, models.CASCADE, null=True, blank=True, related_name="api_keys", help_text="Empty: a key of the platform."
    )
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=16, unique=True, editable=False)
    key_hash = models.CharField(max_length=64, editable=False)
    scopes = ArrayField(models.CharField(max_length=64, choices=Scope))
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+", editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = "API key"
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @classmethod
    def issue(
        cls,
        *,
        org: Org | None,
        name: str,
        scopes: list[str],
        created_by: User | None = None,
        expires_at: datetime | None = None,
    ) -> tuple["ApiKey", str]:
        """A new key and its token; the token can't be had again."""
        key = cls(org=org, name=name, scopes=scopes, created_by=created_by, expires_at=expires_at)
        return key, key.assign_token()

    def assign_token(self) -> str:
        """Give an unsaved key its token, save it, and return the token."""
        self.prefix = f"ak_{secrets.token_hex(4)}"
        token = f"{self.prefix}_{secrets.token_urlsafe(32)}"
        self.key_hash = token_hash(token)
        self.save()
        return token

    @classmethod
    def find(cls, token: str) -> "ApiKey | None":
        """The usable key of a token, compared in constant time."""
        if "\0" in token:  # PostgreSQL does not take it
            return None
        prefix = "_".join(token.split("_", 2)[:2])
        key = cls.objects.filter(prefix=prefix).first()
        if key is None or not hmac.compare_digest(key.key_hash, token_hash(token)) or not key.is_usable():
            return None
        return key

    @property
    def scope_names(self) -> list[str]:
        """What the key may do, in words."""
        return [str(Scope(scope).label) for scope in self.scopes]

    def is_usable(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > timezone.now())

    def note_use(self) -> None:
        """Remember when the key was last used, to `KEY_USE_RESOLUTION`."""
        now = timezone.now()
        if self.last_used_at is None or now - self.last_used_at >= KEY_USE_RESOLUTION:
            ApiKey.objects.filter(pk=self.pk).update(last_used_at=now)

    def revoke(self) -> None:
        self.revoked_at = timezone.now()
        self.save(update_fields=("revoked_at",))


class AuditRecord(models.Model):
    """Who did what to which org. Written by `audit`, never changed: the database refuses that.

    The org is an id alone, without a constraint: a record outlives what it is about, and deleting an org changes none.
    """

    class Outcome(models.TextChoices):
        DONE = "done", "Done"
        DENIED = "denied", "Denied"

    at = models.DateTimeField(default=timezone.now)
    actor = models.CharField(max_length=260, help_text="user:<address>, key:<prefix> or command:<name>")
    action = models.CharField(max_length=64, help_text="One of orgs.actions.")
    org = models.ForeignKey(Org, models.DO_NOTHING, null=True, related_name="+", db_constraint=False)
    target = models.CharField(max_length=400, blank=True)
    address = models.GenericIPAddressField("client's address", null=True, blank=True)
    outcome = models.CharField(max_length=8, choices=Outcome, default=Outcome.DONE, db_default=Outcome.DONE)
    # Refused to somebody of another org, or of none: the org is not told who.
    by_stranger = models.BooleanField("by a stranger", default=False, db_default=False)
    request_id = models.CharField(max_length=128, blank=True)
    once = models.CharField(max_length=64, null=True, editable=False, help_text="What there is one record of.")

    class Meta:
        ordering = ("-id",)
        indexes = (
            # An org's own trail, newest first; of one actor; of one action.
            models.Index(fields=("org", "-id"), name="audit_by_org", condition=Q(org__isnull=False)),
            models.Index(fields=("org", "actor", "-id"), name="audit_by_org_actor", condition=Q(org__isnull=False)),
            models.Index(fields=("org", "action", "-id"), name="audit_by_org_action", condition=Q(org__isnull=False)),
            # The trail of one thing: who had an export, for instance.
            models.Index(fields=("target", "-id"), name="audit_by_target", condition=~Q(target="")),
        )
        constraints = (models.UniqueConstraint(fields=("once",), name="audit_once", condition=Q(once__isnull=False)),)

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.actor} {self.action}"
