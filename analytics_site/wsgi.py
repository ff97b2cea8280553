"""The web processes: gunicorn's entry point."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "analytics_site.settings")

from orgs.tenancy import DatabaseRole, act_always_as

from . import tracing
from .env import stop_if_wrong
from .web_database import bound_statements

stop_if_wrong()
bound_statements()
act_always_as(DatabaseRole.WEB)
tracing.start()  # gunicorn imports this in each worker, after it was forked; middleware is made below
application = get_wsgi_application()
