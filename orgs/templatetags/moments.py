"""Times as people read them, in the zone of the org they look at."""

from datetime import datetime
from zoneinfo import ZoneInfo

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()


def zone_label(at: datetime) -> str:
    """CET, or UTC+04 where the zone has no letters of its own."""
    name = at.tzname() or "UTC"
    return f"UTC{name}" if name[0] in "+-" else name


def moment_text(at: datetime, zone: ZoneInfo) -> str:
    local = at.astimezone(zone)
    return f"{local:%-d %b %Y, %H:%M} {zone_label(local)}"


@register.filter
def moment(at: datetime | None, zone: ZoneInfo) -> SafeString | str:
    """A `<time>` that says day, time and zone; nothing where there is no time."""
    if at is None:
        return ""
    return format_html('<time datetime="{}">{}</time>', at.astimezone(zone).isoformat(), moment_text(at, zone))


@register.filter
def day(at: datetime | None, zone: ZoneInfo) -> SafeString | str:
    """The day alone; the whole time on hover."""
    if at is None:
        return ""
    local = at.astimezone(zone)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', local.isoformat(), moment_text(at, zone), f"{local:%-d %b %Y}"
    )


@register.filter
def ago(at: datetime | None, zone: ZoneInfo) -> SafeString | str:
    """How long ago, in one unit; the time itself on hover."""
    if at is None:
        return ""
    seconds = max(0, int((timezone.now() - at).total_seconds()))
    text = "less than a minute ago"
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            number = seconds // size
            text = f"{number} {unit}{'' if number == 1 else 's'} ago"
            break
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', at.astimezone(zone).isoformat(), moment_text(at, zone), text
    )
