"""System checks of the settings: each with an id and a hint."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from .env import ENVIRONMENT


@register(Tags.security, deploy=True)
def public_url_is_https(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if settings.PUBLIC_URL.startswith("https://"):
        return []
    return [
        Warning(
            f"PUBLIC_URL is {settings.PUBLIC_URL}: cookies are sent over plain HTTP.",
            hint="Set PUBLIC_URL to the https:// address that people use.",
            id="analytics.W001",
        )
    ]


@register(Tags.security, deploy=True)
def secret_key_is_set(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if ENVIRONMENT.variables.get("SECRET_KEY"):
        return []
    return [
        Warning(
            "SECRET_KEY is not set: a key was generated for this checkout alone.",
            hint="Set SECRET_KEY to one random value of 50 characters or more on every machine of the installation.",
            id="analytics.W002",
        )
    ]


@register()
def environment_is_right(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    return [
        Error(f"{p.variable} {p.wrong}.", hint=f"It should hold {p.expected}.", obj=p.variable, id="analytics.E001")
        for p in ENVIRONMENT.problems
    ]
