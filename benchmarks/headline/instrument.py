"""The node's account, taken from outside: whose CPU seconds, and what joules they stand for.

The same for every side: it watches processes, and asks no engine and no plugin. Components of an engine are parties of
the agent's own counter (eBPF; else perf, else polling, a lower bound), with all that they start. The items themselves
say what CPU time their own rounds took (``work.py``): that is *tasks*, and the rest of the engine's is *overhead*.
What else the machine does, this program with it, is *unattributed*.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tao_flows.errors import SourceError
from tao_flows.measuring import measure
from tao_flows.node_account import NodeAccount, Role, SlotEnergy
from tao_flows.telemetry import procfs
from tao_flows.telemetry.ebpf import EbpfParties
from tao_flows.telemetry.estimate import Estimator
from tao_flows.telemetry.parties import PartyCounter, PartyCpu
from tao_flows.telemetry.perf_parties import PerfParties
from tao_flows.telemetry.polled_parties import PolledParties
from tao_flows.units import NS_PER_S, j_from_uj

_TASKS, _OVERHEAD = 0, 1
_LINES: Final = ("tasks", "overhead", "idle", "unattributed")


def _counter() -> PartyCounter:
    for kind in (EbpfParties, PerfParties):
        try:
            return kind()
        except SourceError:
            continue
    return PolledParties()


@dataclass(frozen=True, slots=True)
class _Mark:
    cpu: PartyCpu
    at_s: float
    window: Any


class Instrument:
    """Watches the components of one engine at a time."""

    def __init__(self) -> None:
        self._counter = _counter()
        self._estimator = Estimator.of_host()
        self._roots: dict[str, list[int]] = {}
        self._numbers: dict[str, int] = {}
        self._mark: _Mark | None = None

    @property
    def source(self) -> str:
        """Where CPU time comes from."""
        return self._counter.source

    @property
    def model(self) -> str:
        """The model that stands in where no counter does."""
        return self._estimator.model

    def watch(self, components: Mapping[str, Sequence[int]]) -> None:
        """Adds components: processes that are there, with all that they have started and will start."""
        for name, roots in components.items():
            number = self._numbers.setdefault(name, len(self._numbers))
            self._roots.setdefault(name, []).extend(roots)
            # Twice: a thread that is not yet in the party may start another while the list is worked off.
            for _ in range(2):
                self._counter.add(number, [tid for pid in self._pids(roots) for tid in _threads(pid)])

    def forget(self) -> None:
        """Watches nothing any more."""
        for number in self._numbers.values():
            self._counter.remove(number)
        self._numbers.clear()
        self._roots.clear()

    def look(self) -> dict[str, float]:
        """CPU seconds of each component up to now; to be called several times a second where it is polled."""
        cpu_ns = self._counter.read().cpu_ns
        return {name: cpu_ns.get(number, 0) / NS_PER_S for name, number in self._numbers.items()}

    def begin(self) -> None:
        """Opens the window."""
        window = measure("headline")
        window.__enter__()
        self._mark = _Mark(self._counter.read(), time.monotonic(), window)

    def end(self, tasks_s: float) -> dict[str, Any]:
        """Closes the window; the account of the node, in joules and average watts by line.

        Args:
            tasks_s: CPU seconds that the items took, of those of the components.
        """
        mark = self._mark
        assert mark is not None
        cpu, wall_s = self._counter.read(), time.monotonic() - mark.at_s
        mark.window.__exit__(None, None, None)
        spent_s = {
            name: (cpu.cpu_ns.get(number, 0) - mark.cpu.cpu_ns.get(number, 0)) / NS_PER_S
            for name, number in self._numbers.items()
        }
        busy_s = (
            None if cpu.busy_ns is None or mark.cpu.busy_ns is None else (cpu.busy_ns - mark.cpu.busy_ns) / NS_PER_S
        )
        engine_s = sum(spent_s.values())
        overhead_s = max(0.0, engine_s - tasks_s)
        # The clocks of host and parties differ a little: the host was never less busy than its parts.
        known_s = max(busy_s or 0.0, tasks_s + overhead_s)
        return {
            "wall_s": wall_s,
            "cpu_s": {"tasks": tasks_s, "overhead": overhead_s, "unattributed": known_s - tasks_s - overhead_s},
            "cpu_source": self.source,
            "cpu_s_by_component": spent_s,
            "resident_mib": {name: _pss_mib(self._pids(roots)) for name, roots in self._roots.items()},
            "overhead_share_cpu": overhead_s / (overhead_s + tasks_s) if overhead_s + tasks_s else None,
            **self._energy(mark.window, wall_s, tasks_s, overhead_s, known_s),
        }

    def _energy(self, window: Any, wall_s: float, tasks_s: float, overhead_s: float, busy_s: float) -> dict[str, Any]:
        slot, quality, sources = self._slot(window, wall_s, busy_s)
        account = NodeAccount(["node"])
        account.open(_TASKS, Role.TASK)
        account.open(_OVERHEAD, Role.OVERHEAD)
        parts_ns = {_TASKS: round(tasks_s * NS_PER_S), _OVERHEAD: round(overhead_s * NS_PER_S)}
        account.add(round(wall_s * NS_PER_S), [slot], parts_ns, round(busy_s * NS_PER_S))
        account.settle()
        lines = account.lines[0]
        energy_j = {name: j_from_uj(getattr(lines, f"{name}_uj")) for name in _LINES}
        idle_known = slot.idle_uj is not None
        active_j = sum(energy_j[name] for name in ("tasks", "overhead", "unattributed"))
        node_j = sum(energy_j.values())
        low, high = (self._estimator.LOW, self._estimator.HIGH) if quality == "estimated" else (1.0, 1.0)
        return {
            "quality": quality,
            "sources": sources,
            "interval": [low, high],
            "energy_j": energy_j if idle_known else {**energy_j, "idle": None},
            "node_j": node_j,
            "node_w": node_j / wall_s,
            "power_w": {n: None if n == "idle" and not idle_known else j / wall_s for n, j in energy_j.items()},
            # Without a baseline what is drawn at rest cannot be told from what work adds.
            "active_w": active_j / wall_s if idle_known else None,
            "engine_w": (energy_j["tasks"] + energy_j["overhead"]) / wall_s,
        }

    def _slot(self, window: Any, wall_s: float, busy_s: float) -> tuple[SlotEnergy, str, list[str]]:
        counted = [d for d in window.domains if d.counted and d.kind != "gpu" and d.source != "estimate"]
        if counted and all(domain.counter_uj is not None for domain in counted):
            idles = [domain.idle_uj for domain in counted if domain.idle_uj is not None]
            idle_uj = sum(idles) if len(idles) == len(counted) else None
            counter_uj = sum(domain.counter_uj for domain in counted)
            return SlotEnergy(counter_uj, idle_uj), "attributed", sorted({domain.source for domain in counted})
        idle_uj = self._estimator.idle_uj(wall_s)
        return SlotEnergy(idle_uj + self._estimator.active_uj(busy_s), idle_uj), "estimated", ["estimate"]

    def _pids(self, roots: Sequence[int]) -> list[int]:
        return list(dict.fromkeys(pid for root in roots for pid in procfs.tree(root)))


def machine() -> dict[str, Any]:
    """What this was measured on."""
    estimator = Estimator.of_host()
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": estimator.cpu.microarchitecture or "unknown",
        "cpu_known_by": estimator.cpu.how,
        "vcpus": os.cpu_count(),
        "memory_gib": round(int(memory.split()[1]) / 1024**2, 1),
        "kernel": os.uname().release,
        "load_average": os.getloadavg()[0],
        "estimate": estimator.model,
    }


def _threads(pid: int) -> list[int]:
    return list(procfs.processes(Path(f"/proc/{pid}/task")))


def _pss_mib(pids: Sequence[int]) -> float:
    """What is theirs of the machine's memory, shared pages by shares."""
    total_kb = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total_kb += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total_kb / 1024
