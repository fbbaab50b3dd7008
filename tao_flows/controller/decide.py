"""The decision: the choice, with everything it was made among and why."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from itertools import islice

from tao_flows.controller.candidates import Prospect, Weighed, preference, vector, weigh
from tao_flows.controller.choose import choice_of, violation
from tao_flows.controller.constraints import constraints_later
from tao_flows.controller.explain import reason_for, reason_for_denial
from tao_flows.controller.model import (
    Candidate,
    Decision,
    DecisionRequest,
    Objectives,
    Violation,
    candidate_id,
)
from tao_flows.controller.pareto import members, nondominated_sort
from tao_flows.units import US_PER_S

MOST_DOMINATORS = 8
"""How many dominating candidates are named for each dominated one."""


def decide(request: DecisionRequest) -> Decision:
    """Where and when to run the task, or why it may not run: the answer of ``choose``, explained.

    Its candidates are every pool started now and, of the later starts of a feasible pool, those that improve some
    objective over each start of that pool before them. Explaining takes many times what choosing takes.
    """
    weighed = weigh(request)
    choice = choice_of(weighed)
    candidates = [*_feasible(weighed), *_infeasible(weighed)]
    if choice.action == "deny":
        hard = all(any(c.hard for c in candidate.failed) for candidate in candidates)
        reason = reason_for_denial(candidates, hard)
        violations = [Violation(c.pool, f) for c in candidates for f in c.failed if f.hard or not hard]
    else:
        chosen = next(c for c in candidates if (c.pool, c.start) == (choice.pool, choice.start))
        reason = reason_for(choice, chosen, candidates, request, weighed.weights)
        violations = [Violation(chosen.pool, failed) for failed in chosen.failed]
    return Decision(
        action=choice.action,
        pool=choice.pool,
        start=choice.start,
        reason=reason,
        penalty=choice.penalty,
        utilisation=choice.utilisation,
        regime=choice.regime,
        budget=choice.budget,
        latest_start=choice.latest_start,
        weights=weighed.weights,
        candidates=tuple(candidates),
        violations=tuple(violations),
    )


def _feasible(weighed: Weighed) -> list[Candidate]:
    """What may be chosen, by Pareto rank, then in the order of preference."""
    kept = [
        (preference(weighed, each, start_us, score), each, start_us, row, score)
        for each in weighed.prospects
        if each.feasible
        for start_us, row, score in each.kept()
    ]
    kept.sort(key=lambda entry: entry[0])
    ranks, above = nondominated_sort([vector(row) for _, _, _, row, _ in kept])

    @cache
    def name(index: int) -> str:
        _, prospect, start_us, _, _ = kept[index]
        return candidate_id(prospect.pool.pool_id, _moment(weighed.request, start_us))

    candidates = [
        _candidate(weighed, *entry[1:], rank, tuple(name(index) for index in islice(members(better), MOST_DOMINATORS)))
        for entry, rank, better in zip(kept, ranks, above, strict=True)
    ]
    return sorted(candidates, key=lambda candidate: candidate.pareto_rank or 0)


def _infeasible(weighed: Weighed) -> list[Candidate]:
    """What may not be chosen, by how far it is from that."""
    rest = sorted((each for each in weighed.prospects if not each.feasible), key=violation)
    return [_candidate(weighed, each, 0, each.now, each.now_score()) for each in rest]


def _candidate(
    weighed: Weighed,
    prospect: Prospect,
    start_us: int,
    row: Objectives,
    score: float,
    rank: int | None = None,
    dominated_by: tuple[str, ...] = (),
) -> Candidate:
    request, constraints = weighed.request, prospect.constraints
    if start_us:
        constraints = constraints_later(constraints, request, prospect.pool, start_us / US_PER_S)
    return Candidate(
        pool=prospect.pool.pool_id,
        start=_moment(request, start_us),
        objectives=row,
        constraints=constraints,
        penalty=prospect.penalty.penalty,
        utilisation=prospect.penalty.utilisation,
        score=score if weighed.scored else None,
        pareto_rank=rank,
        dominated_by=dominated_by,
    )


def _moment(request: DecisionRequest, start_us: int) -> datetime:
    return request.now + timedelta(microseconds=start_us)
