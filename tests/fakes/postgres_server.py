"""A real PostgreSQL server, in a directory of its own, for as long as it is needed."""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "p@ss:w/rd"
_PASSWORD_IN_URL = "p%40ss%3Aw%2Frd"
_START_S = 60
_SETTINGS = {
    # What a test writes need not outlive the machine.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # Plans and timings do not change under a test's feet.
    "autovacuum": "off",
    "jit": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "timezone": "UTC",
}


def find_binaries() -> Path | None:
    """The directory of the newest server's programs."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    for program in sorted(debian, key=lambda path: float(path.parts[-3]), reverse=True):
        return program.parent
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found and shutil.which("initdb") else None


class PostgresServer:
    """A server that runs until ``stop``. Its role ``tao`` owns every database and is no superuser."""

    def __init__(self, binaries: Path, **settings: str) -> None:
        self.binaries = binaries
        self._own_settings = settings
        # Short, because a socket's path may have 107 characters.
        self.root = Path(tempfile.mkdtemp(prefix="tao-pg-"))
        self.port = 0
        self._owner = _unprivileged()
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            os.chown(self.root, self._owner.pw_uid, self._owner.pw_gid)
            self._initialise()
            self.start()
            self.admin(f"CREATE ROLE tao LOGIN PASSWORD '{PASSWORD}'")
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the server, and waits until it answers. A second start takes the same port."""
        for _ in range(5):
            self.port = self.port or _free_port()
            settings = {
                **_SETTINGS,
                **self._own_settings,
                "port": str(self.port),
                "unix_socket_directories": str(self.root),
            }
            options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            with (self.root / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [str(self.binaries / "postgres"), "-D", str(self.root / "data"), *options],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                    start_new_session=True, preexec_fn=_die_with_parent, **self._as_owner(),  # noqa: PLW1509
                )  # fmt: skip
            if self._answers():
                return
            self.port = 0  # another program may have taken it
        raise AssertionError((self.root / "log").read_text()[-4000:])

    def halt(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops the server: ``SIGINT`` breaks off what is open, and writes out the rest."""
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(_START_S)
            finally:
                self._process.kill()
                self._process.wait()
                self._process = None

    def stop(self) -> None:
        self.halt(signal.SIGQUIT)
        shutil.rmtree(self.root, ignore_errors=True)

    def fresh_url(self, *, options: str = "") -> str:
        """The URL of a new, empty database. ``options`` follow ``CREATE DATABASE``."""
        name = f"test_{next(self._numbers)}"
        self.admin(f"CREATE DATABASE {name} OWNER tao {options}")
        return f"postgresql://tao:{_PASSWORD_IN_URL}@127.0.0.1:{self.port}/{name}"

    def admin(self, statement: str, database: str = "postgres") -> str:
        """What a statement of the superuser prints, one line a row, its columns parted by ``|``."""
        done = subprocess.run(
            [str(self.binaries / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database,
             "-h", str(self.root), "-p", str(self.port), "-c", statement],
            capture_output=True, text=True, timeout=60, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _initialise(self) -> None:
        # A default order that is not that of the bytes shows where a statement relies on the latter.
        version = subprocess.run([self.binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
        has_icu = int("".join(c if c.isdigit() else " " for c in version.stdout).split()[0]) >= 15
        locale = ["--locale=C.UTF-8", *(["--locale-provider=icu", "--icu-locale=en"] if has_icu else [])]
        done = subprocess.run(
            [str(self.binaries / "initdb"), "-D", str(self.root / "data"), "-U", "postgres", "-E", "UTF8", *locale,
             "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"],
            capture_output=True, text=True, timeout=120, cwd="/", **self._as_owner(),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def _as_owner(self) -> dict:
        if os.geteuid() != 0:
            return {}
        return {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}

    def _answers(self) -> bool:
        assert self._process is not None
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", str(self.root), "-p", str(self.port), "-d", "postgres"]
        give_up_s = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < give_up_s:
            if subprocess.run(ready).returncode == 0:
                return True
            time.sleep(0.02)
        self.halt()
        return False


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """A server of one's own, for tests that stop or restart it. Skips where there are no binaries."""
    binaries = find_binaries()
    if binaries is None:
        import pytest

        pytest.skip("needs PostgreSQL's server programs (postgres, initdb)")
    server = PostgresServer(binaries)
    try:
        yield server
    finally:
        server.stop()


def _unprivileged() -> pwd.struct_passwd:
    """Who the server runs as: it refuses to run as root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("neither postgres nor nobody is a user of this system")


def _die_with_parent() -> None:
    # A test run that is killed leaves no server behind.
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
