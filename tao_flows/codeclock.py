"""The CPU clock of one piece of user code in a process it shares with others."""

from __future__ import annotations

import threading
import time
from resource import RUSAGE_CHILDREN, getrusage
from typing import Final

from tao_flows.errors import SourceError
from tao_flows.figures import CpuTime
from tao_flows.spans import CpuSpan
from tao_flows.telemetry.perf import TaskClock
from tao_flows.telemetry.threads import native_threads

PROCESS_CLOCK: Final = "process-clock+wait4"
"""The source of ``process_cpu_s``."""


def process_cpu_s() -> float:
    """CPU seconds of this process and of the children it waited for."""
    children = getrusage(RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class CodeClock:
    """Times user code by a span, with the best clock there is for it.

    Code that keeps its thread from start to end is charged for the thread and for every thread and process it starts
    meanwhile (perf). Code that gives its thread away between steps is charged for the thread alone, step by step: what
    it starts would go on being counted during others' steps. Where perf is refused the thread alone counts too.

    Threads that are not Python's and were there before (a numerical library's pool) serve whatever code calls the
    library. Their CPU seconds are this code's where it was the only one of its process from start to end, and nobody's
    otherwise.

    Args:
        stepped: True for coroutines and generators.
        alone: True when no other code of this process is being timed.
        has_process: True when the process is there for this code: where perf is refused, all that it uses meanwhile
            counts, and the children it waits for.
    """

    def __init__(self, *, stepped: bool, alone: bool = False, has_process: bool = False) -> None:
        self._perf = None if stepped else task_clock()
        self._has_process = has_process and self._perf is None
        self._alone = alone and not self._has_process
        self._natives_s = native_threads() if self._alone else {}
        self._failed = False
        clock = time.thread_time
        if self._perf is not None:
            self._source, clock = "perf", self._perf_s
        elif self._has_process:
            self._source, clock = PROCESS_CLOCK, process_cpu_s
        else:
            self._source = "thread-clock-steps" if stepped else "thread-clock"
        self.span = CpuSpan(clock)

    def _perf_s(self) -> float:
        cpu_s = None if self._perf is None else self._perf.cpu_s()
        self._failed = self._failed or cpu_s is None
        return cpu_s or 0.0

    def stop(self, *, alone: bool = False) -> CpuTime:
        """What the span counted; unknown when the clock was taken away midway (a daemon closing all descriptors).

        Args:
            alone: True when no other code of this process was timed at any time meanwhile.
        """
        covers_children = self._perf is not None or self._has_process
        pool_s = self._pool_s() if alone and self._alone else 0.0
        if self._perf is not None:
            self._perf.close()
        if self._failed:
            return CpuTime(None, self._source, covers_children)
        source = f"{self._source}+native-threads" if pool_s else self._source
        return CpuTime(self.span.cpu_s + pool_s, source, covers_children)

    def _pool_s(self) -> float:
        """CPU seconds of native threads that were there before."""
        now_s, before_s = native_threads(), self._natives_s
        served_s = sum(max(0.0, now_s[number] - before_s[number]) for number in now_s.keys() & before_s.keys())
        # The task clock has those that the code started itself.
        started_s = 0.0 if self._perf is None else sum(now_s[number] for number in now_s.keys() - before_s.keys())
        charged_natives.add(served_s + started_s)
        return served_s


def task_clock() -> TaskClock | None:
    """The task clock of this thread and all it starts from here on; None where perf is refused, as doctor says."""
    try:
        return TaskClock()
    except SourceError:
        return None


class ChargedNatives:
    """CPU seconds of native threads that are in some code's figure already, since this process began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.cpu_s = 0.0

    def add(self, cpu_s: float) -> None:
        """Charges some more."""
        with self._lock:
            self.cpu_s += cpu_s


charged_natives = ChargedNatives()
