"""Expectations, read through the ledger and kept for a while."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tao_flows.ledger.base import Ledger
from tao_flows.ledger.costs import recent_costs
from tao_flows.ledger.whole import history_of_flow
from tao_flows.profiles.cold import Cost, Described, complete
from tao_flows.profiles.learned import Expectation, Profile, learn
from tao_flows.units import NS_PER_S, j_from_uj

PROFILE_TTL_S: Final = 30.0
"""A profile is read from the ledger at most this often, so that a mapped task does not read it a thousand times."""
SETTLED_TTL_S: Final = 1.0
"""At most this often where a run settles in this very process."""
COSTS_TTL_S: Final = 600.0
"""How long what pools cost beside one another is kept."""


@dataclass
class Profiles:
    """What tasks are expected to cost, by task and pool.

    A run that settles in another process shows within ``PROFILE_TTL_S``; one that settles in this one, and of which
    ``settled`` is told, within ``SETTLED_TTL_S``. Safe to share between threads.
    """

    ledger: Ledger
    _kept: dict[tuple[str, str, str], tuple[int, Profile]] = field(default_factory=dict)
    """By task, pool and flow: when it was read, on the monotonic clock, and what it says."""
    _settled: set[tuple[str, str, str]] = field(default_factory=set)
    _costs: tuple[int, tuple[Cost, ...]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, task: str, pool: str, monotonic_ns: int, size: float | None = None, *, flow: str = "") -> Expectation:
        """What ``task`` is expected to cost in ``pool``, from its own runs there.

        Args:
            task: which; empty: the flow's whole run.
            pool: where.
            monotonic_ns: the present on the monotonic clock.
            size: how much there is to do, in the unit that the task gives its sizes in.
            flow: whose task, where others may have one of that name (``RunKey.task_flow``).

        Raises:
            LedgerError: the ledger cannot be read.
        """
        key = (task, pool, flow)
        with self._lock:
            kept = self._kept.get(key)
            ttl_s = SETTLED_TTL_S if key in self._settled else PROFILE_TTL_S
            if kept is not None and monotonic_ns - kept[0] < ttl_s * NS_PER_S:
                return kept[1].at(size)
            self._settled.discard(key)
        history = self.ledger.history(task, pool, flow=flow) if task else history_of_flow(self.ledger, flow, pool)
        profile = learn(history)
        with self._lock:
            self._kept[key] = (monotonic_ns, profile)
        return profile.at(size)

    def among(
        self,
        task: str,
        pools: Mapping[str, Described],
        monotonic_ns: int,
        size: float | None = None,
        *,
        flow: str = "",
    ) -> dict[str, Expectation]:
        """What ``task`` is expected to cost in each of several pools; where it never ran, after what is known else.

        Args:
            task: which.
            pools: by id, what the pool's description says of any task there.
            monotonic_ns: the present on the monotonic clock.
            size: as for ``of``.
            flow: as for ``of``.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        learned = {pool: self.of(task, pool, monotonic_ns, size, flow=flow) for pool in pools}
        known = [each for each in learned.values() if each.energy is not None or each.runtime is not None]
        lacking = any(each.energy is None or each.runtime is None for each in learned.values())
        # Without a run anywhere there is nothing to scale, and with runs everywhere nothing to fill in.
        costs = self._costs_at(monotonic_ns) if known and lacking else ()
        return complete(task, learned, pools, costs)

    def settled(self, task: str, pool: str, *, flow: str = "") -> None:
        """Takes note that a run has been settled in this process: its profile is soon read again."""
        with self._lock:
            self._settled.add((task, pool, flow))

    def _costs_at(self, monotonic_ns: int) -> tuple[Cost, ...]:
        kept = self._costs
        if kept is None or monotonic_ns - kept[0] >= COSTS_TTL_S * NS_PER_S:
            rows = recent_costs(self.ledger)
            kept = self._costs = (
                monotonic_ns,
                tuple(Cost(task, pool, j_from_uj(energy_uj), wall_s) for task, pool, energy_uj, wall_s in rows),
            )
        return kept[1]
