"""Django settings. Every value that differs between installations comes from the environment, typed (see `env`)."""

import logging
import os
import secrets
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog
from csp.constants import NONE, SELF
from psycopg.conninfo import conninfo_to_dict

from .env import (
    ENVIRONMENT,
    AuditDays,
    ClockSkew,
    Lifetime,
    NotNegativeInt,
    Port,
    PositiveInt,
    PositiveSeconds,
    Problem,
    SessionHours,
    has_scheme,
    is_postgres_url,
)
from .logs import add_trace, calm_strangers, hide_secrets, tell_exception

BASE_DIR = Path(__file__).resolve().parent.parent

# ── Servers ──────────────────────────────────────────────────────────────────────────────────────────────────────
# The servers that come as wheels start only when asked for: a production process that lost its DATABASE_URL must
# stop, not fill an empty database.
EMBEDDED_SERVERS = ENVIRONMENT.read("EMBEDDED_SERVERS", bool, False, "1 or 0")
_embedded_database_url: str | None = None
_embedded_redis_url: str | None = None
if EMBEDDED_SERVERS and not (ENVIRONMENT.variables.get("DATABASE_URL") and ENVIRONMENT.variables.get("REDIS_URL")):
    try:
        from . import embedded

        _servers = embedded.attach(BASE_DIR)
    except (ImportError, RuntimeError) as error:
        sys.exit(f"EMBEDDED_SERVERS: {error}; requirements/embedded.txt names what they need")
    _embedded_database_url, _embedded_redis_url = _servers.database_url, _servers.redis_url

DATABASE_URL = ENVIRONMENT.url(
    "DATABASE_URL", "postgresql://user:password@host:port/database", is_postgres_url, _embedded_database_url
)
REDIS_URL = ENVIRONMENT.url(
    "REDIS_URL", "redis://host:port/0 or unix:///path", has_scheme("redis", "rediss", "unix"), _embedded_redis_url
)


def _broker_url(url: str) -> str:
    """Celery's spelling of a Redis URL: a Unix socket is redis+socket:// there, and ?db= is called virtual_host."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    query = urlencode([("virtual_host" if name == "db" else name, value) for name, value in parse_qsl(parts.query)])
    return f"redis+socket://{parts.path}" + (f"?{query}" if query else "")


BROKER_URL = ENVIRONMENT.url(
    "BROKER_URL",
    "redis://… or amqp://user:password@host:port/vhost; REDIS_URL where it is not set",
    has_scheme("redis", "rediss", "amqp", "amqps"),  # no unix: Celery reads the variable itself, and knows none
    REDIS_URL,
)


def _database(url: str) -> dict[str, Any]:
    """Django's form of a libpq URL; what Django has no name for goes through as options."""
    parameters = {k: str(v) for k, v in conninfo_to_dict(url).items()} if is_postgres_url(url) else {"dbname": "unset"}
    return {
        # Counts queries, connections and errors for Prometheus.
        "ENGINE": "django_prometheus.db.backends.postgresql",
        "NAME": parameters.pop("dbname"),
        "USER": parameters.pop("user", ""),
        "PASSWORD": parameters.pop("password", ""),
        "HOST": parameters.pop("host", ""),
        "PORT": parameters.pop("port", ""),
        "OPTIONS": {"connect_timeout": 5, "application_name": "analytics-service", **parameters},
        # One connection a thread, kept; checked before it is used again, so that a restarted server is not noticed.
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
    }


DATABASES = {"default": _database(DATABASE_URL)}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL or "redis://unset",
        "KEY_PREFIX": "analytics",
        # Short: the database answers where the cache does not.
        "OPTIONS": {"socket_connect_timeout": 0.5, "socket_timeout": 0.5},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def _traces_endpoint() -> str:
    """Where traces go; empty where they go nowhere, and then nothing of OpenTelemetry is looked for."""
    expected, is_http = "an http(s) address that takes OTLP over HTTP", has_scheme("http", "https")
    base = ENVIRONMENT.url("OTEL_EXPORTER_OTLP_ENDPOINT", expected, is_http, "")
    endpoint = ENVIRONMENT.url("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", expected, is_http, "")
    if not base and not endpoint:
        return ""
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        ENVIRONMENT.read(name, Literal["http/protobuf"], "http/protobuf", "http/protobuf: gRPC is not spoken here")
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.instrumentation") is None:
        name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if endpoint else "OTEL_EXPORTER_OTLP_ENDPOINT"
        wrong = "is set, and what requirements/tracing.txt names is not installed"
        ENVIRONMENT.problems.append(Problem(name, wrong, "nothing where that is not wanted"))
    return endpoint or base.rstrip("/") + "/v1/traces"


# ── The service ──────────────────────────────────────────────────────────────────────────────────────────────────
HTTP_PORT = ENVIRONMENT.read("HTTP_PORT", Port, 8084, "a TCP port, 1 to 65535")
PUBLIC_URL = ENVIRONMENT.url(
    "PUBLIC_URL",
    "the address people use, such as https://analytics.example.com",
    has_scheme("http", "https"),
    f"http://localhost:{HTTP_PORT}",
).rstrip("/")
ROLLUP_INTERVAL = ENVIRONMENT.read("ROLLUP_INTERVAL", PositiveSeconds, 2.0, "seconds, more than 0, at most a day")
FRESHNESS_CACHE_TTL = ENVIRONMENT.read("FRESHNESS_CACHE_TTL", PositiveInt, 60, "whole seconds, 1 or more")
INGESTION_BATCH_SIZE = ENVIRONMENT.read("INGESTION_BATCH_SIZE", PositiveInt, 10_000, "a number of events, 1 or more")
INGESTION_BATCH_TIMEOUT = ENVIRONMENT.read("INGESTION_BATCH_TIMEOUT", PositiveSeconds, 0.5, "seconds, more than 0")
RAW_RETENTION_DAYS = ENVIRONMENT.read("RAW_RETENTION_DAYS", PositiveInt, 400, "days, 1 or more")
MINUTE_RETENTION_DAYS = ENVIRONMENT.read("MINUTE_RETENTION_DAYS", PositiveInt, 2, "days, 1 or more")
HOURLY_RETENTION_DAYS = ENVIRONMENT.read("HOURLY_RETENTION_DAYS", PositiveInt, 90, "days, 1 or more")
DAILY_RETENTION_MONTHS = ENVIRONMENT.read(
    "DAILY_RETENTION_MONTHS", PositiveInt, 25, "months before the one that is under way, 1 or more"
)
QUARANTINE_RETENTION_DAYS = ENVIRONMENT.read("QUARANTINE_RETENTION_DAYS", PositiveInt, 400, "days, 1 or more")
AUDIT_RETENTION_DAYS = ENVIRONMENT.read("AUDIT_RETENTION_DAYS", AuditDays, 730, "days, 30 or more")
DEDUPE_WINDOW_HOURS = ENVIRONMENT.read("DEDUPE_WINDOW_HOURS", PositiveInt, 48, "hours, 48 or more")
SETTLE_AFTER_DAYS = ENVIRONMENT.read("SETTLE_AFTER_DAYS", PositiveInt, 7, "days, 1 or more")
# Not required: only the worker that reads the stream needs it, and says so.
RABBITMQ_URL = ENVIRONMENT.url(
    "RABBITMQ_URL",
    "amqp://user:password@host:port/vhost",
    has_scheme("amqp", "amqps"),
    "amqp://guest:guest@localhost:5672//",
)
RABBITMQ_STREAM = ENVIRONMENT.variables.get("RABBITMQ_STREAM") or "analytics.usage.v1"
RABBITMQ_CONSUMER = ENVIRONMENT.variables.get("RABBITMQ_CONSUMER") or "analytics-service"
RABBITMQ_STREAM_PARTITIONS = ENVIRONMENT.read(
    "RABBITMQ_STREAM_PARTITIONS", NotNegativeInt, 0, "a number of partitions; 0 where the stream has none"
)
RABBITMQ_STREAM_MAX_BYTES = ENVIRONMENT.read(
    "RABBITMQ_STREAM_MAX_BYTES", PositiveInt, 20 * 1024**3, "bytes, 1 or more; of a stream that is declared here"
)
# Where exports go: to S3-compatible storage where S3_BUCKET is set, else into a folder that web and workers share.
S3_ENDPOINT = ENVIRONMENT.url(
    "S3_ENDPOINT",
    "the address of an S3-compatible storage, such as https://s3.example.com",
    has_scheme("http", "https"),
    "",
)
S3_REGION = ENVIRONMENT.variables.get("S3_REGION") or "us-east-1"
S3_ACCESS_KEY = ENVIRONMENT.variables.get("S3_ACCESS_KEY") or ""
S3_SECRET_KEY = ENVIRONMENT.variables.get("S3_SECRET_KEY") or ""
S3_BUCKET = ENVIRONMENT.variables.get("S3_BUCKET") or ""
S3_ENCRYPTION: str = ENVIRONMENT.read(
    "S3_ENCRYPTION", Literal["AES256", "aws:kms", "none"], "AES256", "AES256, aws:kms, or none"
)
EXPORT_FOLDER = ENVIRONMENT.variables.get("EXPORT_FOLDER") or str(BASE_DIR / ".exports")
EXPORT_SIGNED_URL_TTL = ENVIRONMENT.read(
    "EXPORT_SIGNED_URL_TTL", Lifetime, 24 * 3600, "seconds, 1 to 604800 (a week, the longest that S3 signs)"
)
EXPORT_RETENTION_DAYS = ENVIRONMENT.read("EXPORT_RETENTION_DAYS", PositiveInt, 90, "days, 1 or more")
# The platform's identity provider, whose bearer tokens the API takes, and which signs people in. Without an issuer neither.
OIDC_ISSUER = ENVIRONMENT.url(
    "OIDC_ISSUER", "the issuer that tokens name, such as https://id.example.com", has_scheme("http", "https"), ""
)
# People sign in by it where this service is one of its clients.
OIDC_CLIENT_ID = ENVIRONMENT.variables.get("OIDC_CLIENT_ID") or ""
OIDC_CLIENT_SECRET = ENVIRONMENT.variables.get("OIDC_CLIENT_SECRET") or ""
OIDC_NAME = ENVIRONMENT.variables.get("OIDC_NAME") or "single sign-on"
OIDC_SCOPES = ENVIRONMENT.variables.get("OIDC_SCOPES") or "openid email profile"
OIDC_SESSION_HOURS = ENVIRONMENT.read("OIDC_SESSION_HOURS", SessionHours, 12, "hours, 1 to 336 (14 days)")
SIGN_IN_PASSWORD = ENVIRONMENT.read("SIGN_IN_PASSWORD", bool, True, "1 or 0")
OIDC_AUDIENCE = ENVIRONMENT.url(
    "OIDC_AUDIENCE",
    "the name of this API in tokens, where OIDC_ISSUER is set",
    bool,
    None if OIDC_ISSUER and not OIDC_CLIENT_ID else "",
)
OIDC_JWKS_URL = ENVIRONMENT.url(
    "OIDC_JWKS_URL", "an http(s) address; without it discovery finds the keys", has_scheme("http", "https"), ""
)  # fmt: skip
OIDC_CLOCK_SKEW = ENVIRONMENT.read("OIDC_CLOCK_SKEW", ClockSkew, 30, "seconds, 0 to 300")
OIDC_SUBJECT_CLAIM = ENVIRONMENT.variables.get("OIDC_SUBJECT_CLAIM") or "sub"
OIDC_ORGS_CLAIM = ENVIRONMENT.variables.get("OIDC_ORGS_CLAIM") or "orgs"
OIDC_ROLES_CLAIM = ENVIRONMENT.variables.get("OIDC_ROLES_CLAIM") or "roles"
OIDC_ROLE_NAMES = ENVIRONMENT.pairs(
    "OIDC_ROLE_NAMES",
    ("org_admin", "engineer", "finance", "viewer"),
    "theirs=ours,… where ours is org_admin, engineer, finance or viewer",
)
# No default: "staff" is what many providers call somebody else, and ours may look at every org.
OIDC_STAFF_ROLE = ENVIRONMENT.variables.get("OIDC_STAFF_ROLE") or ""
RELIABILITY_GAUGES = ENVIRONMENT.read(
    "RELIABILITY_GAUGES", NotNegativeInt, 50, "how many orgs, and how many models of theirs, have gauges; 0 for none"
)
# Tokens a minute and at once; 0 a minute is no limit. Of each API key and person, and of each address for all others.
_A_MINUTE = "requests a minute; 0 for no limit"
_AT_ONCE = "requests at once, 1 or more"
RATE_LIMIT_REQUESTS = ENVIRONMENT.read("RATE_LIMIT_REQUESTS", NotNegativeInt, 600, _A_MINUTE)
RATE_LIMIT_REQUESTS_BURST = ENVIRONMENT.read("RATE_LIMIT_REQUESTS_BURST", PositiveInt, 200, _AT_ONCE)
RATE_LIMIT_EVENTS = ENVIRONMENT.read("RATE_LIMIT_EVENTS", NotNegativeInt, 6_000, _A_MINUTE)
RATE_LIMIT_EVENTS_BURST = ENVIRONMENT.read("RATE_LIMIT_EVENTS_BURST", PositiveInt, 1_000, _AT_ONCE)
RATE_LIMIT_STRANGERS = ENVIRONMENT.read("RATE_LIMIT_STRANGERS", NotNegativeInt, 300, _A_MINUTE)
RATE_LIMIT_STRANGERS_BURST = ENVIRONMENT.read("RATE_LIMIT_STRANGERS_BURST", PositiveInt, 100, _AT_ONCE)
# Shares of what all orgs have in common. A web process has 8 threads (deploy/gunicorn.conf.py).
ORG_CONCURRENCY = ENVIRONMENT.read(
    "ORG_CONCURRENCY", NotNegativeInt, 4, "requests of one organisation at once; 0 for no limit"
)
ORG_EXPORT_CONCURRENCY = ENVIRONMENT.read(
    "ORG_EXPORT_CONCURRENCY", PositiveInt, 1, "files of one organisation at once, 1 or more"
)
SIGN_IN_LIMITS = ENVIRONMENT.read("SIGN_IN_LIMITS", bool, True, "1 or 0")
TRUSTED_PROXIES = ENVIRONMENT.read("TRUSTED_PROXIES", NotNegativeInt, 0, "a number of proxies; 0 where there is none")
WEB_STATEMENT_TIMEOUT = ENVIRONMENT.read("WEB_STATEMENT_TIMEOUT", NotNegativeInt, 30, "whole seconds; 0 for none")
# Traces by OTLP over HTTP, by OpenTelemetry's own names; it reads the others of its variables itself.
TRACES_ENDPOINT = "" if ENVIRONMENT.variables.get("OTEL_SDK_DISABLED", "").lower() == "true" else _traces_endpoint()
METRICS_PORT = ENVIRONMENT.read("METRICS_PORT", Port, 9108, "a TCP port, 1 to 65535")
Currency = Literal[
    "USD", "EUR", "GBP", "CHF", "CAD", "AUD", "NZD", "SEK", "NOK", "DKK", "PLN", "CZK", "INR", "BRL", "MXN", "SGD", "HKD", "ZAR"
]  # fmt: skip  # currencies with cents
CURRENCY: str = ENVIRONMENT.read("CURRENCY", Currency, "USD", "an ISO 4217 code of a currency that has cents")
LOG_LEVEL: str = ENVIRONMENT.read(
    "LOG_LEVEL",
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    "INFO",
    "DEBUG, INFO, WARNING, ERROR or CRITICAL",
)
DEBUG = ENVIRONMENT.read("DEBUG", bool, False, "1 or 0")


def _generated_secret_key() -> str:
    """A key made once for this checkout, where none is set: sessions outlive a restart of the demo."""
    file = BASE_DIR / ".secret_key"
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
            new.write(secrets.token_urlsafe(50))
    except FileExistsError:
        pass
    except OSError:  # a read-only checkout: good for this process alone
        return secrets.token_urlsafe(50)
    return file.read_text()


SECRET_KEY = ENVIRONMENT.variables.get("SECRET_KEY") or _generated_secret_key()
_HTTPS = PUBLIC_URL.startswith("https://")
ALLOWED_HOSTS = [urlsplit(PUBLIC_URL).hostname or "localhost", "localhost", "127.0.0.1", "[::1]"]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _HTTPS
CSRF_COOKIE_HTTPONLY = True  # forms carry the token; no script reads the cookie
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _HTTPS else None
SECURE_HSTS_SECONDS = 31_536_000 if _HTTPS else 0
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# ── Django ───────────────────────────────────────────────────────────────────────────────────────────────────────
INSTALLED_APPS = [
    "analytics_site.apps.AnalyticsSiteConfig",
    "analytics_site.apps.AnalyticsAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "django_htmx",
    "django_prometheus",
    "django_structlog",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "rest_framework",
    "orgs",
    "ingestion",
    "usage",
    "reliability",
    "exports",
]
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "analytics_site.middleware.RequestIdMiddleware",
    "analytics_site.middleware.RequestLogMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "analytics_site.throttle_middleware.ThrottleMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "analytics_site.host_middleware.HostMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]
ROOT_URLCONF = "analytics_site.urls"
WSGI_APPLICATION = "analytics_site.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
AUTH_USER_MODEL = "orgs.User"
# One for each way to sign in: with it go the sessions that it opened.
AUTHENTICATION_BACKENDS = [
    *(["django.contrib.auth.backends.ModelBackend"] if SIGN_IN_PASSWORD else []),
    *(["orgs.provider_backend.ProviderBackend"] if OIDC_ISSUER and OIDC_CLIENT_ID else []),
    "orgs.policy.StaffBackend",  # what staff may do in the admin
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_ENGINE = "orgs.sessions"  # the database: people stay signed in with the cache down
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
USE_I18N = False
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static"]
# Found beside the apps without a collect step: it runs from a clone.
WHITENOISE_USE_FINDERS = True
warnings.filterwarnings("ignore", "No directory at", UserWarning)  # nothing collected: the finders serve
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # other hosts of the domain are their operators'
    "security.W021",  # so is the browsers' preload list
    "security.W004",  # HSTS follows from PUBLIC_URL (analytics.W001)
    "security.W008",  # the proxy that ends TLS redirects
    "security.W012",  # secure cookies follow from PUBLIC_URL (analytics.W001)
    "security.W016",
]
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
    }
}

# ── REST ─────────────────────────────────────────────────────────────────────────────────────────────────────────
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        # In this order; the first that is sent counts.
        "orgs.authentication.ApiKeyAuthentication",
        "orgs.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["orgs.access.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["orgs.rendering.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["orgs.json_parser.BoundedJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "URL_FORMAT_OVERRIDE": None,  # ?format= is no parameter here
    "EXCEPTION_HANDLER": "analytics_site.problems.exception_handler",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Analytics service",
    "DESCRIPTION": "What LLM usage costs and how reliably it runs, per organisation.",
    "VERSION": "1.0.0",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PUBLIC": True,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": False},
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "CallStatusEnum": "ingestion.models.Status.labels",
        "FreshnessStatusEnum": ("fresh", "stale", "delayed"),
        "GranularityEnum": ("hour", "day"),
        "ExportGranularityEnum": ("hourly", "daily", "monthly"),
        "ExportStatusEnum": ("pending", "running", "succeeded", "failed", "expired"),
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "analytics_site.schema.add_problems",
    ],
}

# ── Tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────
CELERY_BROKER_URL = _broker_url(BROKER_URL)
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1  # seconds; an edit of the schedule is seen within it
CELERY_TIMEZONE = "UTC"
# Files take long; where a worker reads the queue "exports" alone, nothing else waits for them. Without -Q a worker reads both.
CELERY_TASK_QUEUES = {name: {"exchange": name, "routing_key": name} for name in ("celery", "exports")}
CELERY_TASK_ROUTES = {f"exports.tasks.{task}": {"queue": "exports"} for task in ("run", "expire")}
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True  # a task whose worker died runs again; every task here may run twice
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_CONSUMER = "analytics_site.consumer:PersistentConsumer"
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = (
    {
        # Redis hands a lost task out again after visibility_timeout; the sweep that finds it runs at every turn.
        "visibility_timeout": 3600,
        "unacked_restore_throttle": 1,
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "health_check_interval": 30,
    }
    if not BROKER_URL.startswith("amqp")
    else {}
)

# ── Logs: one JSON object a line; readable text on a terminal ────────────────────────────────────────────────────
_log_processors: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
    add_trace,
]
LOG_FORMAT: str = ENVIRONMENT.read("LOG_FORMAT", Literal["json", "text"], "json", "json or text")
_renderer: Any = (
    structlog.processors.JSONRenderer() if LOG_FORMAT == "json" else structlog.dev.ConsoleRenderer(colors=False)
)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "structured": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                tell_exception,
                hide_secrets,
                _renderer,
            ],
            # Not what libraries add to their records: Celery adds arguments, Django the request.
            "foreign_pre_chain": [*_log_processors, calm_strangers],
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structured"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        # Said by the request log already, with the request's id.
        "django.request": {"level": "CRITICAL"},
        "django.server": {"level": "WARNING"},
        # Wrong hosts and tokens: anybody can cause them. Django's own level would not follow LOG_LEVEL.
        "django.security": {"level": LOG_LEVEL},
        # Said by the request log, with the reason.
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        # A task runs every two seconds; what it did, it says itself, and django-structlog that it failed.
        "celery.app.trace": {"level": "CRITICAL"},
        "celery.worker.strategy": {"level": "WARNING"},
        "django_structlog.celery.receivers": {"level": "WARNING"},
        "amqp": {"level": "ERROR"},
        # `traces_not_exported` says it, once a minute.
        "opentelemetry.exporter": {"level": "CRITICAL"},
        "celery.beat": {"level": "WARNING"},
        "django_celery_beat": {"level": "WARNING"},
    },
}
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_log_processors,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
DJANGO_STRUCTLOG_CELERY_ENABLED = True
DJANGO_STRUCTLOG_TRUST_UPSTREAM_REQUEST_ID = True  # RequestIdMiddleware has looked at it
DJANGO_STRUCTLOG_STATUS_START_LOG_LEVEL = logging.DEBUG  # one line a request: its end
DJANGO_STRUCTLOG_USER_ID_FIELD = ""  # would read the session, and so the database, in every request
PROMETHEUS_EXPORT_MIGRATIONS = False
