"""A pool where a task never ran: what its runs elsewhere say of it, and when to try it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.profiles.interval import LARGEST, central_90, median
from tao_flows.profiles.learned import Estimate, Expectation

EXPLORE_RUNS: Final = 3
"""A pool with fewer settled runs of a task is tried."""
EXPLORE_SHARE: Final = 0.1
"""The share of a task's decisions that try it: of a thousand mapped tasks not all go to one unknown pool."""

Quantity = Literal["energy", "runtime"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What runs of one task in one pool cost lately, on average; None where that is unknown."""

    task: str
    pool: str
    energy_j: float | None
    runtime_s: float | None


@dataclass(frozen=True, slots=True)
class Described:
    """What a pool's description says of any task there."""

    energy_j: PredictedEnergy | None = None
    runtime_s: PredictedRuntime | None = None


def complete(
    task: str, learned: Mapping[str, Expectation], described: Mapping[str, Described], costs: Sequence[Cost]
) -> dict[str, Expectation]:
    """By pool, what a task is expected to cost: the best known for each of energy and runtime.

    First the task's own runs there; then its runs in another pool, scaled by how the two pools compare over other
    tasks, where any tells; then the pool's description; else unknown.

    Args:
        task: which.
        learned: by pool, what the task's own runs teach.
        described: by pool, what the description says.
        costs: what tasks cost lately, by pool.
    """
    return {
        pool: Expectation(
            _best(task, pool, "energy", learned, described, costs),
            _best(task, pool, "runtime", learned, described, costs),
        )
        for pool in learned
    }


def _best(
    task: str,
    pool: str,
    quantity: Quantity,
    learned: Mapping[str, Expectation],
    described: Mapping[str, Described],
    costs: Sequence[Cost],
) -> Estimate | None:
    own = _of(learned[pool], quantity)
    if own is not None:
        return own
    donors = [
        (other, estimate, _ratios(task, other, pool, quantity, costs))
        for other, expectation in learned.items()
        if (estimate := _of(expectation, quantity)) is not None
    ]
    if donors:
        # One whose likeness is known, then one that is known well.
        donor, estimate, ratios = min(donors, key=lambda each: (not each[2], -each[1].runs, each[0]))
        return _scaled(estimate, donor, ratios)
    return _default(described.get(pool, Described()), quantity)


def _of(expectation: Expectation, quantity: Quantity) -> Estimate | None:
    return expectation.energy if quantity == "energy" else expectation.runtime


def _ratios(task: str, donor: str, pool: str, quantity: Quantity, costs: Iterable[Cost]) -> list[float]:
    """How much ``pool`` took for what ``donor`` took one of, by the other tasks that ran in both, ascending."""
    seen: dict[str, dict[str, float]] = {donor: {}, pool: {}}
    for cost in costs:
        value = cost.energy_j if quantity == "energy" else cost.runtime_s
        if cost.pool in seen and cost.task != task and value is not None and 0 < value <= LARGEST:
            seen[cost.pool][cost.task] = value
    return sorted(value / seen[donor][other] for other, value in seen[pool].items() if other in seen[donor])


def _scaled(estimate: Estimate, donor: str, ratios: Sequence[float]) -> Estimate:
    # Pools of which nothing is known are taken for alike, as sure as one value is sure.
    low, high = central_90(ratios or (1.0,))
    middle = median(ratios) if ratios else 1.0
    return replace(
        estimate,
        mean=min(estimate.mean * middle, LARGEST),
        p50=min(estimate.p50 * middle, LARGEST),
        low=min(estimate.low * low, LARGEST),
        high=min(estimate.high * high, LARGEST),
        runs=0,
        dropped=0,
        basis="other_pool",
        donor=donor,
        scaled_by=len(ratios),
    )


def _default(described: Described, quantity: Quantity) -> Estimate | None:
    if quantity == "energy":
        energy = described.energy_j
        return None if energy is None else Estimate(
            energy.mean, energy.mean, energy.low, energy.high, runs=0, basis="default"
        )  # fmt: skip
    runtime = described.runtime_s
    return None if runtime is None else Estimate(
        runtime.p50, runtime.p50, runtime.p50, runtime.p95, runs=0, basis="default"
    )  # fmt: skip


def explored(
    expectation: Expectation, run_key: str, pool: str, *, runs: int = EXPLORE_RUNS, share: float = EXPLORE_SHARE
) -> Expectation:
    """The expectation that a decision should see, so that a little known pool is tried now and then.

    Optimism under uncertainty: where fewer than ``runs`` runs tell, a ``share`` of the decisions take the energy's lower
    bound for its mean; if that makes the pool the choice, it is tried. Which decisions those are follows from the run
    key and the pool alone, so that a request asked for twice is the same. Only the energy moves: the runtime's
    95th percentile stands, and with it every deadline. What is reserved of a budget should be the mean of the
    expectation given, not of the one returned. Not for a task that may not be rerouted: it has nowhere to explore.

    Args:
        expectation: of the task in the pool.
        run_key: names the try, the same each time it is decided about.
        pool: the pool.
        runs: from so many settled runs on nothing is explored.
        share: of decisions, from 0 to 1.
    """
    energy = expectation.energy
    if energy is None or energy.runs >= runs:
        return expectation
    digest = hashlib.blake2b(f"{run_key}\0{pool}".encode(errors="surrogatepass"), digest_size=8).digest()
    if int.from_bytes(digest, "big") >= share * 2**64:
        return expectation
    return replace(expectation, energy=replace(energy, mean=energy.low), exploring=True)
