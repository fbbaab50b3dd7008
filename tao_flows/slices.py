"""Budgets for a process that must decide without I/O, such as Airflow's scheduler.

A thread leases slices of the ledger's budgets ahead, and ``spend`` takes from them in memory. The invariant: as long as
a task runs only on a reservation, its own or the one its worker claims at the start (``BudgetStore.claim``), what is
spent and reserved never passes a ceiling by an admission. A slice is reserved from the moment it can be spent until its
joules are the tasks' own; a scheduler that dies leaves a slice whose lease runs out, and a task that it had admitted
without a reservation yet is asked anew by its worker.

The lease is kept by two clocks, this host's monotonic clock and the database's. A slice is spent only for the first
three quarters of its lease, so that the clocks may drift, or the database's be set forward, by less than a quarter.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final
from urllib.parse import quote

from tao_flows.budget import EnergyBudget
from tao_flows.clock import Clock, SystemClock
from tao_flows.errors import TaoError
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budgets import BudgetStore, Claim, Standing
from tao_flows.ledger.slices import Size, Slice, convert, resize
from tao_flows.records import Incident
from tao_flows.units import NS_PER_S

log = logging.getLogger("tao_flows.slices")

SHARE: Final = 0.1
LEASE_S: Final = 60.0
TASK_LEASE_S: Final = 900.0
"""How long an admitted task's reservation waits for its worker, which then renews it."""
_SPENT_FOR: Final = 0.75
"""Part of the lease for which a slice is spent."""
_ROUNDS: Final = 6
"""Rounds in a lease: four of them have failed before a slice is no longer spent."""
_CHUNK: Final = 16
"""Tasks whose reservations are made in one transaction, so that it locks the budgets for a moment only."""


def _slice_holder() -> str:
    return f"slice/{quote(socket.gethostname(), safe='')}/{os.getpid()}/{uuid.uuid4().hex}"


@dataclass
class _State:
    """One process's part. A forked child has none of its parent's."""

    pid: int = field(default_factory=os.getpid)
    holder: str = field(default_factory=_slice_holder)
    lock: threading.Lock = field(default_factory=threading.Lock)
    wake: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    slices: dict[str, Slice] = field(default_factory=dict)
    available_uj: dict[str, int] = field(default_factory=dict)
    spendable_until_ns: int = 0
    pending: dict[str, dict[str, int]] = field(default_factory=dict)
    """Spent, and not yet the task's own: microjoules by budget, by task."""
    unseen_uj: dict[str, int] = field(default_factory=dict)
    """Spent since the standing was read, or not converted by then; by budget."""
    asked: dict[str, dict[str, int]] = field(default_factory=dict)
    """What was asked for since the last round, granted or not: microjoules by task, by budget."""
    demand_uj: dict[str, int] = field(default_factory=dict)


class SliceKeeper:
    """Holds slices of every budget of a ledger, and lets a process spend them without I/O.

    ``start`` begins the thread; before its first round, and in a forked child that has not called ``start``, nothing
    can be spent. A failure of ours is counted in ``problems`` and never raised.

    Args:
        ledger: where the budgets are.
        share: the part of what is left below a ceiling that is leased at a time; more where more is asked for.
        lease_s: how long a slice outlives this process, in seconds. It is renewed six times within.
        task_lease_s: how long a reservation waits for the task's worker to take it up, in seconds.
        clock: monotonic time for the leases, wall time for the problems.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        share: float = SHARE,
        lease_s: float = LEASE_S,
        task_lease_s: float = TASK_LEASE_S,
        clock: Clock | None = None,
    ) -> None:
        self._ledger = ledger
        self._share = share
        self._lease_s = lease_s
        self._task_lease_s = task_lease_s
        self._clock = clock or SystemClock()
        self._state: _State | None = None
        self._thread: threading.Thread | None = None
        self._problems: dict[str, Incident] = {}

    def start(self) -> None:
        """Begins to lease. Does nothing where it has begun in this process."""
        if self._mine() is None:
            self._state = state = _State()
            self._thread = threading.Thread(target=self._run, args=(state,), name="tao-flows-slices", daemon=True)
            self._thread.start()
            atexit.register(self.stop)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Gives what was spent to the tasks, and the rest back, in ``timeout_s`` seconds at most; else leases run out."""
        state, thread = self._mine(), self._thread
        if state is None or thread is None:
            return
        atexit.unregister(self.stop)
        with state.lock:
            state.spendable_until_ns, state.slices = 0, {}
            state.stopping.set()
        state.wake.set()
        thread.join(timeout_s)
        self._state = self._thread = None

    @property
    def holder(self) -> str:
        """Who holds this process's slices, for the worker's claim; empty where none are held."""
        state = self._mine()
        return "" if state is None else state.holder

    @property
    def budgets(self) -> tuple[EnergyBudget, ...]:
        """The ledger's budgets, as the last round found them."""
        state = self._mine()
        return () if state is None else tuple(each.standing.budget for each in state.slices.values())

    @property
    def problems(self) -> tuple[Incident, ...]:
        """What failed, with how often."""
        return tuple(self._problems.values())

    def standing(self, name: str) -> Standing | None:
        """How a budget stood in the last round, with what was spent here since as reserved; None if it is not known.

        What is left of this process's own slice is not counted.
        """
        state = self._mine()
        if state is None:
            return None
        with state.lock:
            if name not in state.slices:
                return None
            standing = state.slices[name].standing
            return replace(standing, reserved_uj=standing.reserved_uj + state.unseen_uj.get(name, 0))

    def spend(self, task: str, claims: Sequence[Claim]) -> bool:
        """Takes what a task will use from the slices, all or nothing. No I/O.

        False counts as over budget: a slice is used up, not leased yet, or could have run out. A budget without a
        ceiling is known or not, and never used up. Asked again for the same task, the later claims take the place of
        the earlier.

        Args:
            task: the task's holder, ``holder_of`` its run key.
            claims: what it will use, by budget.
        """
        state = self._mine()
        if state is None:
            return False
        wanted: dict[str, int] = {}
        for claim in claims:
            wanted[claim.budget] = wanted.get(claim.budget, 0) + max(0, claim.amount_uj)
        now_ns = self._clock.monotonic_ns()
        with state.lock:
            before = state.pending.get(task, {})
            added = {name: wanted.get(name, 0) - before.get(name, 0) for name in wanted.keys() | before.keys()}
            granted = all(_has_room(state, name, added[name], now_ns) for name in wanted)
            for name, amount_uj in wanted.items():
                state.asked.setdefault(name, {})[task] = amount_uj
            if granted:
                state.pending[task] = wanted
                for name, amount_uj in added.items():
                    state.available_uj[name] = state.available_uj.get(name, 0) - amount_uj
                    state.unseen_uj[name] = state.unseen_uj.get(name, 0) + amount_uj
            if not granted or any(_runs_low(state, name) for name in wanted):
                state.wake.set()
        return granted

    def _mine(self) -> _State | None:
        state = self._state
        return state if state is not None and state.pid == os.getpid() else None

    def _run(self, state: _State) -> None:
        round_s, pause_s = self._lease_s / _ROUNDS, self._lease_s / 60
        while not state.stopping.is_set():
            state.wake.clear()
            succeeded = self._tried("leasing slices of the budgets", self._round, state)
            state.stopping.wait(pause_s if succeeded else round_s)
            state.wake.wait(round_s if succeeded else 0.0)
        self._tried("giving slices back", self._end, state)

    def _tried(self, doing: str, work: Callable[[_State], None], state: _State) -> bool:
        try:
            work(state)
        except Exception as error:  # noqa: BLE001 - whatever it is, the scheduler must go on
            self._note(doing, error)
            return False
        return True

    def _round(self, state: _State) -> None:
        self._convert(state)
        self._resize(state)

    def _end(self, state: _State) -> None:
        try:
            self._convert(state)
        finally:
            BudgetStore(self._ledger).give_back(state.holder)

    def _convert(self, state: _State) -> None:
        """Makes what was spent the tasks' own."""
        while True:
            with state.lock:
                chunk = dict(islice(state.pending.items(), _CHUNK))
            if not chunk:
                return
            spent = {task: [Claim(*claim) for claim in wanted.items()] for task, wanted in chunk.items()}
            with self._ledger.transaction() as tx:
                refused = convert(tx, state.holder, spent, self._task_lease_s)
            with state.lock:
                for task, wanted in chunk.items():
                    if state.pending.get(task) is wanted:
                        del state.pending[task]
            for answer in refused:
                summary = f"a slice no longer held what its task was admitted with: {answer.refusal}"
                remedy = "see what kept the ledger from answering, or workers from starting, for as long as a lease"
                self._note(answer.holder, TaoError("SLICE_LOST", summary, remedy))

    def _resize(self, state: _State) -> None:
        """Renews the slices, and brings each to its size."""
        budgets = BudgetStore(self._ledger).all()
        with state.lock:
            size = Size(self._share, self._demand(state), self._take_back(state))
        begun_ns = self._clock.monotonic_ns()
        with self._ledger.transaction() as tx:
            slices = resize(tx, state.holder, [budget.name for budget in budgets], size, self._lease_s)
        with state.lock:
            if state.stopping.is_set():
                return
            pending: dict[str, int] = {}
            for wanted in state.pending.values():
                for name, amount_uj in wanted.items():
                    pending[name] = pending.get(name, 0) + amount_uj
            state.slices = slices
            # The ledger's word: it knows what workers have claimed of the slice meanwhile.
            state.available_uj = {name: each.amount_uj - pending.get(name, 0) for name, each in slices.items()}
            state.unseen_uj = pending
            state.spendable_until_ns = begun_ns + round(self._lease_s * _SPENT_FOR * NS_PER_S)

    def _demand(self, state: _State) -> dict[str, int]:
        """Twice what was asked for in the last round; it is forgotten by halves."""
        asked, state.asked = state.asked, {}
        for name in asked.keys() | state.demand_uj.keys():
            latest_uj = 2 * sum(asked.get(name, {}).values())
            state.demand_uj[name] = max(latest_uj, state.demand_uj.get(name, 0) // 2)
        return dict(state.demand_uj)

    def _take_back(self, state: _State) -> dict[str, int]:
        """Takes what is too much from the slices before the ledger hears of it, so that it cannot be spent meanwhile."""
        release_uj = {}
        for name, each in state.slices.items():
            wanted_uj = max(each.target_uj, state.demand_uj.get(name, 0))
            release_uj[name] = max(0, state.available_uj.get(name, 0) - wanted_uj)
            state.available_uj[name] = state.available_uj.get(name, 0) - release_uj[name]
        return release_uj

    def _note(self, doing: str, error: Exception) -> None:
        code, summary, remedy = "SLICES_FAILED", f"{type(error).__name__}: {error}", ""
        if isinstance(error, TaoError):
            code, summary, remedy = error.code, error.summary, error.remedy
        before = self._problems.get(code)
        count = 1 if before is None else before.count + 1
        self._problems[code] = Incident(code, f"{doing}: {summary}", remedy, self._clock.wall_ns(), count)
        if before is None:
            log.warning("%s: %s: %s", code, doing, summary)


def _has_room(state: _State, name: str, added_uj: int, now_ns: int) -> bool:
    if name not in state.slices:
        return False
    if state.slices[name].standing.budget.ceiling_j is None:
        return True
    return now_ns < state.spendable_until_ns and state.available_uj.get(name, 0) >= added_uj


def _runs_low(state: _State, name: str) -> bool:
    return state.available_uj.get(name, 0) * 2 < state.slices[name].target_uj
