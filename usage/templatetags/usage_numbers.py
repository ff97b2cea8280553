"""Numbers and links of the usage page, as templates need them."""

import uuid

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from usage import formatting
from usage.filters import Filters

register = template.Library()
register.filter("grouped", formatting.grouped)
register.filter("short", formatting.short)


@register.filter
def name_of(names: dict[uuid.UUID, str], model_id: uuid.UUID) -> str:
    return names.get(model_id, "")


@register.filter
def without_model(filters: Filters) -> str:
    return filters.link(model="", page="")


@register.simple_tag
def page_link(filters: Filters, step: int) -> str:
    return filters.link(page=filters.page + step)


@register.simple_tag
def sortable(filters: Filters, column: str, title: str) -> SafeString:
    """A column's head: a link that sorts by it, and says so where it does."""
    if filters.sort == column:
        order = "ascending" if column == "name" else "descending"
        return format_html('<th scope="col" aria-sort="{}">{} <span aria-hidden="true">▾</span></th>', order, title)
    return format_html(
        '<th scope="col"><a href="{}">{}</a></th>',
        filters.link(sort="" if column == "spend" else column, page=""),
        title,
    )
