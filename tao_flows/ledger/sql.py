"""The ledger on PostgreSQL, for all hosts to share."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from tao_flows.config import mask_password
from tao_flows.errors import LedgerError
from tao_flows.ledger import codec, postgres, schema
from tao_flows.ledger.base import Transaction
from tao_flows.ledger.codec import Row
from tao_flows.ledger.migrations import (
    EMPTY,
    MIGRATE_TIMEOUT_S,
    Migration,
    Standing,
    expand,
    plan,
    require_current,
    require_known,
)
from tao_flows.ledger.postgres import explained
from tao_flows.ledger.relational import BUSY_TIMEOUT_S, RelationalLedger

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult, Engine, TextClause

MAX_CONNECTIONS_PER_PROCESS: Final = 1
"""What one ledger opens at most, and a process has one: its threads take turns."""
STATEMENT_TIMEOUT_S: Final = 5.0
IDLE_S: Final = 30.0

_PLAIN: Final = (str, int, float)
_NOW: Final = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) * 1000"
_SIZE: Final = f"""SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '{postgres.SCHEMA}' AND c.relkind = 'r'"""


@dataclass
class _Handle:
    """One process's hold on the database."""

    engine: Engine
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one thread that uses the connection."""
    connection: Connection | None = None
    used_s: float = 0.0
    closer: threading.Timer | None = None

    def drop(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()


class _Transaction:
    """A transaction on the connection."""

    dialect = "postgresql"
    for_update = "FOR UPDATE"

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    def execute(self, statement: str, /, **parameters: object) -> list[tuple[Any, ...]]:
        with explained(self._name):
            result = self._run(statement, parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

    def change(self, statement: str, /, **parameters: object) -> int:
        with explained(self._name):
            return self._run(statement, parameters).rowcount

    def now_ns(self) -> int:
        return int(self.execute(_NOW)[0][0])

    def _run(self, statement: str, parameters: Mapping[str, object]) -> CursorResult[Any]:
        for value in parameters.values():
            if value is not None and not isinstance(
                value, _PLAIN
            ):  # a list would be written as PostgreSQL's text of it
                raise codec.bad_record("a row", f"{type(value).__name__} is no type of a column")
        return self._connection.execute(_text(statement), parameters)


class PostgresLedger(RelationalLedger):
    """Keeps records in a PostgreSQL database (13 or later). Safe to share between threads and across forks.

    Nothing is opened or created before the first read or write. A connection keeps no state from one transaction to
    the next, so that PgBouncer may give each to another one. A server that is frozen, but whose host goes on answering
    the network, is not bounded by the time-outs.

    Args:
        url: ``postgresql://``, ``postgres://`` or ``postgresql+psycopg://``.
        busy_timeout_s: how long a statement waits for rows that others hold before it raises LEDGER_BUSY.
        statement_timeout_s: how long a statement may take, and a thread wait for its turn.
        idle_s: how long a connection that nobody uses is kept.

    Raises:
        ConfigError: LEDGER_URL, the URL cannot be read.
        MissingExtraError: SQLAlchemy or psycopg is not installed.

    Raises (every method):
        LedgerError: LEDGER_UNREACHABLE, LEDGER_DENIED, LEDGER_BUSY, LEDGER_READ_ONLY, LEDGER_FULL, LEDGER_CORRUPT,
            LEDGER_FOREIGN, LEDGER_NEWER, LEDGER_OLDER or, for a record that no such database can hold,
            LEDGER_BAD_RECORD.
    """

    dialect = "postgresql"
    is_shared = True
    _by_start = ""

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        statement_timeout_s: float = STATEMENT_TIMEOUT_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self.url = mask_password(url)
        self._url = postgres.parsed(url)
        self._busy_timeout_s, self._statement_timeout_s, self._idle_s = busy_timeout_s, statement_timeout_s, idle_s
        # By process: a forked child neither uses nor closes what its parent has opened.
        self._handles: dict[int, _Handle] = {}
        weakref.finalize(self, _close, self._handles)

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Transaction]:
        settings = _settings(self._busy_timeout_s, self._statement_timeout_s)
        if not write:
            settings = f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; {settings}"
        with self._held() as handle:
            connection = self._begin(handle, settings)
            try:
                yield _Transaction(connection, self.url)
                with explained(self.url):
                    connection.commit()
            except BaseException as error:
                with suppress(Exception):
                    connection.rollback()
                if connection.invalidated or getattr(error, "code", "") == "LEDGER_CORRUPT":
                    handle.drop()  # what is mended meanwhile is found so by the next call
                raise

    def close(self) -> None:
        _close(self._handles)

    def standing(self) -> Standing:
        with self._unchecked() as connection:
            return self._standing(connection)

    def migrate(self, *, dry_run: bool = False) -> Migration:
        if dry_run:
            before = self.standing()
            require_known(before, self.url)
            return plan(before)
        with self._unchecked() as connection:
            return replace(plan(self._expand(connection)), applied=True)

    def size_bytes(self) -> int:
        with self._unchecked() as connection:
            return int(_Transaction(connection, self.url).execute(_SIZE)[0][0])

    @contextmanager
    def _unchecked(self) -> Iterator[Connection]:
        """A connection to a database whose schema may be of any version."""
        with self._held() as handle, explained(self.url):
            handle.drop()
            with handle.engine.connect() as connection:
                yield connection

    def _change(self, statement: str, parameters: Row) -> int:
        with self.transaction() as transaction:
            return transaction.change(statement, **parameters)

    def _read(self, statement: str, /, **parameters: object) -> list[tuple[Any, ...]]:
        with self.transaction(write=False) as transaction:
            return transaction.execute(statement, **parameters)

    @contextmanager
    def _held(self) -> Iterator[_Handle]:
        pid = os.getpid()
        handle = self._handles.get(pid) or self._handles.setdefault(pid, _Handle(postgres.make_engine(self._url)))
        if not handle.lock.acquire(timeout=self._statement_timeout_s):
            summary = f"{self.url}: other threads of this process held the connection too long"
            raise LedgerError("LEDGER_BUSY", summary, "give records to a spool where many threads write")
        try:
            yield handle
        finally:
            handle.used_s = time.monotonic()
            if handle.connection is not None and handle.closer is None:
                _close_later(handle, self._idle_s, self._idle_s)
            handle.lock.release()

    def _begin(self, handle: _Handle, settings: str) -> Connection:
        if handle.connection is not None:
            try:
                handle.connection.exec_driver_sql(settings)
                return handle.connection
            except Exception as error:  # the server may have been started anew since: nothing is lost yet
                handle.drop()
                if not postgres.is_loss_of_connection(error):
                    with explained(self.url):
                        raise
        with explained(self.url):
            connection = handle.engine.connect()
            try:
                if self._standing(connection) == EMPTY:
                    self._expand(connection, only_from=EMPTY)
                require_current(self._standing(connection), self.url)
                connection.exec_driver_sql(settings)
            except BaseException:
                connection.close()
                raise
        handle.connection = connection
        return connection

    def _standing(self, connection: Connection) -> Standing:
        connection.exec_driver_sql(_settings(self._busy_timeout_s, self._statement_timeout_s))
        try:
            return postgres.read_standing(_Transaction(connection, self.url), self.url)
        finally:
            connection.rollback()

    def _expand(self, connection: Connection, only_from: Standing | None = None) -> Standing:
        """Brings the schema forward, and tells where it stood; others may try at once."""
        with connection.begin():
            connection.exec_driver_sql(_settings(MIGRATE_TIMEOUT_S, MIGRATE_TIMEOUT_S))
            transaction = _Transaction(connection, self.url)
            transaction.execute("SELECT pg_advisory_xact_lock(:key)", key=schema.APPLICATION_ID)
            # Read under the lock: another process can have been first.
            standing = postgres.read_standing(transaction, self.url)
            require_known(standing, self.url)
            if only_from is None or standing == only_from:
                if standing == EMPTY:
                    postgres.make_header(transaction)
                expand(transaction, standing, postgres.translated)
                contract = max(standing.contract, schema.CONTRACT)
                transaction.change("UPDATE header SET user_version = :contract", contract=contract)
        return standing


def _settings(lock_s: float, statement_s: float) -> str:
    # For one transaction each: behind PgBouncer a session is not ours alone.
    return (
        f"SET LOCAL search_path = {postgres.SCHEMA}; SET LOCAL lock_timeout = {round(lock_s * 1e3)}; "
        f"SET LOCAL statement_timeout = {round(statement_s * 1e3)}"
    )


@lru_cache(maxsize=256)
def _text(statement: str) -> TextClause:
    from sqlalchemy import text

    return text(statement)


def _close(handles: Mapping[int, _Handle]) -> None:
    handle = handles.get(os.getpid())
    # At the interpreter's end a daemon thread can be stuck with it.
    if handle is not None and handle.lock.acquire(timeout=STATEMENT_TIMEOUT_S):
        try:
            handle.drop()
            if handle.closer is not None:
                handle.closer.cancel()
                handle.closer = None
        finally:
            handle.lock.release()


def _close_later(handle: _Handle, idle_s: float, after_s: float) -> None:
    handle.closer = threading.Timer(after_s, _close_if_idle, (handle, idle_s))
    handle.closer.daemon = True
    handle.closer.start()


def _close_if_idle(handle: _Handle, idle_s: float) -> None:
    with handle.lock:
        handle.closer = None
        left_s = handle.used_s + idle_s - time.monotonic()
        if left_s <= 0:
            handle.drop()
        elif handle.connection is not None:
            _close_later(handle, idle_s, left_s)
