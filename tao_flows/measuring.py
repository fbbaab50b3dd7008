"""``with measure("name") as m``: what a block of code cost, with no engine; ``await m.of(...)`` for a coroutine."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import active_count
from time import monotonic_ns, thread_time, time_ns
from types import TracebackType
from typing import Any, Final, TypeVar, overload

from tao_flows import runtime
from tao_flows.codeclock import PROCESS_CLOCK as _PROCESS
from tao_flows.codeclock import CodeClock, process_cpu_s, task_clock
from tao_flows.errors import InputError
from tao_flows.figures import Account, CpuTime, DomainEnergy, Figure, Measurement
from tao_flows.measurement import unmeasured
from tao_flows.meter import Ended, Meter, TaskUse, Window
from tao_flows.spans import CpuSpan, Stepped, stepped_generator
from tao_flows.telemetry.perf import TaskClock
from tao_flows.telemetry.procfs import own_resident_bytes
from tao_flows.units import s_from_ns

COROUTINES_SIDE_BY_SIDE: Final = "COROUTINES_SIDE_BY_SIDE"
"""The block ran in a coroutine beside other blocks: which CPU seconds of its thread were its own cannot be told."""
_THREAD: Final = "thread-clock"
Y = TypeVar("Y")
S = TypeVar("S")
T = TypeVar("T")

_forks = 0
"""How many forks this process came by: quicker to look at than its number."""


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class measure:  # noqa: N801 - reads as a verb where it is used
    """Measures the energy of a ``with`` block, or of a coroutine. Never raises and never changes what the block does.

    Afterwards ``energy``, ``domains``, ``cpu_s``, ``wall_s`` and ``account`` say what was measured, with its quality;
    what could not be read is unknown.

    A block is charged for its thread and for the threads and processes it starts, the blocks inside it among them;
    blocks side by side are never charged for the same CPU second. One that nothing else was measured beside has the
    whole process, and the children it waited for. So has one that began as the only thread of the process: all that
    came later was started by it. Any other has the perf task clock of its thread, which all that it starts inherits,
    or where perf is refused its thread's clock alone. In a coroutine beside other blocks CPU seconds are unknown: the
    thread's clock runs for every coroutine alike. Coroutines are for ``of``.

    Args:
        label: the block's name.
    """

    _window: Window | None = None
    _ended: Ended | None = None
    _result: Measurement | None = None

    def __init__(self, label: str = "") -> None:
        self.label = label

    def __enter__(self) -> measure:
        if self._begin():
            # A task clock costs as much as all the rest, and tells nothing where no other thread can come beside.
            self._whole = active_count() <= 1 + self._meter.threads
            self._perf: TaskClock | None = None if self._whole else task_clock()
            # The clocks are asked last, and first at the end, so that what all this costs is not the block's.
            self._process_s = process_cpu_s()
            if not self._whole and self._perf is None:
                self._thread_s = thread_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process_s, window = process_cpu_s(), self._window
        if window is None or self._forks != _forks:
            self._end_unmeasured(window)
            return
        process_s -= self._process_s
        if self._meter.was_alone(window):
            self._end(window, process_s, _PROCESS)
        else:
            self._end(window, *self._beside_others(process_s))
        if self._perf is not None:
            self._perf.close()

    @overload
    def of(self, work: Generator[Y, S, T]) -> Generator[Y, S, T]: ...
    @overload
    def of(self, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]: ...
    def of(self, work: Any) -> Any:
        """The same coroutine or generator, measured from its first step to its last: ``await measure("a").of(work())``.

        It is charged for the CPU seconds of its steps: not for what its loop or its consumer does in between, nor for
        what it gives to an ``of`` of its own. Ten on one loop each get their own share. What a step starts on other
        threads is not seen.

        Raises:
            InputError: it is neither a coroutine nor a generator.
        """
        if isinstance(work, Coroutine):
            return self._awaited(work)
        if isinstance(work, Generator):
            return self._generated(work)
        summary = f"{type(work).__name__} is neither a coroutine nor a generator"
        remedy = "give `of` what an `async def` function returns, before it becomes a task"
        raise InputError("NOT_STEPPABLE", summary, remedy)

    async def _awaited(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._steps() as span:
            return await Stepped(coroutine, span)

    def _generated(self, generator: Generator[Y, S, T]) -> Generator[Y, S, T]:
        with self._steps() as span:
            return (yield from stepped_generator(generator, span))

    @contextmanager
    def _steps(self) -> Iterator[CpuSpan]:
        self._begin()
        window = self._window
        clock = CodeClock(stepped=True, alone=window is not None and window.companions == 0)
        try:
            yield clock.span
        finally:
            if window is None or self._forks != _forks:
                self._end_unmeasured(window)
            else:
                cpu = clock.stop(alone=self._meter.was_alone(window))
                self._end(window, cpu.cpu_s, cpu.source)

    def _begin(self) -> bool:
        tao = runtime.current()
        self._window = self._ended = self._result = None
        self._forks = _forks
        if tao is None or tao.config.mode == "off":
            self._why = "NOT_CONFIGURED" if tao is None else "MODE_OFF"
            self._wall_ns, self._at_ns = time_ns(), monotonic_ns()
            return False
        self._meter: Meter = tao.meter
        self._window = self._meter.begin(self.label)
        return True

    def _beside_others(self, process_s: float) -> tuple[float | None, str]:
        """CPU seconds of a block that others were measured beside, and the clock they are from."""
        if _in_coroutine():
            return None, _THREAD
        if self._whole:
            return process_s, _PROCESS
        if self._perf is None:
            return thread_time() - self._thread_s, _THREAD
        return self._perf.cpu_s(), self._perf.source

    def _end(self, window: Window, cpu_s: float | None, source: str) -> None:
        # Most blocks are left in more of a hurry than their figures are looked at: those wait until then.
        meter = self._meter
        self._cpu_s, self._source = cpu_s, source
        self._ended = meter.stop(window, cpu_s=cpu_s)
        resident_bytes = own_resident_bytes() if meter.estimates else None
        # Blocks side by side share the process's memory evenly.
        self._resident_bytes = None if resident_bytes is None else resident_bytes // (1 + window.companions)

    def _end_unmeasured(self, window: Window | None) -> None:
        if window is None:
            wall_s = s_from_ns(monotonic_ns() - self._at_ns)
            self._result = unmeasured(self.label, self._wall_ns, wall_s, self._why)
        else:
            # A child forked within the block has clocks of its own, and no right to its parent's locks.
            wall_s = s_from_ns(monotonic_ns() - window.at_ns)
            self._result = unmeasured(self.label, window.wall_ns, wall_s, "FORKED_WITHIN")

    @property
    def measurement(self) -> Measurement:
        """Everything that was measured.

        Raises:
            InputError: the block has not ended yet.
        """
        if self._result is None:
            if self._window is None or self._ended is None:
                raise InputError(
                    "STILL_OPEN", f"the block {self.label!r} has not ended", "read figures after the block"
                )
            cpu = CpuTime(self._cpu_s, self._source, covers_children=self._source in {_PROCESS, TaskClock.source})
            use = TaskUse(cpu, resident_bytes=self._resident_bytes)
            self._result = self._meter.work_out(self._window, self._ended, use)
            if cpu.cpu_s is None and cpu.source == _THREAD:
                self._result = replace(self._result, events=(*self._result.events, COROUTINES_SIDE_BY_SIDE))
        return self._result

    @property
    def energy(self) -> Figure:
        """Joules with interval and quality."""
        return self.measurement.energy

    @property
    def domains(self) -> tuple[DomainEnergy, ...]:
        """What each counter said."""
        return self.measurement.domains

    @property
    def account(self) -> Account:
        """Where the host's joules went meanwhile."""
        return self.measurement.account

    @property
    def cpu_s(self) -> float | None:
        """CPU seconds of the block."""
        return self.measurement.cpu_s

    @property
    def wall_s(self) -> float:
        """Seconds the block took."""
        return self.measurement.wall_s


def _in_coroutine() -> bool:
    """Whether an event loop runs on this thread. A loop needs asyncio: where that is not loaded there is none."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio is not None and asyncio.get_running_loop() is not None
    except (AttributeError, RuntimeError):  # another thread is still loading it, or there is no loop
        return False
