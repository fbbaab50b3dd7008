"""The meter: opens and closes windows on the host's counters and says what a task in that window cost.

One meter serves a process. It keeps running totals of each domain, so that concurrent windows share readings and a
wrap is seen once. A daemon thread reads often enough that no counter wraps unseen while a window is open.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from tao_flows.attribution import CpuShares, GpuUse
from tao_flows.clock import Clock
from tao_flows.figures import CpuTime, Measurement
from tao_flows.measurement import MemoryUse, Span, measurement
from tao_flows.telemetry import procfs
from tao_flows.telemetry.base import DeviceHolders, Domain, EnergySource, Reading
from tao_flows.telemetry.counter import Difference, First, Gap, Reset, Wrapped, delta
from tao_flows.telemetry.estimate import Estimator
from tao_flows.telemetry.rapl import mirrored
from tao_flows.units import s_from_ns

_IDLE_ROUNDS: Final = 3
"""The sampler ends after this many rounds without an open window."""
_NEVER_READ: Final = Reading(0, None, "READ_NEVER")


class Marks(NamedTuple):
    """What stands on the meter at one moment."""

    totals_uj: tuple[int, ...]
    breaks: tuple[int, ...]
    readings: tuple[Reading, ...]
    busy_s: float | None
    own_cpu_s: float
    happened: int
    """Counts what happened to counters: wraps, resets and readings that failed."""


@dataclass(slots=True)
class Held:
    """Who was seen on each GPU while a window was open."""

    pids: dict[str, frozenset[int] | None] = field(default_factory=dict)
    """By domain; None where it could not be said at some time."""
    ours: set[int] = field(default_factory=set)
    """Those that were this process, or started by it."""


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
    marks: Marks
    held: Held


class Ended(NamedTuple):
    """What stood on the meter when a window was ended, from which its figures are worked out."""

    at_ns: int
    alone: bool
    marks: Marks
    codes: tuple[tuple[int, str], ...]
    """By position of the domain: what happened to its counter meanwhile."""
    memory_used_bytes: int | None
    """The host's, where the estimate needs it."""


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
        busy_s: the host's cumulative busy CPU seconds, or None when they cannot be read.
        memory_used_bytes: the host's used memory, for the estimate.
        clock: where time comes from.
    """

    def __init__(
        self,
        sources: Sequence[EnergySource],
        estimator: Estimator | None,
        busy_s: Callable[[], float | None],
        memory_used_bytes: Callable[[], int | None],
        clock: Clock,
    ) -> None:
        self._sources = tuple(sources)
        self._with_holders = tuple(source for source in self._sources if isinstance(source, DeviceHolders))
        self._estimator = estimator
        self._busy_s = busy_s
        self._memory_used_bytes = memory_used_bytes
        self._clock = clock
        self._domains: tuple[Domain, ...] = tuple(d for source in self._sources for d in source.domains)
        self._last = [_NEVER_READ] * len(self._domains)
        self._totals_uj = [0] * len(self._domains)
        self._breaks = [0] * len(self._domains)
        self._events: dict[tuple[int, str], int] = {}
        """By position and code: the number of the last such event."""
        self._happened = 0
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

    def begin(self, label: str = "", *, enclosing: bool = False) -> Window:
        """Opens a window. A source that fails makes its domains unknown and raises nothing.

        Args:
            label: the window's name.
            enclosing: True for one that lies around others (a flow's around its tasks'): no companion of theirs.
        """
        held = Held()
        with self._lock:
            companions = len(self._open) if enclosing else self._side_by_side
            self._windows += 1
            number = self._windows
            self._open[number] = held
            if not enclosing:
                self._latest = number
                self._side_by_side += 1
            self._see_holders()
            self._poll()
            marks = self._marks(self._busy_s())
            if self._sampler is None and self._sources:
                self._start_sampling()
            now_ns = self._clock.monotonic_ns()
            return Window(label, self._clock.wall_ns(), now_ns, number, enclosing, companions, marks, held)

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
                self._poll()
                self._see_holders()

    def end(self, window: Window, use: TaskUse, *, keep_open: bool = False) -> Measurement:
        """Ends a window and says what its task cost; what was not read is unknown. ``keep_open`` leaves it open."""
        return self.work_out(window, self.stop(window, keep_open=keep_open), use)

    def stop(self, window: Window, *, keep_open: bool = False) -> Ended:
        """Reads the meter at a window's end, and works nothing out yet."""
        with self._lock:
            at_ns = self._clock.monotonic_ns()
            busy_s = self._busy_s()
            self._poll()
            self._see_holders()
            codes = tuple(event for event, number in self._events.items() if number > window.marks.happened)
            memory_used_bytes = self._memory_used_bytes() if self._estimator else None
            ended = Ended(at_ns, self.was_alone(window), self._marks(busy_s), codes, memory_used_bytes)
            if not keep_open and self._open.pop(window.number, None) is not None and not window.enclosing:
                self._side_by_side -= 1
        return ended

    def work_out(self, window: Window, ended: Ended, use: TaskUse) -> Measurement:
        """The figures of a window that was ended. Reads nothing any more."""
        before, after = window.marks, ended.marks
        busy_s = None if after.busy_s is None or before.busy_s is None else max(0.0, after.busy_s - before.busy_s)
        own_cpu_s = after.own_cpu_s - before.own_cpu_s
        return measurement(
            label=window.label,
            started_wall_ns=window.wall_ns,
            wall_s=s_from_ns(ended.at_ns - window.at_ns),
            spans=self._spans(window, ended, use),
            shares=CpuShares(use.cpu, own_cpu_s if use.overhead_cpu_s is None else use.overhead_cpu_s, busy_s),
            estimator=self._estimator,
            memory=MemoryUse(use.resident_bytes, ended.memory_used_bytes),
        )

    def close(self) -> None:
        """Stops the sampler and closes the sources."""
        self._closed.set()
        for source in self._sources:
            source.close()

    def _marks(self, busy_s: float | None) -> Marks:
        totals_uj, breaks = tuple(self._totals_uj), tuple(self._breaks)
        return Marks(totals_uj, breaks, tuple(self._last), busy_s, self._own_cpu_s, self._happened)

    def _spans(self, window: Window, ended: Ended, use: TaskUse) -> list[Span]:
        before, after = window.marks, ended.marks
        mirrors = mirrored(self._domains, before.readings, after.readings)
        ours = frozenset({os.getpid()} if use.pids is None else use.pids) | window.held.ours
        spans = []
        for position, domain in enumerate(self._domains):
            codes = tuple(code for where, code in ended.codes if where == position)
            energy_uj = None
            if after.breaks[position] == before.breaks[position]:
                energy_uj = after.totals_uj[position] - before.totals_uj[position]
            gpu = GpuUse(window.held.pids.get(domain.id), ours, ended.alone) if domain.kind == "gpu" else None
            span = Span(domain, energy_uj, codes, gpu)
            if domain.id in mirrors:
                codes = (*codes, f"MIRROR_OF {mirrors[domain.id]}")
                span = replace(span, domain=replace(domain, counted=False), codes=codes)
            spans.append(span)
        return spans

    def _poll(self) -> None:
        position = 0
        for source in self._sources:
            try:
                readings = source.read()
            except Exception as error:  # noqa: BLE001 - whatever a source raises, the user's task goes on
                failed = Reading(self._clock.monotonic_ns(), None, f"SOURCE_RAISED:{type(error).__name__}")
                readings = (failed,) * len(source.domains)
            for reading in readings:
                self._fold(position, reading)
                position += 1

    def _fold(self, position: int, reading: Reading) -> None:
        before, self._last[position] = self._last[position], reading
        change = delta(self._domains[position], None if before is _NEVER_READ else before, reading)
        if isinstance(change, Difference):
            self._totals_uj[position] += change.energy_uj
            return
        code = ""
        if isinstance(change, Wrapped):
            self._totals_uj[position] += change.energy_uj
            code = "WRAPPED"
        elif isinstance(change, Reset):
            self._breaks[position] += 1
            code = "RESET"
        elif isinstance(change, Gap):
            self._breaks[position] += 1
            code = change.code
        elif isinstance(change, First):
            code = reading.error
        if code:
            self._happened += 1
            self._events[position, code] = self._happened

    def _see_holders(self) -> None:
        for source in self._with_holders:
            try:
                holders = source.holders()
            except Exception:  # noqa: BLE001 - who held it cannot be said, and the user's task goes on
                holders = dict.fromkeys((domain.id for domain in source.domains), None)
            ours = self._ours(frozenset().union(*(pids for pids in holders.values() if pids is not None)))
            for held in self._open.values():
                held.ours.update(ours)
                for domain, pids in holders.items():
                    before = held.pids.get(domain, frozenset())
                    held.pids[domain] = None if before is None or pids is None else before | pids

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
