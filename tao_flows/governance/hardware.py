"""The hardware that a run's processes ran on, as their environments say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tao_flows.ledger.environments import StoredEnvironment
from tao_flows.units import BYTES_PER_GIB


@dataclass(frozen=True, slots=True)
class Part:
    """Components of one kind."""

    kind: str
    """``cpu``, ``gpu`` or ``ram``."""
    name: str
    count: int
    """Logical CPUs, devices, or modules taken as one."""
    memory_gib: float | None = None

    def __str__(self) -> str:
        memory = "" if self.memory_gib is None else f"{self.memory_gib:.4g} GiB"
        name = " ".join(part for part in (self.name, memory) if part)
        return f"{self.count:,} × {self.kind}" + (f" {name}" if name else "")


def parts_of(environments: Iterable[StoredEnvironment]) -> tuple[Part, ...]:
    """The parts of all hosts that differ; what is not of the expected form is left out."""
    found: dict[Part, None] = {}
    for environment in environments:
        machine = environment.body.get("machine")
        if isinstance(machine, Mapping):
            found |= dict.fromkeys(_parts(machine))
    return tuple(found)


def _parts(machine: Mapping[str, Any]) -> Iterable[Part]:
    cpus, name = machine.get("cpus"), machine.get("cpu_model")
    if isinstance(cpus, int) and cpus > 0:
        yield Part("cpu", str(name or ""), cpus)
    memory = machine.get("memory_bytes")
    memory = int(memory) if isinstance(memory, str) and memory.isdigit() else memory
    if isinstance(memory, int) and memory > 0:
        yield Part("ram", "", 1, memory / BYTES_PER_GIB)
    gpus = [str(each) for each in machine.get("gpus") or () if isinstance(each, str)]
    for gpu in dict.fromkeys(gpus):
        yield Part("gpu", gpu, gpus.count(gpu))
