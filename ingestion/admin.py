"""Batches, quarantine and conflicts in the admin. All is read; what waits in quarantine can be replayed."""

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import F, Func, IntegerField, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from orgs import audit
from orgs.actions import Action
from orgs.admin_base import (
    NEWEST_TITLE,
    BigTableAdmin,
    Column,
    Link,
    Listing,
    NewestFilter,
    Question,
    ReadOnly,
    actor,
    anchor,
    as_id,
    as_uuid,
    ask,
    asked_ids,
    newest,
    show_listing,
    spell,
)
from orgs.limits import MAX_PAGE_ROWS
from orgs.models import Org, ServedModel

from .models import Batch, Conflict, Door, QuarantinedMessage, Status, UsageEvent
from .quarantine import replay
from .schema import UsageEvent as Event

State = QuarantinedMessage.State

MAX_SHOWN_BYTES = 64 * 1024  # of a payload, on its page
MAX_HEX_BYTES = 4 * 1024  # of a payload that is no text
MAX_SHOWN_DETAIL = 120  # characters of the detail, in the list


def moment(at: datetime | None) -> str:
    """To the millisecond: batches follow each other within a second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}" if at else "–"


# ── Batches ──────────────────────────────────────────────────────────────────────────────────────────────────────
class RollupFilter(admin.SimpleListFilter):
    title = "rollup"
    parameter_name = "rollup"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("waiting", "Waiting for it"), ("done", "Rolled up")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Batch]) -> QuerySet[Batch]:
        match self.value():
            case "waiting":  # uses batches_not_rolled_up
                return queryset.filter(rolled_up_at=None)
            case "done":  # nearly all: the primary key serves it
                return queryset.exclude(rolled_up_at=None)
        return queryset


class TroubleFilter(admin.SimpleListFilter):
    """All three spell out the condition of the index batches_with_trouble, and so use it."""

    title = "trouble"
    parameter_name = "trouble"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("any", "Any"), ("quarantined", "Quarantined messages"), ("conflicts", "Conflicts")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Batch]) -> QuerySet[Batch]:
        if self.value() not in ("any", "quarantined", "conflicts"):
            return queryset
        queryset = queryset.filter(Q(quarantined__gt=0) | Q(conflicts__gt=0))
        return queryset if self.value() == "any" else queryset.filter(**{f"{self.value()}__gt": 0})


class DoorFilter(NewestFilter):
    title = f"door ({NEWEST_TITLE})"
    parameter_name = "door"
    options = Door.choices


class LateFilter(NewestFilter):
    title = f"late arrival ({NEWEST_TITLE})"
    parameter_name = "is_late"
    options = (("True", "Late"), ("False", "In time"))


# What became of the events of a batch, in the order of the bar. Conflicts are among the duplicates.
_OUTCOMES = ("accepted", "duplicates", "rejected", "quarantined")


def outcome_bar(batch: Batch) -> SafeString:
    """How the events of a batch fared, as a bar; in words for those who can't see it."""
    total = max(1, sum(getattr(batch, name) for name in _OUTCOMES))
    parts, x = [], 0.0
    for name in _OUTCOMES:
        width = 100 * getattr(batch, name) / total
        if width:
            # A sliver of a large batch stays visible: trouble is what one looks for.
            width = max(width, 2.0)
            parts.append({"name": name, "x": round(min(x, 100 - width), 2), "width": round(width, 2)})
            x += width
    words = ", ".join(f"{getattr(batch, name):,} {name}" for name in _OUTCOMES if getattr(batch, name)) or "nothing"
    return SafeString(render_to_string("admin/includes/outcome_bar.html", {"parts": parts, "words": words}))


def _count(field: str, label: str | None = None) -> Any:
    @admin.display(description=label or field)
    def count(self: Any, batch: Batch) -> SafeString:
        number = getattr(batch, field)
        return format_html('<span class="count">{}</span>', f"{number:,}" if number else "–")

    return count


@admin.register(Batch)
class BatchAdmin(ReadOnly, BigTableAdmin):
    list_display = (
        "id",
        "completed",
        "door",
        "outcome",
        "accepted_count",
        "quarantined_count",
        "conflicts_count",
        "duplicates_count",
        "rejected_count",
        "received_count",
        "duration",
        "rollup_lag",
        "is_late",
        "retries",
        "span",
    )
    list_filter = (RollupFilter, TroubleFilter, DoorFilter, LateFilter)
    search_help_text = "A batch's number, its public id, or an org's id (that among the newest 100,000 batches)."
    fieldsets = (
        (None, {"fields": ("public_id", "door", "outcome")}),
        ("Events", {"fields": ("received", "accepted", "duplicates", "conflicts", "rejected", "quarantined")}),
        ("What they are", {"fields": ("orgs", "span", "is_late")}),
        ("Stream", {"fields": ("stream", "first_offset", "last_offset", "messages_read")}),
        ("Timing", {"fields": ("started", "completed", "duration", "rolled_up", "rollup_lag", "retries")}),
    )

    received_count = _count("received")
    accepted_count = _count("accepted")
    duplicates_count = _count("duplicates")
    conflicts_count = _count("conflicts")
    rejected_count = _count("rejected")
    quarantined_count = _count("quarantined")

    def find(self, rows: QuerySet[Batch], term: str) -> QuerySet[Batch]:
        number, public_id = as_id(term), as_uuid(term)
        if number is not None:
            return rows.filter(pk=number)
        if public_id is None:
            return rows.none()
        by_public_id = rows.filter(public_id=public_id)
        return by_public_id if by_public_id.exists() else newest(rows).filter(org_ids__contains=[public_id])

    def get_urls(self) -> list[URLPattern]:
        events = path("<int:pk>/events/", self.wrap(self.events_view), name="ingestion_batch_events")
        return [events, *super().get_urls()]

    def links(self, request: HttpRequest, row: Batch) -> Iterable[Link]:
        may = request.user.has_perm
        if row.accepted and may("ingestion.view_usageevent"):
            yield Link("Events", self.reverse("events", row.pk))
        if row.quarantined and may("ingestion.view_quarantinedmessage"):
            query = f"batch__id__exact={row.pk}&state=all"
            yield Link(f"Quarantined ({row.quarantined:,})", self.link_to("changelist", QuarantinedMessage, query))
        if row.conflicts and may("ingestion.view_conflict"):
            query = f"batch__id__exact={row.pk}"
            yield Link(f"Conflicts ({row.conflicts:,})", self.link_to("changelist", Conflict, query))

    def events_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        if not actor(request).has_perm("ingestion.view_usageevent"):
            raise PermissionDenied
        batch = Batch.objects.filter(pk=pk).first()
        if batch is None:
            raise Http404
        about = f"Of the {batch.accepted:,} events that this batch stored, by the time of the call."
        if batch.is_late:
            about += " Events older than the retention of raw events are gone; their figures stay."
        listing = Listing(f"Events of batch {batch.pk}", about, EVENT_COLUMNS, _event_rows(events_of(batch)))
        return show_listing(request, self, batch, listing)

    @admin.display(description="outcome")
    def outcome(self, batch: Batch) -> SafeString:
        return outcome_bar(batch)

    @admin.display(description="calls made (UTC)")
    def span(self, batch: Batch) -> str:
        first, last = batch.first_occurred_at, batch.last_occurred_at
        if first is None or last is None:
            return "–"
        first, last = first.astimezone(UTC), last.astimezone(UTC)
        end = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
        return f"{first:%Y-%m-%d %H:%M:%S} – {end}"

    @admin.display(description="started (UTC)")
    def started(self, batch: Batch) -> str:
        return moment(batch.started_at)

    @admin.display(description="completed (UTC)")
    def completed(self, batch: Batch) -> str:
        return moment(batch.completed_at)

    @admin.display(description="took")
    def duration(self, batch: Batch) -> str:
        return spell(batch.completed_at - batch.started_at)

    @admin.display(description="rolled up (UTC)")
    def rolled_up(self, batch: Batch) -> str:
        return moment(batch.rolled_up_at) if batch.rolled_up_at else "Waiting"

    @admin.display(description="rolled up after")
    def rollup_lag(self, batch: Batch) -> str:
        return spell(batch.rolled_up_at - batch.completed_at) if batch.rolled_up_at else "Waiting"

    @admin.display(description="orgs")
    def orgs(self, batch: Batch) -> SafeString | str:
        shown = batch.org_ids[:50]
        names = dict(Org.objects.filter(pk__in=shown).values_list("pk", "name"))
        links = [(self.link_to("change", Org, "", pk), names.get(pk, pk)) for pk in shown]
        more = len(batch.org_ids) - len(shown)
        text = format_html_join(", ", '<a href="{}">{}</a>', links)
        return format_html("{} and {} more", text, f"{more:,}") if more else text or "–"


# ── Events of a batch ────────────────────────────────────────────────────────────────────────────────────────────
EVENT_COLUMNS = (
    Column("Occurred (UTC)"),
    Column("Org"),
    Column("Model"),
    Column("Status"),
    Column("Latency, ms", is_number=True),
    Column("Input tokens", is_number=True),
    Column("Output tokens", is_number=True),
    Column(f"Cost, cents {settings.CURRENCY}", is_number=True),
    Column("Client"),
    Column("Event id"),
)


def events_of(batch: Batch) -> QuerySet[UsageEvent]:
    """The first events of a batch. Both bounds let partitions be left out; in them, the BRIN index on batch_id finds.

    The order is needed: without it, a LIMIT tempts the planner to read partitions from the start until it has enough.
    """
    if batch.first_occurred_at is None:
        return UsageEvent.objects.none()
    return UsageEvent.objects.filter(
        batch_id=batch.pk, occurred_at__gte=batch.first_occurred_at, occurred_at__lte=batch.last_occurred_at
    ).order_by("occurred_at", "org_id", "event_id")[:MAX_PAGE_ROWS]


def _event_rows(events: Iterable[UsageEvent]) -> Sequence[Sequence[object]]:
    events = list(events)
    orgs = dict(Org.objects.filter(pk__in={e.org_id for e in events}).values_list("pk", "name"))
    models = dict(ServedModel.objects.filter(pk__in={e.model_id for e in events}).values_list("pk", "display_name"))
    return [
        (
            moment(event.occurred_at),
            orgs.get(event.org_id, event.org_id),
            models.get(event.model_id, event.model_id),
            Status(event.status).label + (f" ({event.error_code})" if event.error_code else ""),
            f"{event.latency_ms:,}",
            f"{event.input_tokens:,}",
            f"{event.output_tokens:,}",
            "unpriced" if event.cost_estimate_cents is None else f"{event.cost_estimate_cents:,}",
            event.client_id or "–",
            event.event_id,
        )
        for event in events
    ]


# ── Quarantine ───────────────────────────────────────────────────────────────────────────────────────────────────
class StateFilter(admin.SimpleListFilter):
    """What waits, unless asked otherwise."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("replayed", "Replayed"), ("all", "All")]

    def choices(self, changelist: Any) -> Iterator[Any]:
        for value, label in ((None, "Waiting"), *self.lookup_choices):
            query = changelist.get_query_string({self.parameter_name: value})
            yield {"selected": self.value() == value, "query_string": query, "display": label}

    def queryset(self, request: HttpRequest, queryset: QuerySet[QuarantinedMessage]) -> QuerySet[QuarantinedMessage]:
        match self.value():
            case "all":
                return queryset
            case "replayed":  # few of them: by the index on replay_batch; many: by primary key
                return queryset.filter(state=State.REPLAYED, replay_batch__isnull=False)
        return queryset.filter(state=State.WAITING)  # uses quarantine_waiting


class ReasonFilter(NewestFilter):
    title = f"reason ({NEWEST_TITLE})"
    parameter_name = "reason"
    # What the reader of events gives as a reason: a field of the event, or that there is none.
    options = [("unreadable", "unreadable"), *((f.encode_name,) * 2 for f in msgspec.structs.fields(Event))]


def readable(payload: bytes) -> SafeString:
    """A payload as JSON that is laid out, else as text, else as hex; never more than fits a page."""
    shown = payload[:MAX_SHOWN_BYTES]
    kind, text = "JSON", _laid_out(shown) if len(shown) == len(payload) else None
    if text is None:
        kind, text = "Text", _as_plain_text(shown, is_cut=len(shown) < len(payload))
    if text is None:
        shown = payload[:MAX_HEX_BYTES]
        kind, text = "Bytes", _hex(shown)
    size = f"{kind}, {len(payload):,} bytes"
    if len(shown) < len(payload):
        size += f"; the first {len(shown):,} are shown"
    return format_html('<div class="payload"><p>{}</p><pre>{}</pre></div>', size, text)


def _laid_out(data: bytes) -> str | None:
    """Indented JSON. Digits, order and repeated keys stay as they came: msgspec lays out, it does not convert."""
    try:
        return msgspec.json.format(data, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _as_plain_text(data: bytes, *, is_cut: bool) -> str | None:
    """Text without control characters; a cut may go through a character."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=not is_cut)
    except UnicodeDecodeError:
        return None
    return None if not text or any(ord(sign) < 32 and sign not in "\t\r\n" for sign in text) else text


def _hex(data: bytes) -> str:
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        signs = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row)
        lines.append(f"{start:06x}  {row.hex(' '):<47}  {signs}")
    return "\n".join(lines)


@admin.register(QuarantinedMessage)
class QuarantinedMessageAdmin(ReadOnly, BigTableAdmin):
    list_display = ("reason", "short_detail", "state", "size", "batch", "offset", "received", "replay_batch")
    list_display_links = ("reason", "short_detail")
    list_select_related = ("batch", "replay_batch")
    list_filter = (StateFilter, ReasonFilter)
    allowed_lookups = frozenset({"batch__id__exact"})
    search_help_text = "A message's number."
    actions = ("replay_selected",)
    fieldsets = (
        ("Why it is here", {"fields": ("reason", "full_detail", "state", "batch", "offset", "received")}),
        ("What came", {"fields": ("payload_as_text",)}),
        ("Replay", {"fields": ("replay_batch", "replayed")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[QuarantinedMessage]:
        # The list says how large a payload is and does not read it: PostgreSQL knows without unpacking it.
        size = Func(F("payload"), function="octet_length", output_field=IntegerField())
        rows: QuerySet[QuarantinedMessage] = super().get_queryset(request)
        return rows.annotate(payload_size=size).defer("payload")

    def get_urls(self) -> list[URLPattern]:
        name = "ingestion_quarantinedmessage_replay"
        return [path("replay/", self.wrap(self.replay_view), name=name), *super().get_urls()]

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return actor(request).has_perm("ingestion.change_quarantinedmessage")

    def links(self, request: HttpRequest, row: QuarantinedMessage) -> Iterable[Link]:
        if row.state == State.WAITING and self.has_replay_permission(request):
            yield Link("Replay…", f"{self.reverse('replay')}?ids={row.pk}")

    @admin.display(description="detail")
    def short_detail(self, message: QuarantinedMessage) -> str:
        first = message.detail.split("\n", 1)[0]
        return first if len(first) <= MAX_SHOWN_DETAIL else f"{first[:MAX_SHOWN_DETAIL]}…"

    @admin.display(description="what is wrong")
    def full_detail(self, message: QuarantinedMessage) -> SafeString:
        return format_html_join("", "<div>{}</div>", ((line,) for line in message.detail.split("\n")[:50]))

    @admin.display(description="stream offset")
    def offset(self, message: QuarantinedMessage) -> str:
        return "–" if message.stream_offset is None else f"{message.batch.stream} {message.stream_offset:,}"

    @admin.display(description="bytes")
    def size(self, message: QuarantinedMessage) -> SafeString:
        return format_html('<span class="count">{}</span>', f"{message.payload_size:,}")  # type: ignore[attr-defined]

    @admin.display(description="received (UTC)")
    def received(self, message: QuarantinedMessage) -> str:
        return moment(message.received_at)

    @admin.display(description="replayed (UTC)")
    def replayed(self, message: QuarantinedMessage) -> str:
        return moment(message.replayed_at)

    @admin.display(description="payload")
    def payload_as_text(self, message: QuarantinedMessage) -> SafeString:
        return readable(bytes(message.payload))

    # ── Replay ──
    @admin.action(description="Replay selected messages…", permissions=("replay",))
    def replay_selected(self, request: HttpRequest, queryset: QuerySet[QuarantinedMessage]) -> HttpResponse | None:
        # Oldest first: what waited longest goes first where the selection is larger than one replay.
        waiting = list(queryset.filter(state=State.WAITING).order_by("pk")[: settings.INGESTION_BATCH_SIZE + 1])
        if not waiting:
            messages.info(request, "None of these messages is waiting.")
            return None
        return self._ask_to_replay(request, waiting)

    def _ask_to_replay(self, request: HttpRequest, waiting: list[QuarantinedMessage]) -> HttpResponse:
        limit = settings.INGESTION_BATCH_SIZE
        text = (
            "Each is read again. Those that are right now become events, in one batch; those that are not go on waiting,"
            " with the reason they have now. An event that is stored already is not counted twice."
        )
        if len(waiting) > limit:
            waiting = waiting[:limit]
            text += (
                f" You selected more: these are the {limit:,} that have waited longest. Replay the others after them."
            )
        count = f"{len(waiting):,} message{'' if len(waiting) == 1 else 's'}"
        question = Question(f"Replay {count}?", text, f"Replay {count}", self.reverse("replay"), waiting)
        return ask(request, self, question)

    def replay_view(self, request: HttpRequest) -> HttpResponse:
        """Asks by GET, replays by POST."""
        if not self.has_replay_permission(request):
            raise PermissionDenied
        ids = asked_ids(request)[: settings.INGESTION_BATCH_SIZE]
        waiting = QuarantinedMessage.objects.filter(pk__in=ids, state=State.WAITING).defer("payload")
        ids = list(waiting.order_by("pk").values_list("pk", flat=True))
        if not ids:
            messages.info(request, "None of these messages is waiting.")
        elif request.method != "POST":
            return self._ask_to_replay(request, list(waiting.order_by("pk")))
        else:
            self._replay(request, ids)
        return HttpResponseRedirect(self.reverse("changelist"))

    @transaction.atomic  # what was done and the record of it, together
    def _replay(self, request: HttpRequest, ids: list[int]) -> None:
        batch = replay(ids)
        asked = QuarantinedMessage.objects.filter(pk__in=ids)
        reasons = Counter(asked.filter(state=State.WAITING).values_list("reason", flat=True))
        waiting = reasons.total()
        outcome = f"{len(ids) - waiting:,} replayed, {waiting:,} still waiting"
        audit.record(request, Action.QUARANTINE_REPLAYED, None, f"{outcome}; batch {batch.pk if batch else 'none'}")
        if batch is not None:
            self.log_each(request, asked.filter(replay_batch=batch), f"Replayed in batch {batch.pk}.")
            link = anchor(self.link_to("change", Batch, "", batch.pk), batch)
            text = "Replayed {} of {} in {}. Events stored: {}; stored already: {}."
            numbers = (f"{len(ids) - waiting:,}", f"{len(ids):,}")
            messages.success(request, format_html(text, *numbers, link, f"{batch.accepted:,}", f"{batch.duplicates:,}"))
        if waiting:
            ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:5]
            why = ", ".join(f"{reason} ({count:,})" for reason, count in ordered)
            messages.warning(request, f"{waiting:,} still waiting, because of: {why}.")


# ── Conflicts ────────────────────────────────────────────────────────────────────────────────────────────────────
def _as_text(field: str, value: object) -> str:
    """A value as people compare it, whether it comes from a column or from the JSON of a resend."""
    if value is None:
        return "–"
    if field == "status" and isinstance(value, int):
        return str(Status(value).label)
    if field == "cost_estimate_cents":
        return f"{Decimal(str(value)):.4f}"
    if field == "occurred_at":
        at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)


# What an event says of itself; `writing` compares the same.
_COMPARED = tuple(
    field.name
    for field in UsageEvent._meta.get_fields()
    if field.name not in ("pk", "org_id", "event_id", "received_at", "batch_id")
)


@admin.register(Conflict)
class ConflictAdmin(ReadOnly, BigTableAdmin):
    list_display = ("id", "event_id", "org_id", "batch", "first_occurred_at", "received")
    list_select_related = ("batch",)
    allowed_lookups = frozenset({"batch__id__exact"})
    search_help_text = "A conflict's number; or, among the newest 100,000 conflicts, the id of an event or org."
    fields = ("event_id", "org", "batch", "received", "comparison")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Conflict]:
        return super().get_queryset(request).defer("payload")

    def find(self, rows: QuerySet[Conflict], term: str) -> QuerySet[Conflict]:
        named = as_uuid(term)
        return newest(rows).filter(Q(event_id=named) | Q(org_id=named)) if named else super().find(rows, term)

    @admin.display(description="received (UTC)")
    def received(self, conflict: Conflict) -> str:
        return moment(conflict.received_at)

    @admin.display(description="org")
    def org(self, conflict: Conflict) -> SafeString | str:
        org = Org.objects.filter(pk=conflict.org_id).first()
        return anchor(self.link_to("change", Org, "", org.pk), org) if org else str(conflict.org_id)

    @admin.display(description="stored and resent")
    def comparison(self, conflict: Conflict) -> SafeString:
        stored = UsageEvent.objects.filter(
            org_id=conflict.org_id, occurred_at=conflict.first_occurred_at, event_id=conflict.event_id
        ).first()
        rows: list[dict[str, object]] = []
        for field in _COMPARED:
            first = _as_text(field, getattr(stored, field)) if stored else "–"
            resent = _as_text(field, conflict.payload.get(field))
            differs = stored is not None and first != resent
            rows.append({"field": field, "first": first, "resent": resent, "differs": differs})
        batch_url = self.link_to("change", Batch, "", stored.batch_id) if stored else ""
        context: dict[str, Any] = {"rows": rows, "stored": stored, "batch_url": batch_url}
        return SafeString(render_to_string("admin/includes/comparison.html", context))


from .stream import admin as stream_admin  # noqa: E402, F401  registers
