"""gunicorn for the web processes: `gunicorn -c deploy/gunicorn.conf.py analytics_site.wsgi`."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before a worker starts: the master would start those that wrong settings stop again, for ever.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "analytics_site.settings")

from django.conf import settings

from analytics_site.env import stop_if_wrong

stop_if_wrong()


# Its own lines like all others. Requests are in the service's log.
_loggers = {"gunicorn.error": {"level": settings.LOG_LEVEL}, "gunicorn.access": {"level": "CRITICAL"}}
logconfig_dict = settings.LOGGING | {"loggers": settings.LOGGING["loggers"] | _loggers}

bind = f"0.0.0.0:{os.environ.get('HTTP_PORT', '8084')}"
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = 8
timeout = 60  # seconds without a sign of life from a worker
graceful_timeout = 25  # seconds that requests under way have at a stop
keepalive = 30
max_requests = 20_000  # a worker is replaced now and then
max_requests_jitter = 2_000

# Counters of all workers are added up through files in one folder; those of an earlier run must not be in it.
_own = "PROMETHEUS_MULTIPROC_DIR" not in os.environ
_folder = Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="analytics-metrics-")))


def on_starting(server: Any) -> None:
    _folder.mkdir(parents=True, exist_ok=True)
    for file in _folder.glob("*.db"):
        file.unlink()


def child_exit(server: Any, worker: Any) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def worker_exit(server: Any, worker: Any) -> None:
    from analytics_site import tracing

    tracing.finish()


def on_exit(server: Any) -> None:
    if _own:
        shutil.rmtree(_folder, ignore_errors=True)
