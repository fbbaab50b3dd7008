"""The gate on the worker: asks before a task runs, and where no executor of ours decides has it wait in the triggerer.

A task that is to wait raises ``TaskDeferred`` before any of its code has run, and comes back by ``tao_resume``, which
runs what would have run: ``execute``, or the author's own method with the author's own event where the task was coming
back from a deferral of its author's. Airflow starts ``execution_timeout`` anew then.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from typing import Any, Final

from airflow_plugin._compat import next_arguments, next_method, reschedules, task_deferred
from airflow_plugin.facts import Facts
from airflow_plugin.places import executors
from airflow_plugin.settings import airflow_options
from tao_flows.admission import Verdict
from tao_flows.errors import DeniedError
from tao_flows.records import Deferral
from tao_flows.runtime import Tao
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Why

log = logging.getLogger("tao_flows.airflow")

RESUME: Final = "tao_resume"
"""The method by which a task comes back: Airflow's database holds it with what waits, so that it outlives releases."""
MIN_DWELL_S: Final = 8.0
"""No wait is shorter: Airflow can take a task that is back within about 5 s for one that failed (apache/airflow
#66374)."""
ENGINE_LATENCY_S: Final = 3.0
"""From the end of a wait until the task runs: the triggerer and the scheduler each look about once a second, and a
process starts."""
_TRIGGER_FAILED: Final = "__fail__"


def admit(tao: Tao, facts: Facts, ti: Any, *, can_wait: bool = True) -> Verdict:
    """Asks for a try, right before it runs; has it wait where that is decided and the gate is in force.

    Args:
        tao: this process's.
        facts: of the try.
        ti: the task instance that runs here.
        can_wait: Airflow can have it wait without a process. What came back by ``tao_resume`` has waited already.

    Raises:
        TaskDeferred: it is to wait.
        DeniedError: the decision denied it, and is enforced.
    """
    config = tao.config
    if next_method(ti)[0] not in {"", RESUME}:
        # It has become ready once more: Airflow goes on to say when the try began.
        facts = replace(facts, ready_wall_ns=tao.clock.wall_ns())
    ask = facts.ask(
        config.namespace,
        config.who,
        can_defer=can_wait and in_force() and may_wait(facts, ti),
        engine_latency_s=ENGINE_LATENCY_S,
        min_dwell_s=MIN_DWELL_S,
    )
    verdict = tao.admission.ask(ask, config)
    if verdict.deferral is not None and verdict.decision is not None:
        try:
            deferred = _deferred(facts, verdict.deferral, ti)
        except Exception as ours:  # noqa: BLE001 - what cannot be had to wait runs
            tao.incidents.note_error("deferring a task", ours, run_id=facts.run_id, task=facts.task_id)
            tao.admission.over([verdict.deferral.key], Why.RECONSIDERED)
            return admit(tao, facts, ti, can_wait=False)
        latest = verdict.decision.answer["latest_start"]
        log.info("tao-flows: deferred, at the latest until %s: %s", latest, verdict.deferral.reason)
        raise deferred
    if verdict.action == "deny" and verdict.decision is not None:
        remedy = "raise the ceiling, wait for the window to pass, or change mode"
        raise DeniedError("DENIED", verdict.decision.reason, remedy)
    return verdict


def in_force() -> bool:
    """Whether tasks may be deferred from here: where no executor of ours decides before, unless the settings say so.

    Raises:
        ConfigError: ``[tao_flows] gate`` is none of its choices.
    """
    gate = airflow_options().gate
    return gate == "on" or (gate == "auto" and not any(executor.is_ours for executor in executors()))


def may_wait(facts: Facts, ti: Any) -> bool:
    """Whether a try may be deferred now, whatever is decided.

    Once it has waited it runs; a failed trigger is told at once; and a sensor that looks again has begun already.
    Operators that start in the triggerer, and sensors that give their slot away between two looks, wait only where
    their author says ``deferrable=True``: they cost next to nothing while they wait.
    """
    if next_method(ti)[0] in {RESUME, _TRIGGER_FAILED} or reschedules(ti):
        return False
    looks_again = facts.sensor and getattr(ti.task, "mode", "") == "reschedule"
    return not (looks_again or ti.task.start_from_trigger) or facts.given.deferrable is True


def install_resume() -> None:
    """Gives operators the method by which they come back.

    Done in each task's process, whatever the mode: a task that waits when tao-flows is switched off comes back all the
    same.
    """
    from airflow.sdk import BaseOperator

    if not hasattr(BaseOperator, RESUME):
        setattr(BaseOperator, RESUME, _resume)


def _deferred(facts: Facts, deferral: Deferral, ti: Any) -> BaseException:
    from airflow_plugin.triggers import TaoTrigger, deferral_json

    method, sent = next_method(ti)
    # As they were sent, and as one text: what is in them is the author's, and Airflow would wrap it once more.
    kwargs = {"method": method, "arguments": json.dumps(sent)} if method else {}
    not_before_ns = time.time_ns() + round(MIN_DWELL_S * NS_PER_S)
    trigger = TaoTrigger(facts.to_json(), deferral_json(deferral), not_before_wall_ns=not_before_ns)
    deferred: BaseException = task_deferred()(trigger=trigger, method_name=RESUME, kwargs=kwargs)
    return deferred


def _resume(operator: Any, context: Any, method: str = "", arguments: str = "", **_event: Any) -> Any:
    """Runs what was to run before the wait. ``dag.test()`` hands no arguments on: then that is ``execute``."""
    if not method:
        return operator.execute(context)
    return operator.resume_execution(method, next_arguments(json.loads(arguments)), context)
