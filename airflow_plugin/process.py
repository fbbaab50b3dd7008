"""The account of a task's own process: what of it is the task's code, and what is Airflow's and ours.

Airflow forks a process for each try, whose clock starts then. What it spends besides the user's code is overhead: it
imports, reads the DAG, renders templates, asks at the gate, stores results, runs callbacks. So is what the supervisor
above it spends meanwhile, which sends the heartbeats and writes the log.
"""

from __future__ import annotations

import os

from tao_flows.attribution import part_of_host
from tao_flows.codeclock import process_cpu_s
from tao_flows.figures import CpuTime, Figure
from tao_flows.ledger.base import RunRef
from tao_flows.meter import TaskUse
from tao_flows.records import HostAccount
from tao_flows.runtime import Tao
from tao_flows.telemetry.procfs import process_stat


class TaskProcess:
    """This process, from where Airflow says that it starts to where its runner stops."""

    def __init__(self, tao: Tao) -> None:
        self.run: RunRef | None = None
        """The run that it works for, once it is known."""
        self._tao = tao
        self._code_s = 0.0
        self._tasks: list[Figure] = []
        self._supervisor_s = _supervisor_s(tao)
        self._window = tao.meter.begin("task process", enclosing=True, party="self")

    def has_run(self, energy: Figure, code_s: float) -> None:
        """Takes note of what a task's code took.

        Args:
            energy: the task's.
            code_s: CPU seconds of this process, and of the children it waited for, that were the code's.
        """
        self._tasks.append(energy)
        self._code_s += code_s

    def account(self) -> None:
        """Writes what the process came to. Where a node agent tells figures late, this waits for it."""
        tao, run = self._tao, self.run
        if run is None:
            return
        overhead_s = max(0.0, process_cpu_s() - self._code_s)
        before_s, now_s = self._supervisor_s, _supervisor_s(tao)
        if before_s is not None and now_s is not None:
            overhead_s += max(0.0, now_s - before_s)
        # To a node agent the task's thread has been a party of its own, and is no part of this window.
        ended = tao.meter.stop(self._window, cpu_s=0.0)
        code = CpuTime(self._code_s, "process-clock+wait4", covers_children=True)
        whole = tao.meter.work_out(self._window, ended, TaskUse(code, overhead_s, resident_bytes=0))
        account = part_of_host(
            whole.account,
            # A process in which no code was to run has run none.
            tasks_uj=Figure.total(self._tasks).value_uj if self._tasks else 0,
            overhead_uj=whole.account.overhead_uj,
        )
        segment = tao.segment
        record = HostAccount(segment.host, account, whole.wall_s, segment.id, whole.events, overhead_cpu_s=overhead_s)
        tao.ledger.put_account(run, record)


def _supervisor_s(tao: Tao) -> float | None:
    """CPU seconds of the supervisor, which runs one task at a time; None where it cannot be read."""
    stat = process_stat(os.getppid(), tao.config.proc_root)
    return None if stat is None else stat.cpu_s
