"""The CPU clock of one piece of user code in a process it shares with others."""

from __future__ import annotations

import time

from tao_flows.errors import SourceError
from tao_flows.figures import CpuTime
from tao_flows.spans import CpuSpan
from tao_flows.telemetry.perf import TaskClock


class CodeClock:
    """Times user code by a span, with the best clock there is for it.

    Code that keeps its thread from start to end is charged for the thread and for every thread and process it starts
    meanwhile (perf). Code that gives its thread away between steps is charged for the thread alone, step by step: what
    it starts would go on being counted during others' steps. Where perf is refused the thread alone counts too.

    Args:
        stepped: True for coroutines and generators.
    """

    def __init__(self, *, stepped: bool) -> None:
        self._perf: TaskClock | None = None
        if not stepped:
            try:
                self._perf = TaskClock()
            except SourceError:
                pass  # doctor says why
        self._source = "thread-clock-steps" if stepped else "thread-clock" if self._perf is None else "perf"
        self._failed = False
        self.span = CpuSpan(time.thread_time if self._perf is None else self._perf_s)

    def _perf_s(self) -> float:
        cpu_s = None if self._perf is None else self._perf.cpu_s()
        self._failed = self._failed or cpu_s is None
        return cpu_s or 0.0

    def stop(self) -> CpuTime:
        """What the span counted; unknown when the clock was taken away midway (a daemon closing all descriptors)."""
        covers_children = self._perf is not None
        if self._perf is not None:
            self._perf.close()
        return CpuTime(None if self._failed else self.span.cpu_s, self._source, covers_children)
