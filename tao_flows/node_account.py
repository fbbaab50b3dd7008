"""The account of one node, kept slot by slot. Pure: no clock, no files, no engine.

A party is a group of threads with everything they start: a command, a task's thread, an engine's process. Every
sampling slot's joules go to the parties by their CPU time, to idle, and to nobody (unattributed), in whole
microjoules and for each domain by itself, so that over any span

    counter = tasks + overhead + idle + allocated_idle + unattributed

to the microjoule, no line is negative, and no line ever falls. The rule within a slot is attribution's:

    active = counter - min(counter, idle)
    party  = active * cpu_party / max(cpu_busy, sum of cpu over parties)

Parties of clients who may not see fine slots are *pooled*: what they and nobody used is split among them over all
slots since the last ``settle``, which the agent calls once a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from tao_flows.attribution import apportion_whole


class Role(str, Enum):
    """Which line of the node's account a party's joules are in."""

    TASK = "task"
    """The user's code."""
    OVERHEAD = "overhead"
    """An engine's process, the engine's share of a flow's process, tao-flows itself."""
    NONE = "none"
    """A process that is watched, of which it cannot be said whose it is: unattributed."""


_PLACES: Final = {role.value: place for place, role in enumerate(Role)}
_NOBODYS: Final = _PLACES[Role.NONE.value]


@dataclass(frozen=True, slots=True)
class SlotEnergy:
    """One domain over one slot."""

    counter_uj: int | None
    """None when nothing is known of this slot."""
    idle_uj: int | None = None
    """The baseline over the slot; None without calibration."""


@dataclass(frozen=True, slots=True)
class GpuEnergy:
    """One GPU over one slot, already split by who used it."""

    counter_uj: int
    parties_uj: Mapping[int, int]
    idle_uj: int | None
    allocated_idle_uj: int
    unattributed_uj: int


@dataclass(slots=True)
class Lines:
    """Cumulative microjoules of one domain."""

    counter_uj: int = 0
    tasks_uj: int = 0
    overhead_uj: int = 0
    idle_uj: int = 0
    allocated_idle_uj: int = 0
    unattributed_uj: int = 0
    counted_ns: int = 0
    """How much time the counter is known for."""
    shared_ns: int = 0
    """How much of that could be shared out."""

    def copy(self) -> Lines:
        """As it stands now."""
        return Lines(*self.values())

    def values(self) -> tuple[int, ...]:
        """The fields, in order."""
        return tuple(getattr(self, name) for name in self.__slots__)

    def since(self, before: Lines) -> Lines:
        """What was added after ``before``."""
        return Lines(*(now - then for now, then in zip(self.values(), before.values(), strict=True)))


@dataclass(slots=True)
class Party:
    """What one party has used so far."""

    role: Role
    pooled: bool
    energy_uj: list[int]
    """By domain."""
    cpu_ns: int = 0
    lost_ns: int = 0
    """Time in which it was not watched."""
    line: int = field(init=False)
    """Its role's place among the roles."""

    def __post_init__(self) -> None:
        self.line = _PLACES[self.role.value]


@dataclass(slots=True)
class _Pool:
    """What pooled parties and nobody used since the last time it was split."""

    energy_uj: list[int]
    rest_ns: int = 0
    cpu_ns: dict[int, int] = field(default_factory=dict)
    mixed: set[int] = field(default_factory=set)


class NodeAccount:
    """The cumulative account of a node.

    Args:
        domains: ids of the disjoint domains, in the order in which every slot gives them.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = tuple(domains)
        self.lines = [Lines() for _ in self.domains]
        self.parties: dict[int, Party] = {}
        self.busy_ns = 0
        self.cpu_ns = dict.fromkeys(Role, 0)
        """CPU time by role, of parties that have ended too."""
        self._pool = self._empty_pool()

    def open(self, number: int, role: Role, *, pooled: bool = False) -> Party:
        """Opens a party under a number that is not in use.

        Raises:
            ValueError: the number is in use.
        """
        if number in self.parties:
            raise ValueError(f"party {number} is open")
        party = self.parties[number] = Party(role, pooled, [0] * len(self.domains))
        return party

    def close(self, number: int) -> Party:
        """Ends a party and says what it used. What is pooled is split first."""
        if self.parties[number].pooled:
            self.settle()
        return self.parties.pop(number)

    def add(
        self,
        wall_ns: int,
        energies: Sequence[SlotEnergy],
        cpu_ns: Mapping[int, int],
        busy_ns: int | None,
        *,
        mixed: AbstractSet[int] = frozenset(),
    ) -> None:
        """Takes in one slot.

        Args:
            wall_ns: how long it was.
            energies: one for each domain; of one that is counted by ``add_gpu``, nothing known.
            cpu_ns: CPU time in it, by party; parties that are not open are nobody.
            busy_ns: the host's CPU time in it, or None when it is not known: then nothing can be shared out.
            mixed: overhead parties that user code ran in as well: their part of this slot is in no line but
                unattributed, and theirs all the same.
        """
        pool, roles_ns = self._pool, [0] * len(Role)
        direct: list[Party] = []
        in_lines: list[int] = []
        weights: list[int] = []
        pooled_ns = 0
        # Hundreds of parties, ten times a second: one pass, and no hashing of roles in it.
        for number, spent in cpu_ns.items():
            party = self.parties.get(number)
            if party is None or spent <= 0:
                continue
            party.cpu_ns += spent
            roles_ns[party.line] += spent
            if party.pooled:
                pooled_ns += spent
                pool.cpu_ns[number] = pool.cpu_ns.get(number, 0) + spent
            else:
                direct.append(party)
                in_lines.append(_NOBODYS if number in mixed else party.line)
                weights.append(spent)
        for role, spent in zip(Role, roles_ns, strict=True):
            self.cpu_ns[role] += spent
        rest_ns = 0 if busy_ns is None else max(0, busy_ns - sum(roles_ns))
        self.busy_ns += sum(roles_ns) + rest_ns
        pool.rest_ns += rest_ns
        pool.mixed |= mixed
        weights.append(rest_ns + pooled_ns)
        for domain, energy in enumerate(energies):
            if energy.counter_uj is None:
                continue
            lines = self.lines[domain]
            lines.counter_uj += energy.counter_uj
            lines.counted_ns += wall_ns
            idle_uj = min(energy.counter_uj, energy.idle_uj or 0)
            lines.idle_uj += idle_uj
            active_uj = energy.counter_uj - idle_uj
            if busy_ns is None or not any(weights):
                lines.unattributed_uj += active_uj
                lines.shared_ns += 0 if busy_ns is None else wall_ns
                continue
            lines.shared_ns += wall_ns
            *parts, pool_uj = apportion_whole(active_uj, weights)
            self._give(domain, direct, in_lines, parts)
            pool.energy_uj[domain] += pool_uj

    def settle(self) -> None:
        """Splits what pooled parties and nobody used since the last call."""
        pool, self._pool = self._pool, self._empty_pool()
        parties = [self.parties[number] for number in pool.cpu_ns]
        in_lines = [_NOBODYS if number in pool.mixed else self.parties[number].line for number in pool.cpu_ns]
        weights = [*pool.cpu_ns.values(), pool.rest_ns]
        for domain, energy_uj in enumerate(pool.energy_uj):
            if not energy_uj:
                continue
            *parts, rest_uj = apportion_whole(energy_uj, weights)
            self.lines[domain].unattributed_uj += rest_uj
            self._give(domain, parties, in_lines, parts)

    def add_gpu(self, domain: int, wall_ns: int, energy: GpuEnergy) -> None:
        """Takes in one slot of a GPU, which need not be one of the CPU's."""
        lines = self.lines[domain]
        lines.counter_uj += energy.counter_uj
        lines.counted_ns += wall_ns
        lines.shared_ns += wall_ns
        lines.idle_uj += energy.idle_uj or 0
        lines.allocated_idle_uj += energy.allocated_idle_uj
        lines.unattributed_uj += energy.unattributed_uj
        for number, part_uj in energy.parties_uj.items():
            party = self.parties.get(number)
            if party is None:  # it ended while the GPU still counted for it
                lines.unattributed_uj += part_uj
            else:
                self._give(domain, [party], [party.line], [part_uj])

    def _give(self, domain: int, parties: Sequence[Party], in_lines: Sequence[int], parts_uj: Sequence[int]) -> None:
        sums_uj = [0] * len(Role)
        for party, line, part_uj in zip(parties, in_lines, parts_uj, strict=True):
            party.energy_uj[domain] += part_uj
            sums_uj[line] += part_uj
        lines = self.lines[domain]
        tasks_uj, overhead_uj, nobodys_uj = sums_uj
        lines.tasks_uj += tasks_uj
        lines.overhead_uj += overhead_uj
        lines.unattributed_uj += nobodys_uj

    def _empty_pool(self) -> _Pool:
        return _Pool([0] * len(self.domains))
