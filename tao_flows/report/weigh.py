"""What a decision weighed, read back from its record: the candidates, the chosen one first, with what each had to spare.

A record may come from any writer and hold anything: what is not of the expected form is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tao_flows.errors import InputError
from tao_flows.records import DecisionRecord
from tao_flows.report.rows import number_in
from tao_flows.signals.times import ns_from_iso

MOST_CANDIDATES: Final = 12
"""Of one decision, that are shown."""


@dataclass(frozen=True, slots=True)
class Slack:
    """A constraint on a candidate."""

    id: str
    ok: bool
    slack: float | None
    """What is left to the limit; below 0 where it is passed. None for what has no measure, such as trust."""
    unit: str


@dataclass(frozen=True, slots=True)
class Weighed:
    """One candidate."""

    pool: str
    start_wall_ns: int | None
    energy_j: float | None
    carbon_g: float | None
    cost: float | None
    finish_s: float | None
    score: float | None
    rank: int | None
    """0: on the Pareto front."""
    feasible: bool
    chosen: bool
    constraints: tuple[Slack, ...]


@dataclass(frozen=True, slots=True)
class Explained:
    """A decision, and how many others were like it."""

    action: str
    pool: str
    reason: str
    mode: str
    enforced: bool
    decided_wall_ns: int
    latest_wall_ns: int | None
    """When it starts at the latest; None where it was not said."""
    count: int
    candidates: tuple[Weighed, ...]
    more: int
    """Candidates that are not shown."""


def explain(decisions: Iterable[DecisionRecord]) -> tuple[Explained, ...]:
    """The decisions by what was chosen, the most frequent first; the last of each speaks for all of them."""
    alike: dict[tuple[str, str, str, bool], list[DecisionRecord]] = {}
    for decision in decisions:
        alike.setdefault((decision.action, decision.pool, decision.mode, decision.enforced), []).append(decision)
    groups = sorted(alike.values(), key=len, reverse=True)
    return tuple(_explained(group[-1], len(group)) for group in groups)


def latest_start(decision: DecisionRecord) -> int | None:
    """When it starts at the latest, nanoseconds since the epoch; None where that was not said."""
    return moment(decision.answer.get("latest_start"))


def ready(decision: DecisionRecord) -> int | None:
    """Since when the try could have run, nanoseconds since the epoch."""
    task = decision.request.get("task")
    return moment(task.get("ready_at")) if isinstance(task, Mapping) else None


def home_pool(decision: DecisionRecord) -> str:
    """Where it would have run; empty where that was not said."""
    task = decision.request.get("task")
    return str(task.get("home_pool") or "") if isinstance(task, Mapping) else ""


def moment(text: object) -> int | None:
    """A recorded time in nanoseconds since the epoch; None where it is none."""
    try:
        return ns_from_iso(text) if isinstance(text, str) else None
    except InputError:
        return None


def _explained(decision: DecisionRecord, count: int) -> Explained:
    entries = [entry for entry in _list(decision.answer.get("candidates")) if isinstance(entry, Mapping)]
    chosen = (str(decision.answer.get("pool")), decision.answer.get("start"))
    candidates = [_weighed(entry, chosen) for entry in entries]
    # Python's sort is stable: within these the order is the decision's own, best first.
    candidates.sort(key=lambda each: (not each.chosen, not each.feasible))
    return Explained(
        action=decision.action,
        pool=decision.pool,
        reason=decision.reason,
        mode=decision.mode,
        enforced=decision.enforced,
        decided_wall_ns=decision.decided_wall_ns,
        latest_wall_ns=latest_start(decision),
        count=count,
        candidates=tuple(candidates[:MOST_CANDIDATES]),
        more=max(0, len(candidates) - MOST_CANDIDATES),
    )


def _weighed(entry: Mapping[str, Any], chosen: tuple[str, object]) -> Weighed:
    given = entry.get("objectives")
    objectives: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    rank = number_in(entry, "pareto_rank")
    return Weighed(
        pool=str(entry.get("pool")),
        start_wall_ns=moment(entry.get("start")),
        energy_j=number_in(objectives, "energy_j"),
        carbon_g=number_in(objectives, "carbon_g"),
        cost=number_in(objectives, "cost"),
        finish_s=number_in(objectives, "finish_s"),
        score=number_in(entry, "score"),
        rank=None if rank is None else round(rank),
        feasible=entry.get("feasible") is True,
        chosen=(str(entry.get("pool")), entry.get("start")) == chosen,
        constraints=tuple(
            Slack(str(each.get("id")), each.get("ok") is True, number_in(each, "slack"), str(each.get("unit") or ""))
            for each in _list(entry.get("constraints"))
            if isinstance(each, Mapping)
        ),
    )


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()
