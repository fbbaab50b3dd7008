"""The estimate for hosts without a counter: a model, always labelled as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from tao_flows.telemetry.cpuinfo import CpuIdentity, read_cpu
from tao_flows.units import BYTES_PER_GIB, uj_from_j

_SOURCE: Final = "SPECpower means of Cloud Carbon Footprint, 2026-03"

_MIN_MAX_W: Final = {
    "Sandy Bridge": (2.21, 8.63),
    "Ivy Bridge": (1.71, 5.56),
    "Haswell": (1.86, 5.60),
    "Broadwell": (0.71, 3.69),
    "Skylake": (0.55, 4.01),
    "Skylake client": (1.82, 5.86),
    "Cascade Lake": (0.69, 4.06),
    "Coffee Lake": (1.14, 5.42),
    "Ice Lake": (0.77, 3.76),
    "Sapphire Rapids": (1.04, 4.16),
    "Emerald Rapids": (0.81, 4.48),
    "Granite Rapids": (0.58, 2.53),
    "EPYC gen 1 (Zen)": (0.85, 2.60),
    "EPYC gen 2 (Zen 2)": (0.47, 1.69),
    "EPYC gen 3 (Zen 3)": (0.46, 1.96),
    "EPYC gen 4 (Zen 4)": (0.74, 2.28),
    # The published mean of generation 5 (3.68 to 8.96 W) is four times its neighbours': too few servers.
    "EPYC gen 5 (Zen 5)": (0.74, 2.28),
    "Neoverse N1": (0.74, 1.71),
}
"""Watts a vCPU, idle and at full load.

Source: the table that cloud-carbon-footprint/ccf-coefficients (Apache-2.0) derives from SPECpower_ssj2008
results, its version of March 2026. SPECpower measures whole servers, so the memory that is added to these errs
high by what those servers had; the interval covers it."""

_AVERAGE_MIN_MAX_W: Final = (0.74, 3.5)
"""Cloud Carbon Footprint's mean for a CPU it does not know."""

_MEMORY_W_PER_GIB: Final = 0.392
"""Cloud Carbon Footprint's mean of two makers' figures (0.375 and 0.408 W a gigabyte)."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """Power = min + utilisation * (max - min) a vCPU, plus watts a GiB of resident memory.

    The interval of every figure is ``LOW`` to ``HIGH`` times its value: without a calibration such models are
    wrong by that much on real machines.
    """

    name: ClassVar[str] = "vcpu-minmax-memory/1"
    LOW: ClassVar[float] = 0.5
    HIGH: ClassVar[float] = 2.0

    cpu: CpuIdentity
    min_w: float
    max_w: float
    memory_w_per_gib: float = _MEMORY_W_PER_GIB

    @classmethod
    def of_host(cls, proc_root: Path = Path("/proc")) -> Estimator:
        """The estimator of the machine whose /proc is at ``proc_root``. Never raises."""
        cpu = read_cpu(proc_root)
        min_w, max_w = _MIN_MAX_W.get(cpu.microarchitecture, _AVERAGE_MIN_MAX_W)
        return cls(cpu, min_w, max_w)

    @property
    def vcpus(self) -> int:
        """The host's logical CPUs."""
        return self.cpu.vcpus

    @property
    def model(self) -> str:
        """Name, version, coefficients, and the CPU they are for, on one line."""
        cpu = self.cpu.microarchitecture or "unknown CPU (mean of all)"
        return (
            f"{self.name}: {cpu}, {self.min_w:g} to {self.max_w:g} W per vCPU, {self.vcpus} vCPUs, "
            f"{self.memory_w_per_gib:g} W per GiB; confidence {self.cpu.confidence}, from {self.cpu.how}; {_SOURCE}"
        )

    def active_uj(self, cpu_s: float) -> int:
        """Microjoules that ``cpu_s`` seconds of CPU time add to the idle host."""
        return uj_from_j((self.max_w - self.min_w) * cpu_s)

    def idle_uj(self, wall_s: float) -> int:
        """Microjoules that all vCPUs draw over ``wall_s`` seconds when nothing runs; without memory."""
        return uj_from_j(self.min_w * self.vcpus * wall_s)

    def memory_uj(self, resident_bytes: int, wall_s: float) -> int:
        """Microjoules of ``resident_bytes`` of memory over ``wall_s`` seconds."""
        return uj_from_j(self.memory_w_per_gib * resident_bytes / BYTES_PER_GIB * wall_s)
