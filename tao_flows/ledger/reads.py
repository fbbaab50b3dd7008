"""What the report's pages ask of a ledger: sums by the database, few rows however many tasks there are.

Functions over ``Ledger.transaction``, the same statements on SQLite and on PostgreSQL. Each raises LedgerError when the
ledger cannot be read; one that only takes records raises LEDGER_WRITE_ONLY.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

from tao_flows.ledger import codec, schema
from tao_flows.ledger.base import Ledger, RunOverhead, RunRef, Transaction
from tao_flows.ledger.relational import overhead_of
from tao_flows.records import HostAccount, RunKey, RunRecord

MOST_MOVES: Final = 5_000
"""Tries that were put off or moved, the latest; savings are told of these."""
MOST_DEADLINES: Final = 20_000
"""Decisions under a deadline, the latest; it is told of these how many were missed."""
MOST_ACCOUNTS: Final = 5_000
_KEY: Final = tuple(each.name for each in fields(RunKey))
_SAME_TRY: Final = " AND ".join(f"task.{column} = decision.{column}" for column in _KEY)
_RUN: Final = ("engine", "namespace", "run_id", "flow")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which tasks a page is about. Empty fields leave all in."""

    since_wall_ns: int
    engine: str = ""
    flow: str = ""
    team: str = ""
    owner: str = ""
    pool: str = ""
    quality: str = ""
    flows: Collection[str] | None = None
    """What the reader may see; None for every flow."""
    until_wall_ns: int | None = None
    """Not included; None: up to now."""
    namespace: str = ""

    def where(self, table: str = "", *, time: str = "started_wall_ns", of: Collection[str] = ()) -> tuple[str, Any]:
        """A condition on a table and its parameters.

        Args:
            table: its alias.
            time: the column that lies between ``since`` and ``until``.
            of: the fields that the table has as columns, of those that may be given; engine, namespace and flow it has.
        """
        dot = f"{table}." if table else ""
        said = [f"{dot}{time} >= :since"]
        parameters: dict[str, object] = {"since": self.since_wall_ns}
        if self.until_wall_ns is not None:
            said.append(f"{dot}{time} < :until")
            parameters["until"] = self.until_wall_ns
        for name in ("engine", "namespace", "flow", *of):
            if value := getattr(self, name):
                said.append(f"{dot}{name} = :{name}")
                parameters[name] = value
        if self.flows is not None:
            # Never empty: IN () is no SQL.
            allowed = {f"flow_{number}": flow for number, flow in enumerate(sorted({*self.flows, ""}))}
            said.append(f"{dot}flow IN ({', '.join(f':{name}' for name in allowed)})")
            parameters |= allowed
        return " AND ".join(said), parameters


_OF_TASKS: Final = ("team", "owner", "pool", "quality")


class TaskSum(NamedTuple):
    """The segments of one run that are alike in what they are grouped by. Microjoules; None where none is known."""

    engine: str
    namespace: str
    run_id: str
    flow: str
    team: str
    pool: str
    state: str
    quality: str
    segments: int
    energy_uj: int | None
    low_uj: int | None
    high_uj: int | None
    coverage: float
    """Summed over the segments."""


class TimeSum(NamedTuple):
    """Known energy by pool, quality and span of time: each segment in the span in which its middle lies."""

    pool: str
    quality: str
    bucket: int
    """Number of the span, counted from the epoch."""
    energy_uj: int
    low_uj: int
    high_uj: int


class Moved(NamedTuple):
    """A segment of a try that a decision put off or moved, where decisions were in force."""

    home_pool: str
    pool: str
    quality: str
    ready_wall_ns: int
    started_wall_ns: int
    ended_wall_ns: int | None
    energy_uj: int | None
    low_uj: int | None
    high_uj: int | None


class Deadlines(NamedTuple):
    """Tries with a deadline, by what became of them."""

    tries: int
    missed: int
    """Ended after it, or not ended although it is over."""
    untold: int
    """It is over, and no record of the try is there."""


class RunEnergy(NamedTuple):
    """An earlier run of a flow: its known microjoules, and how many segments there are of which how many are known."""

    run_id: str
    started_wall_ns: int
    state: str
    energy_uj: int | None
    segments: int
    known: int

    @property
    def coverage(self) -> float:
        """The known share of the segments."""
        return self.known / self.segments if self.segments else 0.0


class HostSum(NamedTuple):
    """What was heard of a host."""

    host: str
    quality: str
    segments: int
    last_wall_ns: int


class IncidentSum(NamedTuple):
    """An incident by code, with its latest words."""

    code: str
    times: int
    last_wall_ns: int
    summary: str
    remedy: str


def task_sums(ledger: Ledger, scope: Scope) -> list[TaskSum]:
    """The fleet, by run and what tells segments apart: a row for each combination that there is."""
    where, parameters = scope.where(of=_OF_TASKS)
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT engine, namespace, run_id, flow, team, pool, state, quality, count(*),
                sum(energy_uj), sum(low_uj), sum(high_uj), sum(coverage)
            FROM tasks {_by_start(tx)} WHERE {where} GROUP BY 1, 2, 3, 4, 5, 6, 7, 8""",
            **parameters,
        )
    return [TaskSum._make((*row[:8], *map(_int, row[8:12]), float(row[12]))) for row in rows]


def energy_by_time(ledger: Ledger, scope: Scope, bucket_ns: int) -> list[TimeSum]:
    """Known energy by pool and span of ``bucket_ns``."""
    where, parameters = scope.where(of=_OF_TASKS)
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT pool, quality, (started_wall_ns + coalesce(ended_wall_ns, started_wall_ns)) / 2 / {int(bucket_ns)},
                sum(energy_uj), sum(low_uj), sum(high_uj)
            FROM tasks {_by_start(tx)} WHERE {where} AND energy_uj IS NOT NULL GROUP BY 1, 2, 3""",
            **parameters,
        )
    return [TimeSum(row[0], row[1], *map(int, row[2:])) for row in rows]


def moved(ledger: Ledger, scope: Scope, limit: int = MOST_MOVES) -> list[Moved]:
    """The segments of the latest tries that were put off or moved."""
    where, parameters = scope.where(time="decided_wall_ns")
    more, others = _others(scope)
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT min(decision.home_pool), min(task.pool), min(task.quality), min(decision.ready_wall_ns),
                min(task.started_wall_ns), max(task.ended_wall_ns),
                max(task.energy_uj), max(task.low_uj), max(task.high_uj)
            FROM (SELECT * FROM decisions WHERE {where} AND enforced = 1 AND action IN ('defer', 'reroute')
                    AND home_pool IS NOT NULL AND ready_wall_ns IS NOT NULL
                ORDER BY decided_wall_ns DESC LIMIT :limit) decision
            JOIN tasks task ON {_SAME_TRY} {more}
            GROUP BY {", ".join(f"task.{column}" for column in _KEY)}, task.segment""",
            limit=limit, **parameters, **others,
        )  # fmt: skip
    return [Moved(*row[:3], *map(_int, row[3:])) for row in rows]


def deadlines(ledger: Ledger, scope: Scope, now_wall_ns: int, limit: int = MOST_DEADLINES) -> Deadlines:
    """How many tries missed the deadline that they were decided under, of the latest decisions with one."""
    where, parameters = scope.where(time="decided_wall_ns")
    more, others = _others(scope)
    keys = ", ".join(f"decision.{column}" for column in _KEY)
    # What only a task's row tells leaves out the tries that have none.
    join = "JOIN" if more else "LEFT JOIN"
    with ledger.transaction(write=False) as tx:
        ((tries, missed, untold),) = tx.execute(
            f"""SELECT count(*), sum(CASE WHEN parts > 0 AND (ended > deadline OR (parts > ends AND deadline < :now))
                    THEN 1 ELSE 0 END), sum(CASE WHEN parts = 0 AND deadline < :now THEN 1 ELSE 0 END)
            FROM (SELECT max(decision.deadline_wall_ns) AS deadline, count(task.segment) AS parts,
                    count(task.ended_wall_ns) AS ends, max(task.ended_wall_ns) AS ended
                FROM (SELECT * FROM decisions WHERE {where} AND deadline_wall_ns IS NOT NULL
                    ORDER BY decided_wall_ns DESC LIMIT :limit) decision
                {join} tasks task ON {_SAME_TRY} {more} GROUP BY {keys}) decided""",
            limit=limit, now=now_wall_ns, **parameters, **others,
        )  # fmt: skip
    return Deadlines(int(tries), int(missed or 0), int(untold or 0))


def overheads(ledger: Ledger, scope: Scope) -> list[RunOverhead]:
    """The overhead of each run, in order of start. Pool and quality are a task's, and leave all runs in."""
    where, parameters = scope.where("run", of=("team", "owner"))
    with ledger.transaction(write=False) as tx:
        return [overhead_of(row) for row in tx.execute(schema.OVERHEADS.format(where=where), **parameters)]


def gpu_accounts(ledger: Ledger, scope: Scope) -> list[HostAccount]:
    """Accounts of runs that held a GPU, the latest."""
    where, parameters = scope.where("run", of=("team", "owner"))
    same = " AND ".join(f"account.{column} = run.{column}" for column in ("engine", "namespace", "run_id"))
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT account.body FROM runs run JOIN accounts account ON {same} AND account.flow IN ('', run.flow)
            WHERE {where} AND account.body LIKE :held AND account.body NOT LIKE :none
            ORDER BY run.started_wall_ns DESC LIMIT {MOST_ACCOUNTS}""",
            # A record is kept as canonical JSON, in which this is how it is written.
            held='%"allocated_idle_uj":%', none='%"allocated_idle_uj":null%', **parameters,
        )  # fmt: skip
    return [codec.load(HostAccount, body) for (body,) in rows]


def earlier_runs(ledger: Ledger, run: RunRecord, limit: int = 20) -> list[RunEnergy]:
    """The last runs of the same flow that began before this one, the oldest first."""
    part = " AND ".join(f"task.{column} = earlier.{column}" for column in _RUN)
    sums = (f"(SELECT {each} FROM tasks task WHERE {part})" for each in
            ("sum(energy_uj)", "count(*)", "count(energy_uj)"))  # fmt: skip
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT run_id, started_wall_ns, state, {", ".join(sums)} FROM (
                SELECT engine, namespace, run_id, flow, started_wall_ns, state FROM runs
                WHERE flow = :flow AND engine = :engine AND namespace = :namespace AND started_wall_ns < :before
                    AND run_id <> :run_id AND ended_wall_ns IS NOT NULL
                ORDER BY started_wall_ns DESC LIMIT :limit) earlier ORDER BY started_wall_ns""",
            flow=run.flow, engine=run.engine, namespace=run.namespace, before=run.started_wall_ns,
            run_id=run.run_id, limit=limit,
        )  # fmt: skip
    return [
        RunEnergy(run_id, int(at), state, _int(uj), int(segments), int(known))
        for run_id, at, state, uj, segments, known in rows
    ]


def find_run(ledger: Ledger, ref: RunRef) -> RunRecord | None:
    """The record of a run; None where there is none."""
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            """SELECT body FROM runs WHERE engine = :engine AND namespace = :namespace AND run_id = :run_id
                AND :flow IN ('', flow) ORDER BY started_wall_ns DESC""",
            engine=ref.engine, namespace=ref.namespace, run_id=ref.run_id, flow=ref.flow,
        )  # fmt: skip
    return codec.load(RunRecord, rows[0][0]) if rows else None


def charges_by_time(ledger: Ledger, budget: str, since_wall_ns: int, span_ns: int) -> list[tuple[int, int]]:
    """What a budget was charged since, by span from ``since`` on: the span's number and microjoules."""
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT (charged_wall_ns - :since) / {int(span_ns)}, sum(amount_uj) FROM charges
            WHERE budget = :budget AND charged_wall_ns >= :since AND amount_uj IS NOT NULL GROUP BY 1 ORDER BY 1""",
            budget=budget, since=since_wall_ns,
        )  # fmt: skip
    return [(int(number), int(uj)) for number, uj in rows]


def hosts(ledger: Ledger, scope: Scope) -> list[HostSum]:
    """What was heard of each host, by quality."""
    where, parameters = scope.where(of=_OF_TASKS)
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT host, quality, count(*), max(last_wall_ns) FROM tasks {_by_start(tx)}
            WHERE {where} GROUP BY 1, 2 ORDER BY 1, 2""",
            **parameters,
        )
    return [HostSum(host, quality, int(segments), int(last)) for host, quality, segments, last in rows]


def incident_sums(ledger: Ledger, since_wall_ns: int) -> list[IncidentSum]:
    """Incidents since by code, the most frequent first."""
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            """SELECT code, total, wall_ns, summary, remedy FROM (
                SELECT code, wall_ns, summary, remedy, sum(count) OVER (PARTITION BY code) AS total,
                    row_number() OVER (PARTITION BY code ORDER BY wall_ns DESC, run_id, task) AS age
                FROM incidents WHERE wall_ns >= :since) counted
            WHERE age = 1 ORDER BY total DESC, code""",
            since=since_wall_ns,
        )
    return [IncidentSum(code, int(total), int(at), summary, remedy) for code, total, at, summary, remedy in rows]


def choices(ledger: Ledger, scope: Scope) -> dict[str, tuple[str, ...]]:
    """What the filters may be set to: of the runs since, their engines, flows, teams and owners."""
    where, parameters = Scope(scope.since_wall_ns, flows=scope.flows, namespace=scope.namespace).where()
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(f"SELECT DISTINCT engine, flow, team, owner FROM runs WHERE {where}", **parameters)
    names = ("engine", "flow", "team", "owner")
    return {name: tuple(sorted({row[at] for row in rows if row[at]})) for at, name in enumerate(names)}


def _others(scope: Scope) -> tuple[str, dict[str, object]]:
    """What only a task's row tells, as a further condition on it."""
    given = {name: getattr(scope, name) for name in _OF_TASKS if getattr(scope, name)}
    return "".join(f" AND task.{name} = :{name}" for name in given), given


def _by_start(tx: Transaction) -> str:
    """Left to itself, SQLite walks the whole table in order of its key."""
    return "INDEXED BY tasks_started" if tx.dialect == "sqlite" else ""


def _int(number: Any) -> Any:
    """PostgreSQL's sums are decimals."""
    return None if number is None else int(number)
