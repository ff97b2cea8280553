"""A folder on disk that web and workers share. Its files are had through signed addresses of the service itself."""

import errno
import os
import uuid
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

    def put(self, parcel: Parcel) -> None:
        """A file becomes one of the folder's by being renamed: at once, whoever looks."""
        place = self.path(parcel.key)
        beside = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(parcel.path, beside)  # same disk: nothing is copied
            except OSError:
                _copy(parcel.path, beside)
            beside.replace(place)
        except OSError as error:
            raise Undeliverable(*told(error)) from error
        finally:
            beside.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        try:
            self.path(key).unlink(missing_ok=True)
        except OSError as error:
            raise Undeliverable(f"The file can't be deleted: {error.strerror}.", is_passing=True) from error

    def url(self, key: str, lifetime: timedelta) -> str:
        until = int((timezone.now() + lifetime).timestamp())
        return settings.PUBLIC_URL + reverse("export-file", args=[sign(key, until)])

    def uri(self, key: str) -> str:
        return f"folder:{key}"

    def path(self, key: str) -> Path:
        """Keys are made here, of ids; none leads out of the folder."""
        return self.folder / key


def sign(key: str, until: int) -> str:
    return signing.dumps([key, until], salt=_SALT)


def signed_key(token: str) -> str | None:
    """The key that a token is for; None where the token is not one of ours, was altered, or its time is over."""
    try:
        key, until = signing.loads(token, salt=_SALT)
    except (signing.BadSignature, ValueError):
        return None
    return key if timezone.now().timestamp() < until else None


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        while chunk := read.read(1024 * 1024):
            written.write(chunk)
        written.flush()
        os.fsync(written.fileno())


def told(error: OSError) -> tuple[str]:
    """What is wrong with the disk, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ("The disk that exports are written to is full: make room, then ask for the file again.",)
    return (f"The file can't be written: {error.strerror or error}.",)
