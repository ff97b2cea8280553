"""A bucket of S3-compatible storage. Its files are had through addresses that the storage itself checks.

A file of more than a part is uploaded in parts, which nobody sees until the last is there. Where an upload fails, or is
stopped, its parts are thrown away again. What a worker leaves that is killed, or never reaches the storage again, only the
bucket's own lifecycle rule `AbortIncompleteMultipartUpload` can take away.

A process that has talked to a storage must not be forked to talk to it again: obstore's threads don't come along, and it waits
for them without end. Workers fork before they do.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings
from django.utils.http import content_disposition_header

from orgs import limits

from . import Parcel, Undeliverable

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential, S3Store

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([\w.]+)</Code>|\(code: ([\w.]+)\)")  # the second is of one key among those to be deleted
_OF_MACHINE = re.compile(r"performing \w+ \S+/latest/(?:api|meta-data)/")  # a cloud machine is asked for its role

_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"}
_PASSING = {"SlowDown", "RequestTimeout", "OperationAborted", "NoSuchUpload"}  # with statuses below 500


class BucketStore:
    def __init__(self, bucket: str) -> None:
        try:
            import obstore
        except ImportError as error:
            raise Undeliverable(
                f"Files can't be brought to bucket “{bucket}”, since obstore is not installed:"
                " it comes with the optional dependencies `exports` of analytics-service."
            ) from error
        self.bucket = bucket
        self._s3 = obstore

    @contextmanager
    def staged(self, parcel: Parcel) -> Iterator[Callable[[], None]]:
        """Its parts are with the storage, all but the last; with that the file is there.

        Where the answer to that last request is lost, it may be there although it was not told; the next try replaces it.
        """
        with self._told():
            writer = self._s3.open_writer(
                self._store(),
                parcel.key,
                attributes={
                    "Content-Type": parcel.media_type,
                    "Content-Disposition": content_disposition_header(True, parcel.filename) or "attachment",
                },
                tags=dict(parcel.tags),
                buffer_size=limits.EXPORT_PART_BYTES,
                max_concurrency=limits.EXPORT_PARTS_AT_ONCE,
            )
        is_open = True

        def show() -> None:
            nonlocal is_open
            is_open = False
            with self._told():
                writer.close()  # aborts by itself where it fails

        try:
            with self._told():
                for chunk in _chunks(parcel.path):
                    writer.write(chunk)
            yield show
        finally:
            if is_open:  # leaving it with an error is the one way to abort; that this fails too is not told
                with suppress(self._s3.exceptions.BaseError, OSError):
                    writer.__exit__(Undeliverable, Undeliverable("not shown"), None)

    def delete(self, key: str) -> None:
        """Where the whole bucket is gone, so is the file."""
        try:
            self._s3.delete(self._store(), key)
        except (self._s3.exceptions.BaseError, OSError) as error:
            if _code(str(error)) != "NoSuchBucket":
                raise self._undeliverable(str(error)) from error

    def url(self, key: str, filename: str, lifetime: timedelta) -> str:
        """Signed here, without asking the storage, which knows the name already. With a role's credentials it may end earlier."""
        with self._told():
            return self._s3.sign(self._store(), "GET", key, lifetime)

    def _store(self) -> "S3Store":
        """Made anew each time: settings and limits hold as they are now."""
        from obstore.store import S3Store

        endpoint: str = settings.S3_ENDPOINT
        config: S3Config = {
            "region": settings.S3_REGION,
            # A certificate can't name a bucket with dots in front of AWS's own name.
            "virtual_hosted_style_request": not endpoint and "." not in self.bucket,
        }
        if endpoint:
            config["endpoint"] = endpoint
        if settings.S3_ENCRYPTION != "none":
            config["server_side_encryption"] = settings.S3_ENCRYPTION
        return S3Store(
            self.bucket,
            config=config,
            # As a provider: else a session token of the environment would be sent along.
            credential_provider=_own_credentials if settings.S3_ACCESS_KEY or settings.S3_SECRET_KEY else None,
            client_options={"allow_http": endpoint.startswith("http://"), "timeout": limits.S3_REQUEST_TIMEOUT},
            retry_config={
                "max_retries": limits.S3_MAX_RETRIES,
                "retry_timeout": limits.S3_RETRY_TIMEOUT,
                "backoff": {"max_backoff": limits.S3_MAX_BACKOFF},
            },
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The storage's errors in words. A writer's last ones come as `OSError`, so that they are told by their text."""
        try:
            yield
        except (self._s3.exceptions.BaseError, OSError) as error:
            raise self._undeliverable(str(error)) from error

    def _undeliverable(self, text: str) -> Undeliverable:
        found = _STATUS.search(text)
        status = int(found[1]) if found else 0
        code = _code(text)
        bucket = f"bucket “{self.bucket}”"
        storage = settings.S3_ENDPOINT or "AWS"
        is_passing = False

        if _OF_MACHINE.search(text):
            why = (
                f"There are no credentials for {bucket}: set S3_ACCESS_KEY and S3_SECRET_KEY,"
                " or give this machine a role that may write there."
            )
        elif code == "NoSuchBucket":
            why = f"There is no {bucket} at {storage}: create it, or name another in S3_BUCKET."
        elif code in _CREDENTIALS or status == 401:
            why = (
                f"The credentials for {bucket} are not valid at {storage}: correct S3_ACCESS_KEY and S3_SECRET_KEY,"
                " or renew those of the machine's role."
            )
        elif code in _REGION or "Received redirect without" in text:
            why = f"The region of {bucket} is another than “{settings.S3_REGION}”: correct S3_REGION."
        elif code == "RequestTimeTooSkewed":
            why = f"The storage of {bucket} has another time than this machine: set its clock."
        elif code == "NotImplemented":
            why = (
                f"The storage of {bucket} lacks something that is asked of it: it has to know tags of objects,"
                f" and encryption (S3_ENCRYPTION is “{settings.S3_ENCRYPTION}”; none asks for none)."
            )
        elif status == 403 or code == "AccessDenied":
            why = (
                f"Access to {bucket} is denied: allow its credentials s3:PutObject, s3:PutObjectTagging, s3:GetObject,"
                " s3:DeleteObject and s3:AbortMultipartUpload, and the use of its key where it is encrypted with one."
            )
        elif status >= 500 or status == 429 or code in _PASSING or (code and not status):
            why = f"The storage of {bucket} has a failure ({code or f'HTTP {status}'}): try again later."
            is_passing = True
        elif code:
            why = f"The storage refuses what is asked of {bucket} ({code}): look the code up in its documentation."
        elif status:
            why = (
                f"What answers for {bucket} at {storage} gives no reason that S3 would give (HTTP {status}):"
                " see that S3_ENDPOINT is right."
            )
        else:
            why = (
                f"The storage of {bucket} at {storage} can't be reached, or the connection broke:"
                " see that it runs and that S3_ENDPOINT is right, then try again."
            )
            is_passing = True
        return Undeliverable(why, is_passing=is_passing)


def _code(text: str) -> str:
    """What S3 calls an error."""
    found = _CODE.search(text)
    return (found[1] or found[2]) if found else ""


def _own_credentials() -> "S3Credential":
    return {
        "access_key_id": settings.S3_ACCESS_KEY,
        "secret_access_key": settings.S3_SECRET_KEY,
        "expires_at": None,
    }


def _chunks(path: Path) -> Iterator[bytes]:
    """The file piece by piece, that the disk fails is no fault of the storage."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(limits.EXPORT_PART_BYTES):
                yield chunk
    except OSError as error:
        raise Undeliverable(
            f"The finished file can't be read from this machine's disk: {error.strerror or error}.", is_passing=True
        ) from error
