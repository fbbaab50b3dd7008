"""One try of one Prefect task: decided before, metered around the user's function, recorded after.

These functions are reached by import from the thin shells in ``task.py``, which travel between processes by value.
A failure of ours is noted and the user's function runs all the same; only a denial in mode ``enforce`` stops it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tao_flows.budget import EnergyBudget
from tao_flows.codeclock import CodeClock
from tao_flows.config import TaoConfig
from tao_flows.controller.decide import decide
from tao_flows.controller.parse import parse_request
from tao_flows.errors import DeniedError
from tao_flows.figures import Measurement
from tao_flows.gather import Wish, gather
from tao_flows.meter import Ended, TaskUse, Window
from tao_flows.pools import WorkerPool, load_pools
from tao_flows.prefect._compat import (
    FlowRunContext,
    TaskRunContext,
    TerminationSignal,
    get_run_logger,
    timeout,
    timeout_async,
)
from tao_flows.prefect.flow_run import flow_windows
from tao_flows.prefect.options import TaoOptions
from tao_flows.prefect.settings import tao_here
from tao_flows.prefect.settle import settle_later
from tao_flows.prefect.starter import have_starter
from tao_flows.records import DecisionRecord, RunKey, TaskRecord, TaskState, Who
from tao_flows.runtime import Tao
from tao_flows.spans import CpuSpan
from tao_flows.telemetry.procfs import own_resident_bytes
from tao_flows.units import format_duration, format_energy_interval, format_power

if TYPE_CHECKING:
    _Logger = logging.Logger | logging.LoggerAdapter[Any]

LOCAL_POOL = "local"
"""The pool of a flow that runs where it was called, outside any work pool."""
_this_try: ContextVar[str] = ContextVar("tao_flows_try", default="")
"""The task run being metered here, so that a task that calls its own ``.fn()`` is not metered twice."""


@dataclass
class Try:
    """A try that has begun. Its clock's span times the user's code; ``end`` settles it, once."""

    tao: Tao
    record: TaskRecord
    decision: DecisionRecord | None
    window: Window
    clock: CodeClock
    resident_before: int | None
    token: Any
    alone: bool

    def end(self, error: BaseException | None) -> None:
        """Records what the try cost. Never raises."""
        try:
            self._end(error)
        except Exception as ours:  # noqa: BLE001 - the user's result must stand
            self.tao.incidents.note_error("recording a task", ours, run_id=self.record.key.run_id)

    def _end(self, error: BaseException | None) -> None:
        try:
            _this_try.reset(self.token)
        except ValueError:
            # A generator closed from another context: the variable of that context was never set.
            pass
        meter = self.tao.meter
        cpu = self.clock.stop(alone=meter.was_alone(self.window))
        ended = meter.stop(self.window, cpu_s=cpu.cpu_s)
        use = TaskUse(cpu, resident_bytes=self._resident())
        state = TaskState.COMPLETED
        # A generator whose consumer has had enough has completed.
        if error is not None and not isinstance(error, GeneratorExit):
            cancelled = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, TerminationSignal))
            state = TaskState.CANCELLED if cancelled else TaskState.FAILED
        measured = meter.work_out(self.window, ended, use, wait=False)
        record = replace(self.record, state=state, ended_wall_ns=self.tao.clock.wall_ns(), measurement=measured)
        self._write(record)
        logger = get_run_logger()
        if measured.pending:
            settle_later(partial(self._complete, record, ended, use, logger))
        else:
            _log_line(logger, self.tao.config, measured, self.decision)

    def _complete(self, record: TaskRecord, ended: Ended, use: TaskUse, logger: _Logger) -> None:
        """Records what the try cost once more, when a node agent has told. Never raises."""
        try:
            measured = self.tao.meter.work_out(self.window, ended, use)
            self._write(replace(record, measurement=measured))
            _log_line(logger, self.tao.config, measured, self.decision)
        except Exception as ours:  # noqa: BLE001 - nobody is there to hear of it
            self.tao.incidents.note_error("completing a task's record", ours, run_id=record.key.run_id)

    def _write(self, record: TaskRecord) -> None:
        self.tao.ledger.put_task(record)
        flow_windows.task_seen(self.tao, record, alone=self.alone)

    def _resident(self) -> int | None:
        """Resident bytes over the try, shared evenly with the windows open beside it in this process."""
        after = own_resident_bytes() if self.resident_before is not None else None
        if self.resident_before is None or after is None:
            return None
        return (self.resident_before + after) // 2 // (1 + self.window.companions)


def own_context(user_fn: Any) -> TaskRunContext | None:
    """The context of the task run that called ``user_fn``; None for a bare call, which is left alone."""
    context = TaskRunContext.get()
    if context is None or getattr(context.task, "user_fn", None) is not user_fn:
        return None
    return None if _this_try.get() == str(context.task_run.id) else context


@contextmanager
def metered(options: TaoOptions, context: TaskRunContext, *, stepped: bool) -> Iterator[CpuSpan]:
    """Decides on and meters what runs inside; yields the span to time the user's code with.

    Args:
        options: what the task was decorated with.
        context: the task run.
        stepped: True for code that gives its thread away between steps.

    Raises:
        DeniedError: the decision denied it, and the mode is ``enforce``.
    """
    begun = _try_to_begin(options, context, stepped=stepped)
    if begun is None:
        yield CpuSpan()
        return
    try:
        yield begun.clock.span
    except BaseException as error:
        begun.end(error)
        raise
    begun.end(None)


@contextmanager
def timed(timeout_s: float | None) -> Iterator[None]:
    """Prefect's timeout around what runs inside, and nothing else.

    Raises:
        TimeoutError: it took longer; the engine takes the try for timed out.
    """
    try:
        with timeout(seconds=timeout_s, timeout_exc_type=_TimedOut):
            yield
    except _TimedOut:
        raise TimeoutError(f"Task run exceeded timeout of {timeout_s} second(s)") from None


@contextmanager
def timed_async(timeout_s: float | None) -> Iterator[None]:
    """The same for coroutines."""
    try:
        with timeout_async(seconds=timeout_s, timeout_exc_type=_TimedOut):
            yield
    except _TimedOut:
        raise TimeoutError(f"Task run exceeded timeout of {timeout_s} second(s)") from None


class _TimedOut(TimeoutError):
    """Our own, so that a TimeoutError of the user's is not taken for it."""


def _try_to_begin(options: TaoOptions, context: TaskRunContext, *, stepped: bool) -> Try | None:
    tao = tao_here()
    if tao is None or tao.config.mode == "off":
        return None
    try:
        return _begin(tao, options, context, stepped=stepped)
    except DeniedError:
        raise
    except Exception as ours:  # noqa: BLE001 - without us the user's task must still run
        tao.incidents.note_error("starting to meter a task", ours, run_id=str(context.task_run.flow_run_id or ""))
        return None


def _begin(tao: Tao, options: TaoOptions, context: TaskRunContext, *, stepped: bool) -> Try:
    config = tao.config
    flow = FlowRunContext.get()
    task_run = context.task_run
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
    budget = _budget(tao, options, key)
    record = TaskRecord(
        key=key,
        segment=tao.segment,
        state=TaskState.RUNNING,
        started_wall_ns=tao.clock.wall_ns(),
        who=config.who.overlay(_tagged(flow_run, task_run)).overlay(_flow_who(flow)).overlay(options.who),
        pool=_home_pool(flow_run),
        budget="" if budget is None else budget.name,
        # Without a name of the user's own, Prefect's is the task's and a random suffix.
        task_label=task_run.name if context.task.task_run_name else context.task.name,
    )
    decision = _decide(tao, options, record, budget)
    flow_windows.task_seen(tao, record, alone=flow_run is None)
    tao.ledger.put_task(record)
    resident = own_resident_bytes() if tao.meter.model else None
    token = _this_try.set(key.instance)
    if not stepped:
        have_starter()
    window = tao.meter.begin(record.task_label, party="steps" if stepped else "thread")
    # The meter may have started a thread of its own, which is not the task's.
    clock = CodeClock(stepped=stepped, alone=window.companions == 0)
    return Try(tao, record, decision, window, clock, resident, token, alone=flow_run is None)


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


def _budget(tao: Tao, options: TaoOptions, key: RunKey) -> EnergyBudget | None:
    """The budget the task is charged to; None, and noted, when it names one that is not configured."""
    if options.budget is None:
        return None
    if isinstance(options.budget, EnergyBudget):
        return replace(options.budget, name=options.budget.name or f"task:{key.task}")
    budget = tao.config.budgets.get(options.budget)
    if budget is None:
        summary = f"budget {options.budget!r} of task {key.task!r} is not configured"
        remedy = f'add [budgets.{options.budget}] with limit = "..." to the configuration'
        tao.incidents.note("UNKNOWN_BUDGET", summary, remedy=remedy, run_id=key.run_id, task=key.task)
    return budget


def _decide(tao: Tao, options: TaoOptions, record: TaskRecord, budget: EnergyBudget | None) -> DecisionRecord | None:
    """Takes and records the decision; None when it could not be taken, which is noted."""
    config = tao.config
    try:
        wish = Wish(
            key=record.key.task,
            home_pool=record.pool,
            ready_wall_ns=record.started_wall_ns,
            deadline_s=options.deadline_s,
            max_defer_s=options.max_defer_s,
            deferrable=options.deferrable,
            reroutable=options.reroutable,
            allowed_zones=options.allowed_zones,
            requires=options.requires,
            budget=budget,
        )
        now_ns = tao.clock.wall_ns()
        request = gather(wish, _pools(config), tao.profiles, tao.ledger, now_ns, tao.clock.monotonic_ns())
        answer = decide(parse_request(request)).to_json()
    except Exception as ours:  # noqa: BLE001 - a task on which nothing could be decided runs
        tao.incidents.note_error("deciding on a task", ours, run_id=record.key.run_id, task=record.key.task)
        return None
    denied = config.mode == "enforce" and answer["action"] == "deny"
    decision = DecisionRecord(
        key=record.key,
        decided_wall_ns=now_ns,
        mode=config.mode,
        action=answer["action"],
        pool=answer["pool"] or "",
        reason=answer["reason"],
        request=request,
        answer=answer,
        enforced=denied,
    )
    tao.ledger.put_decision(decision)
    flow_windows.of_task(tao, record).decisions.append(decision)
    if denied:
        raise DeniedError("DENIED", answer["reason"], "raise the ceiling, wait for the window to pass, or change mode")
    return decision


def _pools(config: TaoConfig) -> tuple[WorkerPool, ...]:
    return () if config.pools is None else load_pools(config.pools)


def _log_line(logger: _Logger, config: TaoConfig, measured: Measurement, decision: DecisionRecord | None) -> None:
    energy = measured.energy
    text = "energy unknown"
    if energy.value_j is not None:
        interval = format_energy_interval(energy.value_j, energy.low_j, energy.high_j)
        text = f"energy {interval} {energy.quality}, {format_power(measured.power_w)}"
    text += f", CPU {format_duration(measured.cpu_s)}"
    if decision is not None:
        text += f"; decision {decision.action}"
        if decision.mode == "advise" and decision.action != "run":
            text += f" (advised): {decision.reason}"
    level = logging.getLevelName(config.log_level)
    logger.log(level, "tao-flows: %s", text)
