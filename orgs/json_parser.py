"""JSON bodies of requests that are no events: small, and not deep."""

import io
from collections.abc import Mapping
from typing import Any

from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import JSONParser

from .bodies import drain
from .limits import MAX_JSON_BYTES, MAX_JSON_DEPTH


class JSONTooLarge(APIException):
    status_code = 413
    default_detail = f"The body is larger than {MAX_JSON_BYTES:,} bytes."


class BoundedJSONParser(JSONParser):
    """Django REST framework's, which reads whatever is sent, as deep as it goes."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        body = stream.read(MAX_JSON_BYTES + 1)
        if len(body) > MAX_JSON_BYTES:
            drain(stream)
            raise JSONTooLarge
        try:
            found = super().parse(io.BytesIO(body), media_type, parser_context)
        except RecursionError as error:
            raise _too_deep() from error
        _check_depth(found)
        return found


def _check_depth(found: Any) -> None:
    """What reads, quotes and checks a value goes down into it, each as deep as it is."""
    level = [found]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return
    raise _too_deep()


def _inside(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []


def _too_deep() -> ParseError:
    return ParseError(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.")
