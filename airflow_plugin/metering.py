"""One try of a task: decided on before, metered around the user's code, recorded after.

Airflow calls a task's hooks right before and after its code, and tells listeners when the try is over. What fails here
is noted, and the user's code runs all the same; only a wait or an enforced denial keeps it from running.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from airflow_plugin import remote
from airflow_plugin._compat import task_deferred
from airflow_plugin.facts import Facts, options_of, run_ref
from airflow_plugin.gate import admit
from airflow_plugin.process import TaskProcess
from airflow_plugin.settings import tao_here
from airflow_plugin.taskfacts import facts_of
from tao_flows.admission import Verdict
from tao_flows.codeclock import CodeClock, process_cpu_s
from tao_flows.errors import DeniedError
from tao_flows.figures import Figure, Measurement
from tao_flows.ledger.base import RunRef
from tao_flows.logline import log_line
from tao_flows.measurement import unmeasured
from tao_flows.meter import Ended, TaskUse, Window
from tao_flows.options import OFF
from tao_flows.parent import REMOTE_WORK
from tao_flows.records import DecisionRecord, RunKey, TaskRecord, TaskState
from tao_flows.runtime import Tao
from tao_flows.telemetry.procfs import own_resident_bytes
from tao_flows.units import s_from_ns

log = logging.getLogger("tao_flows.airflow")

SKIPPED: Final = "SKIPPED"
"""Event of a try whose code had itself skipped."""
_STATES: Final = {
    "success": TaskState.COMPLETED,
    "skipped": TaskState.COMPLETED,
    "deferred": TaskState.DEFERRED,
    "up_for_reschedule": TaskState.DEFERRED,
    "awaiting_input": TaskState.DEFERRED,
}
_CANCELLING: Final = frozenset({"KeyboardInterrupt", "AirflowTaskTerminated"})


@dataclass
class Try:
    """A try whose code runs here. ``stop`` ends the code's span, ``end`` writes what it came to; each counts once."""

    tao: Tao
    ti: Any
    record: TaskRecord
    decision: DecisionRecord | None
    process: TaskProcess | None
    """None where the process is not the task's own."""
    is_remote: bool
    window: Window
    clock: CodeClock
    resident_before: int | None
    leaving: ExitStack
    begun_s: float = field(default_factory=process_cpu_s)
    cancelled: bool = False
    _stopped: tuple[Ended, TaskUse] | None = None
    _code_s: float = 0.0
    _ended: bool = False

    def stop(self) -> None:
        """Ends the span of the user's code."""
        if self._stopped is not None:
            return
        self.clock.span.__exit__()
        self._code_s = process_cpu_s() - self.begun_s
        meter = self.tao.meter
        cpu = self.clock.stop(alone=meter.was_alone(self.window))
        ended = meter.stop(self.window, cpu_s=None if self.is_remote else cpu.cpu_s)
        self._stopped = ended, TaskUse(cpu, resident_bytes=self._resident())
        self.leaving.close()

    def end(self, state: TaskState, *events: str) -> None:
        """Writes the end of the try, or of this process's part in it, and says it in the task's log."""
        if self._ended:
            return
        self._ended = True
        self.stop()
        measured = self._measured()
        measured = replace(measured, events=(*measured.events, *events))
        if self.process is not None:
            # What only waits for work elsewhere is dispatch.
            self.process.has_run(measured.energy, 0.0 if self.is_remote else self._code_s)
        state = TaskState.CANCELLED if self.cancelled else state
        record = replace(self.record, state=state, ended_wall_ns=self.tao.clock.wall_ns(), measurement=measured)
        self.tao.ledger.put_task(record)
        self.tao.profiles.settled(record.key.task, record.pool, flow=record.key.task_flow)
        self.tao.admission.ended(record.key)
        log.log(logging.getLevelName(self.tao.config.log_level), "tao-flows: %s", log_line(measured, self.decision))

    def energy(self) -> Figure | None:
        """What the code has used, as far as it is known at once; None before its end."""
        return None if self._stopped is None else self._measured(wait=False).energy

    def _measured(self, *, wait: bool = True) -> Measurement:
        if self._stopped is None:
            raise RuntimeError("the code has not ended")
        ended, use = self._stopped
        if self.is_remote:
            wall_s = s_from_ns(ended.at_ns - self.window.at_ns)
            return unmeasured(self.window.label, self.window.wall_ns, wall_s, REMOTE_WORK)
        return self.tao.meter.work_out(self.window, ended, use, wait=wait)

    def _resident(self) -> int | None:
        after = own_resident_bytes() if self.resident_before is not None else None
        return None if self.resident_before is None or after is None else (self.resident_before + after) // 2


_process: TaskProcess | None = None
"""This process, if it is a task's own."""
_current: Try | None = None
_entered: Counter[RunKey] = Counter()
"""How often this process has entered a try: ``dag.test()`` resumes where it deferred."""


def process_started() -> None:
    """This process is a task's own, and begins."""
    global _process
    tao = tao_here()
    _process = None if tao is None or tao.config.mode == "off" else TaskProcess(tao)


def attach(ti: Any) -> None:
    """Has a task's own hooks call ours first, on the copy of the operator that is about to run."""
    tao, task = tao_here(), ti.task
    # Of a task that its author wants left alone nothing is known, its process's overhead neither.
    if tao is None or tao.config.mode == "off" or options_of(task.executor_config).get(OFF) is True:
        return
    author = task._pre_execute_hook  # noqa: SLF001 - as Airflow's runner reads it
    before = _before_yielding if inspect.isgeneratorfunction(author) else _before
    task._pre_execute_hook = partial(before, author)  # noqa: SLF001
    author = task._post_execute_hook  # noqa: SLF001
    after = _after_yielding if inspect.isgeneratorfunction(author) else _after
    task._post_execute_hook = partial(after, author)  # noqa: SLF001


def code_ended(ti: Any, error: Any = None) -> None:
    """The code of the try is over; what Airflow does for it from here on is not the user's."""
    tried = _current
    if tried is not None and tried.ti is ti:
        tried.cancelled = tried.cancelled or type(error).__name__ in _CANCELLING
        tried.stop()


def energy_so_far(ti: Any) -> Figure | None:
    """What the code of the try that runs here has used; None before its end, and of a try that is not metered.

    Waits for nothing: what a node agent tells late is unknown yet.
    """
    tried = _current
    return None if tried is None or tried.ti is not ti else tried.energy()


def runner_stops() -> None:
    """The try is over, or waits; its task instance says which."""
    global _current, _process
    tried, process, _current = _current, _process, None
    try:
        if tried is not None:
            state = str(getattr(tried.ti.state, "value", tried.ti.state))
            tried.end(_STATES.get(state, TaskState.FAILED), *((SKIPPED,) if state == "skipped" else ()))
            if process is None and tried.tao.config.bundles is not None:
                from airflow_plugin import runs

                runs.ran_here(tried.record.key)
    except Exception:
        process = None  # what of it was the task's code is not known
        raise
    finally:
        _process = None
        if process is not None:
            process.account()


def _before(author: Callable[..., Any] | None, context: Any) -> Any:
    _enter(context)
    return None if author is None else author(context)


def _before_yielding(author: Callable[..., Any], context: Any) -> Generator[Any, Any, Any]:
    _enter(context)
    return (yield from author(context))


def _after(author: Callable[..., Any] | None, context: Any, result: Any = None) -> Any:
    try:
        return None if author is None else author(context, result)
    finally:
        _leave(context)


def _after_yielding(author: Callable[..., Any], context: Any, result: Any = None) -> Generator[Any, Any, Any]:
    try:
        return (yield from author(context, result))
    finally:
        _leave(context)


def _enter(context: Any) -> None:
    """Asks for the try and begins it.

    Raises:
        TaskDeferred: it is to wait.
        DeniedError: the decision denied it, and is enforced.
    """
    global _current
    tao, ti = tao_here(), context["ti"]
    if tao is None or tao.config.mode == "off":
        return
    run = run_ref(ti.dag_id, ti.run_id, tao.config.namespace)
    try:
        facts = facts_of(ti, own_process=_process is not None)
        _works_for(run)  # a process that only finds that its task is to wait has an account, too
        verdict = _asked(tao, facts, ti)
        if verdict.mode != "off":
            _current = _begun(tao, facts, verdict, ti)
    except (DeniedError, task_deferred()):
        raise
    except Exception as ours:  # noqa: BLE001 - without us the user's task must still run
        tao.incidents.note_error("starting to meter a task", ours, run_id=ti.run_id, task=ti.task_id)
    if _current is None:
        _works_for(None)  # the code that follows is not told apart from the rest


def _works_for(run: RunRef | None) -> None:
    if _process is not None:
        _process.run = run


def _asked(tao: Tao, facts: Facts, ti: Any) -> Verdict:
    try:
        # `dag.test()` and `airflow tasks test` would stand still where they were called until the wait is over.
        return admit(tao, facts, ti, can_wait=_process is not None)
    except (DeniedError, task_deferred()):
        raise
    except Exception as ours:  # noqa: BLE001 - what cannot be asked for runs, and is metered
        tao.incidents.note_error("asking about a task", ours, run_id=facts.run_id, task=facts.task_id)
        return Verdict(tao.config.mode, facts.pool)


def _leave(context: Any) -> None:
    tried = _current
    if tried is not None and tried.ti is context["ti"]:
        try:
            tried.stop()
        except Exception as ours:  # noqa: BLE001 - the user's result must stand
            tried.tao.incidents.note_error("metering a task", ours, run_id=tried.record.key.run_id)


def _begun(tao: Tao, facts: Facts, verdict: Verdict, ti: Any) -> Try:
    config, task = tao.config, ti.task
    ask = facts.ask(config.namespace, config.who)
    is_remote = remote.is_remote(task, remote.patterns_given())
    record = TaskRecord(
        key=ask.key,
        segment=replace(tao.segment, sequence=_entered[ask.key]),
        state=TaskState.RUNNING,
        started_wall_ns=tao.clock.wall_ns(),
        who=ask.who,
        pool=facts.pool,
        # One that nobody has configured is not charged.
        budget=ask.budget_name if ask.budget_name in verdict.budgets else "",
        map_index=None if facts.map_index < 0 else facts.map_index,
        budgets=verdict.budgets,
        size=ask.size,
    )
    _entered[ask.key] += 1
    tao.ledger.put_task(record)
    leaving = ExitStack()
    leaving.enter_context(remote.named_as_parent(ask.key, None if is_remote else record.segment))
    if is_remote:
        remote.tell_remote(task, ask.key)
    resident = own_resident_bytes() if tao.meter.model else None
    # To a node agent, what only waits is a part of its process's overhead.
    window = tao.meter.begin(facts.task_id, party="steps" if is_remote else "thread")
    clock = CodeClock(stepped=False, alone=window.companions == 0, has_process=_process is not None)
    tried = Try(tao, ti, record, verdict.decision, _process, is_remote, window, clock, resident, leaving)
    if _process is not None:
        _end_when_told_to(tried)
    clock.span.__enter__()
    return tried


def _end_when_told_to(tried: Try) -> None:
    """Records the try as cancelled when its process is told to end: five seconds later it may be killed.

    Airflow's own handler comes first. It calls ``on_kill``, which ends what the task has started elsewhere, and the
    ledger may take most of the five seconds.
    """
    before, ours = signal.getsignal(signal.SIGTERM), os.getpid()

    def told(number: int, frame: Any) -> None:
        # Not in what the user's code has forked.
        mine = os.getpid() == ours and _current is tried and not tried.cancelled
        tried.cancelled = tried.cancelled or mine
        try:
            if callable(before):
                before(number, frame)
        finally:
            if mine:
                try:
                    tried.end(TaskState.CANCELLED)
                except Exception as error:  # noqa: BLE001 - the signal is Airflow's to handle
                    tried.tao.incidents.note_error("recording a task that was told to end", error)

    try:
        signal.signal(signal.SIGTERM, told)
    except ValueError:
        pass  # not in the main thread: it is not told
