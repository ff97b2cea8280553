"""A folder on disk that web and workers share. Its files are had through signed addresses of the service itself."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.core import signing
from django.urls import reverse
from django.utils import timezone

from . import Parcel, Undeliverable

_SALT = "exports.delivery.folder"


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def staged(self, parcel: Parcel) -> Iterator[Callable[[], None]]:
        """Beside its place, under a name that no key has; a file is shown by being renamed."""
        place = self.path(parcel.key)
        beside = place.with_name(f".{uuid.uuid4().hex}")

        def show() -> None:
            try:
                beside.replace(place)
                _sync(place.parent)
            except OSError as error:
                raise Undeliverable(told(error)) from error

        try:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(parcel.path, beside)
            except OSError as error:
                raise Undeliverable(told(error)) from error
            yield show
        finally:
            beside.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        try:
            self.path(key).unlink(missing_ok=True)
        except OSError as error:
            raise Undeliverable(f"The file can't be deleted: {error.strerror}.", is_passing=True) from error

    def url(self, key: str, filename: str, lifetime: timedelta) -> str:
        until = (timezone.now() + lifetime).timestamp()
        return settings.PUBLIC_URL + reverse("export-file", args=[signing.dumps([key, filename, until], salt=_SALT)])

    def path(self, key: str) -> Path:
        """Keys are made here, of ids; none leads out of the folder."""
        return self.folder / key


def signed(token: str) -> tuple[str, str] | None:
    """The key and the name that a token is for; None where the token is not one of ours, was altered, or its time is over."""
    try:
        key, filename, until = signing.loads(token, salt=_SALT)
    except (signing.BadSignature, ValueError):
        return None
    return (key, filename) if timezone.now().timestamp() < until else None


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # one disk: nothing is copied
        return
    except OSError:
        shutil.copyfile(source, target)
    _sync(target)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def told(error: OSError) -> str:
    """What is wrong with the disk, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk that exports are written to is full. Make room there, then run the export again."
    return f"The file can't be written: {error.strerror or error}."
