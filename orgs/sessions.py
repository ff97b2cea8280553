"""Sessions in the database, as Django keeps them, for keys that the database can hold."""

from django.contrib.sessions.backends.db import SessionStore as DatabaseSessionStore


class SessionStore(DatabaseSessionStore):
    """Takes a key with a NUL, which a cookie can carry and PostgreSQL refuses, for one that nobody was given."""

    def _validate_session_key(self, key: str | None) -> bool:
        return "\0" not in (key or "") and super()._validate_session_key(key)  # type: ignore[misc]  # not in the stubs
