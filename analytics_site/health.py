"""Whether the process lives, and whether it can do its work."""

import structlog
from django.core.cache import cache
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError

from .celery import connected_broker

logger = structlog.get_logger(__name__)

# A migrated database stays migrated: looked up until it is, once a process.
_migrated = False


def healthz(request: HttpRequest) -> HttpResponse:
    """200: the process answers."""
    return HttpResponse("OK", content_type="text/plain")


def readyz(request: HttpRequest) -> HttpResponse:
    """200 where PostgreSQL answers and is migrated, else 503 that names what is missing.

    A cache or broker that fails leaves it 200, with a header `X-Degraded` that names it: figures are still served.
    """
    missing = _missing()
    if missing:
        return HttpResponse(missing, status=503, content_type="text/plain")
    response = HttpResponse("OK", content_type="text/plain")
    degraded = [name for name, works in (("cache", _cache_works), ("broker", _broker_works)) if not works()]
    if degraded:
        response["X-Degraded"] = ", ".join(degraded)
    return response


def _missing() -> str | None:
    global _migrated  # noqa: PLW0603
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        if not _migrated:
            executor = MigrationExecutor(connection)
            plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
            if plan:
                return f"migration missing: {plan[0][0]}"
            _migrated = True
    except DatabaseError as error:
        logger.warning("not_ready", error=error)
        return "PostgreSQL does not answer"
    return None


def _cache_works() -> bool:
    try:
        cache.get("readyz")
    except (RedisError, OSError):
        return False
    return True


def _broker_works() -> bool:
    try:
        with connected_broker():
            return True
    except (BrokerError, RedisError, OSError):
        return False
