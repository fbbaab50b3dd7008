"""The impure half of a decision: reads budgets, profiles, pools and signals, and writes one request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tao_flows.clock import iso_from_ns
from tao_flows.errors import TaoError
from tao_flows.ledger.budgets import Standing
from tao_flows.pool_state import LiveState, PoolState, capacity_by_slot, live, live_fields
from tao_flows.pools import WorkerPool, merge_pools
from tao_flows.profiles import Described, Expectation, Profiles, complete, explored
from tao_flows.signals.board import SignalBoard
from tao_flows.units import NS_PER_S, j_from_uj, s_from_ns

SLOT_S: Final = 300.0
"""Starts are planned on a grid of this many seconds: the step of the finest signals."""
MOST_SLOTS: Final = 288
"""With more room to wait than this many slots the grid is widened, so that a month's slack is no month's decisions."""

_CARBON: Final = "carbon_g_per_kwh"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a task asks of a decision. Durations are seconds."""

    key: str
    """The task, by which its cost is known; empty: the whole run of ``flow``."""
    home_pool: str
    ready_wall_ns: int
    flow: str = ""
    """Whose task, where others may have one of that name."""
    run_key: str = ""
    """Names the try, so that what is explored is the same when it is decided anew."""
    deadline_wall_ns: int | None = None
    """When it has to have ended."""
    max_defer_s: float = 0.0
    deferrable: bool = False
    reroutable: bool = False
    allowed_zones: tuple[str, ...] | None = None
    requires: tuple[str, ...] = ()
    allowed_orgs: tuple[str, ...] = ()
    """Other organisations that may be given the work."""
    size: float | None = None
    explore: bool = True
    """A pool that is little known may be tried; only where the task is reroutable."""
    engine_latency_s: float = 0.0
    """From the end of a wait until the engine starts the task."""
    min_dwell_s: float = 0.0
    """No wait is shorter than this."""

    @property
    def slack_s(self) -> float:
        """The longest it could wait, whatever its deadline."""
        return self.max_defer_s if self.deferrable else 0.0


@dataclass(frozen=True, slots=True)
class Known:
    """What there is to read beside the profiles: each empty where there is none."""

    pools: Sequence[WorkerPool] = ()
    states: Mapping[str, Sequence[PoolState]] = field(default_factory=dict)
    standings: Sequence[Standing] = ()
    board: SignalBoard | None = None
    planned: Callable[[str, int, int], Sequence[int]] | None = None
    """By pool, from and until: when what waits for it is planned to start."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A request, and what it was made of that the decision's consequences need."""

    request: dict[str, Any]
    """In the form of the CLI contract."""
    expected: Mapping[str, Expectation]
    """By pool, what the task is expected to cost; what is explored there is not in it."""
    places: Mapping[str, int | None]
    """By pool, how many may be planned into one slot."""
    slot_s: float
    problems: tuple[TaoError, ...] = ()


def gather(wish: Wish, known: Known, profiles: Profiles | None, now_wall_ns: int, monotonic_ns: int) -> Gathered:
    """The decision request for a task.

    Args:
        wish: what the task asks.
        known: the pools, budgets and signals; the home pool need not be among the pools.
        profiles: what the task is expected to cost; None where no run can be looked up.
        now_wall_ns: the present, nanoseconds since the epoch.
        monotonic_ns: the present on the monotonic clock.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    # The wall clock can be set back between the two.
    now_wall_ns = max(now_wall_ns, wish.ready_wall_ns)
    pools = merge_pools(known.pools, (WorkerPool(wish.home_pool),))
    described = {pool.pool_id: Described(pool.energy_j, pool.runtime_s) for pool in pools}
    if profiles is None:
        expected = complete(wish.key, dict.fromkeys(described, Expectation()), described, ())
    else:
        expected = profiles.among(wish.key, described, monotonic_ns, wish.size, flow=wish.flow)
    slot_s = max(SLOT_S, wish.slack_s / MOST_SLOTS)
    request: dict[str, Any] = {
        "now": iso_from_ns(now_wall_ns),
        "task": _task(wish),
        "pools": [
            _pool(pool, live(known.states.get(pool.pool_id, ()), now_wall_ns), expected[pool.pool_id], wish)
            | _slots(pool, wish, known, now_wall_ns, slot_s)
            for pool in pools
        ],
        "slot_s": slot_s,
        "engine_latency_s": wish.engine_latency_s,
        "min_dwell_s": wish.min_dwell_s,
    }
    if known.standings:
        request["budget"] = [_budget(standing) for standing in known.standings]
        request["previous_regime"] = max(known.standings, key=lambda standing: standing.utilisation).regime
    return Gathered(
        request,
        expected,
        {pool.pool_id: pool.places for pool in pools},
        slot_s,
        _add_signals(request, wish, known.board, pools, expected[wish.home_pool], now_wall_ns),
    )


def _task(wish: Wish) -> dict[str, Any]:
    task: dict[str, Any] = {
        "key": wish.key or wish.flow,
        "home_pool": wish.home_pool,
        "ready_at": iso_from_ns(wish.ready_wall_ns),
        "max_defer_s": wish.max_defer_s,
        "deferrable": wish.deferrable,
        "reroutable": wish.reroutable,
        "requires": list(wish.requires),
    }
    if wish.deadline_wall_ns is not None:
        task["deadline"] = iso_from_ns(wish.deadline_wall_ns)
    if wish.allowed_zones is not None:
        task["allowed_zones"] = list(wish.allowed_zones)
    if wish.allowed_orgs:
        task["allowed_orgs"] = list(wish.allowed_orgs)
    return task


def _budget(standing: Standing) -> dict[str, Any]:
    budget = standing.budget
    return {
        "name": budget.name,
        "limit_j": budget.limit_j,
        "spent_j": j_from_uj(standing.spent_uj),
        "reserved_j": j_from_uj(standing.reserved_uj),
        "ceiling_j": budget.ceiling_j,
        "window_s": None if budget.calendar is not None else budget.window_s,
    }


def _pool(pool: WorkerPool, state: LiveState, expected: Expectation, wish: Wish) -> dict[str, Any]:
    power_w, energy_j, runtime_s = pool.power_w, expected.energy_j, expected.runtime_s
    if power_w is None and energy_j is not None and runtime_s is not None and runtime_s.p50 > 0:
        power_w = energy_j.mean / runtime_s.p50
    # A task that may not be moved has nowhere to explore.
    if wish.explore and wish.reroutable and pool.pool_id != wish.home_pool:
        energy_j = explored(expected, wish.run_key, pool.pool_id).energy_j
    return {
        "pool_id": pool.pool_id,
        "zone": pool.zone,
        "capabilities": list(pool.capabilities),
        "trusted": pool.trusted,
        "energy_j": None if energy_j is None else asdict(energy_j),
        "runtime_s": None if runtime_s is None else asdict(runtime_s),
        "dispatch_energy_j": pool.dispatch_energy_j,
        "pue": pool.pue,
        "price_per_h": pool.price_per_h,
        "power_w": power_w,
        **({} if pool.org is None else {"org": pool.org}),
        **live_fields(pool, state),
    }


def _slots(pool: WorkerPool, wish: Wish, known: Known, now_wall_ns: int, slot_s: float) -> dict[str, Any]:
    """The places left by slot, where the task could wait and the pool plans with a limit."""
    if known.planned is None or pool.places is None or wish.slack_s <= 0:
        return {}
    slot_ns = round(slot_s * NS_PER_S)
    until_ns = wish.ready_wall_ns + round(wish.slack_s * NS_PER_S) + slot_ns
    planned = known.planned(pool.pool_id, now_wall_ns - slot_ns, until_ns)
    return {"capacity_by_slot": capacity_by_slot(pool, slot_s, planned)}


def _add_signals(
    request: dict[str, Any],
    wish: Wish,
    board: SignalBoard | None,
    pools: Sequence[WorkerPool],
    at_home: Expectation,
    now_wall_ns: int,
) -> tuple[TaoError, ...]:
    zones = {pool.zone for pool in pools if pool.zone is not None}
    if board is None or not zones:
        return ()
    waited_s = s_from_ns(now_wall_ns - wish.ready_wall_ns)
    runtime_s = 0.0 if at_home.runtime_s is None else at_home.runtime_s.p50
    reading = board.read(zones, now_wall_ns, slack_s=max(0.0, wish.slack_s - waited_s), runtime_s=runtime_s)
    # A signal that is configured and lost is asked for all the same: without it nothing waits.
    request["signals"] = {**{name: {} for name in sorted(board.configured)}, **reading.signals}
    _add_claims(request, pools, wish)
    if reading.meta is not None:
        request["signal_meta"] = {**reading.meta, **({} if reading.follow is None else {"follow": reading.follow})}
    return reading.problems


def _add_claims(request: dict[str, Any], pools: Sequence[WorkerPool], wish: Wish) -> None:
    """Has a partner's claim stand for the carbon of its zone where no signal of ours tells of that.

    A partner's pool of which no carbon intensity is known is left out: it would be known of no candidate any more. Of
    two claims of one zone the higher counts.
    """
    known = request["signals"].get(_CARBON)
    if known is None:
        return
    claims: dict[str, float] = {}
    for pool in pools:
        if pool.zone is not None and pool.claimed_g_per_kwh is not None and pool.zone not in known:
            claims[pool.zone] = max(pool.claimed_g_per_kwh, claims.get(pool.zone, 0.0))
    since = iso_from_ns(wish.ready_wall_ns)
    told = {zone: [{"start": since, "value": value}] for zone, value in sorted(claims.items())}
    request["signals"][_CARBON] = {**known, **told}
    unknown = {pool.pool_id for pool in pools if pool.org is not None and pool.zone not in {*known, *told}}
    request["pools"] = [pool for pool in request["pools"] if pool["pool_id"] not in unknown]
