"""Why: one plain sentence, with the figures that decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tao_flows.controller.model import Candidate, Choice, Constraint, DecisionRequest, iso, seconds_between
from tao_flows.controller.score import OBJECTIVES
from tao_flows.units import format_duration, format_energy

_MOST_NAMED = 5


def reason_for(
    choice: Choice,
    chosen: Candidate,
    ordered: Sequence[Candidate],
    request: DecisionRequest,
    weights: Mapping[str, float],
) -> str:
    """Why ``chosen`` and not the next best. ``ordered`` is every candidate, best first.

    A start that waits is set against the home pool started now, which is what would happen without it.
    """
    home = next(c for c in ordered if (c.pool, c.start) == (request.task.home_pool, request.now))
    opening = {
        "run": f"run in {chosen.pool} now: ",
        "reroute": f"reroute to {chosen.pool} now: ",
        "defer": f"defer to {_named(chosen, request)}: ",
    }[choice.action]
    budget = ""
    if choice.utilisation is not None:
        of = "the budget" if choice.budget is None else f"budget {choice.budget}"
        budget = f"; {choice.utilisation * 100:,.1f} % of {of} is then in use ({choice.regime})"
    if choice.action == "defer" and home.feasible and chosen.score is not None and home.score is not None:
        against = f"running now in the home pool, {_named(home, request)}{_differences(chosen, home, weights)}"
        return f"{opening}score {chosen.score:.4g} against {home.score:.4g} of {against}{budget}"
    return opening + _why(chosen, ordered, request, weights) + budget


def reason_for_denial(candidates: Sequence[Candidate], hard: bool) -> str:
    """Why nothing may run: by pool, what it fails."""
    kind = "hard " if hard else ""
    parts = [
        f"{candidate.pool} fails {_listed(c for c in candidate.failed if c.hard or not hard)}"
        for candidate in candidates
    ]
    more = f"; and {len(parts) - _MOST_NAMED} more" if len(parts) > _MOST_NAMED else ""
    return f"denied, as no pool meets every {kind}constraint: " + "; ".join(parts[:_MOST_NAMED]) + more


def _why(
    chosen: Candidate, ordered: Sequence[Candidate], request: DecisionRequest, weights: Mapping[str, float]
) -> str:
    if not chosen.feasible:
        return f"no candidate meets every constraint, and it exceeds its limits least, failing {_listed(chosen.failed)}"
    if len(ordered) == 1:
        return "it is the only pool and meets every constraint"
    rivals = [candidate for candidate in ordered if candidate.feasible and candidate is not chosen]
    if not rivals:
        failing = next(candidate for candidate in ordered if not candidate.feasible)
        return f"it alone meets every constraint ({failing.pool} fails {_listed(failing.failed)})"
    rival = rivals[0]
    if chosen.score is None or rival.score is None:
        at_home = chosen.pool == request.task.home_pool
        home = "so it stays in its home pool" if at_home else "and its home pool is no better anywhere, or not allowed"
        return f"no objective that carries weight is known, {home}"
    against = f"{_named(rival, request)}{_differences(chosen, rival, weights)}"
    if rival.pareto_rank:
        return f"no other candidate is better in anything; next is {against}"
    return f"score {chosen.score:.4g} against {rival.score:.4g} of {against}"


def _named(candidate: Candidate, request: DecisionRequest) -> str:
    """The pool, and the start if it is later than now."""
    if candidate.start == request.now:
        return candidate.pool
    wait_s = seconds_between(request.now, candidate.start)
    return f"{candidate.pool} until {iso(candidate.start)} (in {format_duration(wait_s)})"


def _differences(chosen: Candidate, rival: Candidate, weights: Mapping[str, float]) -> str:
    shown = []
    for name, mine, theirs in zip(OBJECTIVES, chosen.objectives, rival.objectives, strict=True):
        if mine is not None and theirs is not None and mine != theirs and weights.get(name):
            shown.append(f"{_LABELS[name]} {_figure(name, mine)} against {_figure(name, theirs)}")
    return f" ({', '.join(shown)})" if shown else " (alike in every weighted objective)"


_LABELS = {"energy": "energy", "carbon": "carbon", "cost": "cost", "latency": "finish in"}


def _figure(name: str, value: float) -> str:
    if name == "energy":
        return format_energy(value)
    if name == "latency":
        return format_duration(value)
    return f"{value:.3g} g" if name == "carbon" else f"{value:.3g}"


def _listed(failed: Iterable[Constraint]) -> str:
    return ", ".join(describe(constraint) for constraint in failed)


def describe(constraint: Constraint) -> str:
    """A failed constraint in a few words, with its figures."""
    value, limit = constraint.value, constraint.limit
    if constraint.id == "capabilities" and isinstance(limit, tuple) and isinstance(value, tuple):
        return f"capabilities (lacks {', '.join(name for name in limit if name not in value)})"
    if constraint.id == "zone" and isinstance(limit, tuple):
        return f"zone ({'unknown' if value is None else value}, allowed: {', '.join(limit) or 'none'})"
    if constraint.id == "org" and isinstance(limit, tuple):
        return f"org ({value}, allowed: {', '.join(limit) or 'none'})"
    if constraint.unit is None:
        return constraint.id
    if value is None:
        return f"{constraint.id} (over {limit:.6g} {constraint.unit} already)"
    return f"{constraint.id} ({value:.6g} {constraint.unit}, limit {limit:.6g})"
