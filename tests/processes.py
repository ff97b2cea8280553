"""Commands of this checkout as processes of their own, against the servers and the database of the tests."""

import os
import time
from collections.abc import Callable
from urllib.parse import urlencode, urlsplit, urlunsplit

from django.conf import settings
from django.db import connection


def database_url(name: str = "") -> str:
    """A database on the server of the tests; the one of this test process where none is named."""
    parameters = connection.get_connection_params()
    options = {key: parameters[key] for key in ("host", "port", "user", "password") if parameters.get(key)}
    return f"postgresql:///{name or connection.settings_dict['NAME']}?{urlencode(options)}"


def redis_url(number: int) -> str:
    """One of the numbered databases of the Redis of the tests, whose own is the first."""
    parts = urlsplit(settings.REDIS_URL)
    if parts.scheme == "unix":
        return f"unix://{parts.path}?db={number}"
    return urlunsplit((parts.scheme, parts.netloc, f"/{number}", parts.query, ""))


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that works on the database of the tests."""
    kept = {name: value for name, value in os.environ.items() if name != "BROKER_URL"}
    return kept | {"DATABASE_URL": database_url(), "REDIS_URL": redis_url(0)} | variables


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
