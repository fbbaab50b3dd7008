"""Runs policies over jobs, and says what each cost."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from tao_flows.errors import InputError
from tao_flows.simulate.inputs import check_covered
from tao_flows.simulate.market import Job, Market
from tao_flows.simulate.oracle import Start, on_grid, optimum
from tao_flows.simulate.policies import Forecast, Now, Policy, Tao
from tao_flows.simulate.room import Room
from tao_flows.units import NS_PER_S, s_from_ns

POLICIES: Final = ("now", "forecast", "tao", "oracle")
LONGEST_SLOT_NS: Final = 300 * NS_PER_S
"""As in a decision; where the signal's own step is shorter, that."""
Schedule = Mapping[str, Start]


@dataclass(frozen=True, slots=True)
class Score:
    """What a policy came to."""

    total_cost: float
    """Kilowatt-hours times the signal, summed over the jobs, in the signal's unit."""
    saving_vs_now: float | None
    """Share of what running at once costs; None where that is nothing."""
    share_of_oracle: float | None
    """Share of what the optimum saves; None where it saves nothing."""
    missed_deadlines: int
    mean_delay_s: float
    p95_delay_s: float
    """Nearest rank: 95 % of the jobs waited no longer."""

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Result:
    """What each policy came to, and the schedules."""

    scores: Mapping[str, Score]
    schedules: Mapping[str, Schedule]
    oracle_gap: float
    """How far the optimum's cost could at most be above the least, relative."""


def slot_of(market: Market) -> int:
    """Spacing of the starts on offer, in nanoseconds."""
    return min(LONGEST_SLOT_NS, *(market.zones[name].step_ns for name in market.zone_names))


def simulate(
    jobs: Sequence[Job],
    market: Market,
    policies: Sequence[str] = POLICIES,
    *,
    others: Mapping[str, Policy] | None = None,
    slot_ns: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Result:
    """What the jobs would have cost under each policy.

    Args:
        jobs: in order of arrival.
        market: the signals and pools.
        policies: names out of `POLICIES`.
        others: further policies by name, scored alike.
        slot_ns: spacing of the starts on offer; see `slot_of`.
        progress: told the policy and how many jobs have started under it.

    Raises:
        InputError: a policy has another name, or a job could run where the signal is not known.
        MissingExtraError: a pool can be full, and scipy is not installed.
    """
    for name in policies:
        if name not in POLICIES:
            raise InputError("BAD_POLICY", f"there is no policy {name!r}", f"name some of {', '.join(POLICIES)}")
    check_covered(jobs, market)
    slot_ns = slot_of(market) if slot_ns is None else slot_ns
    best = optimum(jobs, market, slot_ns)
    schedules: dict[str, Schedule] = {"oracle": best.starts}
    horizons_s = [s_from_ns(job.latest_ns - job.arrival_ns + job.runtime_ns) for job in jobs]
    makers: dict[str, Callable[[], Policy]] = {
        "now": lambda: Now(market),
        "forecast": lambda: Forecast(market, slot_ns, max(horizons_s)),
        "tao": lambda: Tao(market, slot_ns, horizons_s),
    }
    for name in dict.fromkeys(["now", *policies]):
        if name in makers:
            schedules[name] = schedule(jobs, market, makers[name](), slot_ns, progress and partial(progress, name))
    for name, policy in (others or {}).items():
        schedules[name] = schedule(jobs, market, policy, slot_ns, progress and partial(progress, name))
    names = [*dict.fromkeys(policies), *(others or {})]
    scores = {name: _score(jobs, market, schedules[name], schedules) for name in names}
    return Result(scores, {name: schedules[name] for name in names}, best.gap)


def schedule(
    jobs: Sequence[Job], market: Market, policy: Policy, slot_ns: int, progress: Callable[[int], None] | None = None
) -> Schedule:
    """When a policy starts each job. It is asked when a job arrives, and again at its planned start or at any news."""
    room, started = Room(slot_ns), {}
    events = [(on_grid(job.arrival_ns, slot_ns) if market.limited else job.arrival_ns, i) for i, job in enumerate(jobs)]
    heapq.heapify(events)
    while events:
        now_ns, index = heapq.heappop(events)
        job = jobs[index]
        room.forget_before(now_ns)
        plan = policy.plan(job, now_ns, room)
        room.hold(job.job_id, plan.place, plan.start_ns, job.runtime_ns)
        if plan.final:
            started[job.job_id] = Start(plan.place, plan.start_ns)
            if progress is not None:
                progress(len(started))
            continue
        news_ns = market.next_news_ns(now_ns)
        wake_ns = plan.start_ns if news_ns is None else min(plan.start_ns, news_ns)
        if market.limited:
            wake_ns = min(on_grid(wake_ns, slot_ns), plan.start_ns)
        heapq.heappush(events, (max(wake_ns, now_ns + 1), index))
    return started


def _score(jobs: Sequence[Job], market: Market, mine: Schedule, schedules: Mapping[str, Schedule]) -> Score:
    total, at_once, at_best = (
        math.fsum(market.cost(job, *starts[job.job_id]) for job in jobs)
        for starts in (mine, schedules["now"], schedules["oracle"])
    )
    # What rounding alone makes of two equal sums is no saving.
    room = at_once - at_best
    delays_s = sorted(s_from_ns(mine[job.job_id].start_ns - job.arrival_ns) for job in jobs)
    return Score(
        total_cost=total,
        saving_vs_now=(at_once - total) / abs(at_once) if at_once else None,
        share_of_oracle=(at_once - total) / room if room > 1e-9 * max(abs(at_once), abs(at_best)) else None,
        missed_deadlines=sum(mine[job.job_id].start_ns + job.runtime_ns > job.deadline_ns for job in jobs),
        mean_delay_s=math.fsum(delays_s) / len(delays_s),
        p95_delay_s=delays_s[math.ceil(0.95 * len(delays_s)) - 1],
    )
