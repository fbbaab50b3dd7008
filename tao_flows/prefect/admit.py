"""Before a try of a Prefect task: who asks, what is decided, and the wait if it is to wait.

A task that waits does so in its own process, where its thread or coroutine stands still, in the state ``Deferred``
and without the slots of its tags' limits. If all that its flow run could do waits long, the run can be suspended.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

from tao_flows.admission import Ask, Verdict
from tao_flows.config import TaoConfig
from tao_flows.errors import DeniedError
from tao_flows.options import TaoOptions
from tao_flows.prefect import events, suspending
from tao_flows.prefect._compat import FlowRunContext, Pause, TaskRunContext, cancel_event, get_run_logger
from tao_flows.prefect.deferred import Shown, slots, slots_async
from tao_flows.prefect.elsewhere import is_scheduled
from tao_flows.prefect.flow_run import flow_windows
from tao_flows.prefect.progress import progress
from tao_flows.prefect.settings import tao_here
from tao_flows.prefect.suspending import Suspending
from tao_flows.prefect.task_pools import pool_here
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
    run: Suspending | None = None
    """Its flow run, if that may be suspended."""

    def is_set(self) -> bool:
        """Whether to stop waiting."""
        return self.is_suspended() or (self.cancelled is not None and self.cancelled.is_set())

    def is_suspended(self) -> bool:
        """Whether its flow run is being left."""
        return self.run is not None and self.run.is_suspended

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
            events.decided(self.tao, decision)
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


@contextmanager
def admitted(options: TaoOptions, context: TaskRunContext) -> Generator[Admitted | None, None, None]:
    """Asks for a try, waits where it is told to, and holds what the try needs while it runs inside.

    Yields None where nothing is to be metered.

    Raises:
        DeniedError: the decision denied it, and is enforced.
        Pause: its flow run is suspended; it goes on when that resumes.
    """
    asked = _try_to_ask(options, context)
    if asked is None:
        yield None
        return
    with ExitStack() as held:
        with _noted_wait(asked, context) as wait:
            if wait is not None:
                if wait.shown.give_back():
                    wait.shown.gave_back()
                wait.over(asked.tao.admission.wait(
                    asked.ask, asked.settings, wait.plan, asked, wait.moved, asked.is_suspended
                ))  # fmt: skip
        held.enter_context(slots(context))
        if wait is not None:
            asked = wait.again()
        held.enter_context(_at_work(asked, context))
        yield asked.admitted()


@asynccontextmanager
async def admitted_async(options: TaoOptions, context: TaskRunContext) -> AsyncGenerator[Admitted | None, None]:
    """The same for coroutines, which give their thread away while they wait."""
    asked = _try_to_ask(options, context)
    if asked is None:
        yield None
        return
    async with AsyncExitStack() as held:
        with _noted_wait(asked, context) as wait:
            if wait is not None:
                if await asyncio.to_thread(wait.shown.give_back):
                    wait.shown.gave_back()
                wait.over(await _wait_async(asked, wait))
        await held.enter_async_context(slots_async(context))
        if wait is not None:
            asked = wait.again()
        held.enter_context(_at_work(asked, context))
        yield asked.admitted()


async def _wait_async(asked: _Asked, wait: _Wait) -> Why:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[Why] = loop.create_future()

    def end(why: Why) -> None:
        if not over.done():
            over.set_result(why)

    def tell(why: Why) -> None:
        loop.call_soon_threadsafe(end, why)

    with asked.tao.admission.watched(asked.ask, asked.settings, wait.plan, tell, wait.moved) as ended:
        look_s = None if asked.cancelled is None and asked.run is None else _LOOK_S
        while not over.done() and not asked.is_set():
            await asyncio.wait({over}, timeout=look_s)
        stopped = Why.HANDED_ON if asked.is_suspended() else Why.STOPPED
        why = over.result() if over.done() else stopped
        ended(why)
    return why


@dataclass
class _Wait:
    """A wait as its task run, its flow run and people see it."""

    asked: _Asked
    plan: Deferral
    shown: Shown
    tell_run: Callable[[Deferral], None] | None

    def moved(self, plan: Deferral) -> None:
        """It goes on by another plan."""
        self.shown.waits(plan)
        progress.moved(self.asked.tao, plan)
        if self.tell_run is not None:
            self.tell_run(plan)

    def over(self, why: Why) -> None:
        """It is over; goes on only where the task is to start."""
        if self.asked.run is not None and self.asked.is_suspended():
            _log("suspended with its flow run")
            self.shown.leaves()
            self.asked.run.leave()
        _log("no longer deferred: %s", why)
        if not why.starts:
            # As the engine says it of a task that its runner cancels before it begins.
            raise asyncio.CancelledError(f"Task run cancelled while it was deferred ({why})")

    def again(self) -> _Asked:
        """The try, asked about once more."""
        asked = self.asked.again()
        self.shown.runs()
        return asked


@contextmanager
def _noted_wait(asked: _Asked, context: TaskRunContext) -> Generator[_Wait | None, None, None]:
    """The wait, if there is to be one, shown and known to the flow run while it goes on."""
    with asked.noted() as plan:
        if plan is None:
            yield None
            return
        shown = Shown(asked.tao, context)
        shown.waits(plan)
        telling = asked.run.waiting(asked.ask, plan) if asked.run is not None else nullcontext()
        with telling as tell_run, progress.shown(asked.tao, plan):
            yield _Wait(asked, plan, shown, tell_run)


@contextmanager
def _at_work(asked: _Asked, context: TaskRunContext) -> Generator[None, None, None]:
    if asked.run is None:
        yield
        return
    with ExitStack() as working:
        try:
            working.enter_context(asked.run.at_work(context))
        except Pause:  # what it reserved runs out
            asked.tao.admission.ended(asked.record.key)
            Shown(asked.tao, context).leaves()
            raise
        yield


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
    flow, task_run = FlowRunContext.get(), context.task_run
    # Whoever wrote the code of a task that is observed has not opted in to more.
    observed = getattr(context.task, "tao_observed", False)
    config = _observing(tao.config) if observed else tao.config
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
        pool=pool_here(context.task) or _home_pool(flow_run),
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
        can_defer=not observed,
    )
    cancelled = cancel_event(flow, task_run.id)
    run = suspending.of_run(key.run_id)
    if run is not None:
        ask = run.again(key.task, ask)
    # Last: what it reserves is given back by the end of a try, which must come to be.
    verdict = tao.admission.ask(ask, config)
    return None if verdict.mode == "off" else _Asked(tao, record, ask, verdict, flow_run is None, cancelled, run)


_observed: tuple[TaoConfig, TaoConfig] | None = None
"""Settings as they stood last, and the same in a mode that decides nothing."""


def _observing(config: TaoConfig) -> TaoConfig:
    """The settings, in mode observe at most."""
    global _observed
    if config.mode in {"off", "observe"}:
        return config
    known = _observed
    if known is None or known[0] is not config:
        known = _observed = config, replace(config, mode="observe")
    return known[1]


def _budget_name(options: TaoOptions, key: RunKey) -> str:
    name = options.budget if isinstance(options.budget, str) else getattr(options.budget, "name", "")
    return name or f"task:{key.task}"


def _trigger(flow_run: Any) -> str:
    """What started the run: a schedule, or a person where it belongs to a deployment; else nobody can tell."""
    if is_scheduled(flow_run):
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
