"""Events ``tao.*`` for Prefect's automations: what was put off, moved or denied, a budget's regime, Inversion.

They are handed to the engine's own queue, which sends them beside the work. Each process emits at most ``MOST`` of a
kind for a flow run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prefect.events import emit_event

from tao_flows.inversion import Inversion
from tao_flows.records import DecisionRecord, RunRecord
from tao_flows.runtime import Tao

MOST: Final = 10
"""Events of one kind that a process emits for one flow run."""
_RUNS: Final = 256
"""Flow runs that are counted; the oldest are forgotten first."""
_MOVES: Final[Mapping[str, str]] = {"defer": "deferred", "reroute": "rerouted", "deny": "denied"}
_TEXT: Final = 500
_STANDARD: Final = "standard"
Related = Sequence[Mapping[str, str]]

_lock = threading.Lock()
_emitted: dict[str, Counter[str]] = {}
_regimes: dict[str, str] = {}


def decided(tao: Tao, decision: DecisionRecord, related: Related = ()) -> None:
    """Tells what a decision did: ``tao.task.*`` and ``tao.run.*``, and ``tao.budget.regime``. Never raises or waits.

    Args:
        tao: this process's.
        decision: as taken; one that was not acted on tells of the regime alone.
        related: what it concerns besides, where it is not taken within the run.
    """
    try:
        if decision.enforced and decision.action in _MOVES:
            _moved(decision, related)
        _regime(decision, related)
    except Exception as ours:  # noqa: BLE001 - without us the user's task must still run
        tao.incidents.note_error("emitting an event", ours, run_id=decision.key.run_id)


def inverted(tao: Tao, run: RunRecord, state: Inversion) -> None:
    """Tells that a flow's runs of late spend more on overhead than on work: ``tao.inversion``. Never raises or waits."""
    try:
        resource = {"prefect.resource.id": f"prefect.flow-run.{run.run_id}", "prefect.resource.name": run.name}
        payload = {"flow": run.flow, **state.to_json()}
        _emit(run.run_id, "tao.inversion", resource, payload, ())
    except Exception as ours:  # noqa: BLE001 - the run has ended as it has ended
        tao.incidents.note_error("emitting an event", ours, run_id=run.run_id)


def related_of(flow_run: Any) -> list[dict[str, str]]:
    """The resources of a flow run, as Prefect itself would relate them to an event from within it."""
    kinds = (("flow-run", "id"), ("flow", "flow_id"), ("deployment", "deployment_id"), ("work-pool", "work_pool_id"))
    return [
        {"prefect.resource.id": f"prefect.{kind}.{value}", "prefect.resource.role": kind}
        for kind, name in kinds
        if (value := getattr(flow_run, name, None)) is not None
    ]


def _moved(decision: DecisionRecord, related: Related) -> None:
    key, answer = decision.key, decision.answer
    of, number = ("task", f"task-run.{key.instance}") if key.task else ("run", f"flow-run.{key.run_id}")
    resource = {
        "prefect.resource.id": f"prefect.{number}",
        "prefect.resource.name": key.task or key.flow,
        "tao.pool": decision.pool,
        "tao.mode": decision.mode,
    }
    said = {name: answer.get(name) for name in ("start", "latest_start", "regime", "penalty", "utilisation", "budget")}
    payload = {**said, "pool": decision.pool, "reason": decision.reason[:_TEXT]}
    _emit(key.run_id, f"tao.{of}.{_MOVES[decision.action]}", resource, payload, related)


def _regime(decision: DecisionRecord, related: Related) -> None:
    """A budget's regime, where it is not the one before it; and where a process begins in another than Standard.

    So an automation that has paused a pool hears of Inversion again once it lets a run through.
    """
    name, regime = decision.answer.get("budget"), decision.answer.get("regime")
    if not name or not regime:
        return
    found = str(decision.request.get("previous_regime") or _STANDARD)
    with _lock:
        told = _regimes.get(name)
        _regimes[name] = regime
    before = told or found
    if regime == before and (told is not None or regime == _STANDARD):
        return
    resource = {
        "prefect.resource.id": f"tao.budget.{name}",
        "prefect.resource.name": str(name),
        "tao.regime": str(regime),
        "tao.regime.before": before,
    }
    said = {key: decision.answer.get(key) for key in ("utilisation", "penalty")}
    _emit(decision.key.run_id, "tao.budget.regime", resource, {**said, "budget": name, "regime": regime}, related)


def _emit(run_id: str, event: str, resource: dict[str, str], payload: dict[str, Any], related: Related) -> None:
    with _lock:
        while run_id not in _emitted and len(_emitted) >= _RUNS:
            del _emitted[next(iter(_emitted))]
        counts = _emitted.setdefault(run_id, Counter())
        counts[event] += 1
        if counts[event] > MOST:
            return
    emit_event(event, resource=resource, related=[dict(each) for each in related], payload=payload)
