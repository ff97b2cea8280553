"""System checks of the settings: each with an id and a hint."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from ingestion import storage
from ingestion.storage.engine import TABLE
from orgs import code_flow, row_security

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
def keys_come_over_https(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    return [
        Warning(
            f"{name} is {getattr(settings, name)}: whoever is on the way can put in keys of their own, and be anybody.",
            hint=f"Set {name} to an https:// address.",
            obj=name,
            id="analytics.W010",
        )
        for name in ("OIDC_ISSUER", "OIDC_JWKS_URL")
        if getattr(settings, name).startswith("http://")
        and not (name == "OIDC_ISSUER" and settings.OIDC_JWKS_URL and not settings.OIDC_CLIENT_ID)
    ]


@register(Tags.security)
def identity_provider_is_whole(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if settings.OIDC_ISSUER:
        return []
    return [
        Error(
            f"{name} is set and OIDC_ISSUER is not: no bearer token is taken, and nobody signs in by the provider.",
            hint=f"Set OIDC_ISSUER, or unset {name}.",
            obj=name,
            id="analytics.E010",
        )
        for name in ("OIDC_AUDIENCE", "OIDC_JWKS_URL", "OIDC_STAFF_ROLE", "OIDC_CLIENT_ID")
        if getattr(settings, name)
    ]


@register(Tags.security)
def somebody_can_sign_in(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if settings.SIGN_IN_PASSWORD or code_flow.is_on():
        return []
    return [
        Error(
            "SIGN_IN_PASSWORD is 0 and there is no sign-in by an identity provider: nobody can sign in.",
            hint="Set OIDC_ISSUER and OIDC_CLIENT_ID, or SIGN_IN_PASSWORD=1.",
            obj="SIGN_IN_PASSWORD",
            id="analytics.E011",
        )
    ]


@register(Tags.security)
def id_tokens_are_no_bearer_tokens(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if not settings.OIDC_CLIENT_ID or settings.OIDC_CLIENT_ID != settings.OIDC_AUDIENCE:
        return []
    return [
        Warning(
            "OIDC_AUDIENCE is OIDC_CLIENT_ID: the API takes ID tokens, which are for the sign-in alone.",
            hint="Give the API an audience of its own at the identity provider.",
            obj="OIDC_AUDIENCE",
            id="analytics.W011",
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


@register()
def retention_is_consistent(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """What is kept for how long depends on one another: figures that are asked for must be there, or be made of something."""
    raw, hourly = settings.RAW_RETENTION_DAYS, settings.HOURLY_RETENTION_DAYS
    rules = (
        ("DEDUPE_WINDOW_HOURS", settings.DEDUPE_WINDOW_HOURS >= 48, "be 48 or more: that is promised to producers"),
        (
            "RAW_RETENTION_DAYS",
            raw * 24 > 2 * settings.DEDUPE_WINDOW_HOURS and raw > settings.SETTLE_AFTER_DAYS,
            "be longer than SETTLE_AFTER_DAYS and than twice DEDUPE_WINDOW_HOURS",
        ),
        (
            "MINUTE_RETENTION_DAYS",
            hourly >= settings.MINUTE_RETENTION_DAYS,
            "be HOURLY_RETENTION_DAYS or less: minutes are held against hours",
        ),
        ("HOURLY_RETENTION_DAYS", hourly <= raw, "be RAW_RETENTION_DAYS or less: a cut hour is read from raw events"),
        (
            "DAILY_RETENTION_MONTHS",
            raw <= settings.DAILY_RETENTION_MONTHS * 28,
            "cover RAW_RETENTION_DAYS: every event that is stored must be in some figure",
        ),
        (
            "QUARANTINE_RETENTION_DAYS",
            raw >= settings.QUARANTINE_RETENTION_DAYS,
            "be RAW_RETENTION_DAYS or less: a quarantined message points to its batch",
        ),
    )
    return [
        Error(
            f"{name} is {getattr(settings, name)}; it must {rule}.",
            hint=f"Change {name}.",
            obj=name,
            id="analytics.E002",
        )
        for name, holds, rule in rules
        if not holds
    ]


@register(Tags.database)
def rows_of_orgs_are_guarded(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if "default" not in (kwargs.get("databases") or ()):
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regproc('orgs_tenant') IS NOT NULL")
        if not cursor.fetchone()[0]:  # not migrated so far
            return []
        # Raw events have a view of their own for tenants: see `ingestion.storage.guarding`.
        found = row_security.gaps(cursor, unguarded=frozenset({TABLE}))
        executor = MigrationExecutor(connection)
        is_migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    hint = "Have a migration call orgs.row_security.protect for a table, pin for a function."
    kind = Error if is_migrated else Warning  # an error would keep `migrate` from closing the gap
    return [kind(gap, hint=hint, obj="row security", id="analytics.E004") for gap in found]


@register(Tags.database)
def raw_events_fit_the_server(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if "default" not in (kwargs.get("databases") or ()):
        return []
    change = storage.change()
    if change is storage.Change.APPEARED:
        hint = "Run manage.py move_to_timescale; until then everything works as before."
        return [Warning(change.value, hint=hint, obj="usage_events", id="analytics.W003")]
    if change is storage.Change.VANISHED:
        hint = "Add timescaledb to shared_preload_libraries, or restore the database on a server that has it."
        return [Error(change.value, hint=hint, obj="usage_events", id="analytics.E003")]
    return []
