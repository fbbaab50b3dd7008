"""CPU seconds: of the host, and of processes that are not ours; and what doctor says of every source.

A task's CPU time is the share by which a host's joules are split, so what is missed here is charged to nobody. Best
first: a control group of the task's own (``cgroup``), the perf task clock (``perf``), what wait4 reports (``wait4``:
loses processes whose parent ended first), the thread's own clock (``thread-clock``: loses all that it starts), and
polling (``polling``: a lower bound).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tao_flows.errors import SourceError
from tao_flows.figures import CpuTime
from tao_flows.records import Diagnosis
from tao_flows.telemetry import cgroup, procfs
from tao_flows.telemetry.cgroup import CGROUP_ROOT
from tao_flows.telemetry.perf import TaskClock
from tao_flows.telemetry.procfs import PROC_ROOT, ProcessStat
from tao_flows.units import NS_PER_S

FOR_COMMANDS: Final = ("cgroup", "perf", "wait4")
"""Sources of a command's CPU time, best first."""
FOR_THREADS: Final = ("perf", "thread-clock")
"""Sources of a thread's CPU time, best first."""
_DENIED_CODES: Final = frozenset({"CGROUP_NOT_WRITABLE", "PERF_PARANOID", "PERF_SECCOMP"})
_BROKEN_CODES: Final = frozenset({"CGROUP_FAILED", "PERF_FAILED"})
_FIRST_LINES_BYTES: Final = 256
"""Holds the ten numbers of the first line of ``stat``, and the three of the first lines of ``cpu.stat``, at their
widest. A read of it is quicker than one of all that there is."""


class HostBusy:
    """The host's busy CPU seconds since boot, from the root control group or, for want of it, ``/proc/stat``.

    Idle, I/O wait and stolen time are not in it. Safe to use from threads.
    """

    def __init__(self, proc_root: Path = PROC_ROOT, cgroup_root: Path = CGROUP_ROOT) -> None:
        root = cgroup.find_root(cgroup_root, proc_root)
        in_group = root is not None and cgroup.is_host_root(root)
        path = root / "cpu.stat" if root is not None and in_group else proc_root / "stat"
        self.source = str(path)
        self.busy_s = cgroup.root_busy_s if in_group else procfs.busy_s
        self._busy_ns = 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def read_raw(self) -> bytes | None:
        """What ``busy_s`` takes busy CPU seconds out of, or None when it cannot be read."""
        try:
            return os.pread(self._fd, _FIRST_LINES_BYTES, 0)
        except OSError:
            return None

    def read(self) -> float | None:
        """Busy CPU seconds since boot, over all processors, or None when they cannot be read."""
        raw = self.read_raw()
        return None if raw is None else self.busy_s(raw)

    def read_ns(self) -> int | None:
        """The same in nanoseconds; it never falls."""
        busy_s = self.read()
        if busy_s is None:
            return None
        self._busy_ns = max(self._busy_ns, round(busy_s * NS_PER_S))
        return self._busy_ns

    def close(self) -> None:
        """Gives back its descriptor. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class TreePoll:
    """CPU seconds, since the first sample, of a process tree that is not ours: cumulative over repeated samples.

    A lower bound: what ends between two samples counts only if its parent waited for it, and what has lost its
    parent only from when it was first seen.

    Args:
        pid: the top of the tree.
    """

    source: Final = "polling"

    def __init__(self, pid: int, proc_root: Path = PROC_ROOT) -> None:
        self._pid = pid
        self._proc_root = proc_root
        self._seen: dict[int, ProcessStat] = {}
        self._before_s: float | None = None
        self._cpu_s: float | None = None

    def sample(self) -> CpuTime:
        """Reads the tree once more; unknown until it has been seen once."""
        total_s = self._total_s()
        if self._seen:
            self._before_s = total_s if self._before_s is None else self._before_s
            # A child that was waited for after its parent was read is missing from this total, and in the next.
            self._cpu_s = max(self._cpu_s or 0.0, total_s - self._before_s)
        return CpuTime(self._cpu_s, self.source, covers_children=True, lower_bound=True)

    def _total_s(self) -> float:
        living = set()
        for pid in dict.fromkeys((*procfs.tree(self._pid, self._proc_root), *self._seen)):
            stat = procfs.process_stat(pid, self._proc_root)
            if stat is not None and self._seen.setdefault(pid, stat).start_ticks == stat.start_ticks:
                self._seen[pid] = stat
                living.add(pid)
        # What is gone is in its parent's figure if that waited for it; if its parent is not of the tree, keep it.
        self._seen = {pid: s for pid, s in self._seen.items() if pid in living or s.parent not in self._seen}
        return sum(stat.cpu_s + stat.children_cpu_s for stat in self._seen.values())


def cpu_diagnoses(proc_root: Path = PROC_ROOT, cgroup_root: Path = CGROUP_ROOT) -> tuple[Diagnosis, ...]:
    """What each source of CPU time can do here, found by trying it; nothing is left behind."""
    return (
        _diagnose_cgroup(proc_root, cgroup_root),
        _diagnose_perf(proc_root),
        _ready("wait4", "what wait4 reports of a command and the processes it waited for"),
        _ready("thread-clock", "each thread's own clock"),
        _diagnose_polling(proc_root),
    )


def chosen(diagnoses: Iterable[Diagnosis], among: Sequence[str]) -> str:
    """The best source that is ready, of ``FOR_COMMANDS`` or ``FOR_THREADS``; empty when none is."""
    ready = {diagnosis.id for diagnosis in diagnoses if diagnosis.status == "ready"}
    return next((source for source in among if source in ready), "")


def _diagnose_cgroup(proc_root: Path, cgroup_root: Path) -> Diagnosis:
    try:
        group = cgroup.own_group(cgroup_root, proc_root)
        cgroup.Leaf(group, proc_root).close()
    except SourceError as error:
        return _rejected("cgroup", error)
    return _ready("cgroup", f"a control group of its own for each command, below {group}")


def _diagnose_perf(proc_root: Path) -> Diagnosis:
    try:
        TaskClock(proc_root=proc_root).close()
    except SourceError as error:
        return _rejected("perf", error)
    return _ready("perf", "the perf task clock, inherited by all that a task starts")


def _diagnose_polling(proc_root: Path) -> Diagnosis:
    if procfs.process_stat("self", proc_root) is None:
        remedy = "mount proc, or set TAO_FLOWS_PROC_ROOT to where it is"
        return _rejected("polling", SourceError("PROC_UNREADABLE", f"{proc_root} shows no processes", remedy))
    return _ready("polling", "looking at processes again and again: a lower bound")


def _ready(source: str, summary: str) -> Diagnosis:
    return Diagnosis(source, "cpu_time", "ready", "", summary)


def _rejected(source: str, error: SourceError) -> Diagnosis:
    status = "denied" if error.code in _DENIED_CODES else "broken" if error.code in _BROKEN_CODES else "absent"
    return Diagnosis(source, "cpu_time", status, error.code, error.summary, error.remedy)
