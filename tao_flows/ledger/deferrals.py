"""Work that waits for a better time: planned, released, started, in one table that every process shares."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from enum import Enum
from typing import Any, Final, Literal, TypeVar

from tao_flows.clock import iso_from_ns
from tao_flows.errors import LedgerError
from tao_flows.ledger import codec, schema
from tao_flows.ledger.base import Ledger, RunRef, Transaction
from tao_flows.ledger.turns import left_s
from tao_flows.records import DecisionRecord, Deferral, RunKey
from tao_flows.units import NS_PER_S

T = TypeVar("T")

WAITING: Final = "waiting"
RELEASED: Final = "released"
STARTED: Final = "started"
GONE: Final = "gone"
LAPSED: Final = "lapsed"
"""Who said that it has started or is gone, where nobody did and its time was over."""

LAPSE_S: Final = 60.0
"""What is this long past its latest start has nobody left who waits for it: no waiter starts later than that."""
PATIENCE_S: Final = 5.0
"""How long a change is tried again while others are writing, if not within less (``turns.within``); one call takes at
most this and one transaction more."""
_FEW: Final = 64
"""Up to this many deferrals are looked up one by one; more are picked from all that are open first."""

_KEY: Final = tuple(each.name for each in fields(RunKey))
_REST: Final = tuple(each.name for each in fields(Deferral) if each.name != "key")
_COLUMNS: Final = ", ".join((*_KEY, *_REST))
_IS_KEY: Final = " AND ".join(f"{column} = :{column}" for column in _KEY)
_IS_OPEN: Final = "state IN ('waiting', 'released')"
_OF_RUN: Final = "engine = :engine AND namespace = :namespace AND run_id = :run_id AND :flow IN ('', flow)"
_PLAN: Final = f"""INSERT INTO deferrals ({_COLUMNS}) VALUES ({", ".join(f":{column}" for column in (*_KEY, *_REST))})
    ON CONFLICT ({", ".join(_KEY)}) DO UPDATE SET
    {", ".join(f"{column} = excluded.{column}" for column in _REST)} WHERE deferrals.state = 'waiting'
    OR (deferrals.state IN ('started', 'gone') AND excluded.ready_wall_ns > deferrals.changed_wall_ns)"""
_CLOSE: Final = f"UPDATE deferrals SET state = :state, changed_wall_ns = :now WHERE {_IS_KEY} AND {_IS_OPEN}"
_HAS_RUN: Final = f"""EXISTS (SELECT 1 FROM tasks
    WHERE {" AND ".join(f"tasks.{column} = deferrals.{column}" for column in _KEY)})"""
_LAPSE: Final = f"""UPDATE deferrals SET state = CASE WHEN {_HAS_RUN} THEN 'started' ELSE 'gone' END,
    said_by = '{LAPSED}', changed_wall_ns = :now WHERE {_IS_OPEN} AND latest_wall_ns < :before RETURNING {_COLUMNS}"""


class Planned(Enum):
    """What became of a plan; only ``YES`` is true."""

    YES = "yes"
    FULL = "full"
    """Its slot has no place left: another start may have."""
    DRAINING = "draining"
    """Nothing new is to wait: start now."""
    SETTLED = "settled"
    """It was released, has started or was cancelled: its plan can no longer change."""

    def __bool__(self) -> bool:
        return self is Planned.YES


class DeferralStore:
    """The deferrals of a ledger. Every method raises LedgerError when the ledger cannot be read or written.

    Plans are made one at a time over the whole ledger, so that slots are never overfilled and no plan slips past a
    drain.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def plan(
        self,
        deferral: Deferral,
        *,
        places: int | None = None,
        slot_s: float = 300.0,
        decision: DecisionRecord | None = None,
    ) -> Planned:
        """Has a task wait, or moves the start of one that waits. A refusal leaves an earlier plan as it was.

        A wait that is over stays so, unless the try has become ready once more since, as one does that resumes after a
        deferral of its author's.

        Args:
            deferral: the plan; its state and time of change are set here.
            places: how many of the pool may start in one slot; None for no limit.
            slot_s: length of a slot, in seconds; slots are counted from the epoch.
            decision: why; recorded with the plan, if it is made.
        """

        def plan(transaction: Transaction) -> Planned:
            if _is_draining(transaction, transaction.for_update):
                return Planned.DRAINING
            if places is not None and _taken(transaction, deferral, round(slot_s * NS_PER_S)) >= places:
                return Planned.FULL
            row = {column: getattr(deferral, column) for column in _REST} | _row_of(deferral.key)
            row |= {"state": WAITING, "changed_wall_ns": transaction.now_ns()}
            if not transaction.change(_PLAN, **row):
                return Planned.SETTLED
            if decision is not None:
                _record(transaction, decision)
            return Planned.YES

        return self._patiently(plan)

    def state_of(self, key: RunKey) -> Deferral | None:
        """The deferral of a try; None where it never was deferred."""
        return self.states_of([key]).get(key)

    def states_of(self, keys: Sequence[RunKey]) -> Mapping[RunKey, Deferral]:
        """The deferrals of tries, in one transaction; what was never deferred is left out."""
        found: dict[RunKey, Deferral] = {}
        with self._ledger.transaction(write=False) as transaction:
            if len(keys) > _FEW:
                wanted = set(keys)
                everything = map(_deferral, transaction.execute(f"SELECT {_COLUMNS} FROM deferrals WHERE {_IS_OPEN}"))
                found = {deferral.key: deferral for deferral in everything if deferral.key in wanted}
            for key in keys:
                if key not in found:
                    rows = transaction.execute(f"SELECT {_COLUMNS} FROM deferrals WHERE {_IS_KEY}", **_row_of(key))
                    found.update((key, _deferral(row)) for row in rows)
        return found

    def open(self, run: RunRef | None = None) -> Sequence[Deferral]:
        """What waits, or is released and has not started yet: of a run, or all; in order of planned start."""
        condition = _IS_OPEN if run is None else f"{_OF_RUN} AND {_IS_OPEN}"
        query = f"SELECT {_COLUMNS} FROM deferrals WHERE {condition} ORDER BY start_wall_ns, {', '.join(_KEY)}"
        with self._ledger.transaction(write=False) as transaction:
            return [_deferral(row) for row in transaction.execute(query, **_ref(run))]

    def planned(
        self, pool: str, since_wall_ns: int, until_wall_ns: int, *, besides: RunKey | None = None
    ) -> Sequence[int]:
        """When what waits for a pool is planned to start, from ``since`` to before ``until``, in order.

        ``besides`` is left out: a try that is decided on anew does not take its own place from itself.
        """
        other = "1 = 1" if besides is None else f"NOT ({_IS_KEY})"
        with self._ledger.transaction(write=False) as transaction:
            rows = transaction.execute(
                f"""SELECT start_wall_ns FROM deferrals WHERE pool = :pool AND {_IS_OPEN} AND {other}
                    AND start_wall_ns >= :since AND start_wall_ns < :until ORDER BY start_wall_ns""",
                pool=pool, since=since_wall_ns, until=until_wall_ns, **({} if besides is None else _row_of(besides)),
            )  # fmt: skip
        return [int(start_wall_ns) for (start_wall_ns,) in rows]

    def starts(self) -> dict[str, list[int]]:
        """By pool, when what waits is planned to start, in order."""
        found: dict[str, list[int]] = {}
        with self._ledger.transaction(write=False) as transaction:
            query = f"SELECT pool, start_wall_ns FROM deferrals WHERE {_IS_OPEN} ORDER BY start_wall_ns"
            for pool, start_wall_ns in transaction.execute(query):
                found.setdefault(pool, []).append(int(start_wall_ns))
        return found

    def started(self, *keys: RunKey) -> bool:
        """Notes that tries start, all at once; whether any was waiting until now, so that of two callers one is told so."""
        return self._close(keys, STARTED)

    def gone(self, *keys: RunKey) -> bool:
        """Notes that tries were cancelled while they waited; whether any was waiting until now."""
        return self._close(keys, GONE)

    def release(
        self, which: RunRef | Iterable[RunKey] | Literal["all"], *, said_by: str, reason: str
    ) -> Sequence[Deferral]:
        """Has work that waits start now; what was released, each kept as a decision of its own too.

        Args:
            which: a run, tries, or ``all``.
            said_by: who asks for it.
            reason: why.
        """
        wanted = which if isinstance(which, (str, RunRef)) else tuple(which)
        said = f"{said_by}: {reason}" if reason else said_by
        return self._patiently(lambda transaction: _release(transaction, wanted, said))

    def drain(self, *, said_by: str) -> Sequence[Deferral]:
        """Releases all that waits, and has nothing new wait until ``undrain``; what was released."""

        def drain(transaction: Transaction) -> Sequence[Deferral]:
            # Plans under way come before this; all others are refused.
            _set_draining(transaction, said_by, is_set=True)
            return _release(transaction, "all", f"{said_by}: drain")

        return self._patiently(drain)

    def undrain(self, *, said_by: str) -> bool:
        """Lets work wait again; whether it was being drained."""

        def undrain(transaction: Transaction) -> bool:
            was_set = _is_draining(transaction, transaction.for_update)
            _set_draining(transaction, said_by, is_set=False)
            return was_set

        return self._patiently(undrain)

    def is_draining(self) -> bool:
        """Whether nothing new may wait."""
        with self._ledger.transaction(write=False) as transaction:
            return _is_draining(transaction)

    def lapse(self, grace_s: float = LAPSE_S) -> Sequence[Deferral]:
        """Closes what is past its latest start by ``grace_s``: started where a run of it is recorded, else gone.

        A process that was killed while it waited, or could not write that it started, leaves such a row behind.
        """

        def lapse(transaction: Transaction) -> Sequence[Deferral]:
            now_ns = transaction.now_ns()
            before_ns = now_ns - round(grace_s * NS_PER_S)
            return [_deferral(row) for row in transaction.execute(_LAPSE, now=now_ns, before=before_ns)]

        return self._patiently(lapse)

    def _close(self, keys: Sequence[RunKey], state: str) -> bool:
        # In one order for all: of two processes that close the same, neither waits for the other in a circle.
        rows = [_row_of(key) for key in sorted(keys, key=astuple)]

        def close(transaction: Transaction) -> bool:
            now_ns = transaction.now_ns()
            return sum(transaction.change(_CLOSE, state=state, now=now_ns, **row) for row in rows) > 0

        return self._patiently(close)

    def _patiently(self, act: Callable[[Transaction], T]) -> T:
        """What ``act`` gives, in a transaction that is tried again while others are writing."""
        patience_s = left_s()
        give_up_s = time.monotonic() + (PATIENCE_S if patience_s is None else min(PATIENCE_S, patience_s))
        while True:
            try:
                with self._ledger.transaction() as transaction:
                    return act(transaction)
            except LedgerError as error:
                if error.code != "LEDGER_BUSY" or time.monotonic() > give_up_s:
                    raise
            # Not all at the same moment: a thousand tasks may plan at once.
            time.sleep(random.uniform(0.01, 0.05))  # noqa: S311


def _is_draining(transaction: Transaction, for_update: str = "") -> bool:
    rows = transaction.execute(f"SELECT is_set FROM flags WHERE name = 'draining' {for_update}")
    return any(is_set for (is_set,) in rows)


def _taken(transaction: Transaction, deferral: Deferral, slot_ns: int) -> int:
    """How many others are planned into the slot."""
    begin_ns = deferral.start_wall_ns // slot_ns * slot_ns
    rows = transaction.execute(
        f"""SELECT count(*) FROM deferrals WHERE pool = :pool AND {_IS_OPEN}
            AND start_wall_ns >= :begin AND start_wall_ns < :end AND NOT ({_IS_KEY})""",
        begin=begin_ns, end=begin_ns + slot_ns, pool=deferral.pool, **_row_of(deferral.key),
    )  # fmt: skip
    return int(rows[0][0])


def _set_draining(transaction: Transaction, said_by: str, *, is_set: bool) -> None:
    transaction.change(
        "UPDATE flags SET is_set = :is_set, said_by = :said_by WHERE name = 'draining'",
        is_set=int(is_set), said_by=said_by,
    )  # fmt: skip


def _release(
    transaction: Transaction, which: RunRef | Iterable[RunKey] | Literal["all"], said_by: str
) -> list[Deferral]:
    statement = """UPDATE deferrals SET state = 'released', said_by = :said_by, changed_wall_ns = :now
        WHERE state = 'waiting' AND {condition} RETURNING {columns}"""
    if isinstance(which, str):
        choices: list[tuple[str, dict[str, object]]] = [("1 = 1", {})]
    elif isinstance(which, RunRef):
        choices = [(_OF_RUN, _ref(which))]
    else:
        choices = [(_IS_KEY, _row_of(key)) for key in which]
    now_ns = transaction.now_ns()
    released = [
        _deferral(row)
        for condition, parameters in choices
        for row in transaction.execute(
            statement.format(condition=condition, columns=_COLUMNS), said_by=said_by, now=now_ns, **parameters
        )
    ]
    for deferral in released:
        _record(transaction, _audit(deferral, now_ns))
    return released


def _record(transaction: Transaction, decision: DecisionRecord) -> None:
    row = codec.decision_row(decision)
    transaction.change(schema.DECISIONS.upsert(tuple(row)), **row)


def _audit(deferral: Deferral, now_ns: int) -> DecisionRecord:
    """The release as a decision, so that reports and bundles show who took it."""
    planned, latest = iso_from_ns(deferral.start_wall_ns), iso_from_ns(deferral.latest_wall_ns)
    return DecisionRecord(
        key=deferral.key,
        decided_wall_ns=now_ns,
        mode="enforce",
        action="release",
        pool=deferral.pool,
        reason=f"released by {deferral.said_by}",
        request={"planned_start": planned, "latest_start": latest, "deferred_because": deferral.reason},
        answer={"action": "release", "pool": deferral.pool, "said_by": deferral.said_by},
        enforced=True,
    )


def _row_of(key: RunKey) -> dict[str, object]:
    return {column: getattr(key, column) for column in _KEY}


def _ref(run: RunRef | None) -> dict[str, object]:
    if run is None:
        return {}
    return {"engine": run.engine, "namespace": run.namespace, "run_id": run.run_id, "flow": run.flow}


def _deferral(row: Sequence[Any]) -> Deferral:
    return Deferral(RunKey(*row[: len(_KEY)]), *row[len(_KEY) :])
