"""The ledger in one SQLite file."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tao_flows.errors import LedgerError
from tao_flows.ledger import codec, schema
from tao_flows.ledger.base import Transaction
from tao_flows.ledger.codec import Row
from tao_flows.ledger.migrations import (
    EMPTY,
    MIGRATE_TIMEOUT_S,
    Migration,
    Standing,
    expand,
    foreign,
    plan,
    require_current,
    require_known,
)
from tao_flows.ledger.relational import BUSY_TIMEOUT_S, RelationalLedger

_AT_REST: Final = "mode=ro&immutable=1"
"""How a file is opened beside which nothing can be written."""

# What SQLite's message says, the code, the remedy. Messages and not codes: Python 3.10 has no `sqlite_errorcode`.
_CAUSES: Final = (
    ("readonly", "LEDGER_READ_ONLY", "give this user write permission on the file and its directory"),
    ("is full", "LEDGER_FULL", "free space on the disk, or set TAO_FLOWS_LEDGER to a file on another"),
    ("malformed", "LEDGER_CORRUPT", "restore a backup, or move the file away: a new one is then begun"),
    ("not a database", "LEDGER_CORRUPT", "restore a backup, or move the file away: a new one is then begun"),
    ("no such", "LEDGER_CORRUPT", "restore a backup, or move the file away: a new one is then begun"),
    ("locked", "LEDGER_BUSY", "close the program that holds a transaction open on it"),
)
_UNREACHABLE: Final = ("LEDGER_UNREACHABLE", "check that the path exists, is a file and can be read and written")
_OS_CAUSES: Final = {errno.EROFS: "readonly", errno.EACCES: "readonly", errno.EPERM: "readonly",
                     errno.ENOSPC: "is full", errno.EDQUOT: "is full"}  # fmt: skip

_ROOM_BYTES: Final = 64 * 1024

# Connections that must not be closed here: those of a parent process, and those of a file that is no longer at its
# path. To close one would remove the -wal file by name, and that may by now be another's.
_ABANDONED: Final[list[sqlite3.Connection]] = []

# One thread at a time is inside SQLite, and none while the process forks: a child that inherits one of SQLite's own
# locks held would wait for it for ever.
_inside = threading.RLock()


def _is_full(directory: Path) -> bool:
    """Whether its file system has less room than one write of ours takes."""
    try:
        room = os.statvfs(directory)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < _ROOM_BYTES


def _before_fork() -> None:
    _inside.acquire(timeout=BUSY_TIMEOUT_S)


def _after_fork_in_parent() -> None:
    with suppress(RuntimeError):  # not ours: another thread was inside for longer than we wait
        _inside.release()


def _after_fork_in_child() -> None:
    global _inside
    _inside = threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@dataclass
class _Handle:
    """One process's hold on the file."""

    pid: int = field(default_factory=os.getpid)
    connection: sqlite3.Connection | None = None
    inode: tuple[int, int] | None = None


class _Transaction:
    """A transaction on the connection; the lock on the file is already held."""

    dialect = "sqlite"
    for_update = ""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, /, **parameters: object) -> list[tuple[Any, ...]]:
        return _run(self._connection, statement, parameters).fetchall()

    def change(self, statement: str, /, **parameters: object) -> int:
        return _run(self._connection, statement, parameters).rowcount

    def now_ns(self) -> int:
        return time.time_ns()  # every process that opens the file shares this host's clock


class SqliteLedger(RelationalLedger):
    """Keeps records in one SQLite file in WAL mode. Safe to share between threads and across forks.

    Nothing is opened or created before the first read or write.

    Args:
        path: the file; created with mode 0600, and its directory with 0700, where they do not exist.
        busy_timeout_s: how long one call waits for other writers before it raises LEDGER_BUSY.

    Raises (every method):
        LedgerError: LEDGER_READ_ONLY, LEDGER_FULL, LEDGER_CORRUPT, LEDGER_BUSY, LEDGER_UNREACHABLE, LEDGER_FOREIGN,
            LEDGER_NEWER, LEDGER_OLDER or, for a record that has no JSON form, LEDGER_BAD_RECORD. The file is never removed or moved.
    """

    dialect = "sqlite"
    is_shared = False
    _by_start = "INDEXED BY tasks_started"

    def __init__(self, path: str | Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = Path(path).expanduser().absolute()
        self.url = f"sqlite:///{self.path}"
        self._wal = self.path.with_name(self.path.name + "-wal")
        self._busy_timeout_s = busy_timeout_s
        self._handle = _Handle()

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Transaction]:
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(self._connection())
            except LedgerError as error:
                if write or not self._can_rest(error):
                    raise
                connection = stack.enter_context(self._resting())
            yield stack.enter_context(_begun(connection, "IMMEDIATE" if write else ""))

    def close(self) -> None:
        with _inside:
            handle = self._mine()
            connection, handle.connection = handle.connection, None
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    def standing(self) -> Standing:
        if not self.path.exists():
            return EMPTY
        with _inside, self._explained():
            try:
                with closing(self._connect("mode=rw")) as connection:
                    return self._standing(connection)
            except sqlite3.OperationalError:
                if not self._is_at_rest():
                    raise
            with closing(self._connect(_AT_REST)) as connection:
                return self._standing(connection)

    def migrate(self, *, dry_run: bool = False) -> Migration:
        before = self.standing()
        require_known(before, str(self.path))
        if dry_run:
            return plan(before)
        with _inside, self._explained():
            connection = self._connect_or_make(MIGRATE_TIMEOUT_S)
            with closing(connection):
                return replace(plan(self._expand(connection)), applied=True)

    def size_bytes(self) -> int:
        return _size(self.path) + _size(self._wal)

    def _change(self, statement: str, parameters: Row) -> int:
        with self._connection() as connection:
            return _run(connection, statement, parameters).rowcount

    def _read(self, statement: str, /, **parameters: object) -> list[tuple[Any, ...]]:
        try:
            with self._connection() as connection:
                return _run(connection, statement, parameters).fetchall()
        except LedgerError as error:
            if not self._can_rest(error):
                raise
        with self._resting() as connection:
            return _run(connection, statement, parameters).fetchall()

    def _can_rest(self, error: LedgerError) -> bool:
        """Whether what could not be opened to be written can be read all the same."""
        return error.code in ("LEDGER_READ_ONLY", "LEDGER_UNREACHABLE") and self._is_at_rest()

    @contextmanager
    def _resting(self) -> Iterator[sqlite3.Connection]:
        with _inside, self._explained(), closing(self._connect(_AT_REST)) as connection:
            require_current(self._standing(connection), str(self.path))
            yield connection

    def _is_at_rest(self) -> bool:
        """Whether the file alone holds everything: no writes wait beside it to be merged."""
        try:
            return self.path.is_file() and not _size(self._wal)
        except OSError:
            return False

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with _inside, self._explained((sqlite3.Error,)):
            handle = self._mine()
            if handle.connection is not None and _inode(self.path) != handle.inode:
                _ABANDONED.append(handle.connection)  # the file was removed or replaced: what we hold leads nowhere
                handle.connection = None
            try:
                if handle.connection is None:
                    with self._explained():
                        handle.connection = self._open()
                    handle.inode = _inode(self.path)
                yield handle.connection
            except sqlite3.Error:
                self.close()  # a file that is mended meanwhile is found so by the next call
                raise

    def _mine(self) -> _Handle:
        handle = self._handle
        if handle.pid != os.getpid():
            if handle.connection is not None:
                _ABANDONED.append(handle.connection)
            handle = self._handle = _Handle()
        return handle

    def _open(self) -> sqlite3.Connection:
        connection = self._connect_or_make(self._busy_timeout_s)
        try:
            with _begun(connection, ""):  # one look: another process may be making it this very moment
                standing = self._standing(connection)
            if standing == EMPTY:
                self._expand(connection, only_from=EMPTY)
            require_current(self._standing(connection), str(self.path))
            self._enter_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _standing(self, connection: sqlite3.Connection) -> Standing:
        """What the file says of its schema.

        Raises:
            LedgerError: LEDGER_FOREIGN, another program's database.
        """
        if not connection.in_transaction:  # another process may be making the file between two of these reads
            with _begun(connection, ""):
                return self._standing(connection)
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (contract,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not (application or contract or objects):
            return EMPTY
        if application != schema.APPLICATION_ID:
            raise foreign(str(self.path))
        (version,) = connection.execute("SELECT max(schema_version) FROM meta").fetchone()
        return Standing(version, contract)

    def _expand(self, connection: sqlite3.Connection, only_from: Standing | None = None) -> Standing:
        """Brings the schema forward, and tells where it stood; others may try at once."""
        with _begun(connection, "IMMEDIATE") as transaction:
            # Read under the lock: another process can have been first.
            standing = self._standing(connection)
            require_known(standing, str(self.path))
            if only_from is None or standing == only_from:
                expand(transaction, standing)
                connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {max(standing.contract, schema.CONTRACT)}")
        return standing

    def _connect_or_make(self, timeout_s: float) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_new = not self.path.exists()
        connection = self._connect("mode=rwc", timeout_s)
        if is_new:
            try:
                self.path.chmod(0o600)
            except BaseException:
                connection.close()
                raise
        return connection

    def _connect(self, options: str, timeout_s: float | None = None) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.as_uri()}?{options}",
            uri=True,
            timeout=self._busy_timeout_s if timeout_s is None else timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )

    def _enter_wal(self, connection: sqlite3.Connection) -> None:
        """Readers then never wait for a writer. Where the file system cannot, SQLite stays in its older mode."""
        # SQLite's own waiting does not cover this change of mode, which several processes may try at once.
        give_up_ns = time.monotonic_ns() + round(self._busy_timeout_s * 1e9)
        while connection.execute("PRAGMA journal_mode").fetchone() == ("delete",):
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic_ns() > give_up_ns:
                    raise
                time.sleep(0.005)

    @contextmanager
    def _explained(self, raised: tuple[type[Exception], ...] = (sqlite3.Error, OSError)) -> Iterator[None]:
        """Turns what SQLite and the system raise into a LedgerError."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise codec.bad_record("a row", error) from error  # an answer: the ledger is there
        except raised as error:
            said = _OS_CAUSES.get(error.errno or 0, "") if isinstance(error, OSError) else str(error)
            if "unable to open" in said and self.path.parent.is_dir() and not os.access(self.path.parent, os.W_OK):
                said = "readonly"
            if "disk I/O" in said and _is_full(self.path.parent):
                said = "is full"  # SQLite says so only where it was the database's own file that found no room
            causes = ((code, remedy) for words, code, remedy in _CAUSES if words in said)
            code, remedy = next(causes, _UNREACHABLE)
            raise LedgerError(code, f"{self.path}: {error}", remedy) from error


def _run(connection: sqlite3.Connection, statement: str, parameters: Mapping[str, object]) -> sqlite3.Cursor:
    try:
        return connection.execute(statement, parameters)
    except (OverflowError, UnicodeError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:
        raise codec.bad_record("a row", error) from error


@contextmanager
def _begun(connection: sqlite3.Connection, kind: str) -> Iterator[_Transaction]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield _Transaction(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has already rolled back where the disk was full
            connection.execute("ROLLBACK")
        raise


def _inode(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
