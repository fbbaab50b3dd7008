"""A ledger whose failures never reach the user's task."""

from __future__ import annotations

import atexit
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from tao_flows.clock import Clock, SystemClock
from tao_flows.errors import LedgerError, TaoError
from tao_flows.ledger.base import FleetRow, History, Ledger, RunOverhead, RunRef, Transaction
from tao_flows.ledger.forward import drain, sink_of
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.unwritten import Unwritten, Waiting
from tao_flows.ledger.wireformat import Entry, deliver, encode, is_refusal
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
from tao_flows.units import NS_PER_S

log = logging.getLogger("tao_flows.ledger")

CAPACITY: Final = 10_000
PAUSE_S: Final = 5.0
WAIT_S: Final = 0.5
EXIT_S: Final = 2.0
"""How long the interpreter's end may wait for what is still unwritten."""

_DROPPED: Final = ("LEDGER_DROPPED", "SPOOL_DROPPED")
_WHY: Final = "see what the ledger failed with"


class SafeLedger:
    """Writes that never raise, and reads that do. What a decision reads and writes is asked in turns (``Turns``).

    What cannot be written is kept in memory and written in order later: by the next write once the pause after a
    failure is over, by ``flush``, and at the interpreter's end. At once it is also copied to the spool, so that it
    outlives this process, however that ends. What lies in the spool, of this process or of any other, is written by
    whoever finds the ledger working: a write looks there at most once a pause. To be written twice does a record no
    harm. One write delays its caller by at most ``wait_s`` and two calls of ``inner`` (for SQLite its
    ``busy_timeout_s`` each), and after a failure nothing is tried for ``pause_s``. A file system that hangs inside a
    system call is not bounded by this.

    Args:
        inner: the ledger written to and read from.
        incidents: told of failures, the same code at most once a pause, with the count since. It may write to this
            ledger.
        clock: monotonic time for the pause, wall time for the incidents.
        capacity: records kept in memory; beyond it the oldest is forgotten. One that is not in the spool either is
            counted as LEDGER_DROPPED.
        pause_s: how long nothing is tried after a failure.
        wait_s: how long one write waits for another thread's, and goes on writing what was left over.
        spool: where unwritten records wait on disk, this ledger's own; None for nowhere.
        on_first_end: called once in each process, after the first end of a task or a run was written. It may write to
            this ledger, and must not raise.
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
        spool: Spool | None = None,
        on_first_end: Callable[[], object] = lambda: None,
    ) -> None:
        self.url = inner.url
        self._inner = inner
        self._sink = sink_of(inner)
        self._spool = spool
        self._incidents = incidents
        self._on_first_end = on_first_end
        self._clock = clock or SystemClock()
        self._capacity = capacity
        self._pause_ns = round(pause_s * NS_PER_S)
        self._wait_s = wait_s
        self._state = Unwritten()
        atexit.register(self._last_flush)

    def put_run(self, run: RunRecord) -> None:
        self._put(Entry(run))
        if run.ended_wall_ns is not None:
            self._ended()

    def put_task(self, record: TaskRecord) -> None:
        self._put(Entry(record))
        if record.measurement is not None:
            self._ended()

    def put_decision(self, record: DecisionRecord) -> None:
        self._put(Entry(record))

    def put_account(self, run: RunRef, account: HostAccount) -> None:
        self._put(Entry(account, run))

    def put_incident(self, incident: Incident) -> None:
        self._put(Entry(incident))

    def put_environment(self, record: ProcessEnvironment) -> None:
        self._put(Entry(record))

    def pending(self) -> tuple[Entry, ...]:
        """The records in memory that the ledger does not hold yet, oldest first."""
        state = self._mine()
        with state.queue_lock:
            return tuple(waiting.entry for waiting in state.queue)

    @property
    def failures(self) -> Mapping[str, int]:
        """How often each failure happened in this process, by code."""
        return dict(self._mine().failures)

    def flush(self, timeout_s: float = WAIT_S) -> bool:
        """Tries to write what is unwritten now, pause or not, beginning no record after ``timeout_s`` seconds.

        In the time that is left, what is in the spool. Returns whether nothing is left in memory. Never raises.
        """
        state = self._mine()
        give_up_ns = self._clock.monotonic_ns() + round(timeout_s * NS_PER_S)
        self._drain(state, timeout_s, even_if_paused=True)
        self._keep(state)
        self._replay(state, give_up_ns, at_once=True)
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

    def history(self, task: str, pool: str, limit: int = 50, *, flow: str = "") -> History:
        with self._mine().turns.turn(self._pause_ns / NS_PER_S):
            return self._inner.history(task, pool, limit, flow=flow)

    def spent_uj(self, budget: str, since_wall_ns: int) -> int:
        return self._inner.spent_uj(budget, since_wall_ns)

    def fleet(self, since_wall_ns: int, by: str) -> Sequence[FleetRow]:
        return self._inner.fleet(since_wall_ns, by)

    def overheads(self, since_wall_ns: int) -> Sequence[RunOverhead]:
        return self._inner.overheads(since_wall_ns)

    def reconcile(self, is_alive: Callable[[Segment], bool | None]) -> Sequence[RunKey]:
        return self._inner.reconcile(is_alive)

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Transaction]:
        with self._mine().turns.turn(self._pause_ns / NS_PER_S), self._inner.transaction(write=write) as transaction:
            yield transaction

    def close(self) -> None:
        """Flushes what it can in ``wait_s``, and gives back what it holds. May be called twice."""
        atexit.unregister(self._last_flush)
        self._last_flush(self._wait_s)
        self._inner.close()

    def _ended(self) -> None:
        state = self._mine()
        if not state.has_ended:
            state.has_ended = True
            self._on_first_end()

    def _mine(self) -> Unwritten:
        # Two threads of a forked child may both get here: the one state that is lost holds at most one record.
        if self._state.pid != os.getpid():
            self._state = Unwritten()
        return self._state

    def _put(self, entry: Entry) -> None:
        state, waiting = self._mine(), Waiting(entry)
        give_up_ns = self._clock.monotonic_ns() + round(self._wait_s * NS_PER_S)
        with state.queue_lock:
            state.queue.append(waiting)
            state.unkept.append(waiting)
        self._drain(state, self._wait_s)
        self._keep(state)
        self._forget_oldest(state)
        self._replay(state, give_up_ns)

    def _keep(self, state: Unwritten, *, even_if_paused: bool = False) -> None:
        """Copies to the spool what is neither there nor written."""
        with state.queue_lock:
            while state.unkept and state.unkept[0].is_done:
                state.unkept.popleft()
            if not state.unkept or self._spool is None:
                state.unkept.clear()
                return
        if self._clock.monotonic_ns() < state.spool_paused_until_ns and not even_if_paused:
            return
        with state.spooling:
            with state.queue_lock:
                new, state.unkept = [each for each in state.unkept if not each.is_done], deque()
            failure = self._copy(state, self._spool, new)
        if failure is not None:
            self._failed(state, failure)

    def _copy(self, state: Unwritten, spool: Spool, new: list[Waiting]) -> LedgerError | None:
        lines: list[bytes] = []
        copied: list[Waiting] = []
        for waiting in new:
            try:
                lines.append(encode(waiting.entry))
                copied.append(waiting)
            except LedgerError:  # no ledger could keep it, or it is too long for the spool: memory holds it
                continue
        try:
            dropped = spool.append(lines)
        except LedgerError as error:
            with state.queue_lock:
                state.unkept.extendleft(reversed(copied))
            state.spool_paused_until_ns = self._clock.monotonic_ns() + self._pause_ns
            return error
        for waiting in copied:
            waiting.is_kept = True
        return LedgerError("SPOOL_DROPPED", f"{spool.directory} was full", _WHY) if dropped else None

    def _forget_oldest(self, state: Unwritten) -> None:
        with state.queue_lock:
            forgotten = [state.queue.popleft() for _ in range(len(state.queue) - self._capacity)]
            for oldest in forgotten:
                oldest.is_done = True
        for oldest in forgotten:
            if not oldest.is_kept:
                summary = f"more than {self._capacity} records were unwritten"
                self._failed(state, LedgerError("LEDGER_DROPPED", summary, _WHY), oldest.entry)

    def _replay(self, state: Unwritten, give_up_ns: int, *, at_once: bool = False) -> None:
        """Writes what lies in the spool, this process's or not, if the ledger works and it is time to look."""
        now_ns = self._clock.monotonic_ns()
        if self._spool is None or state.queue:
            return
        if not at_once and now_ns < max(state.look_ns, state.paused_until_ns):
            return
        state.look_ns = now_ns + self._pause_ns
        if not self._spool.has_records():
            return
        drained = drain(self._spool.directory, self._sink, timeout_s=max(0, give_up_ns - now_ns) / NS_PER_S)
        if drained.error is not None:
            if not drained.error.code.startswith("SPOOL"):
                state.paused_until_ns = self._clock.monotonic_ns() + self._pause_ns
            self._failed(state, drained.error)

    def _drain(self, state: Unwritten, timeout_s: float, *, even_if_paused: bool = False) -> None:
        """Writes the queue in order until it is empty, the ledger fails or the time is up."""
        give_up_ns = self._clock.monotonic_ns() + round(timeout_s * NS_PER_S)
        if self._is_paused(state) and not even_if_paused:
            return
        if not state.writing.acquire(timeout=timeout_s):
            return  # the thread that writes takes our record along, or leaves it to the next write
        failures: list[tuple[Exception, Waiting]] = []
        try:
            while even_if_paused or not self._is_paused(state):
                item = self._next(state)
                if item is None:
                    break
                failure = self._write(state, item)
                if failure is not None:
                    failures.append((failure, item))
                    if not is_refusal(failure):
                        break
                if self._clock.monotonic_ns() >= give_up_ns:
                    break
        finally:
            state.writing.release()
        for failure, item in failures:
            self._failed(state, failure, item.entry)

    def _is_paused(self, state: Unwritten) -> bool:
        return self._clock.monotonic_ns() < state.paused_until_ns

    def _next(self, state: Unwritten) -> Waiting | None:
        with state.queue_lock:
            return state.queue.popleft() if state.queue else None

    def _write(self, state: Unwritten, item: Waiting) -> Exception | None:
        """Writes one record; a failure keeps it and begins a pause, unless no ledger could ever keep it."""
        try:
            deliver(self._inner, item.entry)
        except BaseException as error:  # an engine may interrupt the thread here: the record must not be lost
            if isinstance(error, LedgerError) and is_refusal(error):
                item.is_done = True
                self._set_aside(item.entry)
                return error
            with state.queue_lock:
                state.queue.appendleft(item)
            if not isinstance(error, Exception):
                raise
            state.paused_until_ns = self._clock.monotonic_ns() + self._pause_ns
            return error
        item.is_done = True
        state.paused_until_ns = 0
        return None

    def _set_aside(self, entry: Entry) -> None:
        if self._spool is not None:
            with suppress(LedgerError):  # what has no JSON form cannot be kept anywhere
                self._spool.set_aside([encode(entry)])

    def _failed(self, state: Unwritten, error: Exception, entry: Entry | None = None) -> None:
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
            log.warning("%s: %s (%s); %s", code, summary, remedy, self._fate(error))
        run_id, task = _names(entry)
        if self._incidents is None:
            return
        try:
            self._incidents(Incident(code, summary, remedy, self._clock.wall_ns(), count - told_count, run_id, task))
        except Exception:
            log.warning("the listener for incidents failed", exc_info=True)

    def _fate(self, error: Exception) -> str:
        code = _said(error)[0]
        if is_refusal(error):
            return "the record is not written"
        if code in _DROPPED:
            return "the oldest records are lost"
        where = "memory" if self._spool is None or code.startswith("SPOOL") else self._spool.directory
        return f"records are kept in {where} and written when it works"

    def _last_flush(self, timeout_s: float = EXIT_S) -> None:
        state = self._mine()
        if not state.queue:
            return
        # An outage keeps no process from its end: what is in the spool is safe there.
        if not self._is_paused(state) or not all(waiting.is_kept for waiting in state.queue):
            self.flush(timeout_s)
            self._keep(state, even_if_paused=True)
        kept = sum(waiting.is_kept for waiting in state.queue)
        if lost := len(state.queue) - kept:
            log.warning("%d unwritten records are lost: %s could not take them", lost, self.url)
        elif kept and self._spool is not None:
            log.info("%d records are in %s until %s takes them", kept, self._spool.directory, self.url)


def _said(error: Exception) -> tuple[str, str, str]:
    if isinstance(error, TaoError):
        return error.code, error.summary, error.remedy
    return "LEDGER_FAILED", f"{type(error).__name__}: {error}", "please report this"


def _names(entry: Entry | None) -> tuple[str, str]:
    """The run and the task a record is of."""
    if entry is None:
        return "", ""
    record = entry.record
    if isinstance(record, (TaskRecord, DecisionRecord)):
        return record.key.run_id, record.key.task
    if isinstance(record, HostAccount):
        return (entry.run.run_id if entry.run else ""), ""
    if isinstance(record, ProcessEnvironment):
        return "", ""
    return record.run_id, record.task if isinstance(record, Incident) else ""
