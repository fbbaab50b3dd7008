"""Versions of a ledger's schema. A migration expands it, so that writers of the version before go on beside it.

A ledger carries two numbers. Its *version* is the newest schema it was expanded to: the greatest in table ``meta``. Its
*contract* is the oldest version whose statements still write into it: SQLite's ``user_version``, on PostgreSQL a row
in table ``header``. It rises only when something is taken away, in a release after the one that stopped to need it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tao_flows.errors import LedgerError
from tao_flows.ledger import schema
from tao_flows.ledger.base import Transaction

MIGRATE_TIMEOUT_S: Final = 60.0
"""How long a migration waits for others and for itself."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a ledger says of its schema; both are 0 where there is none yet."""

    version: int
    contract: int


EMPTY: Final = Standing(0, 0)


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did, or would do."""

    before: int
    after: int
    statements: tuple[str, ...]
    applied: bool


def foreign(name: str) -> LedgerError:
    """The error for a database that is another program's."""
    return LedgerError(
        "LEDGER_FOREIGN", f"{name} is another program's database", "set TAO_FLOWS_LEDGER to a ledger of its own"
    )


def require_known(standing: Standing, name: str) -> None:
    """Whether this version's statements may be run against the schema at all.

    Raises:
        LedgerError: LEDGER_NEWER, a later version took something away that this one needs.
    """
    if standing.contract > len(schema.MIGRATIONS):
        raise LedgerError(
            "LEDGER_NEWER",
            f"{name} asks for schema version {standing.contract}, this tao-flows knows up to {len(schema.MIGRATIONS)}",
            "upgrade tao-flows here, or set TAO_FLOWS_LEDGER to another ledger",
        )


def require_current(standing: Standing, name: str) -> None:
    """Whether a ledger has all that this version reads and writes.

    Raises:
        LedgerError: LEDGER_NEWER; LEDGER_OLDER, it waits to be migrated.
    """
    require_known(standing, name)
    if standing.version < len(schema.MIGRATIONS):
        raise LedgerError(
            "LEDGER_OLDER",
            f"{name} has schema version {standing.version}, this tao-flows needs {len(schema.MIGRATIONS)}",
            "run: tao-flows ledger migrate (writers of the version before go on working)",
        )


def plan(standing: Standing) -> Migration:
    """What there is to do to a ledger."""
    statements = [statement for version in schema.MIGRATIONS[standing.version :] for statement in version]
    return Migration(standing.version, max(standing.version, len(schema.MIGRATIONS)), tuple(statements), applied=False)


def expand(transaction: Transaction, standing: Standing, translate: Callable[[str], str] = str) -> None:
    """Runs what there is to do, in the transaction in which ``standing`` was read under a lock.

    Args:
        transaction: runs the statements.
        standing: where the ledger stands.
        translate: gives a statement the database's own types.
    """
    from tao_flows import __version__

    for version in range(standing.version, len(schema.MIGRATIONS)):
        for statement in schema.MIGRATIONS[version]:
            transaction.change(translate(statement))
        transaction.change(
            "INSERT INTO meta VALUES (:version, :now, :package)",
            version=version + 1,
            now=time.time_ns(),
            package=__version__,
        )
