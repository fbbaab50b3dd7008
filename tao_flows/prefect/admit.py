"""Before a try of a Prefect task: who asks, what is decided, and the wait if it is to wait.

A task that waits does so in its own process, where its thread or coroutine stands still.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from tao_flows.admission import Ask, Verdict
from tao_flows.config import TaoConfig
from tao_flows.errors import DeniedError
from tao_flows.prefect._compat import FlowRunContext, TaskRunContext, cancel_event, get_run_logger
from tao_flows.prefect.flow_run import flow_windows
from tao_flows.prefect.options import TaoOptions
from tao_flows.prefect.settings import tao_here
from tao_flows.records import DecisionRecord, Deferral, RunKey, TaskRecord, TaskState, Who
from tao_flows.runtime import Tao
from tao_flows.waiting import Why

LOCAL_POOL = "local"
"""The pool of a flow that runs where it was called, outside any work pool."""
_LOOK_S: Final = 0.5
"""A coroutine that waits looks this often whether its task runner cancels it."""


@dataclass(frozen=True)
class Admitted:
    """A try that may begin."""

    tao: Tao
    record: TaskRecord
    """As it starts."""
    verdict: Verdict
    alone: bool
    """It runs outside any flow."""


@dataclass(frozen=True)
class _Asked:
    """A try that has asked, and was told what to do."""

    tao: Tao
    record: TaskRecord
    ask: Ask
    verdict: Verdict
    alone: bool
    cancelled: threading.Event | None
    """Set by the task runner to cancel what has not begun."""

    def settings(self) -> TaoConfig:
        """As they stand."""
        return self.tao.config

    def again(self) -> _Asked:
        """Asked once more, after a wait: now it is to run, or is denied."""
        ask = replace(self.ask, can_defer=False)
        return replace(self, ask=ask, verdict=self.tao.admission.ask(ask, self.tao.config))

    def admitted(self) -> Admitted | None:
        """The try as it may begin; None where it is no longer to be metered.

        Raises:
            DeniedError: the decision denied it, and is enforced.
        """
        decision = self.verdict.decision
        if self.verdict.mode == "off":
            return None
        if decision is not None:
            self.remember(decision)
            if self.verdict.action == "deny":
                remedy = "raise the ceiling, wait for the window to pass, or change mode"
                raise DeniedError("DENIED", decision.reason, remedy)
        record = replace(
            self.record,
            started_wall_ns=max(self.record.started_wall_ns, self.tao.clock.wall_ns()),
            # One that nobody has configured is not charged.
            budget=self.record.budget if self.record.budget in self.verdict.budgets else "",
            budgets=self.verdict.budgets,
        )
        return Admitted(self.tao, record, self.verdict, self.alone)

    def remember(self, decision: DecisionRecord) -> None:
        """Has the run's report show a decision. Never raises."""
        try:
            flow_windows.of_task(self.tao, self.record).decisions.append(decision)
        except Exception as ours:  # noqa: BLE001 - without us the user's task must still run
            self.tao.incidents.note_error("remembering a decision", ours, run_id=self.record.key.run_id)

    @contextmanager
    def noted(self) -> Generator[Deferral | None, None, None]:
        """The deferral, if it is to wait; the wait is in the flow's decisions and in its log."""
        deferral = self.verdict.deferral
        if deferral is None or self.verdict.decision is None:
            yield None
            return
        self.remember(self.verdict.decision)
        _log("deferred, at the latest until %s: %s", self.verdict.decision.answer["latest_start"], deferral.reason)
        yield deferral


def admit(options: TaoOptions, context: TaskRunContext) -> Admitted | None:
    """Asks for a try, and waits where it is told to; None where nothing is to be metered.

    Raises:
        DeniedError: the decision denied it, and is enforced.
    """
    asked = _try_to_ask(options, context)
    if asked is None:
        return None
    with asked.noted() as deferral:
        if deferral is not None:
            _go_on(asked.tao.admission.wait(asked.ask, asked.settings, deferral, asked.cancelled))
            asked = asked.again()
    return asked.admitted()


async def admit_async(options: TaoOptions, context: TaskRunContext) -> Admitted | None:
    """The same for coroutines, which give their thread away while they wait."""
    asked = _try_to_ask(options, context)
    if asked is None:
        return None
    with asked.noted() as deferral:
        if deferral is not None:
            loop = asyncio.get_running_loop()
            over: asyncio.Future[Why] = loop.create_future()

            def end(why: Why) -> None:
                if not over.done():
                    over.set_result(why)

            def tell(why: Why) -> None:
                loop.call_soon_threadsafe(end, why)

            with asked.tao.admission.watched(asked.ask, asked.settings, deferral, tell) as ended:
                while not over.done() and not (asked.cancelled is not None and asked.cancelled.is_set()):
                    await asyncio.wait({over}, timeout=None if asked.cancelled is None else _LOOK_S)
                ended(over.result() if over.done() else Why.STOPPED)
            _go_on(over.result() if over.done() else Why.STOPPED)
            asked = asked.again()
    return asked.admitted()


def _go_on(why: Why) -> None:
    _log("no longer deferred: %s", why)
    if not why.starts:
        # As the engine says it of a task that its runner cancels before it begins.
        raise asyncio.CancelledError(f"Task run cancelled while it was deferred ({why})")


def _log(text: str, *args: object) -> None:
    get_run_logger().log(logging.INFO, "tao-flows: " + text, *args)


def _try_to_ask(options: TaoOptions, context: TaskRunContext) -> _Asked | None:
    tao = tao_here()
    if tao is None or tao.config.mode == "off":
        return None
    try:
        return _ask(tao, options, context)
    except Exception as ours:  # noqa: BLE001 - without us the user's task must still run
        tao.incidents.note_error("asking about a task", ours, run_id=str(context.task_run.flow_run_id or ""))
        return None


def _ask(tao: Tao, options: TaoOptions, context: TaskRunContext) -> _Asked | None:
    config, flow, task_run = tao.config, FlowRunContext.get(), context.task_run
    flow_run = None if flow is None else flow.flow_run
    key = RunKey(
        engine="prefect",
        namespace=config.namespace,
        flow=flow.flow.name if flow is not None and flow.flow is not None else context.task.name,
        run_id=str(task_run.flow_run_id or task_run.id),
        task=context.task.name,
        instance=str(task_run.id),
        try_number=max(1, task_run.run_count),
    )
    now_ns = tao.clock.wall_ns()
    record = TaskRecord(
        key=key,
        segment=tao.segment,
        state=TaskState.RUNNING,
        started_wall_ns=now_ns,
        who=config.who.overlay(_tagged(flow_run, task_run)).overlay(_flow_who(flow)).overlay(options.who),
        pool=_home_pool(flow_run),
        budget="" if options.budget is None else _budget_name(options, key),
        # Without a name of the user's own, Prefect's is the task's and a random suffix.
        task_label=task_run.name if context.task.task_run_name else context.task.name,
        size=options.size,
    )
    ask = Ask(
        key=key,
        home_pool=record.pool,
        ready_wall_ns=now_ns,
        who=record.who,
        trigger=_trigger(flow_run),
        budget=options.budget,
        deadline=options.deadline,
        run_start=getattr(flow_run, "start_time", None),
        queued=getattr(flow_run, "expected_start_time", None),
        max_defer_s=options.max_defer_s,
        deferrable=options.deferrable,
        reroutable=options.reroutable,
        allowed_zones=options.allowed_zones,
        requires=options.requires,
        size=options.size,
        can_defer=True,
    )
    cancelled = cancel_event(flow, task_run.id)
    # Last: what it reserves is given back by the end of a try, which must come to be.
    verdict = tao.admission.ask(ask, config)
    return None if verdict.mode == "off" else _Asked(tao, record, ask, verdict, flow_run is None, cancelled)


def _budget_name(options: TaoOptions, key: RunKey) -> str:
    name = options.budget if isinstance(options.budget, str) else getattr(options.budget, "name", "")
    return name or f"task:{key.task}"


def _trigger(flow_run: Any) -> str:
    """What started the run: a schedule, or a person where it belongs to a deployment; else nobody can tell."""
    if getattr(flow_run, "auto_scheduled", False):
        return "scheduled"
    return "manual" if getattr(flow_run, "deployment_id", None) else ""


def _tagged(*runs: Any) -> Who:
    return Who.of_tags({tag for each in runs for tag in getattr(each, "tags", ())})


def _flow_who(flow: Any) -> Who:
    options = getattr(getattr(flow, "flow", None), "tao_options", None)
    return options.who if isinstance(options, TaoOptions) else Who()


def _home_pool(flow_run: Any) -> str:
    pool = getattr(flow_run, "work_pool_name", None)
    queue = getattr(flow_run, "work_queue_name", None)
    if not pool:
        return LOCAL_POOL
    return pool if queue in {None, "", "default"} else f"{pool}/{queue}"
