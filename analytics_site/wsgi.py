"""The web processes: gunicorn's entry point."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "analytics_site.settings")

from .env import stop_if_wrong

stop_if_wrong()
application = get_wsgi_application()
