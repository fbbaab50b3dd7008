"""The meter: opens and closes windows on the host's counters and says what a task in that window cost.

One meter serves a process. It keeps running totals of each domain, so that concurrent windows share readings and a
wrap is seen once. A daemon thread reads often enough that no counter wraps unseen while a window is open.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from tao_flows.attribution import CpuShares
from tao_flows.calibration import Baseline
from tao_flows.clock import Clock
from tao_flows.figures import CpuTime, Measurement
from tao_flows.gpu import Held
from tao_flows.measurement import MemoryUse, Span, measurement
from tao_flows.telemetry import procfs
from tao_flows.telemetry.base import DeviceUse, DeviceUsers, Domain, EnergySource
from tao_flows.telemetry.estimate import Estimator
from tao_flows.telemetry.rapl import mirrored
from tao_flows.telemetry.running import Running, Standing
from tao_flows.units import s_from_ns

_IDLE_ROUNDS: Final = 3
"""The sampler ends after this many rounds without an open window."""
_NOTHING_SEEN: Final = Held()
"""Of windows on a host without GPUs."""


PartyKind = Literal["command", "thread", "steps", "process", "self"]
"""Whose CPU time a window is about: a command's and all that it starts; this thread's and all that it starts; that of
code which gives its thread away between steps, as its caller counts it; this process's, which the caller counts a
part of, with its engine's other processes; or this process's alone."""


class Window(NamedTuple):
    """An open window: what stood on the meter when it was opened."""

    label: str
    wall_ns: int
    at_ns: int
    number: int
    """Counts the windows of this process."""
    enclosing: bool
    companions: int
    """Windows that were open beside it when it was opened."""
    held: Held
    standing: Standing
    busy: float | bytes | None
    """The host's cumulative busy CPU seconds, or the text that says them."""
    own_cpu_s: float
    """The sampler's CPU seconds."""
    remote: object = None
    """What a node agent knows it by; None where there is none."""


class Ended(NamedTuple):
    """What stood on the meter when a window was ended, from which its figures are worked out."""

    at_ns: int
    alone: bool
    standing: Standing
    busy: float | bytes | None
    own_cpu_s: float
    memory_used_bytes: int | None
    """The host's, where the estimate needs it."""
    remote: object = None
    """What a node agent is going to say of it; None where there is none."""


@dataclass(frozen=True, slots=True)
class TaskUse:
    """What the task used in its window, beside energy."""

    cpu: CpuTime
    overhead_cpu_s: float | None = None
    """The engine's and tao-flows' own CPU seconds, the sampler's among them; None for the sampler's alone."""
    resident_bytes: int | None = None
    pids: frozenset[int] | None = None
    """The task's processes, beside those that this process started; None for this one."""


class Meter:
    """Reads the host's counters for any number of concurrent windows; safe to use from threads.

    Args:
        sources: energy sources with disjoint or nested domains.
        estimator: the model used for CPU and memory where no source counts the CPU; None for no estimate.
        busy: the host's cumulative busy CPU seconds, or a text that says them; None when they cannot be read.
        memory_used_bytes: the host's used memory, for the estimate.
        clock: where time comes from.
        baseline: what the domains draw at rest; None where the host is not calibrated.
        busy_s_of: takes the seconds out of ``busy``'s text, when they are first asked for.
    """

    def __init__(
        self,
        sources: Sequence[EnergySource],
        estimator: Estimator | None,
        busy: Callable[[], float | bytes | None],
        memory_used_bytes: Callable[[], int | None],
        clock: Clock,
        baseline: Baseline | None = None,
        busy_s_of: Callable[[bytes], float | None] = float,
    ) -> None:
        self._sources = tuple(sources)
        self._with_holders = tuple(source for source in self._sources if isinstance(source, DeviceUsers))
        self._estimator = estimator
        self.estimates: Final = estimator is not None
        """Whether a model is in use, which needs to know the task's memory."""
        self._busy, self._busy_s_of = busy, busy_s_of
        self._memory_used_bytes = memory_used_bytes
        self._now_ns, self._wall_ns = clock.monotonic_ns, clock.wall_ns
        self._baseline = baseline
        self._counters = Running(self._sources, clock.monotonic_ns)
        self._domains: tuple[Domain, ...] = self._counters.domains
        self._started_by_us: dict[int, bool] = {}
        self._lock = threading.Lock()
        self._open: dict[int, Held] = {}
        self._windows = 0
        self._latest = 0
        """The number of the latest window that encloses no others."""
        self._side_by_side = 0
        self._sampler: threading.Thread | None = None
        self._closed = threading.Event()
        self._own_cpu_s = 0.0
        self._interval_s = min((source.max_interval_s for source in self._sources), default=0.0)

    @property
    def domains(self) -> tuple[Domain, ...]:
        """What is read, in order."""
        return self._domains

    @property
    def model(self) -> str | None:
        """The estimate in use, or None."""
        return None if self._estimator is None else self._estimator.model

    @property
    def open_windows(self) -> int:
        """How many windows are open in this process, without those that enclose others."""
        return self._side_by_side

    @property
    def threads(self) -> int:
        """How many threads of its own run in this process."""
        return 0 if self._sampler is None else 1

    def begin(
        self,
        label: str = "",
        *,
        enclosing: bool = False,
        party: PartyKind = "steps",  # noqa: ARG002 - an agent's to know
        pid: int | None = None,  # noqa: ARG002 - the same
    ) -> Window:
        """Opens a window. A source that fails makes its domains unknown and raises nothing.

        Args:
            label: the window's name.
            enclosing: True for one that lies around others (a flow's around its tasks'): no companion of theirs.
            party: whose CPU time is to be counted, where a node agent does that.
            pid: the process of a ``command``.
        """
        with_holders, held = self._with_holders, _NOTHING_SEEN
        with self._lock:
            companions = len(self._open) if enclosing else self._side_by_side
            self._windows = number = self._windows + 1
            if not enclosing:
                self._latest = number
                self._side_by_side += 1
            if with_holders:
                held = Held()
            self._open[number] = held
            if with_holders:
                self._see_holders()
            standing, busy = self._counters.read(), self._busy()
            if self._sampler is None and self._sources:
                self._start_sampling()
            wall_ns, at_ns = self._wall_ns(), self._now_ns()
            return Window(label, wall_ns, at_ns, number, enclosing, companions, held, standing, busy, self._own_cpu_s)

    def was_alone(self, window: Window) -> bool:
        """True when no companion of this window was open at any time since it was opened.

        An enclosing window has every other for a companion; for the rest, enclosing ones are none.
        """
        latest = self._windows if window.enclosing else self._latest
        return window.companions == 0 and window.number == latest

    def sample(self) -> None:
        """Reads everything once, so that what comes and goes inside an open window is seen."""
        with self._lock:
            if self._open:
                self._counters.read()
                self._see_holders()

    def end(self, window: Window, use: TaskUse, *, keep_open: bool = False) -> Measurement:
        """Ends a window and says what its task cost; what was not read is unknown. ``keep_open`` leaves it open."""
        return self.work_out(window, self.stop(window, keep_open=keep_open, cpu_s=use.cpu.cpu_s), use)

    def stop(
        self,
        window: Window,
        *,
        keep_open: bool = False,
        cpu_s: float | None = None,  # noqa: ARG002 - an agent's to know
    ) -> Ended:
        """Reads the meter at a window's end, and works nothing out yet.

        Args:
            window: the window.
            keep_open: True to leave it open.
            cpu_s: CPU seconds of the user's code in it, as far as the caller knows them by now.
        """
        with self._lock:
            at_ns = self._now_ns()
            busy, standing = self._busy(), self._counters.read()
            if self._with_holders:
                self._see_holders()
            memory_used_bytes = self._memory_used_bytes() if self._estimator else None
            alone = self.was_alone(window)
            ended = Ended(at_ns, alone, standing, busy, self._own_cpu_s, memory_used_bytes)
            if not keep_open and self._open.pop(window.number, None) is not None and not window.enclosing:
                self._side_by_side -= 1
        return ended

    def work_out(
        self,
        window: Window,
        ended: Ended,
        use: TaskUse,
        *,
        wait: bool = True,  # noqa: ARG002 - there is nothing to wait for here
    ) -> Measurement:
        """The figures of a window that was ended. Reads nothing any more.

        Args:
            window: the window.
            ended: what ``stop`` gave.
            use: what the task used.
            wait: False for what is known by now, which is ``pending`` where a node agent has more to say.
        """
        before_s, after_s = self._seconds(window.busy), self._seconds(ended.busy)
        busy_s = None if before_s is None or after_s is None else max(0.0, after_s - before_s)
        own_cpu_s = ended.own_cpu_s - window.own_cpu_s
        return measurement(
            label=window.label,
            started_wall_ns=window.wall_ns,
            wall_s=s_from_ns(ended.at_ns - window.at_ns),
            spans=self._spans(window, ended, use),
            shares=CpuShares(use.cpu, own_cpu_s if use.overhead_cpu_s is None else use.overhead_cpu_s, busy_s),
            estimator=self._estimator,
            memory=MemoryUse(use.resident_bytes, ended.memory_used_bytes),
            baseline=self._baseline,
        )

    def close(self) -> None:
        """Stops the sampler and closes the sources."""
        self._closed.set()
        for source in self._sources:
            source.close()

    def _seconds(self, busy: float | bytes | None) -> float | None:
        return self._busy_s_of(busy) if isinstance(busy, bytes) else busy

    def _spans(self, window: Window, ended: Ended, use: TaskUse) -> list[Span]:
        before, after = window.standing, ended.standing
        mirrors = mirrored(self._domains, before.raws_uj, after.raws_uj)
        ours = frozenset[int]()
        if self._with_holders:
            ours = frozenset({os.getpid()} if use.pids is None else use.pids) | window.held.ours
        spans = []
        for position, domain in enumerate(self._domains):
            codes = after.codes_since(before, position)
            gpu = window.held.use(domain.id, ours, alone_in_process=ended.alone) if domain.kind == "gpu" else None
            span = Span(domain, after.since_uj(before, position), codes, gpu)
            if domain.id in mirrors:
                codes = (*codes, f"MIRROR_OF {mirrors[domain.id]}")
                span = span._replace(domain=replace(domain, counted=False), codes=codes)
            spans.append(span)
        return spans

    def _see_holders(self) -> None:
        uses: dict[str, DeviceUse] = {}
        for source in self._with_holders:
            for domain in source.domains:
                try:
                    use = source.use(domain.id)
                except Exception as error:  # noqa: BLE001 - who used it cannot be said, and the user's task goes on
                    use = DeviceUse(None, None, f"SOURCE_RAISED:{type(error).__name__}")
                uses[domain.id] = use
        ours = self._ours(frozenset().union(*(use.pids for use in uses.values())))
        for held in self._open.values():
            held.ours.update(ours)
            for name, use in uses.items():
                held.see(name, use)

    def _ours(self, pids: frozenset[int]) -> frozenset[int]:
        """Those that are this process or that it started. The list of processes is read for new ones only."""
        if not pids <= self._started_by_us.keys():
            tree = frozenset(procfs.tree(os.getpid()))
            self._started_by_us = {pid: pid in tree for pid in pids}
        return frozenset(pid for pid in pids if self._started_by_us[pid])

    def _start_sampling(self) -> None:
        sampler = threading.Thread(target=self._keep_sampling, name="tao-flows-sampler", daemon=True)
        try:
            sampler.start()
        except RuntimeError:
            return  # no thread is to be had: a counter that can have wrapped unseen makes its span unknown
        self._sampler = sampler

    def _keep_sampling(self) -> None:
        idle_rounds, cpu_before_s = 0, time.thread_time()
        while not self._closed.wait(self._interval_s):
            self.sample()
            with self._lock:
                cpu_now_s = time.thread_time()
                self._own_cpu_s += cpu_now_s - cpu_before_s
                cpu_before_s = cpu_now_s
                idle_rounds = 0 if self._open else idle_rounds + 1
                if idle_rounds >= _IDLE_ROUNDS:
                    self._sampler = None
                    return
