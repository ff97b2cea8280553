"""The OpenAPI 3.1 document, and its browsable page."""

from typing import Any

from csp.constants import SELF, UNSAFE_INLINE
from csp.decorators import csp_update
from django.utils.decorators import method_decorator
from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerExtension
from drf_spectacular.views import SpectacularSwaggerSplitView

PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "errors"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}

ERRORS = {
    "400": "The request is not valid; `errors` names each offending field.",
    "401": "No credentials, or credentials that are not known.",
    "403": "The credentials do not allow this: no scope, another org, or no such org.",
    "429": (
        "Too many requests of this caller, or of this organisation at once; nothing was done."
        " `Retry-After` says when to repeat."
    ),
    "503": (
        "The database does not answer, or the keys that a bearer token is checked with are not at hand; nothing was stored."
        " `Retry-After` says when to repeat."
    ),
}


# The names of the last draft that had a header for each: those that clients know.
_RATE_LIMIT = {
    "RateLimit-Limit": "Requests that this caller may make at once (draft-ietf-httpapi-ratelimit-headers-06).",
    "RateLimit-Remaining": "Of these, how many are left now.",
    "RateLimit-Reset": "Seconds until all of them are there again.",
}
HEADERS = {name: {"description": text, "schema": {"type": "integer"}} for name, text in _RATE_LIMIT.items()}
RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer"}}}


def add_problems(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A post-processing hook: gives every operation what any of them can answer: errors as problem documents, and how
    many requests are left. No operation that takes a body does without."""
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
    result["components"]["headers"] = HEADERS
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in HEADERS}
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path in result["paths"].values():
        for operation in path.values():
            if "requestBody" in operation:
                operation["requestBody"]["required"] = True
            responses = operation["responses"]
            for status, description in ERRORS.items():
                responses.setdefault(status, {"description": description})
            for status, response in responses.items():
                response["headers"] = response.get("headers", {}) | headers
                if status >= "400":
                    response.setdefault("content", content)
                if status in ("429", "503"):
                    response["headers"] |= RETRY_AFTER
    return result


class StrictSerializer(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Refuses names that it does not know, and says so."""

    target_class = "exports.job_views.Strict"
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        found: dict[str, Any] = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        return found | {"additionalProperties": False}


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "orgs.authentication.ApiKeyAuthentication"
    name = "ApiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "header", "name": "X-API-Key"}


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "orgs.authentication.TokenAuthentication"
    name = "Bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}


# The page's own styles are inline; scripts are files of this host.
@method_decorator(csp_update({"style-src": [SELF, UNSAFE_INLINE], "img-src": [SELF, "data:"]}), name="dispatch")
class DocsView(SpectacularSwaggerSplitView):
    url_name = "schema"
