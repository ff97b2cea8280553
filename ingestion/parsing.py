"""Request bodies of the event doors: bounded, unpacked, read."""

import zlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from rest_framework.exceptions import APIException, ParseError, UnsupportedMediaType
from rest_framework.parsers import BaseParser

from orgs.bodies import drain
from orgs.limits import MAX_BODY_BYTES, MAX_EVENTS_PER_REQUEST, MAX_GZIP_MEMBERS

from .schema import Invalid, NotJSON, TooMany, UsageEvent, read_array, read_event, read_lines

_GZIP = 16 + zlib.MAX_WBITS


class TooLarge(APIException):
    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_detail = f"The body is larger than {MAX_BODY_BYTES:,} bytes; send the events in several requests."


class LengthRequired(APIException):
    status_code = HTTPStatus.LENGTH_REQUIRED
    default_detail = "The body needs a Content-Length; chunked transfer is not taken."


def read_body(request: HttpRequest) -> bytes:
    """The body, unpacked. Never holds more than `MAX_BODY_BYTES` of either form, whatever was sent."""
    announced = int(request.META.get("CONTENT_LENGTH") or 0)
    if announced > MAX_BODY_BYTES:
        drain(request)
        raise TooLarge
    body = request.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge
    if len(body) < announced:
        raise ParseError("The body is cut short: it is smaller than its Content-Length says.")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        return _gunzip(body)
    raise UnsupportedMediaType(encoding, "Content-Encoding must be gzip or identity.")


def _gunzip(packed: bytes) -> bytes:
    """All members of a gzip body, as far as the limit."""
    unpacked = bytearray()
    for _ in range(MAX_GZIP_MEMBERS):
        if not packed:
            return bytes(unpacked)
        member = zlib.decompressobj(_GZIP)
        try:
            unpacked += member.decompress(packed, MAX_BODY_BYTES + 1 - len(unpacked))
        except zlib.error as error:
            raise ParseError("The gzip body is broken.") from error
        if len(unpacked) > MAX_BODY_BYTES:
            raise TooLarge
        if not member.eof:
            raise ParseError("The gzip body is cut short.")
        packed = member.unused_data
    raise ParseError(f"The gzip body has more than {MAX_GZIP_MEMBERS} members.")


class _EventsParser(BaseParser):
    """Reads the events of a batch, good and bad ones, in their order."""

    def parse(  # type: ignore[override]  # what a parser returns becomes request.data, whatever it is
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> list[UsageEvent | Invalid]:
        try:
            events = self.read(read_body(stream))
            if not 1 <= len(events) <= MAX_EVENTS_PER_REQUEST:
                raise TooMany(len(events))
        except NotJSON as error:
            raise ParseError(f"The body {error}.") from error
        except TooMany as error:
            count = error.args[0]
            raise ParseError(
                f"A request holds 1 to {MAX_EVENTS_PER_REQUEST:,} events; this one has {count:,}."
            ) from error
        return events

    def read(self, body: bytes) -> list[UsageEvent | Invalid]:
        raise NotImplementedError


class JSONEventsParser(_EventsParser):
    media_type = "application/json"

    def read(self, body: bytes) -> list[UsageEvent | Invalid]:
        return read_array(body, timezone.now(), MAX_EVENTS_PER_REQUEST)


class NDJSONEventsParser(_EventsParser):
    media_type = "application/x-ndjson"

    def read(self, body: bytes) -> list[UsageEvent | Invalid]:
        return read_lines(body, timezone.now(), MAX_EVENTS_PER_REQUEST)


class OneEventParser(BaseParser):
    """Reads one event, strictly: fields that the contract does not know are faults."""

    media_type = "application/json"

    def parse(  # type: ignore[override]  # what a parser returns becomes request.data, whatever it is
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> UsageEvent | Invalid:
        return read_event(read_body(stream), timezone.now(), unknown_fields=False)
