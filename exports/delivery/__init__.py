"""Where finished files go, and how they are had again: a bucket of S3-compatible storage, or a folder of this service's own.

A file is there whole or not at all: nobody ever sees a part of one.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from django.conf import settings


class Undeliverable(Exception):
    """A file that can't be brought where it should go; the text says why, and what to do. It holds no secret.

    `is_passing`: trying again later may help.
    """

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


@dataclass(frozen=True)
class Parcel:
    """A file that is ready, and what it is called where it goes.

    `key` is its path there, `filename` what a browser saves it as; `tags` are kept beside it where the storage has tags.
    """

    path: Path
    key: str
    media_type: str
    filename: str
    tags: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """All may raise `Undeliverable`."""

    def staged(self, parcel: Parcel) -> AbstractContextManager[Callable[[], None]]:
        """Bring a file there unseen. What is yielded shows it at once, in the place of one that has its key already.

        A block that ends without that leaves nothing there.
        """

    def delete(self, key: str) -> None:
        """Take a file away. One that is not there is fine."""

    def url(self, key: str, filename: str, lifetime: timedelta) -> str:
        """An address at which anybody can have the file for so long; a browser saves it under a name."""


def store_of(bucket: str) -> Store:
    """The store that a job names: a bucket, or, where that is empty, the folder."""
    if bucket:
        from .s3 import BucketStore

        return BucketStore(bucket)
    from .folder import FolderStore

    return FolderStore(Path(settings.EXPORT_FOLDER))
