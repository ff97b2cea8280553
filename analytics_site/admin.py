"""The admin as a whole: its name, and an index page that says how the service is doing."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import SimpleTemplateResponse
from django.urls import reverse
from django.utils import timezone

from ingestion import dedupe
from ingestion.models import Batch, Ledger, QuarantinedMessage
from orgs import audit, code_flow
from orgs.admin_base import Audited, capped_count, spell
from orgs.models import Org, ServedModel
from orgs.sign_in import ThrottledAdminForm, conclude
from orgs.tenancy import DatabaseRole, acting_as
from usage.freshness import Status

LEDGER_GRACE = timedelta(hours=3)  # the rotation is tried every hour


@dataclass(frozen=True)
class Line:
    """One thing to know about the service; `level` is ok, warning or error."""

    name: str
    text: str
    level: str
    url: str = ""

    @property
    def word(self) -> str:
        """Says what the colour says."""
        return {"ok": "Fine", "warning": "Look at it", "error": "Act on it"}[self.level]


_LEVELS = {Status.FRESH: "ok", Status.STALE: "warning", Status.DELAYED: "error"}


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def doing(now: datetime) -> Iterator[Line]:
    """How the service is doing. Each look is one row by an index, or a count that stops at `MAX_ADMIN_COUNT`."""
    batches = reverse("admin:ingestion_batch_changelist")
    waiting = Batch.objects.filter(rolled_up_at=None)  # uses batches_not_rolled_up
    # Numbers are given in the order of arrival: the first that waits has waited longest.
    oldest = waiting.order_by("id").values_list("completed_at", flat=True).first()
    lag = max(now - oldest, timedelta()) if oldest else timedelta()
    level = _LEVELS[Status.of(lag)]
    if oldest is None:
        yield Line("Rollup", "No batch waits.", level, batches)
        yield Line("Freshness", "The figures of all orgs hold all that was accepted.", level)
    else:
        count = capped_count(waiting)
        text = f"{count:,} batch{'' if count == 1 else 'es'} waiting since {_clock(oldest)}."
        yield Line("Rollup", text, level, f"{batches}?rollup=waiting")
        yield Line("Freshness", f"The figures of the org that is furthest behind trail by {spell(lag)}.", level)

    latest = Batch.objects.order_by("-id").first()
    if latest is None:
        yield Line("Latest batch", "None yet: no event has come in.", "warning", batches)
    else:
        since = spell(max(now - latest.completed_at, timedelta()))
        events = f"{latest.accepted:,} event{'' if latest.accepted == 1 else 's'}"
        text = f"Number {latest.pk}, {since} ago: {events} accepted through {latest.get_door_display()}."
        yield Line("Latest batch", text, "ok", reverse("admin:ingestion_batch_change", args=(latest.pk,)))

    # Uses quarantine_waiting.
    kept = capped_count(QuarantinedMessage.objects.filter(state=QuarantinedMessage.State.WAITING))
    text = f"{kept:,} message{'' if kept == 1 else 's'} waiting." if kept else "Nothing waits."
    yield Line(
        "Quarantine", text, "warning" if kept else "ok", reverse("admin:ingestion_quarantinedmessage_changelist")
    )

    ledger = Ledger.objects.first()
    if ledger is None:
        yield Line("Dedupe ledger", "Missing: no event can be stored.", "error")
    else:
        age = now - ledger.rotated_at
        text = f"Rotated {spell(age)} ago."
        is_overdue = age > dedupe.window() + LEDGER_GRACE
        if is_overdue:
            text += f" It should be every {spell(dedupe.window())}: is the scheduler running?"
        yield Line("Dedupe ledger", text, "warning" if is_overdue else "ok")

    for name, model, address in (("Orgs", Org, "orgs_org"), ("Models", ServedModel, "orgs_servedmodel")):
        stubs = capped_count(model.objects.filter(is_stub=True))
        text = f"{stubs:,} stub{'' if stubs == 1 else 's'} to be completed." if stubs else "None is to be completed."
        query = "?is_stub__exact=1" if stubs else ""
        yield Line(name, text, "warning" if stubs else "ok", reverse(f"admin:{address}_changelist") + query)


class _LogsActions(Audited):
    """Puts the actions of a package's admin into Django's log and the audit trail, and asks who may: the package does neither."""

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Each changes rows, or runs them: not for who only looks. Django itself asks for the permission to delete."""
        found = super().get_actions(request)
        is_for_all = self.has_change_permission(request)
        return {name: told for name, told in found.items() if is_for_all or name == "delete_selected"}

    def response_action(self, request: HttpRequest, queryset: Any, *args: Any, **kwargs: Any) -> HttpResponse | None:
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        rows = list(queryset if request.POST.get("select_across") == "1" else queryset.filter(pk__in=chosen))
        response = super().response_action(request, queryset, *args, **kwargs)
        action = next((name for name in request.POST.getlist("action") if name), "")
        if response is not None and action in self.get_actions(request) and action != "delete_selected":
            text = f"{action.replace('_', ' ').capitalize()}."
            for row in rows:
                self.log_change(request, row, text)
        return response


def _rendered(response: HttpResponse) -> HttpResponse:
    """A page asks the database while it is written: within the view then, and not after it."""
    return response.render() if isinstance(response, SimpleTemplateResponse) else response


class AnalyticsAdminSite(admin.AdminSite):
    site_header = "Analytics service"
    site_title = "Analytics service"
    index_title = "Administration"
    login_form = ThrottledAdminForm

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        if admin_class is not None and not issubclass(admin_class, Audited):  # of a package
            base = _LogsActions if admin_class.__module__ == "django_celery_beat.admin" else Audited
            admin_class = type(admin_class.__name__, (base, admin_class), {"__module__": __name__})
        super().register(model_or_iterable, admin_class, **options)

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Where there is more than a password, or none, one page signs everybody in."""
        if code_flow.is_on() or not settings.SIGN_IN_PASSWORD:
            if request.user.is_authenticated:  # and is no staff: signing in again would lead here again
                raise PermissionDenied
            next_page = request.GET.get(REDIRECT_FIELD_NAME) or reverse("admin:index")
            return redirect_to_login(next_page)
        return conclude(request, super().login(request, extra_context))

    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """Notes in the audit trail what staff were refused."""

        @wraps(view)
        def noting(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            try:
                with acting_as(DatabaseRole.STAFF):
                    return _rendered(view(request, *args, **kwargs))
            except PermissionDenied:
                audit.record_refusal(request, "admin page")
                raise

        return super().admin_view(noting, cacheable)

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().index(request, {"doing": list(doing(timezone.now())), **(extra_context or {})})
