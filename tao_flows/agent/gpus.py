"""GPUs' joules by party. Their slots are longer than the CPU's: drivers say who used a GPU about once a second."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tao_flows.gpu import GPU_HELD_ALONE, split_gpu_slot
from tao_flows.node_account import GpuEnergy
from tao_flows.telemetry.base import DeviceUse, DeviceUsers, EnergySource

_LONGEST_WAIT_NS: Final = 2_000_000_000
"""A slot in which nothing is said of who used the GPU ends all the same after this time."""
_ANYONE: Final = -1


@dataclass(slots=True)
class _Gpu:
    id: str
    use: Callable[[str], DeviceUse]
    energy_uj: int = 0
    wall_ns: int = 0
    holders: frozenset[int] | None = frozenset()
    not_alone_ns: int = 0
    """When the last slot ended in which not one party alone held it."""
    unknown_ns: dict[int, int] = field(default_factory=dict)
    """By party: when the last slot ended in which its part could not be said."""
    held_ns: dict[int, int] = field(default_factory=dict)
    """By process: when the last slot ended in which it held the GPU."""


class Gpus:
    """The GPUs among a node's domains.

    Args:
        sources: all energy sources.
        domains: ids of the counted domains, in the account's order.
    """

    def __init__(self, sources: Sequence[EnergySource], domains: Sequence[str]) -> None:
        users = {
            domain.id: source.use for source in sources if isinstance(source, DeviceUsers) for domain in source.domains
        }
        self._gpus = {number: _Gpu(name, users[name]) for number, name in enumerate(domains) if name in users}

    @property
    def numbers(self) -> frozenset[int]:
        """Positions of the GPUs among the domains."""
        return frozenset(self._gpus)

    def __contains__(self, number: int) -> bool:
        return number in self._gpus

    def add(self, number: int, energy_uj: int, wall_ns: int) -> None:
        """Takes in what a GPU drew over a slot of the CPU's."""
        gpu = self._gpus[number]
        gpu.energy_uj += energy_uj
        gpu.wall_ns += wall_ns

    def forget(self, number: int) -> None:
        """Leaves out what was taken in: a reading failed, and the slot is a gap."""
        gpu = self._gpus[number]
        gpu.energy_uj = gpu.wall_ns = 0

    def split(
        self,
        now_ns: int,
        idle_uj: Callable[[str, int], int | None],
        party_of: Callable[[int], int | None],
    ) -> list[tuple[int, int, GpuEnergy]]:
        """By number of the domain: nanoseconds, and joules by party, of each GPU's slot that is complete."""
        found = []
        for number, gpu in self._gpus.items():
            if gpu.wall_ns <= 0:
                continue
            use = DeviceUse(None, None, "USE_FAILED")
            with contextlib.suppress(Exception):  # whatever a driver does, the others go on
                use = gpu.use(gpu.id)
            gpu.holders = None if gpu.holders is None or use.holders is None else gpu.holders | use.holders
            shared = gpu.holders is None or len(gpu.holders) > 1
            if shared and use.utilisation is None and not use.code and gpu.wall_ns < _LONGEST_WAIT_NS:
                continue
            slot = split_gpu_slot(gpu.energy_uj, idle_uj(gpu.id, gpu.wall_ns), gpu.holders, use.utilisation, party_of)
            if slot.code != GPU_HELD_ALONE:
                gpu.not_alone_ns = now_ns
            gpu.held_ns = {**gpu.held_ns, **dict.fromkeys(gpu.holders or (), now_ns)} if gpu.holders else {}
            unknown = {_ANYONE} if slot.unknown_parties is None else slot.unknown_parties
            gpu.unknown_ns.update(dict.fromkeys(unknown, now_ns))
            energy = GpuEnergy(
                gpu.energy_uj, slot.parties_uj, slot.idle_uj, slot.allocated_idle_uj, slot.unattributed_uj
            )
            found.append((number, gpu.wall_ns, energy))
            gpu.energy_uj = gpu.wall_ns = 0
            gpu.holders = use.holders
        return found

    def is_unknown(self, number: int, party: int, since_ns: int) -> bool:
        """Whether the party's part of a GPU could not be said at some time after ``since_ns``."""
        gpu = self._gpus.get(number)
        return gpu is not None and max(gpu.unknown_ns.get(each, 0) for each in (party, _ANYONE)) > since_ns

    def was_held_by(self, number: int, pid: int, since_ns: int) -> bool:
        """Whether a process held a GPU at some time after ``since_ns``."""
        gpu = self._gpus.get(number)
        return gpu is not None and gpu.held_ns.get(pid, 0) > since_ns

    def was_held_alone(self, number: int, since_ns: int) -> bool:
        """Whether one party alone held a GPU all the time after ``since_ns``."""
        gpu = self._gpus.get(number)
        return gpu is not None and gpu.not_alone_ns <= since_ns

    def party_ended(self, party: int) -> None:
        """Forgets a party whose number may be used again."""
        for gpu in self._gpus.values():
            gpu.unknown_ns.pop(party, None)
