#!/usr/bin/env python
"""Django's command line, for this project."""

import os
import sys

from django.core.management import execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "analytics_site.settings")
    # `check` reports wrong settings as system checks; every other command stops with one line a variable.
    if "check" not in sys.argv[1:2]:
        from analytics_site.env import stop_if_wrong

        stop_if_wrong()

        from analytics_site import tracing

        tracing.start()
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
