"""Flow runs in this process: their windows, whose CPU seconds were whose, and their records so far.

Tasks in other processes (process pool, Dask) are seen through the ledger; those in this one also through memory, so
that the report is whole even where the ledger is out of reach.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tao_flows.attribution import run_account
from tao_flows.errors import TaoError
from tao_flows.figures import CpuTime, Figure
from tao_flows.ledger.base import RunRef
from tao_flows.meter import TaskUse, Window
from tao_flows.prefect._compat import FlowRunContext
from tao_flows.prefect.batch_report import BatchItems
from tao_flows.prefect.engine_cpu import EngineCpu
from tao_flows.prefect.settings import tao_here
from tao_flows.prefect.settle import REPORT_S
from tao_flows.records import UNSEEN_RUN, DecisionRecord, HostAccount, RunRecord, TaskRecord
from tao_flows.runtime import Tao
from tao_flows.spans import CpuSpan
from tao_flows.units import s_from_ns

MAX_RUNS = 256
"""Runs kept in memory in one process; the oldest go first. The ledger keeps them all."""
_LOOK_AGAIN_S = 0.1


@dataclass
class RunMemory:
    """What this process knows of one run."""

    run: RunRecord
    tasks: dict[tuple[object, ...], TaskRecord] = field(default_factory=dict)
    decisions: list[DecisionRecord] = field(default_factory=list)
    accounts: dict[str, HostAccount] = field(default_factory=dict)
    """By window: an account that is written again takes its own place."""
    window: FlowWindow | None = None
    batches: list[BatchItems] = field(default_factory=list)

    @property
    def ref(self) -> RunRef:
        """Names the run in the ledger."""
        return RunRef(self.run.engine, self.run.namespace, self.run.run_id, self.run.flow)


class FlowWindow:
    """One execution of a flow's function in this process, and the tasks it submitted."""

    def __init__(self, tao: Tao, memory: RunMemory, name: str) -> None:
        self.body = CpuSpan()
        """CPU seconds of the flow's own code on its thread, without the tasks and the engine inside it."""
        self.name = name
        self._tao = tao
        self._memory = memory
        self._lock = threading.Lock()
        self._pending = 0
        self._on_settled: Callable[[], None] | None = None
        self._cpu = EngineCpu.read(tao.config.proc_root)
        self._window: Window | None = tao.meter.begin(memory.run.flow, enclosing=True, party="process")

    def submitted(self) -> None:
        """A task was handed to the task runner."""
        with self._lock:
            self._pending += 1

    def settled(self) -> None:
        """A submitted task is done, whatever came of it."""
        with self._lock:
            self._pending -= 1
            act = self._on_settled if self._pending == 0 else None
        if act is not None:
            act()

    def when_settled(self, act: Callable[[], None]) -> bool:
        """Calls ``act`` once the last submitted task is done; False, and no call, when nothing is pending."""
        with self._lock:
            self._on_settled = act if self._pending > 0 else None
            return self._pending > 0

    def account(self, *, final: bool) -> None:
        """Writes the account of this host as it stands; ``final`` ends the window.

        Takes up to a few seconds where a node agent tells its figures late.
        """
        window = self._window
        if window is None:
            return
        if final:
            self._window = None
        tao, memory = self._tao, self._memory
        now = EngineCpu.read(tao.config.proc_root)
        spent = now.since(self._cpu)
        body = CpuTime(self.body.cpu_s, "thread-clock", covers_children=False)
        ended = tao.meter.stop(window, keep_open=not final, cpu_s=body.cpu_s)
        tasks = [
            task
            for task in settled_tasks(tao, memory)
            if task.measurement is not None
            and task.segment.host == memory.run.segment.host
            and task.started_wall_ns >= window.wall_ns
        ]
        children_known = all(task.measurement.cpu.covers_children for task in tasks if task.measurement)
        known_s = sum(
            task.measurement.cpu_s or 0.0
            for task in tasks
            # Of a task in a process that is in no reading (``tao-flows meter`` in a child), nothing is to be taken off.
            if task.measurement and (children_known or now.holds(task.segment.pid, task.segment.process_started))
        )
        overhead_s = spent.overhead_s(
            known_s=(body.cpu_s or 0.0) + known_s + self._others_s(window.wall_ns), children_known=children_known
        )
        # The process's memory is charged to the tasks in it; between them it is nobody's.
        use = TaskUse(body, overhead_cpu_s=overhead_s, resident_bytes=0)
        host = tao.meter.work_out(window, ended, use)
        record = HostAccount(
            host=memory.run.segment.host,
            account=run_account(
                host.account, sum(task.measurement.energy.value_uj or 0 for task in tasks if task.measurement)
            ),
            wall_s=host.wall_s,
            window=self.name,
            events=host.events,
            body=host.energy,
            body_cpu_s=body.cpu_s,
            overhead_cpu_s=overhead_s,
        )
        memory.accounts[self.name] = record
        tao.ledger.put_account(memory.ref, record)

    def _others_s(self, since_ns: int) -> float:
        """CPU seconds of other runs' tasks in this process: a subflow's are its own run's, not this one's overhead."""
        return sum(
            task.measurement.cpu_s or 0.0
            for memory in flow_windows.others(self._memory.run.run_id)
            for task in list(memory.tasks.values())
            if task.measurement is not None and task.started_wall_ns >= since_ns
        )


class FlowWindows:
    """The runs this process knows, by run id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, RunMemory] = {}

    def begin(self, tao: Tao, run: RunRecord, attempt: int) -> FlowWindow:
        """Opens a flow's window and records the run as running."""
        memory = self._memory(run)
        if memory.window is not None:
            memory.window.account(final=True)  # an attempt that is retried ends without a hook
        memory.run = replace(run, started_wall_ns=min(run.started_wall_ns, memory.run.started_wall_ns))
        # Prefect counts a run that was suspended and resumed as one attempt, and each has a process of its own.
        segment = tao.segment
        memory.window = FlowWindow(tao, memory, f"attempt-{attempt} in {segment.pid}/{segment.process_started}")
        tao.ledger.put_run(memory.run)
        return memory.window

    def find(self, run_id: str) -> RunMemory | None:
        """What is known of a run, or None."""
        return self._runs.get(run_id)

    def others(self, run_id: str) -> Sequence[RunMemory]:
        """What is known of every other run."""
        with self._lock:
            return [memory for known, memory in self._runs.items() if known != run_id]

    def of_task(self, tao: Tao, record: TaskRecord) -> RunMemory:
        """The run of a task; one that nothing is known of but this task is recorded as unseen."""
        memory = self._runs.get(record.key.run_id)
        if memory is None:
            memory = self._memory(_run_of(record))
            tao.ledger.put_run(memory.run)
        return memory

    def task_seen(self, tao: Tao, record: TaskRecord, *, alone: bool) -> None:
        """Remembers a task's start or end.

        Args:
            tao: this process's parts.
            record: the task.
            alone: True for a task outside any flow, which gets a run of its own to be found by.
        """
        memory = self.of_task(tao, record)
        if alone and record.ended_wall_ns is not None:
            memory.run = replace(memory.run, state=str(record.state), ended_wall_ns=record.ended_wall_ns)
            tao.ledger.put_run(memory.run)
        memory.tasks[identity(record)] = record

    def _memory(self, run: RunRecord) -> RunMemory:
        with self._lock:
            while len(self._runs) >= MAX_RUNS:
                self._runs.pop(next(iter(self._runs)))
            return self._runs.setdefault(run.run_id, RunMemory(run))


flow_windows = FlowWindows()


def identity(record: TaskRecord) -> tuple[object, ...]:
    """What makes two records the same segment of the same try."""
    return record.key, record.segment


def _run_of(record: TaskRecord) -> RunRecord:
    """A run known only by a task of it: the flow is not ours, or runs in another process."""
    key = record.key
    return RunRecord(
        engine=key.engine,
        namespace=key.namespace,
        flow=key.flow,
        run_id=key.run_id,
        state=UNSEEN_RUN,
        started_wall_ns=record.started_wall_ns,
        segment=record.segment,
        who=record.who,
    )


def all_tasks(tao: Tao, memory: RunMemory) -> list[TaskRecord]:
    """Every task of a run: what the ledger holds of all processes, and what this one holds in memory."""
    tasks: dict[tuple[object, ...], TaskRecord] = {}
    try:
        tasks = {identity(record): record for record in tao.ledger.tasks(memory.ref)}
    except TaoError as error:
        tao.incidents.note_error("reading a run's tasks", error, run_id=memory.run.run_id)
    return sorted({**tasks, **memory.tasks}.values(), key=lambda record: record.started_wall_ns)


def settled_tasks(
    tao: Tao, memory: RunMemory, of_interest: Callable[[TaskRecord], bool] = lambda _: True
) -> list[TaskRecord]:
    """The tasks of a run that are of interest, once the figures that a node agent is about to tell are there."""
    until_s = time.monotonic() + REPORT_S
    while True:
        tasks = [record for record in all_tasks(tao, memory) if of_interest(record)]
        awaited = any(_is_awaited(record, tao.clock.wall_ns()) for record in tasks)
        if not awaited or time.monotonic() >= until_s:
            return tasks
        time.sleep(_LOOK_AGAIN_S)


def _is_awaited(record: TaskRecord, now_wall_ns: int) -> bool:
    # What has been pending for longer is so for ever: its process was killed.
    ended_ns = record.ended_wall_ns
    pending = record.measurement is not None and record.measurement.pending
    return pending and ended_ns is not None and s_from_ns(now_wall_ns - ended_ns) < REPORT_S


def energy_of(future: Any) -> Figure:
    """The energy of a finished task of this flow run, all its tries together; unknown while there is none.

    Where a node agent tells its figures late, this waits for them: about a second after the task's end.

    Args:
        future: what ``submit`` or ``map`` gave, or a task-run id.
    """
    context = FlowRunContext.get()
    memory = None
    if context is not None and context.flow_run is not None:
        memory = flow_windows.find(str(context.flow_run.id))
    tao = tao_here()
    if memory is None or tao is None:
        return Figure.unknown("NOT_METERED")
    instance = str(getattr(future, "ran_by", None) or getattr(future, "task_run_id", future))
    tries = settled_tasks(tao, memory, lambda record: record.key.instance == instance)
    if hasattr(future, "energy_in"):  # an item of a batch
        figure: Figure = future.energy_in(tries)
        return figure
    return Figure.total(
        record.measurement.energy if record.measurement else Figure.unknown(record.task_label) for record in tries
    )
