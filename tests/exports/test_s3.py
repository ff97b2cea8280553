"""Files in a bucket, with a real S3 API to talk to (moto's server), and lines to it that break.

moto takes any signature unless it is told to check them, and never looks at when a signed address ends.
"""

import errno
import hashlib
import http.server
import io
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from django.conf import LazySettings
from django.test import Client
from django.utils import timezone
from moto.server import ThreadedMotoServer

from exports import jobs, making, upkeep
from exports.delivery import Parcel, Store, Undeliverable, store_of
from exports.delivery.s3 import BucketStore
from exports.models import ExportJob, State
from orgs import limits
from usage.rollups import roll_up
from usage.windows import DAY, Window

from ..factories import NOON, ingest, make_event, make_org, make_user
from .proxy import proxied

BUCKET = "exports-of-tests"
KEY = "orgs/7/jobs/12/usage.csv"
SECRET = "a-secret-that-nobody-sees/+="
MB = 1024 * 1024
LARGE = 12 * MB + 17  # three parts


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, int]]:
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # it logs each request, and each line that was cut
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def endpoint(moto: tuple[str, int]) -> str:
    return f"http://{moto[0]}:{moto[1]}"


def _client(service: str, endpoint: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="of-tests",
        aws_secret_access_key="of-tests",
    )


@pytest.fixture
def s3(endpoint: str, settings: LazySettings) -> Any:
    """What is really there, asked without the code under test; the bucket is empty."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST"))
    client = _client("s3", endpoint)
    client.create_bucket(Bucket=BUCKET)
    settings.S3_ENDPOINT = endpoint
    settings.S3_REGION = "us-east-1"
    settings.S3_ACCESS_KEY = "a-key"
    settings.S3_SECRET_KEY = SECRET
    settings.S3_ENCRYPTION = "AES256"
    return client


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "S3_REQUEST_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(limits, "S3_RETRY_TIMEOUT", timedelta(seconds=0.2))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    path.write_bytes(b"org,calls\n7,12\n")
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE))
    return path


def parcel(path: Path, key: str = KEY) -> Parcel:
    return Parcel(path, key, "text/csv; charset=utf-8", "usage 2026-11.csv", {"org": "7", "kind": "usage"})


def put(store: Store, parcel: Parcel) -> None:
    with store.staged(parcel) as show:
        show()


def keys(s3: Any) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def unfinished(s3: Any) -> list[str]:
    return [one["Key"] for one in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


def refused(put_or_delete: Any, *arguments: object) -> Undeliverable:
    """Why; and whatever is written down about it, the secret and the storage's XML are not in it."""
    with pytest.raises(Undeliverable) as caught:
        put_or_delete(*arguments)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "<" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert BUCKET in str(caught.value)
    return caught.value


# ── What arrives ─────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("size", [0, 1, limits.EXPORT_PART_BYTES, limits.EXPORT_PART_BYTES + 1, LARGE])
def test_a_file_arrives_byte_for_byte_with_all_that_is_said_of_it(s3: Any, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    put(BucketStore(BUCKET), parcel(tmp_path / "file"))
    there = s3.get_object(Bucket=BUCKET, Key=KEY)
    assert there["Body"].read() == content
    assert there["ContentType"] == "text/csv; charset=utf-8"
    assert there["ContentDisposition"] == 'attachment; filename="usage 2026-11.csv"'
    assert there["ServerSideEncryption"] == "AES256"
    tags = s3.get_object_tagging(Bucket=BUCKET, Key=KEY)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"org": "7", "kind": "usage"}
    assert unfinished(s3) == []


def test_a_large_file_comes_in_parts(s3: Any, large: Path) -> None:
    put(BucketStore(BUCKET), parcel(large))
    assert s3.head_object(Bucket=BUCKET, Key=KEY)["ETag"].endswith('-3"')


@pytest.mark.parametrize(("asked", "got"), [("aws:kms", "aws:kms"), ("none", None)])
@pytest.mark.parametrize("size", [10, LARGE])
def test_encryption_is_what_the_settings_say(
    s3: Any, settings: LazySettings, tmp_path: Path, asked: str, got: str | None, size: int
) -> None:
    settings.S3_ENCRYPTION = asked
    (tmp_path / "file").write_bytes(bytes(size))
    put(BucketStore(BUCKET), parcel(tmp_path / "file"))
    assert s3.head_object(Bucket=BUCKET, Key=KEY).get("ServerSideEncryption") == got


def test_a_name_that_is_not_ascii_is_kept(s3: Any, file: Path) -> None:
    put(BucketStore(BUCKET), Parcel(file, KEY, "text/csv", "Küche „1“.csv"))
    assert s3.head_object(Bucket=BUCKET, Key=KEY)["ContentDisposition"].startswith(
        "attachment; filename*=utf-8''K%C3%BC"
    )


def test_a_file_takes_the_place_of_one_that_has_its_key(s3: Any, file: Path, large: Path) -> None:
    store = BucketStore(BUCKET)
    put(store, parcel(large))
    put(store, parcel(file))
    assert s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read() == file.read_bytes()


def test_a_file_is_deleted_and_one_that_is_not_there_may_be_too(s3: Any, file: Path) -> None:
    store = BucketStore(BUCKET)
    put(store, parcel(file))
    put(store, parcel(file, key="another"))
    store.delete(KEY)
    store.delete(KEY)
    assert keys(s3) == ["another"]


def test_a_job_that_names_a_bucket_gets_this_store(s3: Any) -> None:
    assert isinstance(store_of(BUCKET), BucketStore)


# ── Addresses ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_anybody_downloads_from_a_signed_address(s3: Any, large: Path) -> None:
    store = BucketStore(BUCKET)
    put(store, parcel(large))
    with urllib.request.urlopen(store.url(KEY, "file.csv", timedelta(hours=1))) as answer:
        assert answer.read() == large.read_bytes()
        assert answer.headers["Content-Disposition"] == 'attachment; filename="usage 2026-11.csv"'


def test_an_address_says_when_it_ends(s3: Any) -> None:
    """moto hands out a file after that as well, so that what S3 goes by is read instead."""
    url = BucketStore(BUCKET).url(KEY, "file.csv", timedelta(minutes=5))
    said = parse_qs(urlsplit(url).query)
    assert said["X-Amz-Expires"] == ["300"]
    assert said["X-Amz-Signature"]
    assert SECRET not in url


def test_addresses_at_aws_name_the_bucket_first_unless_it_has_dots(s3: Any, settings: LazySettings) -> None:
    settings.S3_ENDPOINT = ""
    settings.S3_REGION = "eu-central-1"
    hour = timedelta(hours=1)
    assert BucketStore("plain").url("k", "file.csv", hour).startswith("https://plain.s3.eu-central-1.amazonaws.com/k?")
    assert (
        BucketStore("with.dots")
        .url("k", "file.csv", hour)
        .startswith("https://s3.eu-central-1.amazonaws.com/with.dots/k?")
    )


def test_a_session_of_the_environment_is_not_mixed_with_the_settings_keys(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-another")
    assert "of-another" not in BucketStore(BUCKET).url(KEY, "file.csv", timedelta(hours=1))


def test_without_keys_those_of_the_environment_are_used(
    s3: Any, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.S3_ACCESS_KEY = settings.S3_SECRET_KEY = ""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-machine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert "of-the-machine" in BucketStore(BUCKET).url(KEY, "file.csv", timedelta(hours=1))


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────
def test_a_bucket_that_is_missing_is_named(s3: Any, endpoint: str, file: Path, large: Path) -> None:
    s3.delete_bucket(Bucket=BUCKET)
    store = BucketStore(BUCKET)
    store.delete(KEY)  # gone with its bucket
    for error in (refused(put, store, parcel(file)), refused(put, store, parcel(large))):
        assert f"There is no bucket “{BUCKET}” at {endpoint}" in str(error)
        assert not error.is_passing


@pytest.fixture
def user(s3: Any, endpoint: str) -> Iterator[dict[str, str]]:
    """From here on moto checks signatures and rights; this user has none but is known."""
    iam = _client("iam", endpoint)
    iam.create_user(UserName="reader")
    made = iam.create_access_key(UserName="reader")["AccessKey"]
    iam.create_user(UserName="writer")
    allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    iam.put_user_policy(
        UserName="writer",
        PolicyName="all",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allowed]}),
    )
    writer = iam.create_access_key(UserName="writer")["AccessKey"]

    def check_after(requests: str) -> None:
        plain = {"Content-Type": "text/plain"}  # else it is taken for a form
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset-auth", requests.encode(), plain))

    check_after("0")
    yield {
        "key": made["AccessKeyId"],
        "secret": made["SecretAccessKey"],
        "writer_key": writer["AccessKeyId"],
        "writer_secret": writer["SecretAccessKey"],
    }
    check_after("inf")


def test_who_may_write_does(s3: Any, user: dict[str, str], settings: LazySettings, file: Path, large: Path) -> None:
    settings.S3_ACCESS_KEY, settings.S3_SECRET_KEY = user["writer_key"], user["writer_secret"]
    store = BucketStore(BUCKET)
    put(store, parcel(file))
    put(store, parcel(large))
    store.delete(KEY)


@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_wrong_credentials_are_told_as_such(
    s3: Any, user: dict[str, str], settings: LazySettings, file: Path, large: Path, wrong: str
) -> None:
    if wrong == "secret":
        settings.S3_ACCESS_KEY = user["key"]
    store = BucketStore(BUCKET)
    for error in (refused(put, store, parcel(file)), refused(put, store, parcel(large)), refused(store.delete, KEY)):
        assert "correct S3_ACCESS_KEY and S3_SECRET_KEY" in str(error)
        assert not error.is_passing


def test_who_may_not_write_is_told_what_to_allow(
    s3: Any, user: dict[str, str], settings: LazySettings, file: Path, large: Path
) -> None:
    settings.S3_ACCESS_KEY, settings.S3_SECRET_KEY = user["key"], user["secret"]
    store = BucketStore(BUCKET)
    for error in (refused(put, store, parcel(file)), refused(put, store, parcel(large)), refused(store.delete, KEY)):
        assert f"Access to bucket “{BUCKET}” is denied" in str(error)
        assert "s3:PutObject" in str(error)
        assert not error.is_passing


def test_a_machine_without_role_is_told_where_keys_go(
    s3: Any, settings: LazySettings, file: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    settings.S3_ACCESS_KEY = settings.S3_SECRET_KEY = ""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with closed_port() as nothing:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", nothing)
        store = BucketStore(BUCKET)
        for error in (refused(put, store, parcel(file)), refused(store.url, KEY, "file.csv", timedelta(hours=1))):
            assert "There are no credentials" in str(error)
            assert not error.is_passing


def test_without_obstore_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert "optional dependencies `exports` of analytics-service" in str(refused(BucketStore, BUCKET))


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """A storage that has one answer to everything, for what moto never says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>Long</Message></Error>" if code else ""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_PUT(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "words", "is_passing"),
    [
        (500, "InternalError", "a failure (InternalError): try again later", True),
        (503, "SlowDown", "a failure (SlowDown): try again later", True),
        (502, "", "a failure (HTTP 502): try again later", True),
        (429, "", "a failure (HTTP 429): try again later", True),
        (400, "RequestTimeout", "a failure (RequestTimeout): try again later", True),
        (400, "ExpiredToken", "renew those of the machine's role", False),
        (400, "AuthorizationHeaderMalformed", "correct S3_REGION", False),
        (301, "PermanentRedirect", "correct S3_REGION", False),
        (403, "RequestTimeTooSkewed", "set its clock", False),
        (501, "NotImplemented", "encryption (S3_ENCRYPTION is “AES256”", False),
        (403, "", "is denied", False),
        (400, "EntityTooLarge", "(EntityTooLarge): look the code up", False),
        (404, "", "see that S3_ENDPOINT is right", False),
    ],
)
def test_what_a_storage_answers_is_told_in_words(
    s3: Any,
    settings: LazySettings,
    file: Path,
    large: Path,
    impatient: None,
    status: int,
    code: str,
    words: str,
    is_passing: bool,
) -> None:
    with answering(status, code) as url:
        settings.S3_ENDPOINT = url
        store = BucketStore(BUCKET)
        for error in (
            refused(put, store, parcel(file)),
            refused(put, store, parcel(large)),
            refused(store.delete, KEY),
        ):
            assert words in str(error)
            assert error.is_passing is is_passing


# ── Lines that break ─────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def closed_port() -> Iterator[str]:
    """Held, so that nobody else gets it; nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_a_storage_that_refuses_connections_may_come_back(
    s3: Any, settings: LazySettings, file: Path, large: Path, impatient: None
) -> None:
    with closed_port() as url:
        settings.S3_ENDPOINT = url
        store = BucketStore(BUCKET)
        for error in (
            refused(put, store, parcel(file)),
            refused(put, store, parcel(large)),
            refused(store.delete, KEY),
        ):
            assert f"at {url} can't be reached" in str(error)
            assert error.is_passing


def test_a_storage_that_never_answers_is_given_up(
    s3: Any, settings: LazySettings, file: Path, large: Path, impatient: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.S3_ENDPOINT = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = BucketStore(BUCKET)
        began = time.monotonic()
        for error in (
            refused(put, store, parcel(file)),
            refused(put, store, parcel(large)),
            refused(store.delete, KEY),
        ):
            assert "can't be reached" in str(error)
            assert error.is_passing
        assert time.monotonic() - began < 9  # three times a try and one more, with room


def test_a_line_that_breaks_for_a_moment_stops_nothing(
    s3: Any, moto: tuple[str, int], settings: LazySettings, large: Path
) -> None:
    with proxied(moto) as proxy:
        settings.S3_ENDPOINT = proxy.url
        proxy.die_after(7 * MB, seconds=0.3)
        put(BucketStore(BUCKET), parcel(large))
        assert proxy.cuts
    assert s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read() == large.read_bytes()
    assert unfinished(s3) == []


@pytest.mark.parametrize("parts", [2, 9])
def test_where_parts_are_lost_on_their_way_nothing_stays_behind(
    s3: Any, moto: tuple[str, int], settings: LazySettings, tmp_path: Path, impatient: None, parts: int
) -> None:
    """Small requests get through, so that the upload is begun, and aborted. Two are noticed as it ends, nine while it goes on."""
    (tmp_path / "file").write_bytes(bytes(parts * limits.EXPORT_PART_BYTES - 1))
    with proxied(moto) as proxy:
        settings.S3_ENDPOINT = proxy.url
        proxy.largest = MB
        error = refused(put, BucketStore(BUCKET), parcel(tmp_path / "file"))
        assert proxy.cuts
    assert error.is_passing
    assert "the connection broke" in str(error)
    assert keys(s3) == []
    assert unfinished(s3) == []


def test_where_an_upload_fails_the_file_that_was_there_stays(
    s3: Any, moto: tuple[str, int], settings: LazySettings, file: Path, large: Path, impatient: None
) -> None:
    put(BucketStore(BUCKET), parcel(file))
    with proxied(moto) as proxy:
        settings.S3_ENDPOINT = proxy.url
        proxy.largest = MB
        refused(put, BucketStore(BUCKET), parcel(large))
    assert s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read() == file.read_bytes()
    assert unfinished(s3) == []


def test_where_the_line_stays_dead_nobody_sees_a_part(
    s3: Any, moto: tuple[str, int], settings: LazySettings, large: Path, impatient: None
) -> None:
    with proxied(moto) as proxy:
        settings.S3_ENDPOINT = proxy.url
        proxy.die_after(7 * MB, seconds=600)
        error = refused(put, BucketStore(BUCKET), parcel(large))
    assert error.is_passing
    assert keys(s3) == []
    with pytest.raises(s3.exceptions.ClientError, match="404"):
        s3.head_object(Bucket=BUCKET, Key=KEY)
    # Nobody can abort through a dead line: what remains are parts that only the bucket's lifecycle rule takes away.
    assert unfinished(s3) == [KEY]


class _Failing(PosixPath):
    """A file whose reading ends with an error after two parts."""

    error: BaseException

    def open(self, *arguments: Any, **options: Any) -> Any:
        error = self.error

        class File(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() >= 2 * limits.EXPORT_PART_BYTES:
                    raise error
                return super().read(size)

        return File(bytes(LARGE))


def test_where_the_disk_fails_in_the_middle_nothing_stays_behind(s3: Any) -> None:
    path = _Failing("failing")
    path.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(Undeliverable, match="can't be read from this machine's disk: Input/output error") as caught:
        put(BucketStore(BUCKET), parcel(path))
    assert caught.value.is_passing
    assert keys(s3) == []
    assert unfinished(s3) == []


def test_where_a_worker_is_stopped_in_the_middle_nothing_stays_behind(s3: Any) -> None:
    path = _Failing("stopped")
    path.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        put(BucketStore(BUCKET), parcel(path))
    assert keys(s3) == []
    assert unfinished(s3) == []


def test_a_file_that_is_gone_is_told_as_the_disks_fault(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(Undeliverable, match="can't be read from this machine's disk: No such file"):
        put(BucketStore(BUCKET), parcel(tmp_path / "gone"))
    assert keys(s3) == []


@pytest.mark.parametrize("name", ["file", "large"])
def test_what_was_brought_and_not_shown_is_not_there(s3: Any, name: str, request: pytest.FixtureRequest) -> None:
    with BucketStore(BUCKET).staged(parcel(request.getfixturevalue(name))):
        assert keys(s3) == []
    assert (keys(s3), unfinished(s3)) == ([], [])


# ── Jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def job(s3: Any, folder: Path, settings: LazySettings, transactional_db: None) -> ExportJob:
    """A job whose file is to go into the bucket."""
    settings.S3_BUCKET = BUCKET
    org = make_org()
    ingest([make_event(org)])
    roll_up()
    return jobs.ask(jobs.Wanted(org=org, window=Window(NOON - DAY, NOON + DAY)), "user:fin@example.com")


def attempted(job: ExportJob) -> ExportJob:
    """Once, without waiting for when it is due."""
    ExportJob.objects.update(not_before=timezone.now())
    making.attempt(str(job.pk))
    job.refresh_from_db()
    return job


def test_a_job_puts_file_and_manifest_into_the_bucket_with_tags_and_encryption(s3: Any, job: ExportJob) -> None:
    assert attempted(job).status == State.SUCCEEDED
    assert keys(s3) == [f"analytics/exports/{job.org_id}/{job.pk}.csv", job.manifest_key]
    tags = {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(Bucket=BUCKET, Key=job.key)["TagSet"]}
    assert tags.keys() == {"org", "job", "generated"}
    assert (tags["org"], tags["job"]) == (str(job.org_id), str(job.pk))
    found = s3.get_object(Bucket=BUCKET, Key=job.key)
    assert found["ServerSideEncryption"] == "AES256"
    assert job.filename in found["ContentDisposition"]
    content = found["Body"].read()
    assert hashlib.sha256(content).hexdigest() == job.checksum
    manifest = json.loads(s3.get_object(Bucket=BUCKET, Key=job.manifest_key)["Body"].read())
    assert manifest["checksum"]["value"] == job.checksum


def test_a_download_leads_to_the_bucket_and_an_expired_file_is_deleted_there(s3: Any, job: ExportJob) -> None:
    attempted(job)
    client = Client()
    client.force_login(make_user(org=job.org))
    address = f"/analytics/v1/orgs/{job.org_id}/exports/{job.pk}"
    assert client.get(address).json()["outputUri"] == f"s3://{BUCKET}/{job.key}"
    location = client.get(f"{address}/download")["Location"]
    with urllib.request.urlopen(location) as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == job.checksum
    assert int(parse_qs(urlsplit(location).query)["X-Amz-Expires"][0]) == 24 * 3600
    assert job.expires_at is not None
    upkeep.expire(job.expires_at)
    assert keys(s3) == []
    job.refresh_from_db()
    assert job.status == State.EXPIRED


def test_a_bucket_that_is_missing_fails_the_job_at_once_and_says_so(s3: Any, job: ExportJob) -> None:
    s3.delete_bucket(Bucket=BUCKET)
    assert attempted(job).status == State.FAILED
    assert job.error.startswith(f"There is no bucket “{BUCKET}” at http://127.0.0.1:")


@pytest.mark.usefixtures("impatient")
def test_a_storage_that_is_away_is_tried_again_and_then_the_file_is_there_once(
    s3: Any, job: ExportJob, endpoint: str, settings: LazySettings, folder: Path
) -> None:
    settings.S3_ENDPOINT = "http://127.0.0.1:1"
    assert (attempted(job).status, job.failures) == (State.PENDING, 1)
    assert "can't be reached" in job.error
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    settings.S3_ENDPOINT = endpoint
    assert (attempted(job).status, job.error, job.attempts) == (State.SUCCEEDED, "", 2)
    assert keys(s3) == [job.key, job.manifest_key]


@pytest.mark.usefixtures("impatient")
def test_a_line_that_breaks_in_the_middle_leaves_nothing_half_visible(
    s3: Any, job: ExportJob, moto: tuple[str, int], settings: LazySettings
) -> None:
    with proxied(moto) as proxy:
        settings.S3_ENDPOINT = proxy.url
        proxy.largest = 1500  # the file gets through, its manifest does not
        assert attempted(job).status == State.PENDING
        assert proxy.cuts
        assert (keys(s3), unfinished(s3)) == ([], [])
        proxy.largest = None
        assert attempted(job).status == State.SUCCEEDED
    assert keys(s3) == [job.key, job.manifest_key]
