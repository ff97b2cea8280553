"""What the database allows web processes, and not workers, migrations or commands: these may take their time."""

from django.conf import settings
from django.db import connections


def bound_statements() -> None:
    """Have PostgreSQL end each statement of this process after `WEB_STATEMENT_TIMEOUT`. Called before it connects.

    An option of the connection, so it costs no round trip. What the operator's own options say comes after, and holds.
    """
    if not settings.WEB_STATEMENT_TIMEOUT:
        return
    options = connections["default"].settings_dict["OPTIONS"]
    bound = f"-c statement_timeout={settings.WEB_STATEMENT_TIMEOUT}s"
    options["options"] = f"{bound} {options.get('options', '')}".strip()
