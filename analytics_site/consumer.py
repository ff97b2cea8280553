"""The part of a Celery worker that talks to the broker."""

from celery.worker.consumer import Consumer


class PersistentConsumer(Consumer):  # type: ignore[misc]
    """One that outlives a Redis that goes away while tasks are under way.

    kombu 5.7 closes a lost connection twice. Where the first attempt breaks off, because the connection on which it waits for
    tasks is lost too, the second looks for what is gone, and Celery takes the AttributeError for the worker's end: it
    takes no more tasks, and does not end either. What was under way is then handed out again by Redis.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        self.connection.connection_errors = (*self.connection.connection_errors, AttributeError)
        super().on_connection_error_after_connected(exc)
