"""Waiting for a better time, and never longer than promised.

Two things are kept apart. What the clocks say ends a wait without asking anyone, so that a ledger that is gone, slow or
hangs can delay no start. What the ledger and the signals say is asked in one poll for all that wait in a process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Protocol

from tao_flows.clock import Clock, SystemClock
from tao_flows.errors import LedgerError
from tao_flows.ledger.deferrals import GONE, LAPSE_S, LAPSED, RELEASED, STARTED, DeferralStore
from tao_flows.records import Deferral, RunKey
from tao_flows.units import NS_PER_S, s_from_ns

log = logging.getLogger("tao_flows.waiting")

POLL_S: Final = 5.0
_READ: Final = "the ledger cannot be read"
_RECONSIDER: Final = "a plan cannot be reconsidered"
_LAPSE: Final = "what nobody waits for any more cannot be closed"
_SLICE_S: Final = 0.5
"""A thread that waits in place looks up this often: an exception that an engine sends it is raised only then."""

_TURN_S: Final = 0.002
"""A poll works this long at a stretch, and then lets the other threads: an event loop beside it is not held up."""

Reconsider = Callable[[], Deferral | None]
"""Asked at every poll whether to go on waiting: the plan to follow, by now in the ledger if it is a new one; or None
to start now, because a signal is lost or stale or waiting no longer pays. If it raises LedgerError, the plan stays."""


class Why(str, Enum):
    """Why a wait is over."""

    PLANNED = "planned"
    """The planned start has come."""
    LATEST = "latest"
    """The latest start has come."""
    RELEASED = "released"
    """A person released it, or all that waits is drained."""
    RECONSIDERED = "reconsidered"
    """Waiting could no longer be justified."""
    STARTED = "started"
    """It was started elsewhere: not to be started here."""
    GONE = "gone"
    """It was cancelled: not to be started."""
    STOPPED = "stopped"
    """Whoever waited was told to stop waiting."""
    HANDED_ON = "handed on"
    """Whoever waited leaves it to others: it waits on."""

    def __str__(self) -> str:
        return self.value

    @property
    def starts(self) -> bool:
        """Whether the work is to start now."""
        return self in {Why.PLANNED, Why.LATEST, Why.RELEASED, Why.RECONSIDERED}


class Stop(Protocol):
    """What tells a wait in place to end: a ``threading.Event``, or several in one."""

    def is_set(self) -> bool:
        """Whether to stop waiting."""
        ...


@dataclass(eq=False)
class _Watch:
    """One wait."""

    deferral: Deferral
    latest_monotonic_ns: int
    """Its latest start on a clock that nobody sets, from when the wait began; a plan can only make it earlier."""
    ended: Callable[[Why], None]
    reconsider: Reconsider | None

    def due(self, clock: Clock) -> Why | None:
        """What the clocks say. The wall clock can bring a start forward, never put one off beyond the latest."""
        wall_ns = clock.wall_ns()
        if clock.monotonic_ns() >= self.latest_monotonic_ns or wall_ns >= self.deferral.latest_wall_ns:
            return Why.LATEST
        return Why.PLANNED if wall_ns >= self.deferral.start_wall_ns else None

    def left_s(self, clock: Clock) -> float:
        """Seconds until ``due`` will say something."""
        first_wall_ns = min(self.deferral.start_wall_ns, self.deferral.latest_wall_ns)
        left_ns = min(first_wall_ns - clock.wall_ns(), self.latest_monotonic_ns - clock.monotonic_ns())
        return max(0.0, s_from_ns(left_ns))

    def follow(self, plan: Deferral) -> None:
        """Takes up another plan; a later latest start in it does not count."""
        latest_wall_ns = min(plan.latest_wall_ns, self.deferral.latest_wall_ns)
        self.latest_monotonic_ns -= self.deferral.latest_wall_ns - latest_wall_ns
        self.deferral = replace(plan, latest_wall_ns=latest_wall_ns)


class Waitlist:
    """All that waits in a process, without threads of its own: for an engine that has a loop to call it from.

    ``expire`` reads clocks only; ``poll`` reads the ledger and may take its time, in another thread. Each wait ends
    once, by a call of its ``ended``.

    Args:
        store: the deferrals.
        clock: where time comes from.
    """

    def __init__(self, store: DeferralStore, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._watches: dict[_Watch, None] = {}
        """In order of their beginning; a dictionary, since any of thousands may end."""
        self._told: set[str] = set()
        """What failed last time too, and is not said again."""
        self._swept_ns: int | None = None

    def __len__(self) -> int:
        return len(self._watches)

    def add(
        self, deferral: Deferral, ended: Callable[[Why], None], reconsider: Reconsider | None = None
    ) -> Callable[[], bool]:
        """Begins a wait.

        Args:
            deferral: what is waited for, as planned.
            ended: told why the wait is over, once, from whichever thread finds out; it must return at once.
            reconsider: asked at every poll; None to keep to the plan.

        Returns:
            What ends the wait without a word; it says whether that was still to be done.
        """
        # No longer than it was promised in all, also where the wall clock has been set back since it became ready.
        left_ns = deferral.latest_wall_ns - max(self._clock.wall_ns(), deferral.ready_wall_ns)
        watch = _Watch(deferral, self._clock.monotonic_ns() + left_ns, ended, reconsider)
        with self._lock:
            self._watches[watch] = None
        return lambda: self._take(watch)

    def expire(self) -> float | None:
        """Ends the waits whose time has come; the seconds until the next one's, None where nothing waits."""
        for watch in self._snapshot():
            if (why := watch.due(self._clock)) is not None:
                self._end(watch, why)
        return min((watch.left_s(self._clock) for watch in self._snapshot()), default=None)

    def poll(self) -> None:
        """Reads the ledger once for all waits, and asks each again whether to go on. Never raises.

        Now and then it closes what others left behind that were killed while they waited.
        """
        watches = self._snapshot()
        found = self._read([watch.deferral.key for watch in watches]) if watches else {}
        for watch in watches:
            if (known := found.get(watch.deferral.key)) is not None:
                self._hear(watch, known)
        turn_s = time.perf_counter()
        for watch in self._snapshot():
            if watch.reconsider is not None:
                self._ask(watch, watch.reconsider)
            if time.perf_counter() - turn_s > _TURN_S:
                time.sleep(_TURN_S)
                turn_s = time.perf_counter()
        self._sweep()

    def _snapshot(self) -> list[_Watch]:
        with self._lock:
            return list(self._watches)

    def _read(self, keys: list[RunKey]) -> dict[RunKey, Deferral]:
        try:
            found = dict(self._store.states_of(keys))
        except Exception as error:  # noqa: BLE001 - whatever it is, what waits must go on to its start
            self._cannot(_READ, error)
            return {}
        self._told.discard(_READ)
        return found

    def _sweep(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if self._swept_ns is not None and now_ns - self._swept_ns < LAPSE_S * NS_PER_S:
            return
        self._swept_ns = now_ns
        try:
            self._store.lapse()
            self._told.discard(_LAPSE)
        except Exception as error:  # noqa: BLE001 - it is tidied up by the next one
            self._cannot(_LAPSE, error)

    def _hear(self, watch: _Watch, known: Deferral) -> None:
        if known.said_by == LAPSED:
            # Another host's clock is ahead of ours, or this one slept: what still waits here starts, late as it is.
            self._end(watch, Why.LATEST)
            return
        over = {RELEASED: Why.RELEASED, STARTED: Why.STARTED, GONE: Why.GONE}.get(known.state)
        if over is not None:
            self._end(watch, over)
        else:
            watch.follow(known)

    def _ask(self, watch: _Watch, reconsider: Reconsider) -> None:
        try:
            plan = reconsider()
        except LedgerError as error:
            self._cannot(_RECONSIDER, error)
            return
        except Exception:
            log.warning("reconsidering a wait failed: it ends", exc_info=True)
            plan = None
        self._told.discard(_RECONSIDER)
        if plan is None:
            # Where its time has come meanwhile, that is why.
            self._end(watch, watch.due(self._clock) or Why.RECONSIDERED)
        else:
            watch.follow(plan)

    def _cannot(self, what: str, error: Exception) -> None:
        if what not in self._told:
            log.warning("%s: %s; what waits keeps to its last plan and its latest start", what, error)
        self._told.add(what)

    def _end(self, watch: _Watch, why: Why) -> None:
        if self._take(watch):
            try:
                watch.ended(why)
            except Exception:
                log.warning("what was to follow a wait failed", exc_info=True)

    def _take(self, watch: _Watch) -> bool:
        with self._lock:
            if watch not in self._watches:
                return False
            del self._watches[watch]
            return True


class Waiters:
    """A waitlist with two threads, one for the clocks and one for the ledger, alive while anything waits.

    It belongs to the process that made it: a forked child makes its own.

    Args:
        store: the deferrals.
        poll_s: seconds between two polls, the time in which a release is heard.
        clock: where time comes from.
    """

    def __init__(self, store: DeferralStore, *, poll_s: float = POLL_S, clock: Clock | None = None) -> None:
        self._list = Waitlist(store, clock)
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._added = threading.Event()

    def add(
        self, deferral: Deferral, ended: Callable[[Why], None], reconsider: Reconsider | None = None
    ) -> Callable[[], bool]:
        """As ``Waitlist.add``.

        Raises:
            RuntimeError: no thread can be started; nothing waits then.
        """
        cancel = self._list.add(deferral, ended, reconsider)
        with self._lock:
            for name, loop in (("clocks", self._watch_clocks), ("ledger", self._poll_ledger)):
                if name not in self._running:
                    try:
                        threading.Thread(target=loop, name=f"tao-flows-waiting-{name}", daemon=True).start()
                    except RuntimeError:  # no more threads are to be had, or the interpreter is ending
                        cancel()
                        raise
                    self._running.add(name)
        self._added.set()
        return cancel

    def wait(self, deferral: Deferral, *, reconsider: Reconsider | None = None, stop: Stop | None = None) -> Why:
        """Waits in place; why the wait is over.

        Args:
            deferral: what is waited for, as planned.
            reconsider: asked at every poll; None to keep to the plan.
            stop: ends the wait when set, within half a second.
        """
        over = threading.Event()
        said: list[Why] = []

        def ended(why: Why) -> None:
            said.append(why)
            over.set()

        cancel = self.add(deferral, ended, reconsider)
        try:
            while not over.wait(_SLICE_S):
                if stop is not None and stop.is_set() and cancel():
                    return Why.STOPPED
            return said[0]
        finally:
            cancel()

    def _watch_clocks(self) -> None:
        while not self._is_over("clocks"):
            self._added.clear()
            left_s = self._list.expire()
            # Looked at this often in any case: a wall clock that is put forward wakes nobody.
            self._added.wait(self._poll_s if left_s is None else min(self._poll_s, left_s))

    def _poll_ledger(self) -> None:
        while not self._is_over("ledger"):
            self._list.poll()
            time.sleep(self._poll_s)

    def _is_over(self, thread: str) -> bool:
        """Whether nothing waits any more: then the thread ends, and the next wait begins a new one."""
        with self._lock:
            if not len(self._list):
                self._running.remove(thread)
                return True
            return False


def wait(
    store: DeferralStore,
    deferral: Deferral,
    *,
    poll_s: float = POLL_S,
    clock: Clock | None = None,
    reconsider: Reconsider | None = None,
    stop: Stop | None = None,
) -> Why:
    """Waits in place for one deferral; why the wait is over. Many in one process share a poll by ``Waiters``.

    The caller tells the store that the work has started, or is gone.
    """
    return Waiters(store, poll_s=poll_s, clock=clock).wait(deferral, reconsider=reconsider, stop=stop)
