"""CPU seconds that Prefect spends on this host, seen without privileges: a lower bound where processes come and go.

What counts as the engine: Prefect's server and workers, the processes that its task runners start for tasks, and in
a flow's own process all that is neither a task, nor the flow's body, nor a thread that is not Python's (a numerical
library's pool serves the tasks, and which of them cannot be said).
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from tao_flows.codeclock import charged_natives
from tao_flows.engines import USERS_CODE, engine_of
from tao_flows.telemetry import procfs
from tao_flows.telemetry.threads import native_threads

_RUNNER_MARKS = ("multiprocessing.spawn", "multiprocessing.forkserver", "distributed.cli", "dask")


@dataclass(frozen=True, slots=True)
class EngineCpu:
    """Readings at one moment; differences between two are what was spent."""

    process_s: float
    """This process's threads."""
    reaped_s: float
    """Children this process has waited for, and their descendants."""
    native_s: dict[int, float]
    """By thread id, this process's threads that are not Python's."""
    charged_s: float
    """What of those is in tasks' figures."""
    others_s: dict[tuple[int, int], float]
    """By pid and start time, processes of the engine other than this one."""

    @classmethod
    def read(cls, proc_root: Path) -> EngineCpu:
        """Reads everything now. What cannot be read is left out."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(
            process_s=time.process_time(),
            reaped_s=children.ru_utime + children.ru_stime,
            native_s=native_threads(),
            charged_s=charged_natives.cpu_s,
            others_s=_engine_processes(proc_root),
        )

    def holds(self, pid: int, start_ticks: int) -> bool:
        """Whether a process's CPU seconds are in this reading."""
        return pid == os.getpid() or (pid, start_ticks) in self.others_s

    def since(self, before: EngineCpu) -> EngineCpuSpent:
        """What was spent between ``before`` and this reading."""
        native_s = sum(max(0.0, now - before.native_s.get(tid, 0.0)) for tid, now in self.native_s.items())
        return EngineCpuSpent(
            process_s=max(0.0, self.process_s - before.process_s),
            reaped_s=max(0.0, self.reaped_s - before.reaped_s),
            native_s=max(0.0, native_s - (self.charged_s - before.charged_s)),
            others_s=sum(max(0.0, now - before.others_s.get(key, 0.0)) for key, now in self.others_s.items()),
        )


@dataclass(frozen=True, slots=True)
class EngineCpuSpent:
    """CPU seconds between two readings."""

    process_s: float
    reaped_s: float
    native_s: float
    """Of threads that are not Python's, and in no task's figure."""
    others_s: float

    def overhead_s(self, *, known_s: float, children_known: bool) -> float:
        """The engine's own CPU seconds.

        Args:
            known_s: CPU seconds of the user's code: tasks, in whatever process, and the flow's body.
            children_known: False when a task may have started processes that are not in ``known_s``: what this
                process has waited for may then be the user's, and is left out.
        """
        total_s = self.process_s + self.others_s + (self.reaped_s if children_known else 0.0)
        return max(0.0, total_s - self.native_s - known_s)


def is_engine(command: tuple[str, ...], *, ours: bool) -> bool:
    """Whether a command line is a process of Prefect, or one that this process's task runner started (``ours``)."""
    engine = engine_of(command)
    if engine is not None:
        # Flow processes account for themselves.
        return engine.startswith("prefect ") and engine not in USERS_CODE
    text = " ".join(command)
    return ours and any(mark in text for mark in _RUNNER_MARKS)


def _engine_processes(proc_root: Path) -> dict[tuple[int, int], float]:
    descendants = set(procfs.tree(os.getpid(), proc_root))
    found: dict[tuple[int, int], float] = {}
    for pid in procfs.processes(proc_root):
        if pid == os.getpid():
            continue
        command = procfs.command_line(pid, proc_root)
        if not command or not is_engine(command, ours=pid in descendants):
            continue
        stat = procfs.process_stat(pid, proc_root)
        if stat is not None:
            # Waited-for children of a worker are flow processes, which account for themselves.
            found[pid, stat.start_ticks] = stat.cpu_s
    return found
