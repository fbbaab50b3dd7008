"""The decision: weigh every candidate, keep the Pareto front, choose the best score on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tao_flows.controller.candidates import objectives_of, only_known_to_all
from tao_flows.controller.constraints import constraints_of
from tao_flows.controller.explain import reason_for, reason_for_denial
from tao_flows.controller.model import (
    Action,
    Candidate,
    Decision,
    DecisionRequest,
    Pool,
    Violation,
    time_after,
)
from tao_flows.controller.pareto import Vector, dominates, ranks
from tao_flows.controller.penalty import penalty_of
from tao_flows.controller.plan import latest_start_s
from tao_flows.controller.regime import regime_of
from tao_flows.controller.score import references, score_of, weights_in_use

MOST_DOMINATORS = 8
"""How many dominating candidates are named for each dominated one."""


def decide(request: DecisionRequest) -> Decision:
    """Where to run the task now, or why it may not run.

    The same request gives the same answer, whatever the order of its pools. An objective that is unknown for any
    candidate is left out for all; if no objective is both known and weighted, the task stays in its home pool.
    Among feasible candidates the lowest score on the Pareto front wins, then the earlier start, then the pool id.

    If none is feasible but some meet every hard constraint, ``on_infeasible`` says whether the one that exceeds its
    soft limits least runs all the same (the home pool among equals), its violations recorded.
    """
    candidates, weights = _weigh(request)
    candidates = sorted(_ranked(candidates), key=lambda candidate: _order(candidate, request))
    chosen = _choose(candidates, request)
    home = next(candidate for candidate in candidates if candidate.pool == request.task.home_pool)
    shown = chosen or home
    regime = regime_of(shown.utilisation, request.previous_regime)
    pools = {pool.pool_id: pool for pool in request.pools}
    if chosen is None:
        hard = all(any(c.hard for c in candidate.failed) for candidate in candidates)
        action: Action = "deny"
        reason = reason_for_denial(candidates, hard)
        violations = [Violation(c.pool, f) for c in candidates for f in c.failed if f.hard or not hard]
    else:
        action = _action(chosen, request)
        reason = reason_for(action, chosen, candidates, weights, regime)
        violations = [Violation(chosen.pool, failed) for failed in chosen.failed]
    return Decision(
        action=action,
        pool=None if chosen is None else chosen.pool,
        start=None if chosen is None else chosen.start,
        reason=reason,
        penalty=shown.penalty,
        utilisation=shown.utilisation,
        regime=regime,
        latest_start=time_after(request.now, latest_start_s(request, pools[shown.pool])),
        weights=weights,
        candidates=tuple(candidates),
        violations=tuple(violations),
    )


def _weigh(request: DecisionRequest) -> tuple[list[Candidate], dict[str, float]]:
    """Every pool, started now, with its objectives, constraints, penalty and score."""
    objectives = only_known_to_all([objectives_of(request, pool, 0.0) for pool in request.pools])
    by_pool = dict(zip((pool.pool_id for pool in request.pools), objectives, strict=True))
    home = by_pool[request.task.home_pool]
    weights = weights_in_use(request, home)
    reference = references(request, home)

    def candidate(pool: Pool) -> Candidate:
        penalty = penalty_of(request.budget, pool.predicted_j)
        return Candidate(
            pool=pool.pool_id,
            start=request.now,
            objectives=by_pool[pool.pool_id],
            constraints=constraints_of(request, pool, 0.0),
            penalty=penalty.penalty,
            utilisation=penalty.utilisation,
            score=score_of(by_pool[pool.pool_id], reference, weights, penalty.priority),
        )

    return [candidate(pool) for pool in request.pools], weights


def _vector(candidate: Candidate) -> Vector:
    # Unknown objectives are unknown for all, so vectors of different candidates have the same parts.
    return tuple(value for value in candidate.objectives if value is not None)


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, the feasible ones with their Pareto rank and what on the front dominates them."""
    feasible = [candidate for candidate in candidates if candidate.feasible]
    found = list(zip(feasible, ranks([_vector(candidate) for candidate in feasible]), strict=True))
    front = sorted((c for c, rank in found if rank == 0), key=lambda c: (c.score or 0.0, c.start, c.pool))
    ranked = [candidate for candidate in candidates if not candidate.feasible]
    for candidate, rank in found:
        above = [c.id for c in front if rank and dominates(_vector(c), _vector(candidate))]
        ranked.append(replace(candidate, pareto_rank=rank, dominated_by=tuple(above[:MOST_DOMINATORS])))
    return ranked


def _order(candidate: Candidate, request: DecisionRequest) -> tuple[object, ...]:
    """Best first: what may be chosen before what may not, then score, start and pool id."""
    away = candidate.pool != request.task.home_pool
    rank = candidate.pareto_rank
    if rank is None:
        hard = sum(constraint.hard for constraint in candidate.failed)
        excess = sum(constraint.relative_violation for constraint in candidate.failed)
        standing: tuple[object, ...] = (1, hard, excess, away)
    else:
        # Without a score there is no ground to leave home.
        standing = (0, rank, 0 if candidate.score is not None else away, 0)
    return (*standing, candidate.score or 0.0, candidate.start, candidate.pool)


def _choose(ordered: Sequence[Candidate], request: DecisionRequest) -> Candidate | None:
    best = ordered[0]
    if best.feasible:
        return best
    may_run = request.on_infeasible == "run" and not any(constraint.hard for constraint in best.failed)
    return best if may_run else None


def _action(chosen: Candidate, request: DecisionRequest) -> Action:
    if chosen.start > request.now:
        return "defer"
    return "run" if chosen.pool == request.task.home_pool else "reroute"
