"""Where a Celery worker counts, and how its first process tells what all of its processes counted.

Nothing here may import `prometheus_client` before `begin`: it decides when it is imported whether it counts in files.
"""

import atexit
import os
import shutil
import tempfile
from typing import Any

import structlog
from celery import bootsteps
from celery.loaders.app import AppLoader
from celery.signals import worker_process_init
from django.conf import settings

logger = structlog.get_logger(__name__)

_server: Any = None


class Loader(AppLoader):  # type: ignore[misc]
    """Loads the modules of a worker: before any of them defines a metric, it is settled where they are counted."""

    def init_worker(self) -> None:
        if not self.worker_initialized:
            begin()
        super().init_worker()


def begin() -> None:
    """Have this process and those that it forks count in a folder of their own, gone when this process ends.

    Always a new one: what another service's process, or an earlier run, counted is none of this worker's.
    """
    folder = tempfile.mkdtemp(prefix="analytics-worker-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a child that ends leaves what it counted
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    os.register_at_fork(after_in_child=_begin_in_child)


def _begin_in_child() -> None:
    """Open files of its own at once: the embedded beat closes all that it inherited, and would stumble over that later."""
    from .task_metrics import FORKED

    FORKED.inc()


class ServeMetrics(bootsteps.StartStopStep):  # type: ignore[misc]
    """Serves what the worker counted at `METRICS_PORT`."""

    requires = ("celery.worker.components:Pool",)  # its processes are there: they shall not hold the port

    def start(self, parent: Any) -> None:
        global _server
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        # Servers that come along are for this machine, and so is what stands on them.
        address = "127.0.0.1" if settings.EMBEDDED_SERVERS else "0.0.0.0"  # noqa: S104
        try:
            _server, _ = start_http_server(settings.METRICS_PORT, address, registry)
        except OSError as error:  # metrics are no reason not to work
            logger.error("metrics_not_served", port=settings.METRICS_PORT, error=str(error))

    def stop(self, parent: Any) -> None:
        if _server is not None:
            _server.shutdown()
            _server.server_close()

    terminate = stop


@worker_process_init.connect
def let_go_of_port(**kwargs: Any) -> None:
    """A process that is forked later would hold the port beyond the worker's end."""
    if _server is not None:
        _server.socket.close()
