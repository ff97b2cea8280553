"""Readers inside a Celery worker: `celery -A analytics_site worker --read-stream -P solo`."""

import time
from typing import Any

import structlog
from celery import bootsteps
from celery.concurrency import prefork
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from .partitions import streams
from .reader import Reader
from .sharing import Share

logger = structlog.get_logger(__name__)

STOP_TIMEOUT = 7.0  # seconds for the open batches: with the end of Celery itself, the process has ended after 10


class ReadStream(bootsteps.StartStopStep):  # type: ignore[misc]
    """A thread per stream, beside the worker's own work; ends with the worker."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, read_stream: bool = False, **options: Any) -> None:
        super().__init__(parent, **options)
        self.enabled = read_stream
        if read_stream and issubclass(parent.pool_cls, prefork.TaskPool):
            # A child that is forked later would hold the reader's sockets, and with them its stream, beyond its end.
            raise ImproperlyConfigured("--read-stream is for a worker that forks no children: add -P solo")
        self.share = Share(settings.RABBITMQ_STREAM, streams())
        self.readers: list[Reader] = []

    def start(self, parent: Any) -> None:
        self.readers = [Reader(stream, self.share) for stream in streams()]
        if len(self.readers) > 1:  # of one stream there is nothing to share
            self.share.start()
        for reader in self.readers:
            reader.start()
        logger.info("stream_readers_started", streams=streams())

    def stop(self, parent: Any) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT
        for reader in self.readers:
            reader.stop()
        for reader in self.readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        self.share.stopping.set()  # last: until the streams are free, the others have to wait for their part
        self.readers = []

    terminate = stop
