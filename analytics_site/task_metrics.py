"""What Prometheus is told of Celery's tasks: counters of the worker, and when each last succeeded, wherever that was.

When a task last succeeded stands in Redis, since no process knows it of the others. Without Redis it is not told.
"""

import functools
import time
from collections.abc import Iterator
from typing import Any

import redis
import structlog
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.signals import task_failure, task_postrun, task_prerun, task_success
from django.conf import settings
from kombu.exceptions import ChannelError
from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from redis.exceptions import RedisError

from .celery import connected_broker

logger = structlog.get_logger(__name__)

RUNS = Counter("analytics_task_runs", "Runs of Celery tasks, by how they ended", ("task", "state"))
SECONDS = Histogram(
    "analytics_task_seconds",
    "How long runs of Celery tasks took",
    ("task",),
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800),
)
FORKED = Counter("analytics_worker_processes", "Processes that Celery workers have forked")
TIMEOUT = 0.5  # seconds that Redis has

_SUCCEEDED = "analytics:tasks:succeeded"  # a hash: task, seconds since 1970


@functools.lru_cache(maxsize=2)
def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)


@task_prerun.connect
def begin(task: Any, **kwargs: Any) -> None:
    task.request.began = time.perf_counter()


@task_postrun.connect
def count(task: Any, state: str | None, **kwargs: Any) -> None:
    RUNS.labels(task.name, (state or "UNKNOWN").lower()).inc()
    began = getattr(task.request, "began", None)
    if began is not None:
        SECONDS.labels(task.name).observe(time.perf_counter() - began)


@task_failure.connect
def count_lost(sender: Any, exception: BaseException, **kwargs: Any) -> None:
    """A run whose process died, or was killed for taking too long: it could not count itself."""
    if isinstance(exception, (WorkerLostError, TimeLimitExceeded)):
        RUNS.labels(sender.name, "lost").inc()


@task_success.connect
def remember_success(sender: Any, **kwargs: Any) -> None:
    try:
        _client(settings.REDIS_URL).hset(_SUCCEEDED, sender.name, str(time.time()))
    except (RedisError, OSError) as error:
        logger.warning("task_success_not_noted", error=str(error))


class TaskState:
    """Last successes of all workers, and what waits in the queues; collected by the web process's registry."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        succeeded = GaugeMetricFamily(
            "analytics_task_last_success_timestamp_seconds",
            "When a run of a task last succeeded, on any worker, in seconds since 1970",
            labels=("task",),
        )
        found: Any = _client(settings.REDIS_URL).hgetall(_SUCCEEDED)
        for task, at in found.items():
            succeeded.add_metric((task.decode(),), float(at))
        yield succeeded
        waiting = GaugeMetricFamily(
            "analytics_celery_queue_messages", "Tasks that wait in a queue for a worker", labels=("queue",)
        )
        with connected_broker() as broker:
            for queue in settings.CELERY_TASK_QUEUES:
                waiting.add_metric((queue,), _waiting(broker, queue))
        yield waiting


def _waiting(broker: Any, queue: str) -> int:
    """How many messages a queue holds. Redis has no queue that is empty, RabbitMQ none that nobody declared yet."""
    try:
        with broker.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
    except (ChannelError, *broker.channel_errors):
        return 0
