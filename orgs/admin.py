"""Orgs, models, people and keys in the admin. What is issued, revoked or granted there is audited."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import AdminUserCreationForm
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html

from . import audit
from .actions import Action
from .admin_base import (
    NEWEST_TITLE,
    BaseAdmin,
    BigTableAdmin,
    Link,
    ModelForm,
    NewestFilter,
    Question,
    ReadOnly,
    TabularInline,
    actor,
    as_uuid,
    ask,
    asked_ids,
    newest,
)
from .models import (
    ApiKey,
    AuditRecord,
    Invitation,
    Membership,
    ModelPrice,
    Org,
    ProviderIdentity,
    Scope,
    ServedModel,
    StaffRole,
    User,
)
from .policy import Duty, has_duty


# ── Members ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _note_member(request: HttpRequest, action: Action, member: Membership) -> None:
    audit.record(request, action, member.org_id, f"{member.user.email} as {member.role}")


class MembersInline(TabularInline):
    model = Membership
    extra = 0
    fields = ("org", "user", "role", "created_at")
    readonly_fields = ("created_at",)
    autocomplete_fields = ("org", "user")
    verbose_name_plural = "members"


class MembershipsOfUser(MembersInline):
    verbose_name = "membership"
    verbose_name_plural = "member of"


class IdentitiesInline(TabularInline):
    """An account is connected by hand where its owner can't: staff, and who has no password here."""

    model = ProviderIdentity
    extra = 0
    fields = ("issuer", "subject", "gives_staff", "created_at")
    readonly_fields = ("gives_staff", "created_at")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "issuer":
            kwargs["initial"] = settings.OIDC_ISSUER
        return super().formfield_for_dbfield(db_field, request, **kwargs)


class WithMembers(BaseAdmin):
    """A page that members are edited on."""

    audited_inlines = frozenset({"member"})

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        super().save_formset(request, form, formset, change)
        if formset.model is not Membership:
            return
        for member in formset.new_objects:
            _note_member(request, Action.MEMBER_ADDED, member)
        for member, _ in formset.changed_objects:
            _note_member(request, Action.ROLE_CHANGED, member)
        for member in formset.deleted_objects:
            _note_member(request, Action.MEMBER_REMOVED, member)


@admin.register(Membership)
class MembershipAdmin(BaseAdmin):
    audits_itself = True
    list_display = ("user", "org", "role", "from_provider", "created_at")
    list_select_related = ("user", "org")
    list_filter = ("role",)
    ordering = ("-id",)
    search_fields = ("user__email", "org__name", "org__slug")
    search_help_text = "An address, or an org's name."
    autocomplete_fields = ("org", "user")
    readonly_fields = ("created_at",)

    @admin.display(description="by the provider", boolean=True)
    def from_provider(self, member: Membership) -> bool:
        return member.identity_id is not None

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        # A member of another org is another member: the audit trail of both orgs stays right.
        return ("org", "user", "created_at") if obj else ("created_at",)

    def save_model(self, request: HttpRequest, obj: Membership, form: ModelForm, change: bool) -> None:
        super().save_model(request, obj, form, change)
        _note_member(request, Action.ROLE_CHANGED if change else Action.MEMBER_ADDED, obj)

    def delete_model(self, request: HttpRequest, obj: Membership) -> None:
        super().delete_model(request, obj)
        _note_member(request, Action.MEMBER_REMOVED, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Membership]) -> None:
        for member in queryset.select_related("user"):
            self.delete_model(request, member)


@admin.register(Invitation)
class InvitationAdmin(ReadOnly, BaseAdmin):
    list_display = ("email", "org", "role", "state", "invited_by", "created_at", "expires_at")
    list_select_related = ("org", "invited_by")
    list_filter = ("role",)
    ordering = ("-id",)
    search_fields = ("email", "org__name", "org__slug")
    search_help_text = "An address, or an org's name."
    fields = ("email", "org", "role", "state", "invited_by", "created_at", "expires_at", "accepted_at")

    @admin.display(description="state")
    def state(self, invitation: Invitation) -> str:
        if invitation.accepted_at:
            return "Accepted"
        return "Open" if invitation.expires_at > timezone.now() else "Expired"


# ── Orgs and models ──────────────────────────────────────────────────────────────────────────────────────────────
class Undeletable(BaseAdmin):
    """Events, figures or the audit trail name these rows for as long as they are kept."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Org)
class OrgAdmin(WithMembers, Undeletable):
    list_display = ("name", "slug", "time_zone", "billing_contact", "is_stub", "created_at")
    list_filter = ("is_stub",)
    search_fields = ("name", "slug", "=id")
    search_help_text = "A part of the name or slug, or the whole id."
    inlines = (MembersInline,)
    # What apps above this one know of an org.
    more_links: ClassVar[list[Callable[[HttpRequest, Org], Iterable[Link]]]] = []

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        fields = ("name", "slug", "billing_contact", "time_zone")
        return ("id", *fields, "is_stub", "created_at") if obj else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("id", "created_at")

    def links(self, request: HttpRequest, row: Org) -> Iterable[Link]:
        for links in self.more_links:
            yield from links(request, row)
        for label, model, query in (
            ("API keys", ApiKey, f"org__id__exact={row.pk}"),
            ("Invitations", Invitation, f"org__id__exact={row.pk}"),
            ("Audit trail", AuditRecord, f"q={row.pk}"),
        ):
            if request.user.has_perm(f"orgs.view_{model._meta.model_name}"):
                yield Link(label, self.link_to("changelist", model, query))


class PricesInline(TabularInline):
    model = ModelPrice
    extra = 0
    ordering = ("-effective_from",)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name.endswith("_tokens"):
            kwargs["min_value"] = 0
        return super().formfield_for_dbfield(db_field, request, **kwargs)


@admin.register(ServedModel)
class ServedModelAdmin(Undeletable):
    list_display = ("display_name", "billing_tier", "is_stub", "created_at", "id")
    list_filter = ("is_stub",)
    search_fields = ("display_name", "billing_tier", "=id")
    search_help_text = "A part of the name, the tier, or the whole id."
    inlines = (PricesInline,)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        fields = ("display_name", "billing_tier")
        return ("id", *fields, "is_stub", "created_at") if obj else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("id", "created_at")


# ── People ───────────────────────────────────────────────────────────────────────────────────────────────────────
class UserCreationForm(AdminUserCreationForm):  # type: ignore[type-arg]  # generic for the type checker only
    class Meta:
        model = User
        fields = ("email",)
        field_classes: ClassVar[dict[str, type[forms.Field]]] = {"email": forms.EmailField}

    def clean_email(self) -> str:
        # People sign in with the address in lower case.
        return str(self.cleaned_data["email"]).lower()


@admin.register(User)
class UserAdmin(WithMembers, Undeletable, DjangoUserAdmin):  # type: ignore[type-arg]
    add_form = UserCreationForm
    list_display = ("email", "first_name", "last_name", "staff", "is_superuser", "is_active", "last_login")
    list_filter = ("is_staff", "staff_role", "is_superuser", "is_active", "email_confirmed")
    search_fields = ("email", "first_name", "last_name")
    search_help_text = "A part of the address or the name."
    ordering = ("email",)
    fieldsets = (
        (None, {"fields": ("email", "email_confirmed", "password")}),
        ("Name", {"fields": ("first_name", "last_name")}),
        (
            "Rights on the platform",
            {
                "fields": ("is_active", "is_staff", "staff_role", "is_superuser", "groups", "user_permissions"),
                "description": (
                    "Staff look at every org and at every page of the admin; their role says what they change. Groups and"
                    " permissions add to that."
                ),
            },
        ),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = ((None, {"classes": ("wide",), "fields": ("email", "usable_password", "password1", "password2")}),)
    readonly_fields = ("last_login", "date_joined")

    def get_inlines(self, request: HttpRequest, obj: Any = None) -> tuple[type[TabularInline], ...]:
        return (MembershipsOfUser, IdentitiesInline) if obj else ()

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        # Who only looks sees no part of a password's hash either.
        found = super().get_fieldsets(request, obj)
        return (
            found
            if obj is None or self.has_change_permission(request, obj)
            else [("Account", {"fields": ("email", "email_confirmed")}), *found[1:]]
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        # Whoever may edit people must not be able to give rights that they lack themselves.
        fields: tuple[str, ...] = ("last_login", "date_joined")
        if not actor(request).is_superuser:
            fields += ("is_superuser", "groups", "user_permissions")
        return fields if has_duty(actor(request), Duty.PEOPLE) else (*fields, "is_staff", "staff_role")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Nor to take over somebody who has them, by a new password or address.
        user = actor(request)
        if obj is not None and obj.is_superuser and not user.is_superuser:
            return False
        if obj is not None and obj.staff_role_held is StaffRole.ADMIN and user.staff_role_held is not StaffRole.ADMIN:
            return False
        return super().has_change_permission(request, obj)

    def audit_note(self, obj: User) -> str:
        return f"Now: {obj.staff_role_held.label if obj.staff_role_held else 'no staff'}."

    @admin.display(description="staff")
    def staff(self, user: User) -> str:
        return str(user.staff_role_held.label) if user.staff_role_held else "–"


# ── Keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class ApiKeyForm(ModelForm):
    scopes = forms.MultipleChoiceField(choices=Scope.choices, widget=forms.CheckboxSelectMultiple)

    class Meta:
        model = ApiKey
        fields = ("org", "name", "scopes", "expires_at")

    def clean_expires_at(self) -> Any:
        expires_at = self.cleaned_data["expires_at"]
        if expires_at is not None and expires_at <= timezone.now():
            raise forms.ValidationError("This lies in the past: the key could never be used.")
        return expires_at


class KeyState(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("usable", "Usable"), ("expired", "Expired"), ("revoked", "Revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        is_expired = Q(revoked_at=None, expires_at__lte=timezone.now())
        match self.value():
            case "usable":
                return queryset.filter(revoked_at=None).exclude(is_expired)
            case "expired":
                return queryset.filter(is_expired)
            case "revoked":
                return queryset.exclude(revoked_at=None)
        return queryset


class KeyOwner(admin.SimpleListFilter):
    title = "owner"
    parameter_name = "platform"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "The platform"), ("0", "An org")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        return queryset.filter(org__isnull=self.value() == "1") if self.value() in ("0", "1") else queryset


@admin.register(ApiKey)
class ApiKeyAdmin(Undeletable):
    """Keys are issued and revoked, never edited: what a key may do is what was agreed when it was handed over."""

    audits_itself = True
    form = ApiKeyForm
    list_display = ("name", "prefix", "owner", "scope_list", "state", "created_by", "created_at", "last_used_at")
    list_select_related = ("org", "created_by")
    list_filter = (KeyState, KeyOwner)
    search_fields = ("name", "prefix", "org__name", "org__slug")
    search_help_text = "A part of the key's name, its prefix, or an org's name."
    autocomplete_fields = ("org",)
    actions = ("revoke",)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        if obj is None:
            return ("org", "name", "scopes", "expires_at")
        dates = ("created_by", "created_at", "last_used_at", "expires_at", "revoked_at")
        return ("name", "prefix", "owner", "scope_list", "state", *dates)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return self.get_fields(request, obj) if obj else ()

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return actor(request).has_perm("orgs.change_apikey")

    def get_urls(self) -> list[URLPattern]:
        return [path("revoke/", self.wrap(self.revoke_view), name="orgs_apikey_revoke"), *super().get_urls()]

    def links(self, request: HttpRequest, row: ApiKey) -> Iterable[Link]:
        if row.revoked_at is None and self.has_revoke_permission(request):
            yield Link("Revoke…", f"{self.reverse('revoke')}?ids={row.pk}")

    @admin.display(description="owner", ordering="org__name")
    def owner(self, key: ApiKey) -> str:
        return str(key.org) if key.org else "The platform"

    @admin.display(description="scopes")
    def scope_list(self, key: ApiKey) -> str:
        return ", ".join(Scope(scope).label if scope in Scope.values else scope for scope in key.scopes)

    @admin.display(description="state")
    def state(self, key: ApiKey) -> str:
        if key.revoked_at:
            return "Revoked"
        return "Usable" if key.is_usable() else "Expired"

    def save_model(self, request: HttpRequest, obj: ApiKey, form: ModelForm, change: bool) -> None:
        obj.created_by = actor(request)
        token = obj.assign_token()
        audit.record(request, Action.KEY_MADE, obj.org_id, f"{obj.prefix}: {', '.join(obj.scopes)}")
        text = "The key, shown this once: {}. Copy it now; only its hash is kept."
        messages.warning(request, format_html(text, format_html('<code class="token">{}</code>', token)))

    @admin.action(description="Revoke selected keys…", permissions=("revoke",))
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        keys = list(queryset.filter(revoked_at=None)[:1000])
        if not keys:
            messages.info(request, "These keys are revoked already.")
            return None
        return self._ask_to_revoke(request, keys)

    def _ask_to_revoke(self, request: HttpRequest, keys: list[ApiKey]) -> HttpResponse:
        count = f"{len(keys)} API key{'' if len(keys) == 1 else 's'}"
        text = "Whoever uses them is refused from the next request on. This can't be taken back."
        question = Question(f"Revoke {count}?", text, f"Revoke {count}", self.reverse("revoke"), keys)
        return ask(request, self, question)

    def revoke_view(self, request: HttpRequest) -> HttpResponse:
        """Asks by GET, revokes by POST."""
        if not self.has_revoke_permission(request):
            raise PermissionDenied
        keys = list(ApiKey.objects.filter(pk__in=asked_ids(request), revoked_at=None).select_related("org"))
        if request.method != "POST" and keys:
            return self._ask_to_revoke(request, keys)
        with transaction.atomic():
            for key in keys:
                key.revoke()
                audit.record(request, Action.KEY_REVOKED, key.org_id, key.prefix)
            self.log_each(request, ApiKey.objects.filter(pk__in=[key.pk for key in keys]), "Revoked.")
        messages.success(
            request, f"Revoked: {', '.join(map(str, keys)) or 'nothing, these keys were revoked already'}."
        )
        return HttpResponseRedirect(self.reverse("changelist"))


# ── The trail ────────────────────────────────────────────────────────────────────────────────────────────────────
class ActionFilter(NewestFilter):
    title = f"action ({NEWEST_TITLE})"
    parameter_name = "action"
    options = Action.choices


class OutcomeFilter(NewestFilter):
    title = f"outcome ({NEWEST_TITLE})"
    parameter_name = "outcome"
    options = AuditRecord.Outcome.choices


@admin.register(AuditRecord)
class AuditRecordAdmin(ReadOnly, BigTableAdmin):
    list_display = ("at", "actor", "action", "outcome", "org", "target", "address", "request_id")
    list_select_related = ("org",)
    list_filter = (ActionFilter, OutcomeFilter)
    search_help_text = (
        "The whole id of an org; or, among the newest 100,000 records, a whole actor, account or request id."
    )

    def find(self, rows: QuerySet[AuditRecord], term: str) -> QuerySet[AuditRecord]:
        org_id = as_uuid(term)
        if org_id is not None and rows.filter(org_id=org_id).exists():  # by audit_by_org
            return rows.filter(org_id=org_id)
        return newest(rows).filter(
            Q(actor__in=(term, f"user:{term}", f"key:{term}", f"token:{term}"))
            | Q(request_id=term)
            | Q(action=Action.SIGN_IN_FAILED, target=term)
        )
