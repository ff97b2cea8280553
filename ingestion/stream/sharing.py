"""Which partitions a worker reads, where several workers share them: at most its even part."""

import math
import threading
from collections.abc import Sequence

import structlog
from django.db import connection

from ingestion.locks import Lock, count_holders, hold_for_session

logger = structlog.get_logger(__name__)

LOOK_INTERVAL = 1.0  # seconds between looks how many workers there are


class Share(threading.Thread):
    """This worker's part of some streams. Workers see one another by a lock of the database that all of them share.

    No more than a hint: who reads a stream is settled by the stream's own lock.
    """

    def __init__(self, group: str, streams: Sequence[str]) -> None:
        super().__init__(name=f"share of {group}", daemon=True)
        self.group, self.streams = group, streams
        self.stopping = threading.Event()
        self._part = len(streams)
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                hold_for_session(Lock.STREAM_WORKER, self.group, shared=True)  # again and again: it counts up, no more
                workers = count_holders(Lock.STREAM_WORKER, self.group)
                part = math.ceil(len(self.streams) / max(1, workers))
                if part != self._part:
                    logger.info("stream_share", group=self.group, streams=part)
                self._part = part
            except Exception as error:  # whatever it is: without this thread no part would ever change
                logger.warning("stream_share_unknown", group=self.group, error=error)
                connection.close()
            self.stopping.wait(LOOK_INTERVAL)
        connection.close()

    def claim(self, stream: str) -> bool:
        """Whether this worker may try for a stream; `give_back` undoes it."""
        with self._lock:
            if len(self._claimed) >= self._part:
                return False
            self._claimed.add(stream)
            return True

    def give_back(self, stream: str) -> None:
        with self._lock:
            self._claimed.discard(stream)

    def is_too_much(self, stream: str) -> bool:
        """Whether this stream is for another worker to read."""
        with self._lock:
            return len(self._claimed) > self._part and stream == max(self._claimed)
