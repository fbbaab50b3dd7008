"""The ledger in one SQLite file."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from tao_flows.errors import InputError, LedgerError
from tao_flows.figures import METHOD
from tao_flows.ledger import codec, schema
from tao_flows.ledger.base import FleetRow, History, RunRef, Settled, Transaction
from tao_flows.ledger.fleet import fleet_rows
from tao_flows.records import DecisionRecord, HostAccount, Incident, RunKey, RunRecord, Segment, TaskRecord, TaskState

T = TypeVar("T")

BUSY_TIMEOUT_S: Final = 0.5
_PREFIX_LENGTH: Final = 4
_ALL: Final = -1
"""SQLite's LIMIT for no limit."""

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

# Connections that must not be closed here: those of a parent process, and those of a file that is no longer at its
# path. To close one would remove the -wal file by name, and that may by now be another's.
_ABANDONED: Final[list[sqlite3.Connection]] = []

# One thread at a time is inside SQLite, and none while the process forks: a child that inherits one of SQLite's own
# locks held would wait for it for ever.
_inside = threading.RLock()


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
        return self._connection.execute(statement, parameters).fetchall()

    def change(self, statement: str, /, **parameters: object) -> int:
        return self._connection.execute(statement, parameters).rowcount

    def now_ns(self) -> int:
        return time.time_ns()  # every process that opens the file shares this host's clock


class SqliteLedger:
    """Keeps records in one SQLite file in WAL mode. Safe to share between threads and across forks.

    Nothing is opened or created before the first read or write.

    Args:
        path: the file; created with mode 0600, and its directory with 0700, where they do not exist.
        busy_timeout_s: how long one call waits for other writers before it raises LEDGER_BUSY.

    Raises (every method):
        LedgerError: LEDGER_READ_ONLY, LEDGER_FULL, LEDGER_CORRUPT, LEDGER_BUSY, LEDGER_UNREACHABLE, LEDGER_FOREIGN,
            LEDGER_NEWER or, for a record that has no JSON form, LEDGER_BAD_RECORD. The file is never removed or moved.
    """

    def __init__(self, path: str | Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = Path(path).expanduser().absolute()
        self.url = f"sqlite:///{self.path}"
        self._busy_timeout_s = busy_timeout_s
        self._handle = _Handle()

    def put_run(self, run: RunRecord) -> None:
        self._write(schema.RUNS, codec.run_row, run)

    def put_task(self, record: TaskRecord) -> None:
        self._write(schema.TASKS, codec.task_row, record)

    def put_decision(self, record: DecisionRecord) -> None:
        self._write(schema.DECISIONS, codec.decision_row, record)

    def put_account(self, run: RunRef, account: HostAccount) -> None:
        self._write(schema.ACCOUNTS, lambda part: codec.account_row(run, part), account)

    def put_incident(self, incident: Incident) -> None:
        self._write(schema.INCIDENTS, codec.incident_row, incident)

    def find_runs(self, text: str) -> Sequence[RunRecord]:
        """The runs ``text`` names, newest first: the first of these that finds any.

        ``latest``; a whole run id; a run's name; ``flow/`` and any of these; the first four or more characters of a
        run id. More than one answer means that ``text`` is ambiguous.
        """
        if not text:
            return []
        if text == "latest":
            return self._load(RunRecord, "runs", since=0, limit=1)
        found = self._load(RunRecord, "runs_by_id", text=text) or self._load(RunRecord, "runs_by_name", text=text)
        if not found and "/" in text:
            flow, _, rest = text.partition("/")
            if rest == "latest":
                return self._load(RunRecord, "runs_of_flow", flow=flow, limit=1)
            found = [run for run in self.find_runs(rest) if run.flow == flow]
        if not found and len(text) >= _PREFIX_LENGTH:
            found = self._load(RunRecord, "runs_by_prefix", text=text, end=text + "\U0010ffff")
        return found

    def runs(self, since_wall_ns: int = 0) -> Sequence[RunRecord]:
        return self._load(RunRecord, "runs", since=since_wall_ns, limit=_ALL)

    def tasks(self, run: RunRef) -> Sequence[TaskRecord]:
        return self._load(TaskRecord, "tasks", **_of_run(run))

    def decisions(self, run: RunRef) -> Sequence[DecisionRecord]:
        return self._load(DecisionRecord, "decisions", **_of_run(run))

    def accounts(self, run: RunRef) -> Sequence[HostAccount]:
        return self._load(HostAccount, "accounts", **_of_run(run))

    def incidents(self, run: RunRef | None = None) -> Sequence[Incident]:
        query = schema.QUERIES["incidents" if run else "incidents_all"]
        return [Incident(*row) for row in self._read(query, run_id=run.run_id if run else "")]

    def history(self, task: str, pool: str, limit: int = 50) -> History:
        """The last ``limit`` completed tries of a task in a pool under the present method, newest first."""
        rows = self._read(schema.QUERIES["history"], task=task, pool=pool, method=METHOD, limit=limit)
        return History(tuple(Settled(*row) for row in rows))

    def spent_uj(self, budget: str, since_wall_ns: int) -> int:
        return int(self._read(schema.QUERIES["spent"], budget=budget, since=since_wall_ns)[0][0])

    def fleet(self, since_wall_ns: int, by: str) -> Sequence[FleetRow]:
        """Totals over the tasks started since, dearest first.

        Raises:
            InputError: FLEET_GROUP, ``by`` is not ``team``, ``flow`` or ``pool``.
        """
        if by not in schema.GROUPS:
            raise InputError("FLEET_GROUP", f"{by!r} is no grouping", f"group by {', '.join(schema.GROUPS)}")
        return fleet_rows(
            figures=self._read(schema.QUERIES["fleet_figures"].format(by=by), since=since_wall_ns),
            runs=self._read(schema.QUERIES["fleet_runs"].format(by=by), since=since_wall_ns),
            accounts=self._read(schema.QUERIES["fleet_accounts"], since=since_wall_ns),
        )

    def reconcile(self, is_alive: Callable[[Segment], bool | None]) -> Sequence[RunKey]:
        """Marks as lost the running tasks and runs whose process is dead; the keys of those tasks.

        An end that is written later still takes the place of the loss.
        """
        for run in self._load(RunRecord, "runs_open"):
            if is_alive(run.segment) is False:
                self.put_run(replace(run, state=codec.LOST_RUN, ended_wall_ns=None))
        lost = [
            replace(task, state=TaskState.LOST, ended_wall_ns=None, measurement=None)
            for task in self._load(TaskRecord, "tasks_open")
            if is_alive(task.segment) is False
        ]
        return [record.key for record in lost if self._write(schema.TASKS, codec.task_row, record)]

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Transaction]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield _Transaction(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite has already rolled back where the disk was full
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with _inside:
            handle = self._mine()
            connection, handle.connection = handle.connection, None
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    def _write(self, table: schema.Table, encode: Callable[[T], codec.Row], record: T) -> bool:
        """Whether the ledger holds anything new by it."""
        row = encode(record)
        try:
            with self._connection() as connection:
                return connection.execute(table.upsert(tuple(row)), row).rowcount > 0
        except (OverflowError, UnicodeError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:
            raise codec.bad_record(record, error) from error

    def _load(self, cls: type[T], query: str, /, **parameters: object) -> list[T]:
        return [codec.load(cls, body) for (body,) in self._read(schema.QUERIES[query], **parameters)]

    def _read(self, statement: str, /, **parameters: object) -> list[tuple[Any, ...]]:
        try:
            with self._connection() as connection:
                return connection.execute(statement, parameters).fetchall()
        except LedgerError as error:
            if error.code not in ("LEDGER_READ_ONLY", "LEDGER_UNREACHABLE") or not self._is_at_rest():
                raise
        with _inside, self._explained(), closing(self._connect("mode=ro&immutable=1")) as connection:
            if schema.check(connection, str(self.path)) < len(schema.MIGRATIONS):
                raise LedgerError(
                    "LEDGER_READ_ONLY",
                    f"{self.path} has an older schema and cannot be migrated",
                    "open it once with write permission on the file and its directory",
                )
            return connection.execute(statement, parameters).fetchall()

    def _is_at_rest(self) -> bool:
        """Whether the file alone holds everything: no writes wait beside it to be merged."""
        try:
            return self.path.is_file() and not _size(self.path.with_name(self.path.name + "-wal"))
        except OSError:
            return False

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with _inside, self._explained():
            handle = self._mine()
            if handle.connection is not None and _inode(self.path) != handle.inode:
                _ABANDONED.append(handle.connection)  # the file was removed or replaced: what we hold leads nowhere
                handle.connection = None
            try:
                if handle.connection is None:
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
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_new = not self.path.exists()
        connection = self._connect("mode=rwc")
        try:
            if is_new:
                self.path.chmod(0o600)
            schema.migrate(connection, str(self.path))
            self._enter_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, options: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.as_uri()}?{options}",
            uri=True,
            timeout=self._busy_timeout_s,
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
    def _explained(self) -> Iterator[None]:
        """Turns what SQLite and the system raise into a LedgerError."""
        try:
            yield
        except (sqlite3.InterfaceError, sqlite3.ProgrammingError):
            raise  # the record's fault, not the file's
        except (sqlite3.Error, OSError) as error:
            said = _OS_CAUSES.get(error.errno or 0, "") if isinstance(error, OSError) else str(error)
            if "unable to open" in said and self.path.parent.is_dir() and not os.access(self.path.parent, os.W_OK):
                said = "readonly"
            causes = ((code, remedy) for words, code, remedy in _CAUSES if words in said)
            code, remedy = next(causes, _UNREACHABLE)
            raise LedgerError(code, f"{self.path}: {error}", remedy) from error


def _of_run(run: RunRef) -> dict[str, str]:
    return {"engine": run.engine, "namespace": run.namespace, "run_id": run.run_id, "flow": run.flow}


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
