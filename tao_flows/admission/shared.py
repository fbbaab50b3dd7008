"""What the decisions of one process read and write together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tao_flows.admission.ask import Ask, Noted
from tao_flows.admission.planned import PlannedStarts
from tao_flows.admission.told import Told
from tao_flows.budget import EnergyBudget, budgets_over
from tao_flows.clock import Clock
from tao_flows.config import TaoConfig
from tao_flows.controller.parse import StepsMemo
from tao_flows.errors import ConfigError, LedgerError, TaoError
from tao_flows.leases import Leases
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budgets import BudgetStore, Standing, read_all, read_regimes
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.ledger.pools import PoolStore, read_pools, read_states
from tao_flows.ledger.turns import left_s
from tao_flows.pool_state import MAX_AGE_S, PoolState, live, live_fields, refresh_power
from tao_flows.pools import WorkerPool, load_pools, merge_pools
from tao_flows.profiles import Profiles
from tao_flows.rules import Ruling
from tao_flows.signals.board import SignalBoard
from tao_flows.units import NS_PER_S

Partners = Callable[[TaoConfig], tuple[WorkerPool, ...]]
"""Gives the pools of other organisations that are trusted now. Never raises."""
SHARED_TTL_S: Final = 5.0
"""Budgets, pools and how they stand are read at most this often, for all tasks of a process together."""
LOOK_S: Final = 1.0
"""Whether anything has changed that concerns what waits is looked at this often, for all that waits together."""


@dataclass(frozen=True)
class Defined:
    """What a ledger says that is no single task's: one read of it."""

    budgets: dict[str, EnergyBudget]
    pools: tuple[WorkerPool, ...] = ()
    states: Mapping[str, tuple[PoolState, ...]] | None = None
    regimes: Mapping[str, str] | None = None
    """By budget, as decisions left it."""


@dataclass(frozen=True)
class World:
    """What decisions have in common, as far as a change of it is reason to decide anew."""

    config: TaoConfig
    pools: tuple[WorkerPool, ...]
    online: tuple[bool, ...]
    """By pool."""
    regimes: Mapping[str, str]
    signals: tuple[object, ...]


class _Kept:
    """Something read through the ledger, kept for ``SHARED_TTL_S``. One thread reads; others wait for it, not long."""

    def __init__(self, read: Callable[[], Defined], clock: Clock) -> None:
        self._read, self._clock = read, clock
        self._value: tuple[int, Defined] | None = None
        self._lock = threading.Lock()

    def get(self) -> Defined:
        patience_s = left_s()
        if not self._lock.acquire(timeout=-1 if patience_s is None else patience_s):
            raise LedgerError("LEDGER_BUSY", "another thread of this process still waits for the ledger")
        try:
            now_ns, kept = self._clock.monotonic_ns(), self._value
            if kept is None or now_ns - kept[0] >= SHARED_TTL_S * NS_PER_S:
                kept = self._value = (now_ns, self._read())
            return kept[1]
        finally:
            self._lock.release()

    def forget(self) -> None:
        self._value = None


class Shared:
    """The stores of a ledger and what is kept of them. Safe to share between threads.

    Args:
        ledger: shared by all who decide.
        profiles: what tasks are expected to cost.
        board: the carbon and price signals.
        clock: where time comes from.
        noted: told of our failures.
        partners: other organisations' pools that are trusted now.
    """

    def __init__(
        self,
        ledger: Ledger,
        profiles: Profiles,
        board: SignalBoard | None,
        clock: Clock,
        noted: Noted,
        partners: Partners | None = None,
    ) -> None:
        self._partners = partners
        self.ledger, self.profiles, self.board, self.clock, self.noted = ledger, profiles, board, clock, noted
        self.told = Told(noted, clock)
        self.budgets = BudgetStore(ledger)
        self.deferrals = DeferralStore(ledger)
        self.planned = PlannedStarts(self.deferrals, clock)
        self.leases = Leases(self.budgets)
        self.steps = StepsMemo()
        self.planning = threading.Lock()
        """Held by the one thread of this process that chooses a slot: what it finds free is then not taken by us."""
        self._pool_store = PoolStore(ledger)
        self._kept = _Kept(self._read, clock)
        self._written: tuple[WorkerPool, ...] = ()
        """The settings' pools, as they could last be read."""
        self._put: dict[str, EnergyBudget] = {}
        """What settings and code define, as it was when the ledger was last told."""
        self._stood: dict[tuple[str, ...], tuple[int, list[Standing]]] = {}
        self._world: World | None = None
        self._looked_ns = 0
        self._looking = threading.Lock()
        self._asking_power = threading.Lock()
        self._asked_power_ns = -(2**62)

    def _read(self) -> Defined:
        with self.ledger.transaction(write=False) as tx:
            return Defined({b.name: b for b in read_all(tx)}, read_pools(tx), read_states(tx), read_regimes(tx))

    def pools(self, config: TaoConfig, *, blind: bool = False) -> tuple[WorkerPool, ...]:
        """The pools that are described, in the settings' file before the ledger. A file that is broken is told of.

        Args:
            config: the settings.
            blind: the ledger cannot be asked.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        try:
            self._written = () if config.pools is None else load_pools(config.pools)
        except ConfigError as error:
            self.told.tell(error, "pools kept as they were")
        # A partner's first: no description of ours makes a pool of theirs one of ours.
        theirs = () if self._partners is None or blind else self._partners(config)
        return merge_pools(theirs, self._written, () if blind else self._kept.get().pools)

    def states(self, pools: Sequence[WorkerPool], now_wall_ns: int) -> Mapping[str, tuple[PoolState, ...]]:
        """How pools were last seen; what they draw is asked anew in the background where it is not known of late.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        states = self._kept.get().states or {}
        self._look_at_power(pools, states, now_wall_ns)
        return states

    def budgets_of(self, ask: Ask, ruling: Ruling, config: TaoConfig, *, blind: bool = False) -> list[EnergyBudget]:
        """Every budget the task is under: named in its code, by a rule, or by scope. All are in the ledger then.

        What settings or code define is written into the ledger once a process; from then on the ledger's word holds.

        Args:
            ask: the task's.
            ruling: on the task.
            config: the settings.
            blind: the ledger cannot be asked: what it alone defines is not known.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        known = Defined({}) if blind else self._kept.get()
        ours, names = dict(config.budgets), list(ruling.budgets)
        if isinstance(ask.budget, EnergyBudget):
            own = replace(ask.budget, name=ask.budget.name or f"task:{ask.key.task}")
            ours[own.name] = own
            names.append(own.name)
        elif ask.budget:
            names.append(ask.budget)
        given = {**known.budgets, **{name: b for name, b in ours.items() if self._is_new(b, known)}}
        over = {
            b.name: b for b in budgets_over(given.values(), team=ask.who.team, flow=ask.key.flow, pool=ask.home_pool)
        }
        over.update((name, given[name]) for name in names if name in given)
        if blind:  # what the ledger alone may define is charged by its name, where it turns out to be there
            return [over.get(name) or EnergyBudget(name, 1.0) for name in sorted({*over, *names})]
        for name in names:
            if name not in given:
                summary = f"budget {name!r} of task {ask.key.task!r} is not configured"
                remedy = f'add [budgets.{name}] with limit = "..." to the configuration, or: tao-flows budget set'
                self.noted.note("UNKNOWN_BUDGET", summary, remedy=remedy, run_id=ask.key.run_id, task=ask.key.task)
        for name in over.keys() & ours.keys():
            if over[name] == ours[name] and self._is_new(ours[name], known):
                self.budgets.put(ours[name])
                known.budgets[name] = ours[name]
            self._put[name] = ours[name]
        return [over[name] for name in sorted(over)]

    def _is_new(self, budget: EnergyBudget, known: Defined) -> bool:
        return budget.name not in known.budgets or (
            self._put.get(budget.name) != budget and known.budgets[budget.name] != budget
        )

    def standings(self, names: Sequence[str]) -> list[Standing]:
        """How budgets stand for what waits, which has reserved nothing of them: read once in ``LOOK_S`` for all.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        now_ns, kept = self.clock.monotonic_ns(), self._stood.get(tuple(names))
        if kept is None or now_ns - kept[0] >= LOOK_S * NS_PER_S:
            kept = self._stood[tuple(names)] = (now_ns, self.budgets.standings(names))
        return kept[1]

    def world(self, config: TaoConfig) -> World | None:
        """How things stand: the very same object while nothing has changed. Never raises.

        What cannot be read is taken as unchanged; None where it never could.
        """
        with self._looking:
            now_ns, last = self.clock.monotonic_ns(), self._world
            if last is None or last.config is not config or now_ns - self._looked_ns >= LOOK_S * NS_PER_S:
                self._looked_ns = now_ns
                try:
                    world = self._look(config)
                except TaoError as error:
                    self.told.tell(error, "looking at what has changed")
                else:
                    self._world = last if world == last else world
            return self._world

    def _look(self, config: TaoConfig) -> World:
        now_wall_ns = self.clock.wall_ns()
        pools = self.pools(config)
        states = self.states(pools, now_wall_ns)
        online = (live_fields(pool, live(states.get(pool.pool_id, ()), now_wall_ns))["online"] for pool in pools)
        signals = () if self.board is None else self.board.marks(now_wall_ns)
        return World(config, pools, tuple(online), self._kept.get().regimes or {}, signals)

    def look_again(self) -> None:
        """Has the ledger read anew: what was kept of it turned out to be wrong."""
        self._kept.forget()

    def _look_at_power(
        self, pools: Sequence[WorkerPool], seen: Mapping[str, tuple[PoolState, ...]], now_wall_ns: int
    ) -> None:
        lately_ns = now_wall_ns - round(MAX_AGE_S / 2 * NS_PER_S)
        asked = [
            pool
            for pool in pools
            if pool.power_from is not None
            and not any(s.power_w is not None and s.seen_wall_ns >= lately_ns for s in seen.get(pool.pool_id, ()))
        ]
        if not asked or not self._asking_power.acquire(blocking=False):
            return
        now_ns = self.clock.monotonic_ns()
        try:
            # What does not tell is not asked for every task.
            if now_ns - self._asked_power_ns < SHARED_TTL_S * NS_PER_S:
                self._asking_power.release()
                return
            self._asked_power_ns = now_ns
            threading.Thread(
                target=self._ask_power, args=(asked, now_wall_ns), name="tao-flows-power", daemon=True
            ).start()
        except RuntimeError:  # no more threads are to be had
            self._asking_power.release()

    def _ask_power(self, pools: Sequence[WorkerPool], now_wall_ns: int) -> None:
        try:
            self._pool_store.saw(*refresh_power(pools, now_wall_ns))
        except Exception as ours:  # noqa: BLE001 - what is not known is not counted on
            self.noted.note_error("asking what pools draw", ours)
        finally:
            self._asking_power.release()
