"""What the decisions of one process read and write together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from tao_flows.admission.ask import Ask, Noted
from tao_flows.budget import EnergyBudget, budgets_over
from tao_flows.clock import Clock
from tao_flows.config import TaoConfig
from tao_flows.leases import Leases
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budgets import BudgetStore
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.ledger.pools import PoolStore
from tao_flows.pool_state import MAX_AGE_S, PoolState, refresh_power
from tao_flows.pools import WorkerPool, load_pools, merge_pools
from tao_flows.profiles import Profiles
from tao_flows.rules import Ruling
from tao_flows.signals.board import SignalBoard
from tao_flows.units import NS_PER_S

SHARED_TTL_S: Final = 5.0
"""Budgets, pools and how they stand are read at most this often, for all tasks of a process together."""

T = TypeVar("T")


@dataclass
class _Kept(Generic[T]):
    """Something read through the ledger, kept for a while."""

    read: Callable[[], T]
    ttl_s: float = SHARED_TTL_S
    _value: tuple[int, T] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def at(self, monotonic_ns: int) -> T:
        with self._lock:
            kept = self._value
            if kept is None or monotonic_ns - kept[0] >= self.ttl_s * NS_PER_S:
                kept = self._value = (monotonic_ns, self.read())
            return kept[1]


class Shared:
    """The stores of a ledger and what is kept of them. Safe to share between threads.

    Args:
        ledger: shared by all who decide.
        profiles: what tasks are expected to cost.
        board: the carbon and price signals.
        clock: where time comes from.
        noted: told of our failures.
    """

    def __init__(
        self, ledger: Ledger, profiles: Profiles, board: SignalBoard | None, clock: Clock, noted: Noted
    ) -> None:
        self.ledger, self.profiles, self.board, self.clock, self.noted = ledger, profiles, board, clock, noted
        self.budgets = BudgetStore(ledger)
        self.deferrals = DeferralStore(ledger)
        self.leases = Leases(self.budgets)
        self._pool_store = PoolStore(ledger)
        self._defined = _Kept(self.budgets.all)
        self._pools: _Kept[tuple[WorkerPool, ...]] = _Kept(self._pool_store.all)
        self._states: _Kept[dict[str, tuple[PoolState, ...]]] = _Kept(self._pool_store.states)
        self._put: set[EnergyBudget] = set()
        self._asking_power = threading.Lock()

    def pools(self, config: TaoConfig) -> tuple[WorkerPool, ...]:
        """The pools that are described, in the settings' file before the ledger.

        Raises:
            ConfigError: the file is wrong.
            LedgerError: the ledger cannot be read.
        """
        written = () if config.pools is None else load_pools(config.pools)
        return merge_pools(written, self._pools.at(self.clock.monotonic_ns()))

    def states(self, pools: Sequence[WorkerPool], now_wall_ns: int) -> dict[str, tuple[PoolState, ...]]:
        """How pools were last seen; what they draw is asked anew in the background where it is not known of late."""
        states = self._states.at(self.clock.monotonic_ns())
        self._look_at_power(pools, states, now_wall_ns)
        return states

    def budgets_of(self, ask: Ask, ruling: Ruling, config: TaoConfig) -> list[EnergyBudget]:
        """Every budget the task is under: named in its code, by a rule, or by scope. All are in the ledger then.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        given = {**{b.name: b for b in self._defined.at(self.clock.monotonic_ns())}, **config.budgets}
        names = list(ruling.budgets)
        if isinstance(ask.budget, EnergyBudget):
            own = replace(ask.budget, name=ask.budget.name or f"task:{ask.key.task}")
            given[own.name] = own
            names.append(own.name)
        elif ask.budget:
            names.append(ask.budget)
        for name in names:
            if name not in given:
                summary = f"budget {name!r} of task {ask.key.task!r} is not configured"
                remedy = f'add [budgets.{name}] with limit = "..." to the configuration, or: tao-flows budget set'
                self.noted.note("UNKNOWN_BUDGET", summary, remedy=remedy, run_id=ask.key.run_id, task=ask.key.task)
        over = {
            b.name: b for b in budgets_over(given.values(), team=ask.who.team, flow=ask.key.flow, pool=ask.home_pool)
        }
        over.update((name, given[name]) for name in names if name in given)
        for budget in over.values():
            if budget not in self._put:
                self.budgets.put(budget)
                self._put.add(budget)
        return [over[name] for name in sorted(over)]

    def _look_at_power(
        self, pools: Sequence[WorkerPool], seen: dict[str, tuple[PoolState, ...]], now_wall_ns: int
    ) -> None:
        lately_ns = now_wall_ns - round(MAX_AGE_S / 2 * NS_PER_S)
        asked = [
            pool
            for pool in pools
            if pool.power_from is not None
            and not any(s.power_w is not None and s.seen_wall_ns >= lately_ns for s in seen.get(pool.pool_id, ()))
        ]
        if asked and self._asking_power.acquire(blocking=False):
            threading.Thread(
                target=self._ask_power, args=(asked, now_wall_ns), name="tao-flows-power", daemon=True
            ).start()

    def _ask_power(self, pools: Sequence[WorkerPool], now_wall_ns: int) -> None:
        try:
            self._pool_store.saw(*refresh_power(pools, now_wall_ns))
        except Exception as ours:  # noqa: BLE001 - what is not known is not counted on
            self.noted.note_error("asking what pools draw", ours)
        finally:
            self._asking_power.release()
