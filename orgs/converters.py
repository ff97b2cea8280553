"""Path converters."""

import uuid

from django.urls import register_converter
from django.urls.converters import UUIDConverter


class AnyCaseUUIDConverter(UUIDConverter):
    """UUIDs as RFC 9562 reads them: in either case."""

    regex = "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"

    def to_python(self, value: str) -> uuid.UUID:
        return uuid.UUID(value)


register_converter(AnyCaseUUIDConverter, "anyuuid")
