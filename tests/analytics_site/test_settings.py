"""Wrong settings stop every entry point with one line that names the variable; `check` says more."""

import pytest
from django.conf import LazySettings

from analytics_site import checks

from ..processes import run

pytestmark = pytest.mark.django_db

POSTGRES = "it should hold postgresql://user:password@host:port/database"
REDIS = "it should hold redis://host:port/0 or unix:///path"
ROLE_NAMES = "it should hold theirs=ours,… where ours is org_admin, engineer, finance or viewer"
WRONG = [
    ("DATABASE_URL", None, f"is not set; {POSTGRES}"),
    ("DATABASE_URL", "", f"is not set; {POSTGRES}"),
    ("DATABASE_URL", "analytics", f"is malformed; {POSTGRES}"),
    ("DATABASE_URL", "mysql://root@localhost/analytics", f"is malformed; {POSTGRES}"),
    ("DATABASE_URL", "postgresql://user:secret@[half/analytics", f"is malformed; {POSTGRES}"),
    ("DATABASE_URL", "postgresql://user:secret@host/analytics?sslmood=x", f"is malformed; {POSTGRES}"),
    ("REDIS_URL", None, f"is not set; {REDIS}"),
    ("REDIS_URL", "http://localhost", f"is malformed; {REDIS}"),
    ("REDIS_URL", "redis://localhost:70000/0", f"is malformed; {REDIS}"),
    ("HTTP_PORT", "abc", "is malformed; it should hold a TCP port, 1 to 65535"),
    ("HTTP_PORT", "65536", "is malformed; it should hold a TCP port, 1 to 65535"),
    ("CURRENCY", "XXX", "is malformed; it should hold an ISO 4217 code of a currency that has cents"),
    ("ROLLUP_INTERVAL", "-1", "is malformed; it should hold seconds, more than 0, at most a day"),
    ("INGESTION_BATCH_SIZE", "0", "is malformed; it should hold a number of events, 1 or more"),
    ("FRESHNESS_CACHE_TTL", "1.5", "is malformed; it should hold whole seconds, 1 or more"),
    (
        "OIDC_JWKS_URL",
        "file:///keys",
        "is malformed; it should hold an http(s) address; without it discovery finds the keys",
    ),
    ("OIDC_CLOCK_SKEW", "301", "is malformed; it should hold seconds, 0 to 300"),
    ("OIDC_SESSION_HOURS", "337", "is malformed; it should hold hours, 1 to 336 (14 days)"),
    ("SIGN_IN_PASSWORD", "never", "is malformed; it should hold 1 or 0"),
    ("OIDC_ROLE_NAMES", "admins=boss", f"is malformed; {ROLE_NAMES}"),
    ("OIDC_ROLE_NAMES", "=viewer", f"is malformed; {ROLE_NAMES}"),
    ("OIDC_ROLE_NAMES", "viewer", f"is malformed; {ROLE_NAMES}"),
    ("RATE_LIMIT_EVENTS_BURST", "0", "is malformed; it should hold requests at once, 1 or more"),
    ("ORG_CONCURRENCY", "-1", "is malformed; it should hold requests of one organisation at once; 0 for no limit"),
    ("ORG_EXPORT_CONCURRENCY", "0", "is malformed; it should hold files of one organisation at once, 1 or more"),
    ("TRUSTED_PROXIES", "-1", "is malformed; it should hold a number of proxies; 0 where there is none"),
    ("LOG_LEVEL", "loud", "is malformed; it should hold DEBUG, INFO, WARNING, ERROR or CRITICAL"),
]
ENTRIES = {
    "manage.py": ("manage.py", "migrate", "--plan"),
    "wsgi": ("-c", "import analytics_site.wsgi"),
    "gunicorn": ("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "analytics_site.wsgi"),
    "celery": ("-m", "celery", "-A", "analytics_site", "--quiet", "worker"),
}


@pytest.mark.parametrize(("variable", "value", "said"), WRONG)
@pytest.mark.parametrize("entry", ["manage.py", "gunicorn"])
def test_a_wrong_setting_stops_the_start_with_one_line(entry: str, variable: str, value: str | None, said: str) -> None:
    process = run(*ENTRIES[entry], **{variable: value})
    assert process.returncode == 1
    assert process.stderr == f"{variable} {said}\n"


def test_an_issuer_is_an_address() -> None:
    said = "it should hold the issuer that tokens name, such as https://id.example.com"
    process = run(*ENTRIES["wsgi"], OIDC_ISSUER="id.example.com", OIDC_AUDIENCE="analytics")
    assert process.stderr == f"OIDC_ISSUER is malformed; {said}\n"


def test_an_issuer_needs_an_audience() -> None:
    process = run(*ENTRIES["wsgi"], OIDC_ISSUER="https://id.example.com")
    assert (
        process.stderr
        == "OIDC_AUDIENCE is not set; it should hold the name of this API in tokens, where OIDC_ISSUER is set\n"
    )


def test_an_issuer_that_only_signs_people_in_needs_none() -> None:
    code = "from django.conf import settings; print(settings.ENVIRONMENT.problems, settings.AUTHENTICATION_BACKENDS)"
    variables = {
        "OIDC_ISSUER": "https://id.example.com",
        "OIDC_CLIENT_ID": "analytics",
        "SIGN_IN_PASSWORD": "0",
        "DJANGO_SETTINGS_MODULE": "analytics_site.settings",
    }
    backends = ["orgs.provider_backend.ProviderBackend", "orgs.policy.StaffBackend"]
    assert run("-c", code, **variables).stdout == f"[] {backends}\n"


def test_role_names_are_read_as_pairs() -> None:
    code = "from django.conf import settings; print(settings.OIDC_ROLE_NAMES)"
    variables = {
        "OIDC_ROLE_NAMES": "a=b=viewer, Org Admins = org_admin",
        "DJANGO_SETTINGS_MODULE": "analytics_site.settings",
    }
    assert run("-c", code, **variables).stdout == "{'a=b': 'viewer', 'Org Admins': 'org_admin'}\n"


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_entry_point_starts_without_a_database(entry: str) -> None:
    process = run(*ENTRIES[entry], DATABASE_URL=None)
    assert process.returncode == 1
    assert process.stderr == f"DATABASE_URL is not set; {POSTGRES}\n"


def test_each_wrong_setting_has_its_line() -> None:
    process = run(*ENTRIES["wsgi"], HTTP_PORT="abc", CURRENCY="XXX", REDIS_URL=None)
    assert [line.split()[0] for line in process.stderr.splitlines()] == ["REDIS_URL", "HTTP_PORT", "CURRENCY"]


def test_a_secret_is_not_in_the_line() -> None:
    assert "secret" not in run(*ENTRIES["wsgi"], DATABASE_URL="postgresql://user:secret@[half/analytics").stderr


def test_check_shows_an_id_and_a_hint() -> None:
    process = run("manage.py", "check", HTTP_PORT="abc", DATABASE_URL=None)
    assert process.returncode == 1
    assert "DATABASE_URL: (analytics.E001) DATABASE_URL is not set." in process.stderr
    assert "HINT: It should hold postgresql://user:password@host:port/database." in process.stderr
    assert "HTTP_PORT: (analytics.E001) HTTP_PORT is malformed." in process.stderr
    assert "HINT: It should hold a TCP port, 1 to 65535." in process.stderr
    assert "2 issues" in process.stderr


def test_check_finds_nothing_where_all_is_right() -> None:
    process = run("manage.py", "check", "--fail-level", "WARNING")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "System check identified no issues (0 silenced).\n"


def test_check_for_deployment_warns_of_plain_http_and_a_generated_key() -> None:
    process = run("manage.py", "check", "--deploy", "--fail-level", "WARNING", SECRET_KEY=None)
    assert process.returncode == 1
    assert "(analytics.W001) PUBLIC_URL is http://localhost:8084" in process.stderr
    assert "(analytics.W002) SECRET_KEY is not set" in process.stderr


def test_what_is_left_of_an_identity_provider_without_an_issuer_is_told(settings: LazySettings) -> None:
    assert checks.identity_provider_is_whole(None) == []
    settings.OIDC_AUDIENCE = settings.OIDC_STAFF_ROLE = "analytics"
    found = checks.identity_provider_is_whole(None)
    assert [(one.id, one.obj) for one in found] == [
        ("analytics.E010", "OIDC_AUDIENCE"),
        ("analytics.E010", "OIDC_STAFF_ROLE"),
    ]
    settings.OIDC_ISSUER = "https://id.example.com"
    assert checks.identity_provider_is_whole(None) == []


@pytest.mark.parametrize(
    ("issuer", "jwks_url", "told"),
    [
        ("https://id.example.com", "", []),
        ("https://id.example.com", "http://id.example.com/keys", ["OIDC_JWKS_URL"]),
        ("http://id.example.com", "", ["OIDC_ISSUER"]),
        ("http://id.example.com", "https://id.example.com/keys", []),  # a name alone
    ],
)
def test_keys_over_plain_http_are_told(settings: LazySettings, issuer: str, jwks_url: str, told: list[str]) -> None:
    settings.OIDC_ISSUER, settings.OIDC_JWKS_URL = issuer, jwks_url
    assert [(one.id, one.obj) for one in checks.keys_come_over_https(None)] == [
        ("analytics.W010", name) for name in told
    ]


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("DEDUPE_WINDOW_HOURS", 47, {}),
        ("RAW_RETENTION_DAYS", 7, {"HOURLY_RETENTION_DAYS": 7, "QUARANTINE_RETENTION_DAYS": 7}),
        (
            "RAW_RETENTION_DAYS",
            8,
            {"HOURLY_RETENTION_DAYS": 8, "QUARANTINE_RETENTION_DAYS": 8, "DEDUPE_WINDOW_HOURS": 96},
        ),
        ("HOURLY_RETENTION_DAYS", 401, {}),
        ("DAILY_RETENTION_MONTHS", 14, {}),
        ("QUARANTINE_RETENTION_DAYS", 401, {}),
    ],
)
def test_retentions_that_contradict_one_another_are_told(
    settings: LazySettings, name: str, value: int, others: dict[str, int]
) -> None:
    assert checks.retention_is_consistent(None) == []
    for setting, held in {name: value, **others}.items():
        setattr(settings, setting, held)
    (found,) = checks.retention_is_consistent(None)
    assert (found.id, found.obj) == ("analytics.E002", name)
    assert found.hint


def test_a_provider_that_signs_people_in_is_discovered_and_that_over_plain_http_is_told(settings: LazySettings) -> None:
    settings.OIDC_ISSUER, settings.OIDC_JWKS_URL = "http://id.example.com", "https://id.example.com/keys"
    settings.OIDC_CLIENT_ID = "analytics"
    assert [one.obj for one in checks.keys_come_over_https(None)] == ["OIDC_ISSUER"]
