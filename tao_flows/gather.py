"""The impure half of a decision: reads the ledger, the profiles and the pools, and writes one request."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tao_flows.budget import EnergyBudget
from tao_flows.clock import iso_from_ns
from tao_flows.ledger.base import Ledger
from tao_flows.pools import WorkerPool
from tao_flows.profiles import Expectation, expect
from tao_flows.units import NS_PER_S, j_from_uj

PROFILE_TTL_S = 30.0
"""A profile is read from the ledger at most this often, so that a mapped task does not read it a thousand times."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a task asks of a decision. Durations are seconds."""

    key: str
    home_pool: str
    ready_wall_ns: int
    deadline_s: float | None = None
    """Ends this long after it became ready."""
    max_defer_s: float = 0.0
    deferrable: bool = False
    reroutable: bool = False
    allowed_zones: tuple[str, ...] | None = None
    requires: tuple[str, ...] = ()
    budget: EnergyBudget | None = None


@dataclass
class Profiles:
    """Expectations by task and pool, read through the ledger and kept for a while."""

    ledger: Ledger
    _kept: dict[tuple[str, str], tuple[int, Expectation]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, task: str, pool: str, monotonic_ns: int) -> Expectation:
        """What ``task`` is expected to cost in ``pool``.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._lock:
            kept = self._kept.get((task, pool))
            if kept is not None and monotonic_ns - kept[0] < PROFILE_TTL_S * NS_PER_S:
                return kept[1]
        expectation = expect(self.ledger.history(task, pool))
        with self._lock:
            self._kept[task, pool] = (monotonic_ns, expectation)
        return expectation


def gather(
    wish: Wish, pools: Sequence[WorkerPool], profiles: Profiles, ledger: Ledger, now_wall_ns: int, monotonic_ns: int
) -> dict[str, Any]:
    """The decision request, in the form of the CLI contract, for starting a task now.

    Args:
        wish: what the task asks.
        pools: the pools described in the configuration; the home pool need not be among them.
        profiles: what the task is expected to cost.
        ledger: says what is already spent of the budget.
        now_wall_ns: the present, nanoseconds since the epoch.
        monotonic_ns: the present on the monotonic clock.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    described = {pool.pool_id: pool for pool in pools}
    described.setdefault(wish.home_pool, WorkerPool(wish.home_pool))
    task: dict[str, Any] = {
        "key": wish.key,
        "home_pool": wish.home_pool,
        "ready_at": iso_from_ns(wish.ready_wall_ns),
        "max_defer_s": wish.max_defer_s,
        "deferrable": wish.deferrable,
        "reroutable": wish.reroutable,
        "requires": list(wish.requires),
    }
    if wish.deadline_s is not None:
        task["deadline"] = iso_from_ns(wish.ready_wall_ns + round(wish.deadline_s * NS_PER_S))
    if wish.allowed_zones is not None:
        task["allowed_zones"] = list(wish.allowed_zones)
    request: dict[str, Any] = {
        # The wall clock can be set back between the two.
        "now": iso_from_ns(max(now_wall_ns, wish.ready_wall_ns)),
        "task": task,
        "pools": [
            _pool(pool, profiles.of(wish.key, pool.pool_id, monotonic_ns))
            for pool in sorted(described.values(), key=lambda pool: pool.pool_id)
        ],
    }
    if wish.budget is not None:
        spent_uj = ledger.spent_uj(wish.budget.name, now_wall_ns - round(wish.budget.window_s * NS_PER_S))
        request["budget"] = {
            "limit_j": wish.budget.limit_j,
            "spent_j": j_from_uj(spent_uj),
            "reserved_j": 0.0,
            "ceiling_j": wish.budget.ceiling_j,
        }
    return request


def _pool(pool: WorkerPool, expected: Expectation) -> dict[str, Any]:
    energy_j, runtime_s = expected.energy_j or pool.energy_j, expected.runtime_s or pool.runtime_s
    power_w = pool.power_w
    if power_w is None and energy_j is not None and runtime_s is not None and runtime_s.p50 > 0:
        power_w = energy_j.mean / runtime_s.p50
    return {
        "pool_id": pool.pool_id,
        "zone": pool.zone,
        "online": pool.online,
        "capacity_free": None,
        "capabilities": list(pool.capabilities),
        "trusted": pool.trusted,
        "energy_j": None if energy_j is None else asdict(energy_j),
        "runtime_s": None if runtime_s is None else asdict(runtime_s),
        "queue_wait_s": pool.queue_wait_s,
        "dispatch_energy_j": pool.dispatch_energy_j,
        "pue": pool.pue,
        "price_per_h": pool.price_per_h,
        "power_w": power_w,
        "power_cap_w": pool.power_cap_w,
    }
