"""Sums up what is older than a moment into totals that are kept for good, and takes the rows away.

Functions over ``Ledger.transaction``, the same statements on SQLite and on PostgreSQL. Each transaction takes a few
hundred rows and leaves its place with them, so that writers wait for milliseconds, a kill at any moment leaves the sums
exact, and another compactor may go on beside it or after it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tao_flows.errors import LedgerError
from tao_flows.ledger.base import Ledger, RunRef, Transaction
from tao_flows.ledger.lasting import put_totals
from tao_flows.ledger.leftovers import sum_up_incidents, take_environments
from tao_flows.ledger.needed import why_kept
from tao_flows.ledger.tally import (
    ACCOUNT_COLUMNS,
    ACCOUNTS,
    DONE,
    LATE,
    LATE_ACCOUNTS,
    SAME_RUN,
    TASK_COLUMNS,
    TASKS,
    Price,
    Tally,
    TaskPart,
    Walk,
    new_tally,
    tally_run,
    unpriced,
)

PAGE: Final = 200
"""Rows that one transaction sums up and takes away: some ten milliseconds."""
_RUNS_AT_ONCE: Final = 500
_TRIES: Final = 5
_KEYS: Final = ("engine", "namespace", "run_id", "flow")
_RUN: Final = " AND ".join(f"{key} = :{key}" for key in _KEYS)
_PART: Final = " AND ".join(f"part.{key} = :{key}" for key in _KEYS)
_NO_RUN: Final = f"NOT EXISTS (SELECT 1 FROM runs run WHERE {SAME_RUN})"
_NO_TASK: Final = "NOT EXISTS (SELECT 1 FROM tasks own WHERE {})".format(
    " AND ".join(f"own.{key} = part.{key}" for key in _KEYS)
)
_PARTS: Final = ", ".join(f"part.{key}" for key in _KEYS)
_OLD_TASK: Final = "state <> 'running' AND last_wall_ns < :before"
# Of what no run's row tells: tasks and decisions alone, and accounts that came after their run was summed up.
_ORPHANS: Final = (
    f"SELECT DISTINCT {_PARTS} FROM tasks part {{by_start}} WHERE part.started_wall_ns < :before AND {_NO_RUN}",
    f"""SELECT DISTINCT {_PARTS} FROM accounts part WHERE {_NO_RUN} AND {_NO_TASK}
        AND EXISTS (SELECT 1 FROM compacted run WHERE {SAME_RUN})""",
    f"SELECT DISTINCT {_PARTS} FROM decisions part WHERE decided_wall_ns < :before AND {_NO_RUN} AND {_NO_TASK}",
)


@dataclass(slots=True)
class Compaction:
    """What a compaction did, or would do."""

    before_wall_ns: int
    applied: bool
    runs: int = 0
    """Summed up, each by all that there was of it."""
    rows: Counter[str] = field(default_factory=Counter)
    """Taken away, by table; not counted where nothing was done."""
    kept: Counter[str] = field(default_factory=Counter)
    """Runs that are old enough and stay, by the reason."""
    late: int = 0
    """Records that came after their run was summed up: told in lines of their own, in no sum."""
    problems: list[LedgerError] = field(default_factory=list)
    """Why something was left for the next time."""


def compact(
    ledger: Ledger,
    before_wall_ns: int,
    *,
    price: Price = unpriced,
    sealed_only: bool = False,
    dry_run: bool = False,
    rest: Callable[[float], None] = time.sleep,
) -> Compaction:
    """Sums up the runs that were last heard of before a moment. What is under way, or still needed, stays.

    A ledger that is busy, or a run that cannot be read, is told in ``problems``, and left for the next time.

    Args:
        ledger: its schema must be this version's.
        before_wall_ns: the moment.
        price: what a segment caused.
        sealed_only: a run that has no sealed bundle stays.
        dry_run: only count.
        rest: waits so many seconds between transactions, as long as the last one took, so that writers get their turn.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    done = Compaction(before_wall_ns, not dry_run)
    worker = _Worker(ledger, before_wall_ns, price, rest, done)
    for run in _old_runs(ledger, before_wall_ns):
        try:
            reason = _why_kept(ledger, run, before_wall_ns, sealed_only=sealed_only)
            if reason:
                done.kept[reason] += 1
                continue
            if not dry_run:
                worker.sum_up(run)
            done.runs += 1
        except LedgerError as error:
            done.problems.append(error)
    if not dry_run:
        for last in (sum_up_incidents, take_environments):
            try:
                done.rows += last(ledger, before_wall_ns, worker.attempt)
            except LedgerError as error:
                done.problems.append(error)
    return done


def _old_runs(ledger: Ledger, before_wall_ns: int) -> Iterator[RunRef]:
    """Runs that started before, the oldest first, then those of which no run's row tells."""
    place = "started_wall_ns, engine, namespace, run_id, flow"
    after: tuple[Any, ...] = (-(2**62), "", "", "", "")
    while True:
        with ledger.transaction(write=False) as tx:
            rows = tx.execute(
                f"""SELECT {place} FROM runs WHERE started_wall_ns >= :a0 AND started_wall_ns < :before
                    AND ({place}) > (:a0, :a1, :a2, :a3, :a4) ORDER BY {place} LIMIT :page""",
                before=before_wall_ns, page=_RUNS_AT_ONCE, **{f"a{at}": value for at, value in enumerate(after)},
            )  # fmt: skip
        yield from (RunRef(*row[1:]) for row in rows)
        if len(rows) < _RUNS_AT_ONCE:
            break
        after = rows[-1]
    for statement in _ORPHANS:
        with ledger.transaction(write=False) as tx:
            by_start = "INDEXED BY tasks_started" if tx.dialect == "sqlite" else ""
            needs = {"before": before_wall_ns} if ":before" in statement else {}
            rows = tx.execute(statement.format(by_start=by_start), **needs)
        yield from (RunRef(*row) for row in rows)


def _why_kept(ledger: Ledger, run: RunRef, before_wall_ns: int, *, sealed_only: bool) -> str:
    with ledger.transaction(write=False) as tx:
        return why_kept(tx, run, before_wall_ns, sealed_only=sealed_only)


@dataclass(slots=True)
class _Worker:
    ledger: Ledger
    before_wall_ns: int
    price: Price
    rest: Callable[[float], None]
    done: Compaction

    def attempt(self, step: Callable[[Transaction], bool]) -> bool:
        """Runs a step in a transaction of its own, a few times where others are in the way; whether there is more."""
        for tries_left in reversed(range(_TRIES)):
            begun_s = time.monotonic()
            try:
                with self.ledger.transaction() as tx:
                    return step(tx)
            except LedgerError as error:
                if error.code != "LEDGER_BUSY" or not tries_left:
                    raise
            finally:
                self.rest(time.monotonic() - begun_s)
        return False

    def sum_up(self, run: RunRef) -> None:
        """Sums up a run step by step, and takes it away."""
        while self.attempt(lambda tx: self._step(tx, run)):
            pass

    def _step(self, tx: Transaction, run: RunRef) -> bool:
        of = _of(run)
        walk = _locked(tx, of)
        tally, counted, more = new_tally(), Counter[str](), True
        if walk.stage == ACCOUNTS:
            counted["accounts"] = self._accounts(tx, of, walk, tally)
            if counted["accounts"] < PAGE:
                walk.stage, walk.after = TASKS, ()
        elif walk.stage == TASKS:
            counted["tasks"] = self._tasks(tx, of, walk, tally)
            if counted["tasks"] < PAGE:
                walk.stage, walk.after = DONE, ()
        else:
            more = self._rest_of_run(tx, of, walk, tally, counted)
        if more:
            tx.change(f"UPDATE compacted SET place = :place WHERE {_RUN}", place=walk.place, **of)
        put_totals(tx, tally)
        self.done.late += sum(total.parts for key, total in tally.items() if key.line in (LATE, LATE_ACCOUNTS))
        self.done.rows += counted
        return more

    def _accounts(self, tx: Transaction, of: dict[str, object], walk: Walk, tally: Tally) -> int:
        rows = tx.execute(
            f"""SELECT {ACCOUNT_COLUMNS} FROM accounts part LEFT JOIN runs run ON {SAME_RUN} WHERE {_PART}
            ORDER BY part.host, part.time_window LIMIT :page {_locking(tx)}""",
            page=PAGE, **of,
        )  # fmt: skip
        for row in rows:
            walk.account(row, tally)
        if rows:
            _take(tx, "accounts", ("host", "time_window"), (rows[0][4:6], rows[-1][4:6]), len(rows), "1 = 1", of)
            walk.after = rows[-1][4:6]
        return len(rows)

    def _tasks(self, tx: Transaction, of: dict[str, object], walk: Walk, tally: Tally) -> int:
        old = of | {"before": self.before_wall_ns}
        rows = tx.execute(
            f"""SELECT {TASK_COLUMNS} FROM tasks part LEFT JOIN runs run ON {SAME_RUN} WHERE {_PART}
                AND part.state <> 'running' AND part.last_wall_ns < :before
            ORDER BY part.task, part.instance, part.try_number, part.segment LIMIT :page {_locking(tx)}""",
            page=PAGE, **old,
        )  # fmt: skip
        parts = [TaskPart._make(row) for row in rows]
        for part in parts:
            walk.task(part, tally, self.price)
        if parts:
            ends = parts[0][4:8], parts[-1][4:8]
            _take(tx, "tasks", TaskPart._fields[4:8], ends, len(parts), _OLD_TASK, old)
            walk.after = parts[-1][4:8]
        return len(parts)

    def _rest_of_run(
        self, tx: Transaction, of: dict[str, object], walk: Walk, tally: Tally, counted: Counter[str]
    ) -> bool:
        """Takes away what nothing is counted of; with the last of it the run. Whether there is more."""
        old = of | {"before": self.before_wall_ns}
        key = "task, instance, try_number, decided_wall_ns"
        counted["decisions"] = tx.change(
            f"""DELETE FROM decisions WHERE {_RUN} AND ({key}) IN (SELECT {key} FROM decisions
                WHERE {_RUN} AND decided_wall_ns < :before LIMIT :page)""",
            page=PAGE, **old,
        )  # fmt: skip
        if counted["decisions"] == PAGE:
            return True
        runs = tx.execute(
            f"SELECT engine, namespace, flow, team, model_id, started_wall_ns, state FROM runs WHERE {_RUN}", **of
        )
        # A run that is summed up once more, for a late record or a task that was run again, is no other run.
        if not walk.floor_wall_ns:
            for row in runs:
                tally_run(row, tally)
        for table in ("deferrals", "sealing"):
            tx.change(f"DELETE FROM {table} WHERE {_RUN}", **of)
        counted["runs"] = tx.change(
            f"""DELETE FROM runs WHERE {_RUN} AND last_wall_ns < :before
                AND NOT EXISTS (SELECT 1 FROM tasks part WHERE {_PART})""",
            **old,
        )
        if not (runs or walk.floor_wall_ns or walk.counted_try):  # decisions of what never ran: nothing was counted
            tx.change(f"DELETE FROM compacted WHERE {_RUN}", **of)
        statement = f"UPDATE compacted SET place = '', floor_wall_ns = :floor WHERE {_RUN}"
        tx.change(statement, floor=max(walk.floor_wall_ns, self.before_wall_ns), **of)
        return False


def _locked(tx: Transaction, of: dict[str, object]) -> Walk:
    """How far the summing of a run has come, which no other compactor goes on with before this transaction ends."""
    tx.change(
        """INSERT INTO compacted (engine, namespace, run_id, flow, floor_wall_ns, place)
        VALUES (:engine, :namespace, :run_id, :flow, 0, '') ON CONFLICT (engine, namespace, run_id, flow) DO NOTHING""",
        **of,
    )
    ((floor_ns, place),) = tx.execute(f"SELECT floor_wall_ns, place FROM compacted WHERE {_RUN} {tx.for_update}", **of)
    return Walk.of(floor_ns, place)


def _take(
    tx: Transaction, table: str, key: tuple[str, ...], ends: tuple[tuple[Any, ...], ...], rows: int, which: str,
    of: dict[str, object],
) -> None:  # fmt: skip
    """Takes the rows of a page away, and no others: one that was written meanwhile undoes the transaction."""
    columns = ", ".join(key)
    first, last = (", ".join(f":{end}_{name}" for name in key) for end in ("first", "last"))
    bounds = {f"{end}_{name}": value for end, values in zip(("first", "last"), ends, strict=True)
              for name, value in zip(key, values, strict=True)}  # fmt: skip
    taken = tx.change(
        f"DELETE FROM {table} WHERE {_RUN} AND ({columns}) >= ({first}) AND ({columns}) <= ({last}) AND {which}",
        **of, **bounds,
    )  # fmt: skip
    if taken != rows:
        raise LedgerError("LEDGER_BUSY", f"{table} of a run changed while they were summed up", "try again")


def _locking(tx: Transaction) -> str:
    """Keeps writers from the rows of a page until they are taken away."""
    return f"{tx.for_update} OF part" if tx.for_update else ""


def _of(run: RunRef) -> dict[str, object]:
    return {"engine": run.engine, "namespace": run.namespace, "run_id": run.run_id, "flow": run.flow}
