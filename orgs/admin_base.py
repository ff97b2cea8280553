"""What the pages of the admin share.

Tables grow without end here. So nothing is counted beyond `MAX_ADMIN_COUNT`, sorted or searched without an index, and
what has a composite key, and so can't be registered, is shown as a bounded listing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django import forms
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from . import audit
from .actions import Action
from .limits import MAX_ADMIN_COUNT, MAX_PAGE_ROWS
from .models import Org, User

M = TypeVar("M", bound=Model)

if TYPE_CHECKING:  # generic for the type checker only
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
    ModelForm = forms.ModelForm[Any]
    BasePaginator = Paginator[Any]
else:
    ModelAdmin = admin.ModelAdmin
    TabularInline = admin.TabularInline
    ModelForm = forms.ModelForm
    BasePaginator = Paginator

# Rows, by primary key, that a filter or search without an index of its own looks through: some 20 ms.
NEWEST = 100_000
NEWEST_TITLE = f"newest {NEWEST:,}"


@dataclass(frozen=True)
class Link:
    label: str
    url: str


def actor(request: HttpRequest) -> User:
    """Who is at work. The admin's views let nobody in who is not signed in."""
    if not isinstance(request.user, User):
        raise PermissionDenied
    return request.user


# ── Counting and finding ─────────────────────────────────────────────────────────────────────────────────────────
class CappedCount(int):
    """A count that stopped at the limit. Computes as the limit, reads as "more"."""

    def __str__(self) -> str:
        return f"{int(self):,}+"

    def __format__(self, format_spec: str) -> str:
        return str(self)


def capped_count(rows: QuerySet[Any]) -> int:
    """How many rows there are, as far as `MAX_ADMIN_COUNT`: the LIMIT stands inside the count."""
    found = rows.order_by()[: MAX_ADMIN_COUNT + 1].count()
    return CappedCount(MAX_ADMIN_COUNT) if found > MAX_ADMIN_COUNT else found


class CappedPaginator(BasePaginator):
    """Pages as far as `MAX_ADMIN_COUNT` rows. What is older is found by search."""

    object_list: QuerySet[Any]

    @cached_property
    def count(self) -> int:
        return capped_count(self.object_list)


def newest(rows: QuerySet[M]) -> QuerySet[M]:
    """Those among the `NEWEST` rows of the table: a range of the primary key.

    The bound is a number, not a subquery: the planner then knows how short the range is.
    """
    last = rows.model._default_manager.order_by("-pk").values_list("pk", flat=True).first() or 0
    return rows.filter(pk__gt=last - NEWEST)


def as_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def as_id(text: str) -> int | None:
    """The primary key that a text names, where it is one at all."""
    return int(text) if text.isascii() and text.isdigit() and int(text) < 2**63 else None


class NewestFilter(admin.SimpleListFilter):
    """A filter on a field (`parameter_name`) without an index: looks through the newest rows only; its title says so."""

    options: ClassVar[Sequence[tuple[str, str]]]

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        return self.options

    def queryset(self, request: HttpRequest, queryset: QuerySet[M]) -> QuerySet[M]:
        chosen = self.value()
        if chosen not in dict(self.options):
            return queryset
        return newest(queryset).filter(**{str(self.parameter_name): chosen})


class _FixedOrder(ChangeList):
    """Keeps to the order that the primary key serves, whatever ?o= asks for."""

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        return list(self.model_admin.get_ordering(request))


# ── Audit ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
class Audited(ModelAdmin):
    """What is added, changed or deleted in the admin is in the audit trail too, one record each."""

    audits_itself: ClassVar[bool] = False  # its pages leave records that say more
    audited_inlines: ClassVar[frozenset[str]] = frozenset()  # names of inlines whose changes have records of their own

    def audit_note(self, obj: Any) -> str:
        """What a record adds to Django's words on a change."""
        return ""

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self._audit(request, Action.ADMIN_ADDED, obj, message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self._audit(request, Action.ADMIN_CHANGED, obj, message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        for obj in queryset:
            self._audit(request, Action.ADMIN_DELETED, obj, "Deleted.")
        return super().log_deletions(request, queryset)

    def _audit(self, request: HttpRequest, action: Action, obj: Any, message: Any) -> None:
        if self.audits_itself:
            return
        if isinstance(message, list):
            message = [part for part in message if not self._has_own_record(part)]
            if not message:  # nothing was changed, or nothing but what has its own record
                return
            message = LogEntry(change_message=json.dumps(message)).get_change_message()
        org_id = obj.pk if isinstance(obj, Org) else getattr(obj, "org_id", None)
        text = f"{obj._meta.label_lower} {obj.pk} {obj}: {message} {self.audit_note(obj)}"
        audit.record(request, action, org_id, text.strip())

    def _has_own_record(self, part: dict[str, Any]) -> bool:
        return any(told.get("name") in self.audited_inlines for told in part.values())


# ── Model admins ─────────────────────────────────────────────────────────────────────────────────────────────────
class BaseAdmin(Audited):
    """A table of thousands: ordinary search and filters, bounded counts, links to what belongs to a row."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # a facet counts all there is
    list_max_show_all = MAX_PAGE_ROWS

    def links(self, request: HttpRequest, row: Any) -> Iterable[Link]:
        """Where the change page leads to."""
        return ()

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        row = self.get_object(request, object_id) if object_id and request.method == "GET" else None
        links = list(self.links(request, row)) if row is not None else []
        return super().changeform_view(request, object_id, form_url, {**(extra_context or {}), "links": links})

    def reverse(self, name: str, *args: object) -> str:
        """The address of a page of this model: changelist, change, or one of its own."""
        return reverse(f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{name}", args=args)

    def link_to(self, name: str, model: type[Model], query: str = "", *args: object) -> str:
        """The address of a page of another model."""
        opts = model._meta
        address = reverse(f"{self.admin_site.name}:{opts.app_label}_{opts.model_name}_{name}", args=args)
        return f"{address}?{query}" if query else address

    def wrap(self, view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        return self.admin_site.admin_view(view)

    def log_each(self, request: HttpRequest, rows: QuerySet[Any], message: str) -> None:
        """Django's own log, for what an action changed. The action leaves its audit records itself."""
        LogEntry.objects.log_actions(actor(request).pk, rows, CHANGE, change_message=message)


class BigTableAdmin(BaseAdmin):
    """A table of millions. Newest first, by primary key; no sorting, no facets, no ad-hoc lookups."""

    ordering = ("-id",)
    sortable_by = ()
    list_per_page = 100
    search_fields = ("=id",)  # shows the search box; `find` searches
    allowed_lookups: ClassVar[frozenset[str]] = frozenset()

    def find(self, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """The rows a search term stands for, by index."""
        return rows.filter(pk=as_id(term))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        return (self.find(queryset, term) if term else queryset), False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _FixedOrder

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        own = {getattr(list_filter, "parameter_name", None) for list_filter in self.get_list_filter(request)}
        return lookup in self.allowed_lookups | own


class ReadOnly(ModelAdmin):
    """Rows that the service writes and nobody edits."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


# ── Bounded listings ─────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Column:
    label: str
    is_number: bool = False


@dataclass(frozen=True)
class Listing:
    """Rows of a table that can't be registered: at most `MAX_PAGE_ROWS`, never counted."""

    title: str
    about: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[object]]
    tabs: Sequence[Link] = ()

    @property
    def cells(self) -> list[list[tuple[Column, object]]]:
        return [list(zip(self.columns, row, strict=True)) for row in self.rows]

    @property
    def is_cut(self) -> bool:
        return len(self.rows) >= MAX_PAGE_ROWS


def show_listing(request: HttpRequest, owner: BaseAdmin, row: Model, listing: Listing) -> HttpResponse:
    """A listing as a page below the row it belongs to. Looks, never writes."""
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(("GET", "HEAD"))
    context = {
        **owner.admin_site.each_context(request),
        "title": listing.title,
        "listing": listing,
        "limit": MAX_PAGE_ROWS,
        "opts": row._meta,
        "original": row,
        "list_url": owner.link_to("changelist", type(row)),
        "row_url": owner.link_to("change", type(row), "", row.pk),
        "current_url": request.get_full_path(),
    }
    return TemplateResponse(request, "admin/listing.html", context)


# ── Confirmation ─────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Question:
    """What is asked before something happens that can't be taken back."""

    title: str
    text: str
    button: str
    url: str  # where the answer goes, by POST
    rows: Sequence[Model]
    examples: ClassVar[int] = 20  # rows that are named; the others are counted

    @property
    def ids(self) -> str:
        """One field, not one per row: Django takes 1,000 fields of a form."""
        return ",".join(str(row.pk) for row in self.rows)

    @property
    def named(self) -> Sequence[Model]:
        return self.rows[: self.examples]

    @property
    def unnamed(self) -> int:
        return len(self.rows) - len(self.named)


def ask(request: HttpRequest, owner: BaseAdmin, question: Question) -> HttpResponse:
    context = {
        **owner.admin_site.each_context(request),
        "title": question.title,
        "question": question,
        "opts": owner.opts,
        "list_url": owner.reverse("changelist"),
        "media": owner.media,
    }
    return TemplateResponse(request, "admin/confirm.html", context)


def asked_ids(request: HttpRequest) -> list[int]:
    """The rows that a question was about, or is to be about."""
    given = request.POST if request.method == "POST" else request.GET
    return [pk for pk in map(as_id, given.get("ids", "").split(",")) if pk is not None]


# ── Presentation ─────────────────────────────────────────────────────────────────────────────────────────────────
def spell(span: timedelta) -> str:
    """A duration in words, two units at most."""
    seconds = span.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{days} days {hours % 24} h"


def anchor(url: str, text: object) -> SafeString:
    return format_html('<a href="{}">{}</a>', url, text)
