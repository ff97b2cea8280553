"""Forms of the pages. Each says in words what is wrong; labels and hints are what an org admin would call things."""

from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib.auth.password_validation import password_validators_help_texts, validate_password
from django.utils import timezone

from .models import TIME_ZONES, Membership, Org, Role, Scope, User
from .sign_in import ThrottledForm

LIFETIMES = {"30": "30 days", "90": "90 days", "365": "1 year", "": "Never"}


class SignInForm(ThrottledForm):
    username = forms.EmailField(
        label="Email address", widget=forms.EmailInput(attrs={"autocomplete": "username", "autofocus": True})
    )
    error_messages = {
        **ThrottledForm.error_messages,
        "invalid_login": "This email address and password do not belong together. Check both and try again.",
        "inactive": "This account is switched off. Ask an admin of your organisation.",
    }


class OrgForm(forms.ModelForm):  # type: ignore[type-arg]  # Django takes no parameter at run time
    time_zone = forms.ChoiceField(
        label="Time zone",
        choices=lambda: [(name, name.replace("_", " ")) for name in sorted(TIME_ZONES)],
        help_text="Days are counted in it. Figures follow within minutes, as far back as single calls are kept.",
    )

    class Meta:
        model = Org
        fields = ("name", "billing_contact", "time_zone")
        labels = {"name": "Name", "billing_contact": "Billing contact"}
        help_texts = {"billing_contact": "Email address of whoever is asked about cost."}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.auto_id = "org-%s"  # three forms share a page


class RoleForm(forms.Form):
    role = forms.ChoiceField(choices=Role.choices)


class InvitationForm(forms.Form):
    email = forms.EmailField(label="Email address", widget=forms.EmailInput(attrs={"autocomplete": "off"}))
    role = forms.ChoiceField(label="Role", choices=Role.choices, initial=Role.VIEWER)

    def __init__(self, org: Org, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.auto_id = "invitation-%s"  # three forms share a page
        self.org = org

    def clean_email(self) -> str:
        email = str(self.cleaned_data["email"]).lower()
        if Membership.objects.filter(org=self.org, user__email=email).exists():
            raise forms.ValidationError("This person is a member already.")
        return email


class ApiKeyForm(forms.Form):
    name = forms.CharField(
        label="Name", max_length=100, help_text="What uses it, such as “billing sync”.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )  # fmt: skip
    scopes = forms.MultipleChoiceField(
        label="May do",
        choices=Scope.choices,
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Choose at least one."},
    )
    lifetime = forms.ChoiceField(label="Expires", choices=list(LIFETIMES.items()), initial="90", required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.auto_id = "key-%s"  # three forms share a page

    def expires_at(self) -> datetime | None:
        days = self.cleaned_data["lifetime"]
        return timezone.now() + timedelta(days=int(days)) if days else None


class NewPersonForm(forms.Form):
    """The first password of somebody who was invited."""

    password = forms.CharField(
        label="Password",
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text=" ".join(password_validators_help_texts()),
    )
    again = forms.CharField(
        label="Password again", strip=False, widget=forms.PasswordInput(attrs={"autocomplete": "new-password"})
    )

    def __init__(self, email: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.email = email

    def clean_password(self) -> str:
        password = str(self.cleaned_data["password"])
        validate_password(password, User(email=self.email))
        return password

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("password") and data.get("again") is not None and data["password"] != data["again"]:
            self.add_error("again", "The two passwords are not the same.")
        return data
