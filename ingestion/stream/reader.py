"""Who reads a stream: a thread that waits for its turn, reads, and begins anew after whatever went wrong."""

import threading
from contextlib import suppress

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from ingestion.metrics import STREAM_RECONNECTS
from ingestion.models import StreamReader

from .batching import Batching
from .connecting import declare
from .feed import Feed
from .looking import bounds_of
from .position import Position, Superseded, let_go, take_over
from .sharing import Share

logger = structlog.get_logger(__name__)

RETRY_AFTER = 1.0  # seconds between looks whether the stream's reader is gone, or a server is back
SECOND_LOOK_AFTER = 3.0  # seconds, at a stream that ends before what was read of it


class Reader(threading.Thread):
    """One stream, for as long as the process lives. Waits while another process reads it; outlives both servers."""

    def __init__(self, stream: str, share: Share) -> None:
        super().__init__(name=f"reader {stream}", daemon=True)
        self.stream, self.share = stream, share
        self.stopping = threading.Event()

    def stop(self) -> None:
        """The open batch is committed, then the thread ends."""
        self.stopping.set()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                position = take_over(self.stream) if self.share.claim(self.stream) else None
                if position is not None:
                    logger.info("stream_taken", stream=self.stream, offset=position.offset)
                    self._read_from(position)
            except Superseded:
                logger.warning("stream_superseded", stream=self.stream)
            except Exception as error:  # whatever it is: a thread that ended would read nothing, and say nothing
                let_go()  # the session may be what broke; what follows is written on another
                STREAM_RECONNECTS.labels(self.stream).inc()
                logger.warning("stream_interrupted", stream=self.stream, error=error)
                self._note_error(error)
            finally:
                let_go()
                self.share.give_back(self.stream)
            self.stopping.wait(RETRY_AFTER)

    def _read_from(self, position: Position) -> None:
        self._compare(position)
        feed = Feed(settings.RABBITMQ_URL, self.stream, settings.RABBITMQ_CONSUMER)
        try:
            # Two batches of messages with one event each: the next comes in while one commits.
            feed.start(position.next_offset, prefetch=2 * settings.INGESTION_BATCH_SIZE)
            Batching(feed, position).run(self._is_over)
        finally:
            feed.close()

    def _compare(self, position: Position) -> None:
        """Whether the stream is there, and still holds what comes next."""
        is_new = declare(settings.RABBITMQ_URL, self.stream)
        if position.offset is None:
            return
        begin, end = (0, 0) if is_new else bounds_of(settings.RABBITMQ_URL, self.stream)
        if end < position.next_offset and not is_new:  # a replica may lag; to begin anew is dear, and is not undone
            self.stopping.wait(SECOND_LOOK_AFTER)
            begin, end = bounds_of(settings.RABBITMQ_URL, self.stream)
        position.begin(begin, end)

    def _is_over(self) -> bool:
        return self.stopping.is_set() or self.share.is_too_much(self.stream)

    def _note_error(self, error: Exception) -> None:
        with suppress(DatabaseError, InterfaceError):
            StreamReader.objects.filter(pk=self.stream).update(
                last_error=repr(error)[:500], last_error_at=timezone.now()
            )
