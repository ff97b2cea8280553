"""Forms of the settings and invitation pages."""

from datetime import datetime, timedelta

from django import forms
from django.contrib.auth.forms import SetPasswordForm
from django.utils import timezone

from .models import Membership, Org, Role, Scope, User

LIFETIMES = {"30": "30 days", "90": "90 days", "365": "1 year", "": "No expiry"}


class OrgForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Org
        fields = ("name", "billing_contact", "time_zone")


class InviteForm(forms.Form):
    email = forms.EmailField(label="Email address")
    role = forms.ChoiceField(choices=Role.choices, initial=Role.VIEWER)


class RoleForm(forms.Form):
    member = forms.IntegerField()
    role = forms.ChoiceField(choices=Role.choices)


class KeyForm(forms.Form):
    name = forms.CharField(max_length=100, label="What it is for")
    scopes = forms.MultipleChoiceField(choices=Scope.choices, widget=forms.CheckboxSelectMultiple)
    lifetime = forms.ChoiceField(choices=list(LIFETIMES.items()), required=False, initial="365", label="Expires after")

    def expires_at(self) -> datetime | None:
        days = self.cleaned_data["lifetime"]
        return timezone.now() + timedelta(days=int(days)) if days else None


class AcceptForm(SetPasswordForm):  # type: ignore[type-arg]
    """A password for a new account."""

    def save(self, commit: bool = True) -> User:
        user: User = super().save(commit)
        return user


def is_last_admin(membership: Membership) -> bool:
    """Whether an org would be left without an admin. Locks its admins, so that two can't go at once."""
    admins = Membership.objects.select_for_update().filter(org_id=membership.org_id, role=Role.ORG_ADMIN)
    return [admin.pk for admin in admins] == [membership.pk]
