"""Whose request this is, as far as the network can say."""

import ipaddress

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request

UNKNOWN = "unknown"  # a Unix socket has no address


def client_address(request: HttpRequest | Request) -> str:
    """The address of whoever asked, as the outermost trusted proxy saw it.

    Each proxy appends the address that it was called from to `X-Forwarded-For`, so what stands further left than
    `TRUSTED_PROXIES` entries was written by the client, and is worth nothing.
    """
    socket = _parsed(request.META.get("REMOTE_ADDR", ""))
    hops = settings.TRUSTED_PROXIES
    entries = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
    forwarded = _parsed(entries[-min(hops, len(entries))]) if hops else None
    return str(forwarded or socket or UNKNOWN)


def network_of(address: str) -> str:
    """What is counted as one: an IPv4 address, or the /64 of an IPv6 one, which is what a household or a machine is given."""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed or UNKNOWN)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, without the port that some proxies write behind it."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        return found.ipv4_mapped
    return found
