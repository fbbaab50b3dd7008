"""What a candidate must meet (hard) and should meet (soft).

A constraint for which the request sets no limit is not listed. A value that is unknown is None, and fails only if
what is known of it is already too much: nothing is refused on a guess. The exception is a zone: where a task may
run only in some, a pool whose zone is unknown is not one of them.

No free capacity is waiting time, not a constraint.
"""

from __future__ import annotations

from collections.abc import Iterator

from tao_flows.controller.model import Constraint, DecisionRequest, Pool, seconds_between
from tao_flows.controller.plan import needed_s

_DEADLINE = "deadline"
_DIGITS = 6
"""Numbers are compared to a millionth of their unit, the resolution of counters (uJ) and clocks (us)."""


def constraints_now(request: DecisionRequest, pool: Pool) -> tuple[Constraint, ...]:
    """The constraints on starting the task in ``pool`` now."""
    return (*_hard(request, pool), *_soft(request, pool))


def constraints_later(
    now: tuple[Constraint, ...], request: DecisionRequest, pool: Pool, start_s: float
) -> tuple[Constraint, ...]:
    """Those on a start ``start_s`` seconds from now, from those of the start now: the deadline's alone differs."""
    return tuple(_deadline(request, pool, start_s) if each.id == _DEADLINE else each for each in now)


def _hard(request: DecisionRequest, pool: Pool) -> Iterator[Constraint]:
    task = request.task
    yield Constraint("online", pool.online, True, pool.online, hard=True)
    yield Constraint("trust", pool.trusted, True, pool.trusted, hard=True)
    if pool.org is not None:
        yield Constraint("org", pool.org, task.allowed_orgs, pool.org in task.allowed_orgs, hard=True)
    if not task.reroutable:
        yield Constraint("reroutable", pool.pool_id, task.home_pool, pool.pool_id == task.home_pool, hard=True)
    if task.allowed_zones is not None:
        yield Constraint("zone", pool.zone, task.allowed_zones, pool.zone in task.allowed_zones, hard=True)
    if task.requires:
        able = set(task.requires) <= set(pool.capabilities)
        yield Constraint("capabilities", pool.capabilities, task.requires, able, hard=True)
    for budget in request.budgets:
        if budget.ceiling_j is not None:
            # The mean, as the penalty and the reservation take it.
            several = len(request.budgets) > 1 and budget.name is not None
            name = f"budget_ceiling:{budget.name}" if several else "budget_ceiling"
            predicted_j = pool.predicted_j
            charged_j = None if predicted_j is None else budget.charged_j(predicted_j, pool.predicted_s)
            yield _at_most(name, "J", budget.ceiling_j, charged_j, base=budget.in_use_j, hard=True)


def _soft(request: DecisionRequest, pool: Pool) -> Iterator[Constraint]:
    task = request.task
    if pool.power_cap_w is not None:
        yield _at_most("power_cap", "W", pool.power_cap_w, pool.power_w, scale=pool.power_cap_w)
    if task.deadline is not None:
        yield _deadline(request, pool, 0.0)
    if pool.temperature_limit_c is not None:
        limit_c = pool.temperature_limit_c
        yield _at_most("thermal", "degC", limit_c, pool.temperature_c, scale=max(abs(limit_c), 1.0))


def _deadline(request: DecisionRequest, pool: Pool, start_s: float) -> Constraint:
    task = request.task
    deadline = task.deadline or request.now
    limit_s, scale = seconds_between(request.now, deadline), max(seconds_between(task.ready_at, deadline), 1.0)
    return _at_most(_DEADLINE, "s", limit_s, needed_s(request, pool), base=start_s, scale=scale)


def _at_most(
    name: str,
    unit: str,
    limit: float,
    part: float | None,
    *,
    base: float | None = None,
    scale: float = 1.0,
    hard: bool = False,
) -> Constraint:
    """``base + part <= limit``. With ``part`` unknown only the base, where there is one, can break it."""
    known = base if part is None else part + (base or 0.0)
    slack = None if known is None else round(limit - known, _DIGITS)
    return Constraint(
        id=name,
        value=None if part is None or known is None else round(known, _DIGITS),
        limit=limit,
        ok=slack is None or slack >= 0,
        hard=hard,
        unit=unit,
        slack=None if part is None else slack,
        relative_violation=0.0 if slack is None else max(0.0, -slack / scale),
    )
