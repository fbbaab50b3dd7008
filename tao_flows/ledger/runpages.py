"""All that a ledger holds of one run, page by page: in bounded memory, however much it is.

Functions over ``Ledger.transaction``, the same statements on SQLite and on PostgreSQL. A page begins behind the key of
the page before, so that a row that arrives meanwhile moves no other. What arrives behind the place a reader has come
to is not in its pages: whoever must miss nothing compares ``stamp_of`` before and after, and reads again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tao_flows.ledger import codec
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import DecisionRecord, RunRecord, TaskRecord
from tao_flows.units import NS_PER_S

PAGE: Final = 500
"""Rows of a page: a decision takes a few kilobytes."""
AFTERWARDS_NS: Final = 5 * NS_PER_S
"""A failure that is noted so long after a run's end is not one of the run's."""
_RUN: Final = "engine = :engine AND namespace = :namespace AND run_id = :run_id AND flow = :flow"
_TASK_PLACE: Final = "task, instance, try_number, segment"
_DECISION_PLACE: Final = "decided_wall_ns, task, instance, try_number"


def ref_of(run: RunRecord) -> RunRef:
    """What names a run, its flow included."""
    return RunRef(run.engine, run.namespace, run.run_id, run.flow)


def tasks_of(ledger: Ledger, run: RunRef, page: int = PAGE) -> Iterator[TaskRecord]:
    """Every segment of a run, those of one try one after another. The run's flow must be given.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    after: tuple[Any, ...] = ("", "", -1, "")
    while True:
        with ledger.transaction(write=False) as tx:
            rows = tx.execute(
                f"""SELECT {_TASK_PLACE}, body FROM tasks WHERE {_RUN}
                    AND ({_TASK_PLACE}) > (:task, :instance, :try_number, :segment)
                ORDER BY {_TASK_PLACE} LIMIT :page""",
                page=page, **_of(run), **dict(zip(("task", "instance", "try_number", "segment"), after, strict=True)),
            )  # fmt: skip
        yield from (codec.load(TaskRecord, row[-1]) for row in rows)
        if len(rows) < page:
            return
        after = tuple(rows[-1][:-1])


@dataclass(frozen=True, slots=True, order=True)
class DecisionPlace:
    """Which decision of a run: no two of one run have the same, and they sort by time."""

    decided_wall_ns: int
    task: str
    instance: str
    try_number: int

    @classmethod
    def of(cls, decision: DecisionRecord) -> DecisionPlace:
        """The place of a decision."""
        key = decision.key
        return cls(decision.decided_wall_ns, key.task, key.instance, key.try_number)


BEGINNING: Final = DecisionPlace(-(2**62), "", "", -1)


def decisions_of(
    ledger: Ledger, run: RunRef, after: DecisionPlace = BEGINNING, page: int = PAGE
) -> Iterator[DecisionRecord]:
    """The decisions of a run in order of time, those after a place. The run's flow must be given.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    while True:
        with ledger.transaction(write=False) as tx:
            rows = tx.execute(
                f"""SELECT body FROM decisions WHERE {_RUN}
                    AND ({_DECISION_PLACE}) > (:decided_wall_ns, :task, :instance, :try_number)
                ORDER BY {_DECISION_PLACE} LIMIT :page""",
                page=page, **_of(run), decided_wall_ns=after.decided_wall_ns, task=after.task,
                instance=after.instance, try_number=after.try_number,
            )  # fmt: skip
        last: DecisionRecord | None = None
        for (body,) in rows:
            last = codec.load(DecisionRecord, body)
            yield last
        if last is None or len(rows) < page:
            return
        after = DecisionPlace.of(last)


@dataclass(frozen=True, slots=True)
class Stamp:
    """Tells whether what a ledger holds of a run has changed: the number of its records, and a digest of their sums."""

    tasks: int
    decisions: int
    accounts: int
    incidents: int
    digest: str

    @property
    def records(self) -> dict[str, int]:
        """The number of records by kind."""
        return {name: getattr(self, name) for name in ("tasks", "decisions", "accounts", "incidents")}


def stamp_of(ledger: Ledger, run: RunRecord) -> Stamp:
    """The stamp of a run, by sums that every later record changes.

    A record that takes the place of another changes its times, its phase, its figures or its length. What failed
    after the run's end is no part of it: sealing and publishing it can fail, too.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    with ledger.transaction(write=False) as tx:
        of = _of(ref_of(run))
        until_ns = 2**62 if run.ended_wall_ns is None else run.ended_wall_ns + AFTERWARDS_NS
        sums = [
            tx.execute(f"SELECT count(*), {columns} FROM {table} WHERE {where}", **parameters)[0]
            for table, columns, where, parameters in (
                ("runs", "sum(last_wall_ns % 1000000007), sum(phase), sum(length(body))", _RUN, of),
                (
                    "tasks",
                    "sum(last_wall_ns % 1000000007), sum(phase), sum(energy_uj), sum(length(body))",
                    _RUN,
                    of,
                ),
                ("decisions", "sum(decided_wall_ns % 1000000007), sum(length(body))", _RUN, of),
                ("accounts", "sum(tasks_uj), sum(overhead_uj), sum(length(body))", _ACCOUNTS, of),
                (
                    "incidents",
                    "sum(count), max(wall_ns)",
                    "run_id = :run_id AND wall_ns <= :until",
                    {"run_id": run.run_id, "until": until_ns},
                ),
            )
        ]
    counts = [int(row[0]) for row in sums]
    said = [[None if value is None else int(value) for value in row] for row in sums]
    _, tasks, decisions, accounts, incidents = counts
    return Stamp(tasks, decisions, accounts, incidents, hashlib.sha256(repr(said).encode()).hexdigest())


_ACCOUNTS: Final = "engine = :engine AND namespace = :namespace AND run_id = :run_id AND flow IN ('', :flow)"


def _of(run: RunRef) -> dict[str, object]:
    return {"engine": run.engine, "namespace": run.namespace, "run_id": run.run_id, "flow": run.flow}
