"""What PostgreSQL needs and says: how it is connected to, how our tables are written for it, what its errors mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from tao_flows.errors import ConfigError, LedgerError, MissingExtraError
from tao_flows.ledger import codec, schema
from tao_flows.ledger.base import Transaction
from tao_flows.ledger.migrations import EMPTY, Standing, foreign

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

SCHEMA: Final = "tao_flows"
"""Where our tables lie: the database may be an engine's own."""
CONNECT_TIMEOUT_S: Final = 3
FORMS: Final = "postgresql://user:password@host:5432/database, what is special in a password percent-encoded"

_CONNECTION: Final = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "tao-flows",
    # A network that swallows what is sent ends the wait in seconds, not in the kernel's quarter of an hour.
    "tcp_user_timeout": 5_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    # Behind PgBouncer the next transaction may be on another connection, which knows no statement of ours.
    "prepare_threshold": None,
}
_TYPES: Final = {"INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION", "TEXT": 'TEXT COLLATE "C"'}

_UNREACHABLE: Final = ("LEDGER_UNREACHABLE", "check that the server runs, and the host, port and database in the URL")
_DENIED: Final = ("LEDGER_DENIED", "check user and password, and what the role may do in the database")
_BUSY: Final = ("LEDGER_BUSY", "look in pg_stat_activity for what holds locks or connections")
_FULL: Final = ("LEDGER_FULL", "free space on the server's disk")
_READ_ONLY: Final = ("LEDGER_READ_ONLY", "set TAO_FLOWS_LEDGER to the primary server, which takes writes")
_CORRUPT: Final = ("LEDGER_CORRUPT", "restore a backup, or drop schema tao_flows: a new ledger is then begun")
# By SQLSTATE or the beginning of one (PostgreSQL documentation, appendix A); the longest that fits holds.
_STATES: Final = {
    "08": _UNREACHABLE, "57P": _UNREACHABLE, "3D": _UNREACHABLE,
    "28": _DENIED, "42501": _DENIED,
    "40": _BUSY, "55": _BUSY, "57014": _BUSY, "25P03": _BUSY, "53": _BUSY, "53100": _FULL,
    "25006": _READ_ONLY,
    "XX": _CORRUPT, "58": _CORRUPT, "42P01": _CORRUPT, "42703": _CORRUPT, "3F": _CORRUPT,
}  # fmt: skip
# A refused connection has no SQLSTATE here, only the server's words.
_WORDS: Final = (
    ("too many", _BUSY), ("remaining connection slots", _BUSY), ("starting up", _BUSY),
    ("authentication", _DENIED), ("password", _DENIED), ("pg_hba", _DENIED), ("permission denied", _DENIED),
    ("role ", _DENIED),
)  # fmt: skip
# What no repetition mends: a value out of range, of a wrong type or with a NUL; a key longer than an index takes.
_REFUSED: Final = ("22", "42804", "42846", "54", "23")


def parsed(url: str) -> URL:
    """The URL as SQLAlchemy takes it.

    Raises:
        ConfigError: LEDGER_URL, it cannot be read; nothing of it is repeated.
        MissingExtraError: SQLAlchemy 2 or psycopg is not installed.
    """
    try:
        import psycopg  # noqa: F401 - the driver that the URL names
        import sqlalchemy.dialects.postgresql.psycopg  # noqa: F401 - which SQLAlchemy knows from 2.0 on
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError as error:
        raise MissingExtraError("postgres", "a ledger on PostgreSQL") from error
    # With a second "@" it is of a password that was not encoded: what follows the first would be taken for the host.
    if url.partition("?")[0].count("@") < 2:
        with suppress(ArgumentError, ValueError):
            return make_url(url).set(drivername="postgresql+psycopg")
    raise ConfigError("LEDGER_URL", "the ledger's PostgreSQL URL cannot be read", f"give {FORMS}")


def make_engine(url: URL) -> Engine:
    """An engine that opens a connection whenever it is asked for one, and keeps none."""
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    options = {name: value for name, value in _CONNECTION.items() if name not in url.query}
    engine = create_engine(url, poolclass=NullPool, connect_args=options, hide_parameters=True, use_native_hstore=False)
    event.listen(engine, "connect", _read_numbers_as_numbers)
    return engine


def _read_numbers_as_numbers(connection: Any, _record: object) -> None:
    """A sum of whole numbers is a whole number and a mean a float, as on SQLite: PostgreSQL makes both NUMERIC."""
    from psycopg.adapt import Loader

    class NumericLoader(Loader):
        def load(self, data: Any) -> int | float:
            text = bytes(data)
            return int(text) if text.lstrip(b"-").isdigit() else float(text)

    connection.adapters.register_loader("numeric", NumericLoader)


def translated(statement: str) -> str:
    """A statement of the schema in PostgreSQL's types; texts are ordered by their bytes, as SQLite orders them."""
    return re.sub(r"\b(INTEGER|REAL|TEXT)\b", lambda found: _TYPES[found[0]], statement)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what SQLAlchemy and psycopg raise into a LedgerError about the ledger ``name``."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OverflowError, UnicodeError) as error:
        raise codec.bad_record("a row", error) from error
    except SQLAlchemyError as error:
        raise _explanation(name, error) from error


def _explanation(name: str, error: Exception) -> LedgerError:
    cause = getattr(error, "orig", None) or error
    state = getattr(cause, "sqlstate", None)
    lines = str(cause).splitlines() or [type(cause).__name__]
    if state is not None:
        said = lines[0]  # what follows can repeat the row
        if state.startswith(_REFUSED):
            return codec.bad_record("a row", said)
        fits = [prefix for prefix in _STATES if state.startswith(prefix)]
        code, remedy = _STATES[max(fits, key=len)] if fits else ("LEDGER_FAILED", "please report this")
        return LedgerError(code, f"{name}: {said}", remedy)
    if _is_of_values(error):
        return codec.bad_record("a row", lines[0])
    said = " ".join(" ".join(lines).split())
    code, remedy = next((meaning for words, meaning in _WORDS if words in said), _UNREACHABLE)
    return LedgerError(code, f"{name}: {said}", remedy)


def _is_of_values(error: Exception) -> bool:
    """Whether psycopg refused a value before it asked the server."""
    from sqlalchemy import exc

    return isinstance(error, (exc.DataError, exc.ProgrammingError, exc.StatementError)) and not isinstance(
        error, (exc.OperationalError, exc.InterfaceError, exc.InternalError)
    )


def is_loss_of_connection(error: Exception) -> bool:
    """Whether the server, or something on the way to it, has ended the connection."""
    return bool(getattr(error, "connection_invalidated", False))


_OBJECTS: Final = f"""SELECT
    (SELECT count(*) FROM pg_namespace WHERE nspname = '{SCHEMA}'),
    (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '{SCHEMA}'),
    (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a
        ON a.attrelid = c.oid WHERE n.nspname = '{SCHEMA}' AND c.relname = 'header'
        AND a.attname IN ('application_id', 'user_version'))"""


def read_standing(transaction: Transaction, name: str) -> Standing:
    """What the database says of our schema.

    Raises:
        LedgerError: LEDGER_FOREIGN, a schema of our name holds another program's tables.
    """
    ((_, objects, header),) = transaction.execute(_OBJECTS)
    if not objects:
        return EMPTY
    if header != 2:
        raise foreign(f"schema {SCHEMA} of {name}")
    rows = transaction.execute(f"SELECT application_id, user_version FROM {SCHEMA}.header")
    if len(rows) != 1 or rows[0][0] != schema.APPLICATION_ID:
        raise foreign(f"schema {SCHEMA} of {name}")
    ((version,),) = transaction.execute(f"SELECT max(schema_version) FROM {SCHEMA}.meta")
    return Standing(version, rows[0][1])


def make_header(transaction: Transaction) -> None:
    """Our schema, and in it what a SQLite file has in its header: whose it is, and the contract."""
    ((schemas, _, _),) = transaction.execute(_OBJECTS)
    if not schemas:  # an administrator may have made it for a role that may not
        transaction.change(f"CREATE SCHEMA {SCHEMA}")
    transaction.change(
        f"CREATE TABLE {SCHEMA}.header (application_id BIGINT PRIMARY KEY, user_version BIGINT NOT NULL)"
    )
    transaction.change(f"INSERT INTO {SCHEMA}.header VALUES (:application, 0)", application=schema.APPLICATION_ID)
