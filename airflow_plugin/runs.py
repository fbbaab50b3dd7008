"""DAG runs, as the scheduler and the API server hear of them: their records, accounts, lost tries and notes.

Airflow calls its listeners in the scheduler's loop. Nothing is done there but to hand over what is in memory; one thread
of this process does the rest, with a session and a ledger of its own.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from airflow_plugin._compat import loaded, runs_under_way
from airflow_plugin.account import NodeAccount, Share
from airflow_plugin.facts import ENGINE, run_ref
from airflow_plugin.note import note_line, put_note
from airflow_plugin.settings import tao_here
from tao_flows.errors import LedgerError
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.totals import accounts_on, open_segments, run_totals, stored_run
from tao_flows.records import UNSEEN_RUN, RunKey, RunRecord, Segment, TaskRecord, TaskState, Who
from tao_flows.report.wanted import report_wanted
from tao_flows.runtime import Tao
from tao_flows.telemetry.procfs import is_alive
from tao_flows.units import NS_PER_S

log = logging.getLogger("tao_flows.airflow")

SETTLE_S: Final = 2.0
"""After a run's end its last tasks' processes still write what they have: it is looked at this often,"""
GRACE_S: Final = 20.0
"""and for so long. What has not ended then, in a run or a try that has, is lost. An end that is written later holds."""
TICK_S: Final = 15.0
"""How often Airflow's processes are looked at while runs are open."""
RECONCILE_S: Final = 60.0
EXIT_S: Final = 5.0
"""How long the process's end waits for what is still to be written."""
MOST_WAITING: Final = 10_000
_OpenOf: TypeAlias = Callable[[RunRef], Mapping[object, Sequence[TaskRecord]]]
_NOWHERE: Final = Segment(host="", boot_id="", pid=0, process_started=0)
"""A DAG run has no process whose end would be its loss: any scheduler goes on with it."""


@dataclass(frozen=True, slots=True)
class RunSeen:
    """A DAG run, as it stood when Airflow told of it. Times are nanoseconds since 1970."""

    dag_id: str
    run_id: str
    state: str
    started_wall_ns: int | None
    ended_wall_ns: int | None
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TryEnded:
    """A try that has ended by Airflow's word, of which its own process may have said nothing."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int


@dataclass(frozen=True, slots=True)
class RanHere:
    """A try's code has run in this process, which is not a task's own: in ``dag.test()`` or ``airflow tasks test``."""

    dag_id: str
    run_id: str


@dataclass
class _Ending:
    """What is still to be done for a run, or one try of it, that has ended."""

    ref: RunRef
    since_s: float
    due_s: float
    ended: TryEnded | None = None
    """None: the whole run."""
    share: Share | None = None
    failed: bool = False


def run_changed(dag_run: Any) -> None:
    """Takes note of a DAG run that has begun or ended. Asks nothing and waits for nothing."""
    seen = loaded(dag_run)
    dag, state = seen.get("dag"), seen.get("state") or seen.get("_state")
    _chronicler.tell(
        RunSeen(
            dag_id=str(seen["dag_id"]),
            run_id=str(seen["run_id"]),
            state=str(getattr(state, "value", state)),
            started_wall_ns=_wall_ns(seen.get("start_date")),
            ended_wall_ns=_wall_ns(seen.get("end_date")),
            tags=tuple(sorted(getattr(dag, "tags", None) or ())),
        )
    )


def try_ended(task_instance: Any) -> None:
    """Takes note of a try that a person or the executor has ended. Asks nothing and waits for nothing."""
    seen = loaded(task_instance)
    if {"dag_id", "run_id", "task_id", "map_index", "try_number"} <= seen.keys():
        _chronicler.tell(
            TryEnded(
                dag_id=str(seen["dag_id"]),
                run_id=str(seen["run_id"]),
                task_id=str(seen["task_id"]),
                map_index=int(seen["map_index"]),
                try_number=int(seen["try_number"]),
            )
        )


def ran_here(key: RunKey) -> None:
    """Takes note of a try that this process has run itself: nobody else will seal its run."""
    _chronicler.tell(RanHere(key.flow, key.run_id))


class Chronicler:
    """The thread that writes down what becomes of DAG runs, and what it keeps meanwhile."""

    def __init__(self) -> None:
        self._told: SimpleQueue[RunSeen | TryEnded | RanHere | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._endings: list[_Ending] = []
        self._node: NodeAccount | None = None
        self._opened: dict[RunRef, RunRecord] = {}
        self._missed: set[RunRef] = set()
        """Those of them that Airflow did not have under way at the last look."""
        self._unsealed: set[RunRef] = set()
        """Runs of which code has run here."""
        self._tick_s = self._reconcile_s = 0.0

    def tell(self, event: RunSeen | TryEnded | RanHere) -> None:
        """Hands over an event; the thread is started by the first."""
        if self._told.qsize() < MOST_WAITING:
            self._told.put(event)
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="tao-flows-runs", daemon=True)
                thread.start()  # where no more threads are to be had, the next event tries again
                self._thread = thread
                atexit.register(self.close)

    def close(self) -> None:
        """Does what is left at once, and waits for it a few seconds."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            self._told.put(None)
            thread.join(EXIT_S)

    def _work(self) -> None:
        while True:
            try:
                event = self._told.get(timeout=self._pause_s())
            except Empty:
                self._guarded("looking after DAG runs", self._look_after)
                continue
            if event is None:
                self._guarded("ending", self._finish_all)
                return
            self._guarded("recording a DAG run", partial(self._take, event))
            if self._pause_s() == 0.0:
                self._guarded("looking after DAG runs", self._look_after)

    def _guarded(self, doing: str, act: Callable[[Tao], None]) -> None:
        tao = tao_here()
        if tao is None:
            return
        try:
            if tao.config.mode != "off":
                act(tao)
        except Exception as ours:  # noqa: BLE001 - the scheduler goes on without us
            tao.incidents.note_error(doing, ours)

    def _pause_s(self) -> float | None:
        """How long there is nothing to do but to listen; None: as long as nothing is told."""
        due = [ending.due_s for ending in self._endings]
        if self._opened:
            due.append(self._tick_s)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _take(self, event: RunSeen | TryEnded | RanHere, tao: Tao) -> None:
        ref, now_s = run_ref(event.dag_id, event.run_id, tao.config.namespace), time.monotonic()
        if isinstance(event, RanHere):
            self._unsealed.add(ref)
            return
        if isinstance(event, TryEnded):
            self._endings.append(_Ending(ref, now_s, now_s + GRACE_S, event))
            return
        started_ns = event.started_wall_ns or tao.clock.wall_ns()
        run = RunRecord(
            engine=ENGINE,
            namespace=tao.config.namespace,
            flow=event.dag_id,
            run_id=event.run_id,
            state=event.state,
            started_wall_ns=started_ns,
            segment=_NOWHERE,
            ended_wall_ns=None if event.state == "running" else event.ended_wall_ns or tao.clock.wall_ns(),
            who=tao.config.who.overlay(Who.of_tags(event.tags)),
        )
        self._node = self._node or NodeAccount(tao)
        if run.ended_wall_ns is None:
            self._tick_s = self._tick_s if self._opened else now_s + TICK_S
            self._reconcile_s = self._reconcile_s if self._opened else now_s + RECONCILE_S
            self._opened[ref] = run
            self._node.open(ref)
        else:
            self._opened.pop(ref, None)
            share = self._node.close(ref)
            self._endings.append(_Ending(ref, now_s, now_s + SETTLE_S, share=share, failed=event.state == "failed"))
        tao.ledger.put_run(run)

    def _look_after(self, tao: Tao) -> None:
        now_s, open_of = time.monotonic(), _open_of(tao)
        for ending in [each for each in self._endings if each.due_s <= now_s]:
            self._endings.remove(ending)
            ending.due_s = now_s + SETTLE_S
            if not self._settled(tao, ending, open_of, at_once=False):
                self._endings.append(ending)
        if self._opened and self._tick_s <= now_s:
            self._tick_s = now_s + TICK_S
            self._tick(tao)

    def _settled(self, tao: Tao, ending: _Ending, open_of: _OpenOf, *, at_once: bool) -> bool:
        """Whether what is to be done for a run or a try that has ended is done."""
        waited = time.monotonic() - ending.since_s >= GRACE_S
        try:
            left = self._lost(tao, ending, open_of, waited=waited)
        except LedgerError as error:  # it may answer a moment later
            tao.incidents.note_error("looking for lost tries", error, run_id=ending.ref.run_id)
            left = True
        if left and not waited and not at_once:
            return False
        if ending.ended is None:
            self._close_account(tao, ending)
            self._seal(tao, ending.ref)
            if not report_wanted(tao.config.report_artifacts, ending.ref.run_id, good=not ending.failed):
                return True
            put_note(ending.ref.flow, ending.ref.run_id, note_line(run_totals(tao.ledger, ending.ref)))
        return True

    def _lost(self, tao: Tao, ending: _Ending, open_of: _OpenOf, *, waited: bool) -> bool:
        """Marks as lost what has not ended and never will; whether anything is left that has not ended."""
        left, of, tries = False, ending.ended, open_of(ending.ref)
        if of is not None:
            tries = {0: tries.get((of.task_id, str(of.map_index), max(1, of.try_number)), ())}
        for record in chain.from_iterable(tries.values()):
            alive = is_alive(record.segment, tao.config.proc_root)
            if alive is False or (alive is None and waited):
                tao.ledger.put_task(replace(record, state=TaskState.LOST))
            else:
                left = True
        return left

    def _seal(self, tao: Tao, ref: RunRef) -> None:
        """Seals a run of which code has run here, where bundles are asked for."""
        if ref not in self._unsealed:
            return
        self._unsealed.discard(ref)
        if tao.config.bundles is not None:
            from airflow_plugin.sealing import seal_here

            seal_here(tao, ref)

    def _close_account(self, tao: Tao, ending: _Ending) -> None:
        share, host = ending.share, tao.segment.host
        if share is None:
            return
        try:
            others = [each for each in accounts_on(tao.ledger, ending.ref, host) if each.window != share.window]
            known = run_totals(tao.ledger, ending.ref).energy.value_uj is not None
            account = share.account(host, others, tasks_known=known)
        except LedgerError:  # then nobody can say what is left
            account = replace(share, alone=False).account(host)
        tao.ledger.put_account(ending.ref, account)

    def _tick(self, tao: Tao) -> None:
        if self._node is not None:
            self._node.end_slot(go_on=True)
        if self._reconcile_s > time.monotonic():
            return
        self._reconcile_s = time.monotonic() + RECONCILE_S
        tao.ledger.reconcile(partial(is_alive, proc_root=tao.config.proc_root))
        over = self._over(tao)
        for ref in list(self._opened):
            self._keep(tao, ref, is_over=ref in over)

    def _over(self, tao: Tao) -> set[RunRef]:
        """Open runs that were deleted, or have ended where nobody told us: Airflow does not have them at two looks.

        At one it may be that its word is still on its way, either way.
        """
        try:
            there = runs_under_way()
        except Exception as ours:  # noqa: BLE001 - they are looked for again
            tao.incidents.note_error("looking for runs that are over", ours)
            return set()
        missed = {ref for ref in self._opened if (ref.flow, ref.run_id) not in there}
        over, self._missed = missed & self._missed, missed
        return over

    def _keep(self, tao: Tao, ref: RunRef, *, is_over: bool = False) -> None:
        """Writes what an open run has so far; of one that has ended elsewhere, for the last time."""
        stored = stored_run(tao.ledger, ref)
        share = None if self._node is None else self._node.shares().get(ref)
        is_over = is_over or (stored is not None and stored.ended_wall_ns is not None)
        if is_over and self._node is not None:
            del self._opened[ref]
            share = self._node.close(ref)
        if share is not None:
            # While it is open nobody can say what will be left: that line is written with the last.
            tao.ledger.put_account(ref, replace(share, alone=False).account(tao.segment.host))

    def _finish_all(self, tao: Tao) -> None:
        open_of = _open_of(tao)
        for ending in self._endings:
            self._guarded("ending a DAG run", partial(self._settled_now, ending, open_of))
        if self._node is not None:
            self._node.end_slot(go_on=False)
            for ref, share in self._node.shares().items():
                tao.ledger.put_account(ref, replace(share, alone=False).account(tao.segment.host))
        for unsealed in list(self._unsealed):
            # `airflow tasks test` has no run that ends: what was seen of it is sealed as it is.
            self._guarded("sealing a DAG run", partial(self._seal_unseen, unsealed))

    def _seal_unseen(self, ref: RunRef, tao: Tao) -> None:
        if stored_run(tao.ledger, ref) is None:
            now_ns = tao.clock.wall_ns()
            tao.ledger.put_run(RunRecord(ENGINE, ref.namespace, ref.flow, ref.run_id, UNSEEN_RUN, now_ns, _NOWHERE))
        self._seal(tao, ref)

    def _settled_now(self, ending: _Ending, open_of: _OpenOf, tao: Tao) -> None:
        self._settled(tao, ending, open_of, at_once=True)


def _open_of(tao: Tao) -> _OpenOf:
    """Gives what has not ended of a run, by try: each run is read once, of which a thousand tries may have ended."""

    @cache
    def read(ref: RunRef) -> Mapping[object, Sequence[TaskRecord]]:
        found: dict[object, list[TaskRecord]] = {}
        for record in open_segments(tao.ledger, ref):
            found.setdefault((record.key.task, record.key.instance, record.key.try_number), []).append(record)
        return found

    return read


_chronicler = Chronicler()


def _renew() -> None:
    global _chronicler
    _chronicler = Chronicler()


# A forked child has neither the thread nor the runs.
os.register_at_fork(after_in_child=_renew)


def _wall_ns(moment: Any) -> int | None:
    return round(moment.timestamp() * NS_PER_S) if isinstance(moment, datetime) else None
