"""What a ledger does. Every write is idempotent: the same record written twice is one record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from tao_flows.figures import Figure
from tao_flows.records import (
    DecisionRecord,
    HostAccount,
    Incident,
    ProcessEnvironment,
    RunKey,
    RunRecord,
    Segment,
    TaskRecord,
)


@dataclass(frozen=True, slots=True)
class RunRef:
    """Names one run.

    ``flow`` is needed only where run ids repeat from flow to flow (Airflow); left empty, a read takes the run id alone.
    """

    engine: str
    namespace: str
    run_id: str
    flow: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """One completed try, summed over its segments; None where a part is unknown."""

    energy_uj: int | None
    runtime_s: float | None
    size: float | None = None
    started_wall_ns: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """Completed tries of one task in one pool, newest first: what a prediction is made from."""

    runs: tuple[Settled, ...]


@dataclass(frozen=True, slots=True)
class FleetRow:
    """One line of the fleet view."""

    group: str
    runs: int
    tasks: int
    lost: int
    energy: Figure
    by_quality_uj: dict[str, int]
    """Known microjoules by quality: adding measured to estimated hides which is which."""
    overhead_share: float | None
    cpu_s: float
    methods: tuple[str, ...]
    """The method versions in the row; figures of different methods are not compared."""


@dataclass(frozen=True, slots=True)
class RunOverhead:
    """What a run's tasks and its engine took, over the accounts of its hosts that know both; None where none does."""

    namespace: str
    flow: str
    run_id: str
    pool: str
    """Where all of its tasks ran; empty where that is no one pool."""
    started_wall_ns: int
    tasks_uj: int | None
    overhead_uj: int | None


class Transaction(Protocol):
    """One transaction of a ledger. Statements take named parameters (``:name``) in either dialect."""

    dialect: str
    """``sqlite`` or ``postgresql``."""
    for_update: str
    """What locks the rows that a SELECT ends with: empty where the whole ledger is locked already."""

    def execute(self, statement: str, /, **parameters: object) -> list[tuple[Any, ...]]:
        """Runs a statement; its rows, or none."""
        ...

    def change(self, statement: str, /, **parameters: object) -> int:
        """Runs a statement that writes; how many rows it wrote."""
        ...

    def now_ns(self) -> int:
        """The database's clock, in nanoseconds since the epoch: the one clock that all its writers share."""
        ...


class Ledger(Protocol):
    """Keeps runs, tasks, decisions, accounts and incidents. Every method raises LedgerError when it cannot."""

    url: str

    def put_run(self, run: RunRecord) -> None:
        """Writes a run's start or its end. An end is never undone by a late start."""
        ...

    def put_task(self, record: TaskRecord) -> None:
        """Writes a segment, keyed by run key and segment. An end is never undone by a late start."""
        ...

    def put_decision(self, record: DecisionRecord) -> None:
        """Writes a decision, keyed by run key and time."""
        ...

    def put_account(self, run: RunRef, account: HostAccount) -> None:
        """Writes the account of one host and window of a run."""
        ...

    def put_incident(self, incident: Incident) -> None:
        """Adds to the count of an incident, keyed by code, run and task. Its time names the occurrence."""
        ...

    def put_environment(self, record: ProcessEnvironment) -> None:
        """Writes what a process runs in: the first time, and what is alike in many processes once."""
        ...

    def find_runs(self, text: str) -> Sequence[RunRecord]:
        """The runs ``text`` names: ``latest``, a run id or the beginning of one, a run's name, or ``flow/run``."""
        ...

    def runs(self, since_wall_ns: int = 0) -> Sequence[RunRecord]:
        """Runs started since, newest first."""
        ...

    def tasks(self, run: RunRef) -> Sequence[TaskRecord]:
        """Every segment of a run, in order of start."""
        ...

    def decisions(self, run: RunRef) -> Sequence[DecisionRecord]:
        """Every decision of a run, in order of time."""
        ...

    def accounts(self, run: RunRef) -> Sequence[HostAccount]:
        """The accounts of a run."""
        ...

    def incidents(self, run: RunRef | None = None) -> Sequence[Incident]:
        """The incidents of a run, or all."""
        ...

    def history(self, task: str, pool: str, limit: int = 50, *, flow: str = "") -> History:
        """Completed runs of a task in a pool under the present method, newest first; of one flow's task, where it is given."""
        ...

    def spent_uj(self, budget: str, since_wall_ns: int) -> int:
        """Known microjoules charged to a budget by tasks started since."""
        ...

    def fleet(self, since_wall_ns: int, by: str) -> Sequence[FleetRow]:
        """Totals by ``team``, ``flow`` or ``pool``, dearest first."""
        ...

    def overheads(self, since_wall_ns: int) -> Sequence[RunOverhead]:
        """The overhead of each run started since, in order of start."""
        ...

    def reconcile(self, is_alive: Callable[[Segment], bool | None]) -> Sequence[RunKey]:
        """Marks as lost what is running by the ledger and dead by ``is_alive``; None means it cannot be said."""
        ...

    def transaction(self, *, write: bool = True) -> AbstractContextManager[Transaction]:
        """A transaction, committed at the end of the block and undone if the block raises.

        One that writes is alone: on SQLite from its beginning, on Postgres for the rows it locks. Inside the block the
        ledger itself is not used: its one connection is taken.
        """
        ...

    def close(self) -> None:
        """Gives back what it holds. May be called twice."""
        ...
