"""Bodies that nobody is going to read."""

from typing import Any

from .limits import MAX_DRAINED_BYTES

_PIECE = 64 * 1024


def drain(stream: Any) -> None:
    """Read a body and throw it away: somebody who is still sending takes an answer before the end for a broken line, and
    sends it all again."""
    for _ in range(MAX_DRAINED_BYTES // _PIECE):
        if not stream.read(_PIECE):
            break
