"""What the ledgers on SQLite and on PostgreSQL have in common: all but how a statement gets to the database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final, TypeVar

from tao_flows.errors import InputError
from tao_flows.figures import METHOD
from tao_flows.ledger import codec, schema
from tao_flows.ledger.base import FleetRow, History, RunOverhead, RunRef, Settled, Transaction
from tao_flows.ledger.charges import settle
from tao_flows.ledger.fleet import fleet_rows
from tao_flows.ledger.migrations import Migration, Standing
from tao_flows.records import (
    DecisionRecord,
    HostAccount,
    Incident,
    ProcessEnvironment,
    RunKey,
    RunRecord,
    Segment,
    TaskRecord,
    TaskState,
)

T = TypeVar("T")

BUSY_TIMEOUT_S: Final = 0.5
"""How long one call waits for other writers."""
_PREFIX_LENGTH: Final = 4
_ALL: Final = 2**62
"""A LIMIT that is none."""


class RelationalLedger(ABC):
    """The statements of a ledger. A subclass runs them."""

    dialect: str
    is_shared: bool
    """Whether other hosts can write into it."""
    url: str
    """Shown to people: without a password."""
    _by_start: str
    """What makes a statement use the index on a task's start."""

    def put_run(self, run: RunRecord) -> None:
        self._write(schema.RUNS, codec.run_row(run))

    def put_task(self, record: TaskRecord) -> None:
        row = codec.task_row(record)
        if row["phase"] < codec.COMPLETE or not (record.budgets or record.budget):
            self._write(schema.TASKS, row)
            return
        with self.transaction() as transaction:
            if transaction.change(schema.TASKS.upsert(tuple(row)), **row):
                settle(transaction, record)

    def put_decision(self, record: DecisionRecord) -> None:
        self._write(schema.DECISIONS, codec.decision_row(record))

    def put_account(self, run: RunRef, account: HostAccount) -> None:
        self._write(schema.ACCOUNTS, codec.account_row(run, account))

    def put_incident(self, incident: Incident) -> None:
        self._write(schema.INCIDENTS, codec.incident_row(incident))

    def put_environment(self, record: ProcessEnvironment) -> None:
        row, process = codec.environment_rows(record)
        with self.transaction() as transaction:
            transaction.change(schema.ENVIRONMENT, **row)
            transaction.change(schema.PROCESS, **process)

    def find_runs(self, text: str) -> Sequence[RunRecord]:
        """The runs ``text`` names, newest first: the first of these that finds any.

        ``latest``; a whole run id; a run's name; ``flow/`` and any of these; the first four or more characters of a
        run id. More than one answer means that ``text`` is ambiguous.
        """
        if not text or not _is_text(text):
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
        if run is None:
            return [Incident(*row) for row in self._read(schema.QUERIES["incidents_all"])]
        return [Incident(*row) for row in self._read(schema.QUERIES["incidents"], run_id=run.run_id)]

    def history(self, task: str, pool: str, limit: int = 50, *, flow: str = "") -> History:
        """The last ``limit`` completed tries of a task in a pool under the present method, newest first."""
        rows = self._read(schema.QUERIES["history"], task=task, pool=pool, flow=flow, method=METHOD, limit=limit)
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
        figures, runs, accounts = (
            self._read(schema.QUERIES[query].format(by=by, by_start=self._by_start), since=since_wall_ns)
            for query in ("fleet_figures", "fleet_runs", "fleet_accounts")
        )
        return fleet_rows(figures, runs, accounts)

    def overheads(self, since_wall_ns: int) -> Sequence[RunOverhead]:
        return [overhead_of(row) for row in self._read(schema.QUERIES["overheads"], since=since_wall_ns)]

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
        return [record.key for record in lost if self._write(schema.TASKS, codec.task_row(record))]

    @abstractmethod
    def transaction(self, *, write: bool = True) -> AbstractContextManager[Transaction]:
        """See Ledger."""

    @abstractmethod
    def close(self) -> None:
        """See Ledger."""

    @abstractmethod
    def standing(self) -> Standing:
        """What the ledger says of its schema. Makes nothing, and needs no migration."""

    @abstractmethod
    def migrate(self, *, dry_run: bool = False) -> Migration:
        """Brings the schema to this version in one transaction; several processes may try at once.

        Args:
            dry_run: only say what there is to do.
        """

    @abstractmethod
    def size_bytes(self) -> int:
        """What the ledger takes up where it is kept."""

    def counts(self) -> dict[str, int]:
        """Rows by table."""
        return {table: int(self._read(f"SELECT count(*) FROM {table}")[0][0]) for table in schema.TABLES}

    @abstractmethod
    def _change(self, statement: str, parameters: codec.Row) -> int:
        """Runs one statement on its own; how many rows it wrote."""

    @abstractmethod
    def _read(self, statement: str, /, **parameters: object) -> list[tuple[Any, ...]]:
        """The rows of one statement."""

    def _write(self, table: schema.Table, row: codec.Row) -> bool:
        """Whether the ledger holds anything new by it."""
        return self._change(table.upsert(tuple(row)), row) > 0

    def _load(self, cls: type[T], query: str, /, **parameters: object) -> list[T]:
        return [codec.load(cls, body) for (body,) in self._read(schema.QUERIES[query], **parameters)]


def overhead_of(row: tuple[Any, ...]) -> RunOverhead:
    """What a row of the query ``overheads`` tells."""
    namespace, flow, run_id, pool, started, tasks_uj, overhead_uj = row
    return RunOverhead(namespace, flow, run_id, pool or "", started, _whole(tasks_uj), _whole(overhead_uj))


def _whole(number: Any) -> int | None:
    """PostgreSQL's sums are decimals."""
    return None if number is None else int(number)


def _of_run(run: RunRef) -> dict[str, str]:
    return {"engine": run.engine, "namespace": run.namespace, "run_id": run.run_id, "flow": run.flow}


def _is_text(text: str) -> bool:
    """Whether a database could hold it: a command line may bring halves of surrogate pairs."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
