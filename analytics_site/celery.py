"""The Celery application: `celery -A analytics_site worker`, `celery -A analytics_site beat`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.signals import beat_init, celeryd_init, setup_logging, worker_process_init, worker_process_shutdown
from click import Option
from django_structlog.celery.steps import DjangoStructLogInitStep
from kombu.connection import Connection

from orgs.tenancy import DatabaseRole, act_always_as

from .env import stop_if_wrong

BROKER_TIMEOUT = 2  # seconds that who only looks at the broker waits for it

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "analytics_site.settings")
app = Celery("analytics_site", loader="analytics_site.worker_metrics:Loader")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
# Carries request ids into tasks, and task ids into log lines.
app.steps["worker"].add(DjangoStructLogInitStep)
# Imported by path: it needs the settings, and this module is read with them.
app.steps["worker"].add("ingestion.stream.step:ReadStream")
app.steps["worker"].add("analytics_site.worker_metrics:ServeMetrics")
app.user_options["worker"].add(
    Option(("--read-stream",), is_flag=True, help="Read the RabbitMQ stream in this worker.")
)


@contextmanager
def connected_broker() -> Iterator[Connection]:
    """The broker, connected, for a look at it. Raises kombu's `OperationalError`, `RedisError` or `OSError`."""
    with app.connection_for_read(connect_timeout=BROKER_TIMEOUT) as broker:
        broker.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_TIMEOUT)
        yield broker


@setup_logging.connect
def keep_logging(**kwargs: Any) -> None:
    """Celery's own logging set-up stands back: Django's has been done."""


@worker_process_init.connect
def start_tracing(**kwargs: Any) -> None:
    """In each process of a pool, after it was forked, and in a worker without a pool. Beat's ticks are no traces."""
    from . import tracing

    tracing.start()


@worker_process_shutdown.connect
def finish_tracing(**kwargs: Any) -> None:
    """Processes of a pool end without Python's own last rites."""
    from . import tracing

    tracing.finish()


@celeryd_init.connect
@beat_init.connect
def check_environment(**kwargs: Any) -> None:
    """A worker or beat with wrong settings does not start."""
    stop_if_wrong()


@celeryd_init.connect
@beat_init.connect
def act_as_tasks(**kwargs: Any) -> None:
    act_always_as(DatabaseRole.TASKS)
