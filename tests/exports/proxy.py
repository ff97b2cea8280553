"""A TCP proxy for tests: a line that breaks when it is told to."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator


class Proxy:
    """Passes everything on to `upstream`, until told otherwise."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.largest: int | None = None  # bytes that a connection may send before it is cut
        self.cuts = 0
        self._upstream = upstream
        self._left: int | None = None  # bytes until the line goes dead
        self._dead_for = 0.0  # seconds
        self._dead_until = 0.0  # on the monotonic clock
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def die_after(self, size: int, seconds: float) -> None:
        """Once so many bytes more were sent, every connection is cut, and new ones are for so long."""
        with self._lock:
            self._left = size
            self._dead_for = seconds

    def close(self) -> None:
        self._listening.close()
        self._cut(set(self._open))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if time.monotonic() < self._dead_until:
                client.close()
                continue
            server = socket.create_connection(self._upstream)
            with self._lock:
                self._open |= {client, server}
            may_pass = self._limit({client, server})
            threading.Thread(target=self._pass, args=(client, server, may_pass), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, lambda size: True), daemon=True).start()

    def _limit(self, pair: set[socket.socket]) -> Callable[[int], bool]:
        sent = 0

        def may_pass(size: int) -> bool:
            nonlocal sent
            sent += size
            with self._lock:
                if self._left is not None:
                    self._left -= size
                    if self._left < 0:
                        self._left = None
                        self._dead_until = time.monotonic() + self._dead_for
                        pair.update(self._open)
                if (self.largest is None or sent <= self.largest) and time.monotonic() >= self._dead_until:
                    return True
                self.cuts += 1
            self._cut(pair)
            return False

        return may_pass

    def _cut(self, broken: set[socket.socket]) -> None:
        with self._lock:
            self._open -= broken
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _pass(self, source: socket.socket, target: socket.socket, may_pass: Callable[[int], bool]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not may_pass(len(data)):
                    return
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxied(upstream: tuple[str, int]) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
