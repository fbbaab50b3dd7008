"""A ledger whose failures never reach the user's task."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from tao_flows.clock import Clock, SystemClock
from tao_flows.errors import LedgerError
from tao_flows.ledger.base import FleetRow, History, Ledger, RunRef, Transaction
from tao_flows.records import DecisionRecord, HostAccount, Incident, RunKey, RunRecord, Segment, TaskRecord
from tao_flows.units import NS_PER_S

log = logging.getLogger("tao_flows.ledger")

CAPACITY: Final = 10_000
PAUSE_S: Final = 5.0
WAIT_S: Final = 0.5
EXIT_S: Final = 2.0
"""How long the interpreter's end may wait for what is still unwritten."""

_LOSING: Final = ("LEDGER_BAD_RECORD", "LEDGER_DROPPED")

Record = RunRecord | TaskRecord | DecisionRecord | HostAccount | Incident


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A record the ledger does not hold yet."""

    record: Record
    run: RunRef | None = None
    """The run an account belongs to."""


@dataclass
class _State:
    """One process's part: a forked child has none of its parent's records."""

    pid: int = field(default_factory=os.getpid)
    queue: deque[Unwritten] = field(default_factory=deque)
    queue_lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards the queue; held for moments."""
    writing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one thread that writes."""
    paused_until_ns: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    told: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By code: when it was last told, and the count then."""


class SafeLedger:
    """Writes that never raise, and reads that do.

    What cannot be written is kept in memory and written in order later: by the next write once the pause after a
    failure is over, by ``flush``, and at the interpreter's end. One write delays its caller by at most ``wait_s`` and
    one call of ``inner`` (for SQLite its ``busy_timeout_s``), and after a failure nothing is tried for ``pause_s``. A
    file system that hangs inside a system call is not bounded by this.

    Args:
        inner: the ledger written to and read from.
        incidents: told of failures, the same code at most once a pause, with the count since. It may write to this
            ledger.
        clock: monotonic time for the pause, wall time for the incidents.
        capacity: records kept in memory; beyond it the oldest is dropped and counted as LEDGER_DROPPED.
        pause_s: how long nothing is tried after a failure.
        wait_s: how long one write waits for another thread's, and goes on writing what was left over.
    """

    def __init__(
        self,
        inner: Ledger,
        incidents: Callable[[Incident], None] | None = None,
        *,
        clock: Clock | None = None,
        capacity: int = CAPACITY,
        pause_s: float = PAUSE_S,
        wait_s: float = WAIT_S,
    ) -> None:
        self.url = inner.url
        self._inner = inner
        self._incidents = incidents
        self._clock = clock or SystemClock()
        self._capacity = capacity
        self._pause_ns = round(pause_s * NS_PER_S)
        self._wait_s = wait_s
        self._state = _State()
        atexit.register(self._last_flush)

    def put_run(self, run: RunRecord) -> None:
        self._put(Unwritten(run))

    def put_task(self, record: TaskRecord) -> None:
        self._put(Unwritten(record))

    def put_decision(self, record: DecisionRecord) -> None:
        self._put(Unwritten(record))

    def put_account(self, run: RunRef, account: HostAccount) -> None:
        self._put(Unwritten(account, run))

    def put_incident(self, incident: Incident) -> None:
        self._put(Unwritten(incident))

    def pending(self) -> tuple[Unwritten, ...]:
        """The records the ledger does not hold yet, oldest first."""
        state = self._mine()
        with state.queue_lock:
            return tuple(state.queue)

    @property
    def failures(self) -> Mapping[str, int]:
        """How often each failure happened in this process, by code."""
        return dict(self._mine().failures)

    def flush(self, timeout_s: float = WAIT_S) -> bool:
        """Tries to write what is unwritten now, pause or not, beginning no record after ``timeout_s`` seconds.

        Returns whether nothing is left. Never raises.
        """
        state = self._mine()
        self._drain(state, timeout_s, even_if_paused=True)
        return not state.queue

    def find_runs(self, text: str) -> Sequence[RunRecord]:
        return self._inner.find_runs(text)

    def runs(self, since_wall_ns: int = 0) -> Sequence[RunRecord]:
        return self._inner.runs(since_wall_ns)

    def tasks(self, run: RunRef) -> Sequence[TaskRecord]:
        return self._inner.tasks(run)

    def decisions(self, run: RunRef) -> Sequence[DecisionRecord]:
        return self._inner.decisions(run)

    def accounts(self, run: RunRef) -> Sequence[HostAccount]:
        return self._inner.accounts(run)

    def incidents(self, run: RunRef | None = None) -> Sequence[Incident]:
        return self._inner.incidents(run)

    def history(self, task: str, pool: str, limit: int = 50) -> History:
        return self._inner.history(task, pool, limit)

    def spent_uj(self, budget: str, since_wall_ns: int) -> int:
        return self._inner.spent_uj(budget, since_wall_ns)

    def fleet(self, since_wall_ns: int, by: str) -> Sequence[FleetRow]:
        return self._inner.fleet(since_wall_ns, by)

    def reconcile(self, is_alive: Callable[[Segment], bool | None]) -> Sequence[RunKey]:
        return self._inner.reconcile(is_alive)

    def transaction(self, *, write: bool = True) -> AbstractContextManager[Transaction]:
        return self._inner.transaction(write=write)

    def close(self) -> None:
        """Flushes what it can in ``wait_s``, and gives back what it holds. May be called twice."""
        atexit.unregister(self._last_flush)
        self._last_flush(self._wait_s)
        self._inner.close()

    def _mine(self) -> _State:
        # Two threads of a forked child may both get here: the one state that is lost holds at most one record.
        if self._state.pid != os.getpid():
            self._state = _State()
        return self._state

    def _put(self, item: Unwritten) -> None:
        state = self._mine()
        with state.queue_lock:
            state.queue.append(item)
            dropped = [state.queue.popleft() for _ in range(len(state.queue) - self._capacity)]
        for oldest in dropped:
            summary = f"more than {self._capacity} records were unwritten"
            self._failed(state, LedgerError("LEDGER_DROPPED", summary, "see what the ledger failed with"), oldest)
        self._drain(state, self._wait_s)

    def _drain(self, state: _State, timeout_s: float, *, even_if_paused: bool = False) -> None:
        """Writes the queue in order until it is empty, the ledger fails or the time is up."""
        give_up_ns = self._clock.monotonic_ns() + round(timeout_s * NS_PER_S)
        if self._is_paused(state) and not even_if_paused:
            return
        if not state.writing.acquire(timeout=timeout_s):
            return  # the thread that writes takes our record along, or leaves it to the next write
        failures: list[tuple[Exception, Unwritten]] = []
        try:
            while even_if_paused or not self._is_paused(state):
                item = self._next(state)
                if item is None:
                    break
                failure = self._write(state, item)
                if failure is not None:
                    failures.append((failure, item))
                    if not _is_the_records_fault(failure):
                        break
                if self._clock.monotonic_ns() >= give_up_ns:
                    break
        finally:
            state.writing.release()
        for failure, item in failures:
            self._failed(state, failure, item)

    def _is_paused(self, state: _State) -> bool:
        return self._clock.monotonic_ns() < state.paused_until_ns

    def _next(self, state: _State) -> Unwritten | None:
        with state.queue_lock:
            return state.queue.popleft() if state.queue else None

    def _write(self, state: _State, item: Unwritten) -> Exception | None:
        """Writes one record; a failure keeps it and begins a pause, unless no ledger could ever keep it."""
        try:
            self._hand_over(item)
        except BaseException as error:  # an engine may interrupt the thread here: the record must not be lost
            if isinstance(error, LedgerError) and _is_the_records_fault(error):
                return error
            with state.queue_lock:
                state.queue.appendleft(item)
            if not isinstance(error, Exception):
                raise
            state.paused_until_ns = self._clock.monotonic_ns() + self._pause_ns
            return error
        return None

    def _hand_over(self, item: Unwritten) -> None:
        record = item.record
        if isinstance(record, TaskRecord):
            self._inner.put_task(record)
        elif isinstance(record, RunRecord):
            self._inner.put_run(record)
        elif isinstance(record, DecisionRecord):
            self._inner.put_decision(record)
        elif isinstance(record, Incident):
            self._inner.put_incident(record)
        elif item.run is not None:
            self._inner.put_account(item.run, record)

    def _failed(self, state: _State, error: Exception, item: Unwritten) -> None:
        """Counts a failure, logs the first of its kind, and tells of it."""
        code, summary, remedy = _said(error)
        now_ns = self._clock.monotonic_ns()
        with state.queue_lock:
            state.failures[code] += 1
            count = state.failures[code]
            told_ns, told_count = state.told.get(code, (0, 0))
            if told_count and now_ns < told_ns + self._pause_ns:
                return
            state.told[code] = (now_ns, count)
        if not told_count:
            fate = "the record is lost" if code in _LOSING else "records are kept in memory and written when it works"
            log.warning("%s: %s (%s); %s", code, summary, remedy, fate)
        run_id, task = _names(item)
        if self._incidents is None:
            return
        try:
            self._incidents(Incident(code, summary, remedy, self._clock.wall_ns(), count - told_count, run_id, task))
        except Exception:
            log.warning("the listener for incidents failed", exc_info=True)

    def _last_flush(self, timeout_s: float = EXIT_S) -> None:
        if self._mine().queue and not self.flush(timeout_s):
            log.warning("%d unwritten records are lost: %s could not take them", len(self.pending()), self.url)


def _is_the_records_fault(error: Exception) -> bool:
    return isinstance(error, LedgerError) and error.code == "LEDGER_BAD_RECORD"


def _said(error: Exception) -> tuple[str, str, str]:
    if isinstance(error, LedgerError):
        return error.code, error.summary, error.remedy
    return "LEDGER_FAILED", f"{type(error).__name__}: {error}", "please report this"


def _names(item: Unwritten) -> tuple[str, str]:
    """The run and the task a record is of."""
    record = item.record
    if isinstance(record, (TaskRecord, DecisionRecord)):
        return record.key.run_id, record.key.task
    if isinstance(record, HostAccount):
        return (item.run.run_id if item.run else ""), ""
    return record.run_id, record.task if isinstance(record, Incident) else ""
