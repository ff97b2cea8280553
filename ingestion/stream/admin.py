"""Streams in the admin: how reading goes, and what was lost to retention."""

from datetime import timedelta

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone

from ingestion.models import StreamGap, StreamReader
from orgs.admin_base import BaseAdmin, BigTableAdmin, ReadOnly, spell

SILENT_AFTER = timedelta(seconds=15)  # a reader says how it goes every second


@admin.register(StreamReader)
class StreamReaderAdmin(ReadOnly, BaseAdmin):
    """Deleting a row says that its stream is no longer read: figures stop waiting for it. A reader would begin anew."""

    list_display = ("stream", "state", "committed_offset", "end", "backlog", "lag", "rate", "last_error")
    fields = (
        "stream", "state", "committed_offset", "committed_at", "end", "backlog", "lag", "caught_up_at", "rate", "reader",
        "taken_at", "seen_at", "last_error", "last_error_at",
    )  # fmt: skip
    readonly_fields = ("state", "end", "lag", "rate")

    def has_delete_permission(self, request: HttpRequest, obj: StreamReader | None = None) -> bool:
        return request.user.has_perm("ingestion.delete_streamreader")

    @admin.display(description="state")
    def state(self, row: StreamReader) -> str:
        is_silent = row.seen_at is None or timezone.now() - row.seen_at > SILENT_AFTER
        return "Nobody reads it" if is_silent else "Being read"

    @admin.display(description="end of the stream")
    def end(self, row: StreamReader) -> str:
        return "–" if row.committed_offset is None else f"about {row.committed_offset + row.backlog:,}"

    @admin.display(description="read up to")
    def lag(self, row: StreamReader) -> str:
        return f"{spell(max(timezone.now() - row.caught_up_at, timedelta()))} ago"

    @admin.display(description="rate")
    def rate(self, row: StreamReader) -> str:
        return f"{row.messages_per_second:,.0f} messages/s, {row.events_per_second:,.0f} events/s"


@admin.register(StreamGap)
class StreamGapAdmin(ReadOnly, BigTableAdmin):
    list_display = ("id", "stream", "first_missing", "last_missing", "noticed_at")
    search_help_text = "A gap's number."
