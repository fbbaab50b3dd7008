"""What each part of the policy is worth: the same jobs with one part taken away, replaced or misled.

The penalty is looked at apart, as it only acts under a budget: see `penalties`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from tao_flows.controller.choose import choose
from tao_flows.controller.model import (
    Budget,
    DecisionRequest,
    Pool,
    PredictedEnergy,
    PredictedRuntime,
    Task,
    Weights,
)
from tao_flows.signals.trailing import Trail
from tao_flows.simulate.market import Job, Market
from tao_flows.simulate.policies import Policy, Tao, Tuning
from tao_flows.units import NS_PER_S, S_PER_H

CONFORMAL: Final = 0.8
"""Share of later starts whose cost is to stay within the margin."""
_DAY_NS: Final = 86_400 * NS_PER_S
_Z95: Final = 1.6448536269514722
"""95 % quantile of the normal distribution."""


def variants(jobs: Sequence[Job], market: Market, slot_ns: int, seed: int) -> dict[str, Policy]:
    """By name, the policy with one part changed.

    Args:
        jobs: what will be run.
        market: the signals and pools.
        slot_ns: spacing of the starts on offer.
        seed: of the errors in believed runtimes.
    """
    horizons_s = [(job.latest_ns - job.arrival_ns + job.runtime_ns) / NS_PER_S for job in jobs]
    tunings = {
        "uncorrected": Tuning(corrected=False),
        "margin off": Tuning(margin=lambda _trail, _job: 0.0),
        "margin conformal": Tuning(margin=_Daily(_conformal)),
        "robust cap": Tuning(cheap=_Cap()),
        "runtime 10 % off": Tuning(believed=_misjudged(jobs, 0.1, seed)),
        "runtime 30 % off": Tuning(believed=_misjudged(jobs, 0.3, seed)),
    }
    return {f"tao, {name}": Tao(market, slot_ns, horizons_s, tuning) for name, tuning in tunings.items()}


class _Daily:
    """A figure of a trail and a job's slack and length, worked out once a day."""

    def __init__(self, figure: Callable[[Trail, int, int], float]) -> None:
        self._figure = figure
        self._kept: dict[tuple[int, int], tuple[int, float]] = {}

    def __call__(self, trail: Trail, job: Job) -> float:
        length = max(math.ceil(job.runtime_ns / trail.step_ns), 1)
        slack = (job.latest_ns - job.arrival_ns) // trail.step_ns
        today = trail.slot * trail.step_ns // _DAY_NS
        kept = self._kept.get((slack, length))
        if kept is None or kept[0] != today:
            kept = self._kept[slack, length] = (today, self._figure(trail, slack, length))
        return kept[1]


def _conformal(trail: Trail, slack: int, length: int) -> float:
    """The 80 % quantile of by how much planned starts cost more than was forecast, relative (split conformal)."""
    errors: list[float] = []
    last = trail.slot
    for slot in range(max(trail.first, 0), last - slack - length, 5):
        sums = trail.forecasts[slot][True]
        hopes = [end - begin for begin, end in zip(sums, sums[length : length + slack + 1], strict=False)]
        at = hopes.index(min(hopes))
        if at and hopes[at]:
            paid = trail.sums[slot + at + length] - trail.sums[slot + at]
            errors.append((paid - hopes[at]) / abs(hopes[at]))
    if not errors:
        return 0.0
    return max(sorted(errors)[min(math.ceil(CONFORMAL * (len(errors) + 1)), len(errors)) - 1], 0.0)


class _Cap:
    """Whether a run now is expected to cost at most sqrt(L U), of what runs cost in the days behind.

    The reservation value of one-way search: a ratio of sqrt(U/L) to the best in the worst case (El-Yaniv et al., 2001).
    """

    def __init__(self) -> None:
        self._bound = _Daily(_reservation)

    def __call__(self, trail: Trail, job: Job) -> bool:
        length = max(math.ceil(job.runtime_ns / trail.step_ns), 1)
        sums = trail.forecasts[trail.slot][True]
        return sums[length] - sums[0] <= self._bound(trail, job)


def _reservation(trail: Trail, _slack: int, length: int) -> float:
    slots = range(trail.first, trail.slot - length + 1)
    costs = [trail.sums[slot + length] - trail.sums[slot] for slot in slots]
    return math.sqrt(min(costs) * max(costs)) if costs and min(costs) > 0.0 else -math.inf


def _misjudged(jobs: Sequence[Job], spread: float, seed: int) -> Callable[[Job], tuple[float, float]]:
    """Runtimes off by a log-normal factor, with a 95 % quantile to match."""
    draw = random.Random(seed)  # noqa: S311 - a simulation, no secret
    factors = {job.job_id: math.exp(draw.gauss(0.0, spread)) for job in jobs}
    wide = math.exp(_Z95 * spread)

    def believed(job: Job) -> tuple[float, float]:
        median_s = job.runtime_s * factors[job.job_id]
        return median_s, median_s * wide

    return believed


@dataclass(frozen=True, slots=True)
class BudgetScore:
    """What a form of the penalty came to, over days of jobs under a budget each."""

    budget_used: float
    """Joules over the budget, mean of the days; above 1 it was exceeded."""
    days_over: int
    mean_slowdown: float
    """Time a job took, relative to the fast pool."""
    fast_early: float
    """Share of the first half of a day's jobs that went to the fast pool."""
    fast_late: float
    """Of the second half: far below the former, it was first come, first served."""

    def to_json(self) -> dict[str, Any]:
        """In plain types."""
        return {name: getattr(self, name) for name in self.__slots__}


TIGHTNESS: Final = {"ample": 0.95, "tight": 0.75}
"""A day's budget, as a share of what all its jobs would take in the fast pool."""


def penalties(seed: int, days: int = 40, jobs_a_day: int = 60) -> dict[str, dict[str, BudgetScore]]:
    """The sigmoid penalty beside a linear one and none, where a fast pool is dear in joules and a slow one is cheap.

    Every job may go to either, and differs in what the fast pool costs and gains it. "sigmoid" is the product's own
    choice; "linear" raises the weight of energy in proportion to the budget in use (g = u), and "none" leaves it.
    By tightness of the budget, then by form.
    """
    return {
        label: {
            name: _under_budget(prefer, random.Random(seed), days, jobs_a_day, tightness)  # noqa: S311
            for name, prefer in _PENALTIES.items()
        }
        for label, tightness in TIGHTNESS.items()
    }


_NOW: Final = datetime(2026, 1, 1, tzinfo=timezone.utc)
_WEIGHTS: Final = Weights(energy=0.5, carbon=0.0, cost=0.0, latency=0.5)


def _sigmoid(used_j: float, limit_j: float, _fast_j: float) -> tuple[Weights, tuple[Budget, ...]]:
    return _WEIGHTS, (Budget(limit_j, used_j, 0.0),)


def _linear(used_j: float, limit_j: float, fast_j: float) -> tuple[Weights, tuple[Budget, ...]]:
    g = (used_j + fast_j) / limit_j
    return Weights(_WEIGHTS.energy * (1.0 + g), 0.0, 0.0, _WEIGHTS.latency), ()


def _none(_used_j: float, _limit_j: float, _fast_j: float) -> tuple[Weights, tuple[Budget, ...]]:
    return _WEIGHTS, ()


_PENALTIES: Final[Mapping[str, Callable[[float, float, float], tuple[Weights, tuple[Budget, ...]]]]] = {
    "sigmoid": _sigmoid,
    "linear": _linear,
    "none": _none,
}


def _under_budget(
    prefer: Callable[[float, float, float], tuple[Weights, tuple[Budget, ...]]],
    draw: random.Random,
    days: int,
    jobs_a_day: int,
    tightness: float,
) -> BudgetScore:
    used: list[float] = []
    slowdowns: list[float] = []
    fast_by_half: tuple[list[bool], list[bool]] = ([], [])
    for _ in range(days):
        drawn = [
            (draw.lognormvariate(0.0, 0.5), draw.uniform(0.3, 0.9), draw.uniform(1.1, 4.0)) for _ in range(jobs_a_day)
        ]
        limit_j = tightness * sum(fast_j for fast_j, _, _ in drawn)
        used_j = 0.0
        for number, (fast_j, saved, slower) in enumerate(drawn):
            weights, budgets = prefer(used_j, limit_j, fast_j)
            fast = choose(_two_pools(fast_j, fast_j * saved, slower, weights, budgets)).pool == "fast"
            used_j += fast_j if fast else fast_j * saved
            slowdowns.append(1.0 if fast else slower)
            fast_by_half[number * 2 >= jobs_a_day].append(fast)
        used.append(used_j / limit_j)
    early, late = fast_by_half
    return BudgetScore(
        budget_used=math.fsum(used) / len(used),
        days_over=sum(share > 1.0 for share in used),
        mean_slowdown=math.fsum(slowdowns) / len(slowdowns),
        fast_early=sum(early) / len(early),
        fast_late=sum(late) / len(late),
    )


def _two_pools(
    fast_j: float, slow_j: float, slower: float, weights: Weights, budgets: tuple[Budget, ...]
) -> DecisionRequest:
    def pool(pool_id: str, energy_j: float, runtime_s: float) -> Pool:
        return Pool(
            pool_id=pool_id,
            zone=None,
            online=True,
            capacity_free=None,
            energy_j=PredictedEnergy(energy_j, energy_j, energy_j),
            runtime_s=PredictedRuntime(runtime_s, runtime_s),
            queue_wait_s=0.0,
            dispatch_energy_j=0.0,
            pue=1.0,
            price_per_h=0.0,
            power_w=None,
        )

    deadline = _NOW + timedelta(seconds=5 * S_PER_H)
    return DecisionRequest(
        now=_NOW,
        task=Task("job", "fast", _NOW, deadline=deadline, max_defer_s=5.0 * S_PER_H, reroutable=True),
        pools=(pool("fast", fast_j, float(S_PER_H)), pool("slow", slow_j, slower * S_PER_H)),
        budgets=budgets,
        preference=weights,
    )
