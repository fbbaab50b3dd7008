"""The choice: the least score on the Pareto front, found without weighing every candidate.

A pool's score cannot fall below what it would be if its run met the least value of each signal, and that bound rises
with the start, as only the finish changes. Pools, started now and later, are searched in the order of their bounds,
each as far as its bound allows, until no bound is left below the best score found: the least score, exactly. Means,
which take most of the time, are thus worked out for few pools.

The score rises with every objective, so the candidate with the least score is on the front unless its weights leave
out what it is dominated in, or the penalty weighs the joules of its dominator higher (power usage effectiveness is in
the objective and not in the budget). Both are tested for, and then the front itself is searched.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import timedelta
from operator import le
from typing import NamedTuple

from tao_flows.controller.candidates import Prospect, Weighed, preference, vector, weigh
from tao_flows.controller.model import Action, Choice, DecisionRequest, time_after
from tao_flows.controller.pareto import Vector, dominates
from tao_flows.controller.plan import first_later_us
from tao_flows.controller.regime import regime_of


def choose(request: DecisionRequest) -> Choice:
    """Where and when to run the task, or that it may not run; as ``decide`` does, without saying why.

    The same request gives the same answer, whatever the order of its pools. An objective that is unknown for any
    candidate is left out for all, and then nothing waits; if no objective is both known and weighted, the task stays
    in its home pool. Among feasible candidates the lowest score on the Pareto front wins, then the earlier start, then
    the pool id.

    If none is feasible but some meet every hard constraint, ``on_infeasible`` says whether the one that exceeds its
    soft limits least runs all the same, now (the home pool among equals).
    """
    return choice_of(weigh(request))


def choice_of(weighed: Weighed) -> Choice:
    """The choice among what was weighed."""
    request = weighed.request
    found = _found(weighed)
    home = next(prospect for prospect in weighed.prospects if not prospect.away)
    shown = found or _started_now(home)
    prospect, penalty = shown.prospect, shown.prospect.penalty
    action: Action = "deny"
    if found is not None:
        action = "defer" if found.start_us else "reroute" if prospect.away else "run"
    return Choice(
        action=action,
        pool=None if found is None else found.pool_id,
        start=None if found is None else request.now + timedelta(microseconds=found.start_us),
        score=shown.score if weighed.scored else None,
        penalty=penalty.penalty,
        utilisation=penalty.utilisation,
        regime=regime_of(penalty.utilisation, request.previous_regime),
        budget=prospect.budget,
        latest_start=time_after(request.now, prospect.latest_s),
    )


class _Found(NamedTuple):
    """A candidate that may be chosen, in the order in which it would be: no two have the same start and pool."""

    score: float
    start_us: int
    pool_id: str
    prospect: Prospect


def _found(weighed: Weighed) -> _Found | None:
    feasible = [prospect for prospect in weighed.prospects if prospect.feasible]
    if not feasible:
        return _least_violating(weighed)
    best = _least_score(feasible) if weighed.scored else None
    return _first_on_the_front(weighed, feasible) if best is None or _is_dominated(best, feasible) else best


def _least_violating(weighed: Weighed) -> _Found | None:
    """What exceeds its soft limits least; None if that may not run, or everything fails a hard constraint."""
    best = min(weighed.prospects, key=violation)
    if weighed.request.on_infeasible == "deny" or violation(best)[0]:
        return None
    return _started_now(best)


def violation(prospect: Prospect) -> tuple[int, float, bool, float, str]:
    """How far a pool is from feasible: hard constraints failed, by how much soft ones are exceeded, away from home."""
    failed = [constraint for constraint in prospect.constraints if not constraint.ok]
    hard = sum(constraint.hard for constraint in failed)
    excess = sum(constraint.relative_violation for constraint in failed)
    return hard, excess, prospect.away, prospect.now_score(), prospect.pool.pool_id


def _least_score(feasible: Sequence[Prospect]) -> _Found:
    """The candidate with the least score, then the earliest, then of the first pool id."""
    bounds = [_Found(each.least_now_score(), 0, each.pool.pool_id, each) for each in feasible]
    waiting = [each for each in feasible if each.waits]
    if waiting:
        first_us = first_later_us(waiting[0].request)
        bounds += [_Found(each.least_score(first_us), first_us, each.pool.pool_id, each) for each in waiting]
    bounds.sort()
    best = _started_now(bounds[0].prospect)
    for bound in bounds:
        # Nothing is preferred to its bound: among equal scores the earlier start wins, then the pool id.
        if bound > best:
            break
        found = _later(bound.prospect, best.score) if bound.start_us else [_started_now(bound.prospect)]
        best = min([best, *found])
    return best


def _started_now(prospect: Prospect) -> _Found:
    return _Found(prospect.now_score(), 0, prospect.pool.pool_id, prospect)


def _later(prospect: Prospect, most: float) -> list[_Found]:
    """The best of a pool's later starts, if the bound of one is not above the score ``most``."""
    starts_us = prospect.starts_us[: bisect_right(prospect.starts_us, most, key=prospect.least_score)]
    best = min(zip(prospect.scores(starts_us), starts_us, strict=True), default=None)
    return [] if best is None else [_Found(*best, prospect.pool.pool_id, prospect)]


def _is_dominated(best: _Found, feasible: Sequence[Prospect]) -> bool:
    """Whether another candidate is no worse in any objective and better in one."""
    row = best.prospect.at([best.start_us])[0] if best.start_us else best.prospect.now
    mine = vector(row)
    return any(
        dominates(vector(each.now), mine) or any(dominates(one, mine) for one in _rivals(each, best, mine))
        for each in feasible
        # What no start of a pool costs less than is mostly enough to tell.
        if all(map(le, vector(each.least_now()), mine))
    )


def _rivals(prospect: Prospect, best: _Found, mine: Vector) -> list[Vector]:
    """The later candidates of a pool that may dominate ``best``: they finish as early, and no bound is above it."""
    # An earlier start of the same pool that dominated would have been found for its score.
    first = bisect_right(prospect.starts_us, best.start_us) if prospect is best.prospect else 0
    starts_us = prospect.starts_us[first:]
    if not starts_us or any(a > b for a, b in zip(vector(prospect.least(starts_us[0])), mine, strict=True)):
        return []
    as_early = bisect_right(starts_us, mine[-1], key=prospect.finish_s)
    return [vector(row) for row in prospect.at(starts_us[:as_early])]


def _first_on_the_front(weighed: Weighed, feasible: Sequence[Prospect]) -> _Found:
    """The best of all candidates that nothing dominates."""
    every = [
        (preference(weighed, each, start_us, score), vector(row), each)
        for each in feasible
        for start_us, row, score in each.kept()
    ]
    every.sort(key=lambda entry: entry[0])
    vectors = [found for _, found, _ in every]
    key, _, prospect = next(entry for entry in every if not any(dominates(other, entry[1]) for other in vectors))
    return _Found(*key, prospect)
