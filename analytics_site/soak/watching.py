"""What is seen while it runs: memory and processor time of each process, and what the service tells Prometheus."""

import contextlib
import http.client
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

import psutil

from .figures import Sample
from .plan import Clock

EVERY = 5.0  # seconds
TIMEOUT = 10.0  # seconds of a scrape: Prometheus's own
GAUGES = {
    "freshness": re.compile(r'^analytics_freshness_lag_across_orgs_seconds\{quantile="1.0"\} (\S+)$', re.MULTILINE),
    "stream_lag": re.compile(r"^analytics_stream_lag_seconds\{.*\} (\S+)$", re.MULTILINE),
    "stream_backlog": re.compile(r"^analytics_stream_backlog_messages\{.*\} (\S+)$", re.MULTILINE),
}
SHARING = "postgresql"  # whose processes share much: what is shared is not added up


class Watcher(threading.Thread):
    """Looks every few seconds until it is told to end.

    `mains` tells the main process of each kind. Its children have a memory each, but where they are told of `together`.
    """

    def __init__(
        self, mains: Callable[[], Mapping[str, int]], together: Collection[str], port: int, clock: Clock
    ) -> None:
        super().__init__(daemon=True)
        self.mains, self.together, self.port, self.clock = mains, together, port, clock
        self.samples: list[Sample] = []
        self.missed = 0  # scrapes without an answer
        self.gauges: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._first: dict[tuple[str, int], float] = {}
        self._last: dict[tuple[str, int], float] = {}
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(EVERY):
            for name, pid in self.mains().items():
                self._look(name, pid)
            self._scrape()

    def end(self) -> None:
        self._ended.set()
        self.join()

    def processor_seconds(self) -> dict[str, float]:
        """By kind; of a process that ended, up to the last look."""
        found: dict[str, float] = defaultdict(float)
        for (name, pid), seconds in self._last.items():
            found[name] += seconds - self._first[name, pid]
        return dict(found)

    def _look(self, name: str, pid: int) -> None:
        at = self.clock.now()
        try:
            main = psutil.Process(pid)
            family = [main, *sorted(main.children(recursive=True), key=lambda child: (child.create_time(), child.pid))]
        except psutil.NoSuchProcess:
            return
        apart: list[tuple[int, float]] = []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                times, memory = process.cpu_times(), process.memory_info()
                spent = times.user + times.system
                # What was born since is seen from its beginning.
                self._first.setdefault((name, process.pid), spent if at < 2 * EVERY else 0.0)
                self._last[name, process.pid] = spent
                shared = getattr(memory, "shared", 0) if name == SHARING else 0
                apart.append((process.pid, (memory.rss - shared) / 2**20))
        if name in self.together:
            self.samples.append(Sample(at, name, pid, sum(megabytes for _, megabytes in apart)))
            return
        for place, (child, megabytes) in enumerate(apart):
            self.samples.append(Sample(at, f"{name}/{place}" if place else name, child, megabytes))

    def _scrape(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            self.missed += 1
            return
        finally:
            connection.close()
        for name, pattern in GAUGES.items():
            if found := pattern.search(text):
                self.gauges[name].append((self.clock.now(), float(found[1])))
