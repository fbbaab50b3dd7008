"""``with measure("name") as m``: what a block of code cost, with no engine."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType

from tao_flows import runtime
from tao_flows.errors import InputError
from tao_flows.figures import Account, CpuTime, DomainEnergy, Figure, Measurement
from tao_flows.measurement import unmeasured
from tao_flows.meter import Meter, TaskUse, Window
from tao_flows.telemetry.procfs import own_resident_bytes
from tao_flows.units import s_from_ns


class measure:  # noqa: N801 - reads as a verb where it is used
    """Measures the energy of a ``with`` block. Never raises and never changes what the block does.

    Afterwards ``energy``, ``domains``, ``cpu_s``, ``wall_s`` and ``account`` say what was measured, with its quality;
    what could not be read is unknown. CPU seconds are those of the whole process and of the children it waited for
    while this was the only block being measured, and those of the thread alone when blocks ran side by side.

    Args:
        label: the block's name.
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._meter: Meter | None = None
        self._window: Window | None = None
        self._unmeasured = ""
        self._pid = self._wall_ns = self._at_ns = 0
        self._clocks = (0.0, 0.0, 0.0)
        self._work_out: Callable[[], Measurement] | None = None
        self._result: Measurement | None = None

    def __enter__(self) -> measure:
        tao = runtime.current()
        self._unmeasured = "NOT_CONFIGURED" if tao is None else "MODE_OFF" if tao.config.mode == "off" else ""
        self._pid, self._wall_ns, self._at_ns = os.getpid(), time.time_ns(), time.monotonic_ns()
        self._work_out = self._result = None
        if tao is not None and not self._unmeasured:
            self._meter, self._window = tao.meter, tao.meter.begin(self.label)
        self._clocks = _clocks()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread_s, process_s, children_s = (now - then for now, then in zip(_clocks(), self._clocks, strict=True))
        meter, window = self._meter, self._window
        if os.getpid() != self._pid:
            # A child forked within the block has clocks of its own, and no right to its parent's locks.
            self._unmeasured = "FORKED_WITHIN"
        if meter is None or window is None or self._unmeasured:
            wall_s = s_from_ns(time.monotonic_ns() - self._at_ns)
            self._work_out = partial(unmeasured, self.label, self._wall_ns, wall_s, self._unmeasured)
            return
        ended = meter.stop(window)
        if ended.alone:
            cpu = CpuTime(process_s + children_s, "process-clock+wait4", covers_children=True)
        else:
            cpu = CpuTime(thread_s, "thread-clock", covers_children=False)
        use = TaskUse(cpu, resident_bytes=own_resident_bytes() if meter.model else None)
        # Most blocks are left in more of a hurry than their figures are looked at.
        self._work_out = partial(meter.work_out, window, ended, use)

    @property
    def measurement(self) -> Measurement:
        """Everything that was measured.

        Raises:
            InputError: the block has not ended yet.
        """
        if self._work_out is None:
            raise InputError("STILL_OPEN", f"the block {self.label!r} has not ended", "read figures after the block")
        if self._result is None:
            self._result = self._work_out()
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


def _clocks() -> tuple[float, float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time(), time.process_time(), children.ru_utime + children.ru_stime
