"""CPU seconds of engines' processes on this host, seen without privileges: a lower bound where they come and go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tao_flows.engines import EngineWatch
from tao_flows.telemetry import procfs
from tao_flows.telemetry.procfs import PROC_ROOT, ProcessStat


@dataclass(slots=True)
class _Process:
    start_ticks: int
    parent: int
    forks: bool
    cpu_s: float
    children_s: float
    counted_s: float = 0.0


class EngineClock:
    """The CPU seconds that engines' processes have used since this clock was made. Not for several threads at once.

    Args:
        engines: which processes, as ``engine_of`` names them.
        forking: those of them whose children live for one job: they are counted when they are waited for, too.
        proc_root: where the kernel shows processes.
    """

    def __init__(self, engines: Collection[str], *, forking: Collection[str] = (), proc_root: Path = PROC_ROOT) -> None:
        self._engines, self._forking, self._proc_root = frozenset(engines), frozenset(forking), proc_root
        self._watch = EngineWatch(proc_root)
        self._known: dict[int, _Process] = {}
        self._total_s = 0.0
        self._look(at_first=True)

    def read_s(self) -> float:
        """CPU seconds up to now. What cannot be read adds nothing."""
        self._look(at_first=False)
        ended_s: dict[int, float] = {}
        waited_s: dict[int, float] = {}
        for pid, process in list(self._known.items()):
            stat = procfs.process_stat(pid, self._proc_root)
            if stat is None or stat.start_ticks != process.start_ticks:
                del self._known[pid]
                ended_s[process.parent] = ended_s.get(process.parent, 0.0) + process.counted_s
                continue
            used_s = max(0.0, stat.cpu_s - process.cpu_s)
            process.cpu_s = stat.cpu_s
            process.counted_s += used_s
            self._total_s += used_s
            if process.forks:
                waited_s[pid] = stat.children_cpu_s - process.children_s
                process.children_s = stat.children_cpu_s
        for pid, used_s in waited_s.items():  # of these children some were seen, and counted, while they lived
            self._total_s += max(0.0, used_s - ended_s.get(pid, 0.0))
        return self._total_s

    def _look(self, *, at_first: bool) -> None:
        for found in self._watch.new():
            if found.engine not in self._engines:
                self._known.pop(found.pid, None)
                continue
            stat = procfs.process_stat(found.pid, self._proc_root)
            if found.pid not in self._known and stat is not None:
                self._known[found.pid] = self._process(stat, found.engine, at_first=at_first)

    def _process(self, stat: ProcessStat, engine: str, *, at_first: bool) -> _Process:
        # One that has appeared since has used all of its seconds since.
        cpu_s, children_s = (stat.cpu_s, stat.children_cpu_s) if at_first else (0.0, 0.0)
        return _Process(stat.start_ticks, stat.parent, engine in self._forking, cpu_s, children_s)
