"""Ledgers that take records and show none: a spool that another process empties, and what an ingest is reached by."""

from __future__ import annotations

import os
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from tao_flows.errors import LedgerError
from tao_flows.ledger import codec
from tao_flows.ledger.base import RunRef, Transaction
from tao_flows.ledger.migrations import Migration, Standing
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.wireformat import Entry, encode
from tao_flows.records import DecisionRecord, HostAccount, Incident, ProcessEnvironment, RunRecord, TaskRecord


class WriteOnlyLedger(RelationalLedger):
    """A ledger at one remove: every record goes the way of ``_put``, and whatever asks raises LEDGER_WRITE_ONLY."""

    dialect = "none"
    is_shared = True
    _by_start = ""

    @abstractmethod
    def _put(self, entry: Entry) -> None:
        """Hands an entry on."""

    def put_run(self, run: RunRecord) -> None:
        self._put(Entry(run))

    def put_task(self, record: TaskRecord) -> None:
        self._put(Entry(record))

    def put_decision(self, record: DecisionRecord) -> None:
        self._put(Entry(record))

    def put_account(self, run: RunRef, account: HostAccount) -> None:
        self._put(Entry(account, run))

    def put_incident(self, incident: Incident) -> None:
        self._put(Entry(incident))

    def put_environment(self, record: ProcessEnvironment) -> None:
        self._put(Entry(record))

    def transaction(self, *, write: bool = True) -> AbstractContextManager[Transaction]:  # noqa: ARG002
        self._refuse()

    def standing(self) -> Standing:
        self._refuse()

    def migrate(self, *, dry_run: bool = False) -> Migration:  # noqa: ARG002
        self._refuse()

    def size_bytes(self) -> int:
        self._refuse()

    def _change(self, statement: str, parameters: codec.Row) -> int:  # noqa: ARG002
        self._refuse()

    def _read(self, statement: str, /, **parameters: object) -> list[tuple[Any, ...]]:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise LedgerError(
            "LEDGER_WRITE_ONLY",
            f"{self.url} takes records and shows none",
            "set TAO_FLOWS_LEDGER to the ledger they end up in, where you may read it",
        )


class SpoolLedger(WriteOnlyLedger):
    """A spool that another process forwards from: the node agent's, or one that ``tao-flows spool flush`` empties.

    Args:
        directory: the spool's; ``{uid}`` in it stands for this user's number, as in the directories that an agent
            makes, one a user.

    Raises (every write):
        LedgerError: SPOOL_FULL, SPOOL_FAILED or, for a record no ledger could keep, LEDGER_BAD_RECORD.
    """

    def __init__(self, directory: str) -> None:
        self.spool = Spool(Path(directory.replace("{uid}", str(os.geteuid()))).expanduser().absolute())
        self.url = f"spool://{self.spool.directory}"

    def _put(self, entry: Entry) -> None:
        self.spool.append([encode(entry)])

    def close(self) -> None:
        self.spool.close()
