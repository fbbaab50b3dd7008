"""All that waits in a triggerer: one poll of the ledger and the signals for thousands of tasks, and no thread of its own.

The clocks are read in the event loop, so that neither a ledger that hangs nor one that is gone keeps a task beyond its
latest start. All else is asked in a worker thread. When the triggerer stops, nothing is said to have started: whichever
takes the triggers over goes on with the same plan and the same latest start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Final, TypeVar

from airflow_plugin import _compat, decider, gate
from airflow_plugin.facts import Facts
from airflow_plugin.places import executors, place_of
from airflow_plugin.settings import tao_here
from tao_flows.admission import LEDGER_S, Ask
from tao_flows.config import TaoConfig
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.ledger.turns import within
from tao_flows.records import Deferral, RunKey
from tao_flows.runtime import Tao
from tao_flows.units import s_from_ns
from tao_flows.waiting import Waitlist, Why

log = logging.getLogger("tao_flows.airflow")

T = TypeVar("T")

CLOSE_S: Final = 3.0
"""How long an event waits for the ledger to take note that its task starts."""
_TICK_S: Final = 0.25
"""The clocks are read no more often: Airflow itself looks for events once a second."""
_TIDY_S: Final = 1.0
"""Cancelled triggers are looked at together, after this long: a triggerer that stops is gone by then."""


@dataclass(eq=False)
class _Wait:
    """One task that waits."""

    facts: Facts
    deferral: Deferral
    over: asyncio.Future[Why]
    cancel: Callable[[], bool] | None = None
    """Set once it is on the list."""

    def left_s(self) -> float:
        """Seconds to the latest start, no longer than was promised in all."""
        now_ns = max(time.time_ns(), self.deferral.ready_wall_ns)
        return max(0.0, s_from_ns(self.deferral.latest_wall_ns - now_ns))


class WaitRoom:
    """Those who wait in one event loop. Its methods are called in that loop.

    Args:
        tao: gives this process's ``Tao``, from a worker thread; None where there is none.
    """

    poll_s: ClassVar[float] = 2.0
    """Seconds between two polls: the time in which a release or a change of a signal is heard."""
    _here: ClassVar[tuple[asyncio.AbstractEventLoop, WaitRoom] | None] = None

    def __init__(self, tao: Callable[[], Tao | None] = tao_here) -> None:
        self._find_tao = tao
        self._tao: Tao | None = None
        self._list: Waitlist | None = None
        self._waits: dict[_Wait, None] = {}
        self._closing: list[tuple[RunKey, asyncio.Future[None]]] = []
        self._left: list[_Wait] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @classmethod
    def here(cls) -> WaitRoom:
        """The one of the running event loop."""
        loop = asyncio.get_running_loop()
        if cls._here is None or cls._here[0] is not loop:
            cls._here = (loop, cls())
        return cls._here[1]

    async def wait(self, facts: Facts, deferral: Deferral) -> Why:
        """Waits until the task is to start; why. Whatever fails, no longer than to the latest start.

        The ledger has then taken note that it starts, if it answered within ``CLOSE_S``. Where the wait is cancelled,
        the task is gone from the ledger if a user took it away, and goes on waiting if only the triggerer stops.
        """
        wait = _Wait(facts, deferral, asyncio.get_running_loop().create_future())
        self._waits[wait] = None
        self._enlist(wait)
        self._keep_going("clocks", self._watch_clocks)
        self._keep_going("ledger", self._poll)
        try:
            await asyncio.wait({wait.over}, timeout=wait.left_s())
            await self._close(deferral.key)
        except asyncio.CancelledError:
            self._left.append(wait)
            raise
        finally:
            self._leave(wait)
        return wait.over.result() if wait.over.done() else Why.LATEST

    def _enlist(self, wait: _Wait) -> None:
        """Puts it on the list, once there is one."""
        if self._tao is None or self._list is None or wait.cancel is not None:
            return
        tao, loop = self._tao, asyncio.get_running_loop()

        def over(why: Why) -> None:
            loop.call_soon_threadsafe(_tell, wait.over, why)

        try:
            ask = _ask(wait.facts, tao.config)
            reconsider = tao.admission.reconsider(ask, lambda: tao.config, wait.deferral)
            wait.cancel = self._list.add(wait.deferral, over, reconsider)
        except Exception as ours:  # noqa: BLE001 - what cannot be watched does not wait
            tao.incidents.note_error("having a task wait", ours, run_id=wait.facts.run_id, task=wait.facts.task_id)
            _tell(wait.over, Why.RECONSIDERED)

    def _leave(self, wait: _Wait) -> None:
        self._waits.pop(wait, None)
        if wait.cancel is not None:
            wait.cancel()

    def _keep_going(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._tasks.get(name)
        if task is None or task.done():
            # In a context of its own: what it logs belongs to no trigger.
            self._tasks[name] = Context().run(asyncio.get_running_loop().create_task, loop())

    async def _watch_clocks(self) -> None:
        while self._waits or self._left:
            if self._left:
                self._keep_going("cancelled", self._tidy)
            left_s = None if self._list is None else self._list.expire()
            await asyncio.sleep(min(1.0, max(_TICK_S, 1.0 if left_s is None else left_s)))

    async def _poll(self) -> None:
        while self._waits:
            try:
                if self._tao is None:
                    await self._open()
                if self._list is not None:
                    await _in_thread(self._list.poll)
            except Exception:
                log.warning("what waits cannot be looked after; each starts by its latest start", exc_info=True)
            await asyncio.sleep(self.poll_s)

    async def _open(self) -> None:
        """Wires this process; where that fails, nothing waits, since nobody could release it."""
        self._tao = await _in_thread(self._find_tao)
        if self._tao is not None:
            self._list = Waitlist(self._tao.admission.deferrals, self._tao.clock)
        for wait in list(self._waits):
            if self._tao is None:
                _tell(wait.over, Why.RECONSIDERED)
            elif wait in self._waits:
                self._enlist(wait)
                await asyncio.sleep(0)  # a thousand are not put on the list at one stretch

    async def _close(self, key: RunKey) -> None:
        """Has the ledger take note that a try starts: all that end at once in one transaction."""
        if self._tao is None:
            return
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing.append((key, closed))
        self._keep_going("closing", self._close_all)
        await asyncio.wait({closed}, timeout=CLOSE_S)

    async def _close_all(self) -> None:
        while self._closing and self._tao is not None:
            batch, self._closing = self._closing, []
            await _in_thread(self._tao.admission.over, [key for key, _ in batch], Why.PLANNED)
            for _, closed in batch:
                _tell(closed, None)

    async def _tidy(self) -> None:
        """Closes what users have taken away, and not what another triggerer has taken over."""
        while self._left:
            # Begun by the clocks, and not where a wait is cancelled: a triggerer that stops has then stopped them too.
            await asyncio.sleep(_TIDY_S)
            batch, self._left = self._left, []
            if self._tao is not None:
                gone = await _in_thread(_taken_away, self._tao.admission.deferrals, batch)
                if gone:
                    await _in_thread(self._tao.admission.over, gone, Why.GONE)


def _ask(facts: Facts, config: TaoConfig) -> Ask:
    """The question that was answered with the wait: an executor of ours can move what waits, too, the gate cannot."""
    moves = _is_ours(facts.pool)
    return facts.ask(
        config.namespace,
        config.who,
        can_defer=True,
        can_reroute=moves,
        reaches=_is_ours,
        engine_latency_s=decider.ENGINE_LATENCY_S if moves else gate.ENGINE_LATENCY_S,
    )


def _is_ours(pool: str) -> bool:
    """Whether an executor of ours serves a pool."""
    place = place_of(pool, None, executors())
    return place is not None and place.executor.is_ours


def _taken_away(deferrals: DeferralStore, cancelled: Sequence[_Wait]) -> list[RunKey]:
    """Those of cancelled waits whose tries wait no more.

    A triggerer that was silent for long has its triggers taken over, and cancelled: they go on elsewhere. What cannot be
    found out of is left alone, and lapses after its latest start.
    """
    gone = []
    for (dag_id, run_id), waits in groupby(sorted(cancelled, key=_run_of), key=_run_of):
        tries = {wait.deferral.key: (wait.facts.task_id, wait.facts.map_index) for wait in waits}
        try:
            waiting = _compat.deferred_tasks(dag_id, run_id, {task_id for task_id, _ in tries.values()})
            with within(LEDGER_S):
                # What was cleared may wait again by now, as another try.
                again = deferrals.states_of([_next(key) for key, instance in tries.items() if instance in waiting])
        except Exception:
            log.info("whether tasks of %s of %s still wait is not known", run_id, dag_id, exc_info=True)
            continue
        gone += [key for key, instance in tries.items() if instance not in waiting or _next(key) in again]
    return gone


def _run_of(wait: _Wait) -> tuple[str, str]:
    return wait.facts.dag_id, wait.facts.run_id


def _next(key: RunKey) -> RunKey:
    return replace(key, try_number=key.try_number + 1)


def _tell(future: asyncio.Future[T], what: T) -> None:
    if not future.done():
        future.set_result(what)


async def _in_thread(work: Callable[..., T], *args: Any) -> T:
    """Not ``asyncio.to_thread``: Airflow's own calls, such as that for a connection, find their way back by this only."""
    from asgiref.sync import sync_to_async

    done: T = await sync_to_async(work, thread_sensitive=False)(*args)
    return done
