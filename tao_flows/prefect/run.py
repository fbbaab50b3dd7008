"""One try of one Prefect task: decided before, metered around the user's function, recorded after.

These functions are reached by import from the thin shells in ``task.py``, which travel between processes by value.
A failure of ours is noted and the user's function runs all the same; only a denial in mode ``enforce`` stops it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tao_flows.codeclock import CodeClock
from tao_flows.config import TaoConfig
from tao_flows.figures import CpuTime, Measurement
from tao_flows.logline import log_line
from tao_flows.measurement import unmeasured
from tao_flows.meter import Ended, TaskUse, Window
from tao_flows.parent import REMOTE_WORK
from tao_flows.prefect._compat import (
    TaskRunContext,
    TerminationSignal,
    get_run_logger,
    timeout,
    timeout_async,
)
from tao_flows.prefect.admit import Admitted
from tao_flows.prefect.flow_run import flow_windows
from tao_flows.prefect.settle import settle_later
from tao_flows.prefect.starter import have_starter
from tao_flows.records import DecisionRecord, TaskRecord, TaskState
from tao_flows.runtime import Tao
from tao_flows.spans import CpuSpan
from tao_flows.telemetry.procfs import own_resident_bytes
from tao_flows.units import s_from_ns

if TYPE_CHECKING:
    _Logger = logging.Logger | logging.LoggerAdapter[Any]

_this_try: ContextVar[Try | None] = ContextVar("tao_flows_try", default=None)
"""The try being metered here, so that a task that calls its own ``.fn()`` is not metered twice."""


@dataclass
class Try:
    """A try that has begun. Its clock's span times the user's code; ``end`` settles it, once."""

    tao: Tao
    record: TaskRecord
    decision: DecisionRecord | None
    window: Window
    clock: CodeClock
    resident_before: int | None
    alone: bool
    token: Any = None
    is_remote: bool = False
    """Its work runs elsewhere: what this process does for it is dispatch."""

    def end(self, error: BaseException | None, size: Callable[[], float] | None = None) -> None:
        """Records what the try cost. Never raises."""
        try:
            self.record = self.record if size is None else replace(self.record, size=size())
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
        ended = meter.stop(self.window, cpu_s=None if self.is_remote else cpu.cpu_s)
        use = TaskUse(cpu, resident_bytes=self._resident())
        state = TaskState.COMPLETED
        # A generator whose consumer has had enough has completed.
        if error is not None and not isinstance(error, GeneratorExit):
            cancelled = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, TerminationSignal))
            state = TaskState.CANCELLED if cancelled and not self._timed_out() else TaskState.FAILED
        if self.is_remote:
            measured = _elsewhere(self.window, ended, cpu)
        else:
            measured = meter.work_out(self.window, ended, use, wait=False)
        record = replace(self.record, state=state, ended_wall_ns=self.tao.clock.wall_ns(), measurement=measured)
        self._write(record)
        logger = get_run_logger()
        if measured.pending:
            settle_later(partial(self._complete, record, ended, use, logger))
        else:
            _log_line(logger, self.tao.config, measured, self.decision)

    def _timed_out(self) -> bool:
        """Whether the engine's own time limit, which it cancels a coroutine by, is over: only of what is observed."""
        context = TaskRunContext.get()
        limit_s = None if context is None else context.task.timeout_seconds
        if context is None or limit_s is None or context.task_run.state is None:
            return False
        # The limit began after the state did, and before the try.
        return s_from_ns(self.tao.clock.wall_ns()) - context.task_run.state.timestamp.timestamp() >= limit_s

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
        self.tao.profiles.settled(record.key.task, record.pool, flow=record.key.task_flow)
        self.tao.admission.ended(record.key)
        flow_windows.task_seen(self.tao, record, alone=self.alone)

    def _resident(self) -> int | None:
        """Resident bytes over the try, shared evenly with the windows open beside it in this process."""
        after = own_resident_bytes() if self.resident_before is not None else None
        if self.resident_before is None or after is None:
            return None
        return (self.resident_before + after) // 2 // (1 + self.window.companions)


def try_here() -> Try | None:
    """The try that is being metered here."""
    return _this_try.get()


def own_context(user_fn: Any) -> TaskRunContext | None:
    """The context of the task run that called ``user_fn``; None for a bare call, which is left alone."""
    context = TaskRunContext.get()
    if context is None or getattr(context.task, "user_fn", None) is not user_fn:
        return None
    here = _this_try.get()
    return None if here is not None and here.record.key.instance == str(context.task_run.id) else context


@contextmanager
def metered(admitted: Admitted | None, *, stepped: bool, size: Callable[[], float] | None = None) -> Iterator[CpuSpan]:
    """Meters what runs inside; yields the span to time the user's code with.

    Args:
        admitted: the try; None where nothing is to be metered.
        stepped: True for code that gives its thread away between steps.
        size: tells at the end how much there was to do, where that is not known before.
    """
    begun = None if admitted is None else _try_to_begin(admitted, stepped=stepped)
    if begun is None:
        yield CpuSpan()
        return
    try:
        yield begun.clock.span
    except BaseException as error:
        begun.end(error, size)
        raise
    begun.end(None, size)


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


def _try_to_begin(admitted: Admitted, *, stepped: bool) -> Try | None:
    try:
        return _begin(admitted, stepped=stepped)
    except Exception as ours:  # noqa: BLE001 - without us the user's task must still run
        run_id = admitted.record.key.run_id
        admitted.tao.incidents.note_error("starting to meter a task", ours, run_id=run_id)
        admitted.tao.admission.ended(admitted.record.key)  # nobody will settle it: what it reserved runs out
        return None


def _begin(admitted: Admitted, *, stepped: bool) -> Try:
    tao, record = admitted.tao, admitted.record
    flow_windows.task_seen(tao, record, alone=admitted.alone)
    tao.ledger.put_task(record)
    resident = own_resident_bytes() if tao.meter.model else None
    if not stepped:
        have_starter()
    window = tao.meter.begin(record.task_label, party="steps" if stepped else "thread")
    # The meter may have started a thread of its own, which is not the task's.
    clock = CodeClock(stepped=stepped, alone=window.companions == 0)
    begun = Try(tao, record, admitted.verdict.decision, window, clock, resident, alone=admitted.alone)
    begun.token = _this_try.set(begun)
    return begun


def _elsewhere(window: Window, ended: Ended, cpu: CpuTime) -> Measurement:
    """What is known here of a try whose work runs elsewhere."""
    wall_s = s_from_ns(ended.at_ns - window.at_ns)
    nothing = unmeasured(window.label, window.wall_ns, wall_s, REMOTE_WORK)
    # Its children are dispatch as well, where the clock would have told them from the engine's.
    return replace(nothing, cpu=CpuTime(None, nothing.cpu.source, cpu.covers_children))


def _log_line(logger: _Logger, config: TaoConfig, measured: Measurement, decision: DecisionRecord | None) -> None:
    level = logging.getLevelName(config.log_level)
    logger.log(level, "tao-flows: %s", log_line(measured, decision))
