"""Samples the host's counters and CPU time, and keeps the node's account from it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tao_flows.agent.gpus import Gpus
from tao_flows.calibration import Baseline
from tao_flows.clock import Clock
from tao_flows.errors import SourceError
from tao_flows.node_account import NodeAccount, Party, Role, SlotEnergy
from tao_flows.telemetry.base import Domain, EnergySource, Reading
from tao_flows.telemetry.counter import Difference, First, Wrapped, delta
from tao_flows.telemetry.parties import PartyCounter
from tao_flows.telemetry.rapl import mirrored
from tao_flows.units import NS_PER_S

_LAG_NS: Final = NS_PER_S // 100
"""A counter that moves once a millisecond shows nothing in a shorter slot, and then more at once: the baseline of so
much time may be taken off later than it was due."""
_FRESH_NS: Final = NS_PER_S // 1000
"""RAPL's counters change about once a millisecond: before that there is nothing new to read."""
_PAUSE_FACTOR: Final = 4
"""Times as long as it took the last sample is not followed by one that a client brings about: a fifth of the time."""
_LATE: Final = 2.0
"""A sample that comes after this many intervals is counted as late."""


@dataclass(slots=True)
class Uncounted:
    """A domain that lies inside another or contains others: shown, never split."""

    counter_uj: int = 0
    counted_ns: int = 0


class Sampler:
    """Turns readings into slots of the node's account. One thread uses it.

    Args:
        sources: energy sources; what they count must be disjoint.
        counter: CPU time by party.
        baseline: the host's idle power; None where it was not calibrated.
        interval_s: how often it will be called, to tell late samples.
        clock: where time comes from.
    """

    def __init__(
        self,
        sources: Sequence[EnergySource],
        counter: PartyCounter,
        baseline: Baseline | None,
        interval_s: float,
        clock: Clock,
    ) -> None:
        self._sources = tuple(sources)
        self._counter = counter
        self._baseline = baseline
        self._clock = clock
        self._interval_ns = round(interval_s * 1e9)
        self.all_domains: tuple[Domain, ...] = tuple(d for source in self._sources for d in source.domains)
        first = self._readings()
        self._last = list(first)
        self._first = first
        self.domains: tuple[Domain, ...] = ()
        self.uncounted: dict[str, Uncounted] = {}
        self._positions: dict[int, int] = {}
        self.account = NodeAccount(())
        self.gpus = Gpus((), ())
        self.party_of: Callable[[int], int | None] = lambda _pid: None
        """The party of a process, for GPUs: who keeps the parties sets it."""
        self.choose_domains(frozenset())
        self.at_ns = clock.monotonic_ns()
        self._cpu_ns: dict[int, int] = {}
        self._idle_owed_uj: dict[int, int] = {}
        """By number of the domain: what of the baseline the counter had not shown when the last slot ended."""
        self._busy_ns = counter.read().busy_ns
        self.most = counter.max_parties
        self._free = list(range(self.most - 1, -1, -1))
        self.mixed: dict[int, int] = {}
        """Overhead parties with windows open in them whose user code cannot be told apart by slot; and how many."""
        self.samples = 0
        self._took_ns = 0
        self.late = 0
        self.gaps = 0
        self.gaps_by_domain: Counter[str] = Counter()
        self.power_w: dict[str, float | None] = {}
        self.problems: Counter[str] = Counter()

    def choose_domains(self, mirrors: Iterable[str]) -> None:
        """Fixes which domains are counted: all that are disjoint, without ``mirrors``. Starts the account anew."""
        left_out = frozenset(mirrors)
        counted = [i for i, d in enumerate(self.all_domains) if d.counted and d.id not in left_out]
        self._positions = {position: number for number, position in enumerate(counted)}
        self.domains = tuple(self.all_domains[position] for position in counted)
        self.uncounted = {d.id: Uncounted() for i, d in enumerate(self.all_domains) if i not in self._positions}
        self.account = NodeAccount([domain.id for domain in self.domains])
        self.gpus = Gpus(self._sources, self.account.domains)

    def find_mirrors(self) -> frozenset[str]:
        """Domains that have shown nothing but another's counter since the start."""
        now = self._readings()
        return frozenset(
            mirrored(self.all_domains, [each.raw_uj for each in self._first], [each.raw_uj for each in now])
        )

    @property
    def calibrated(self) -> bool:
        """Whether the idle line of any domain is known."""
        return self._baseline is not None

    @property
    def baseline_origin(self) -> str | None:
        """Where the idle line is from, in words; None without calibration."""
        return None if self._baseline is None else self._baseline.origin(domain.id for domain in self.domains)

    @property
    def calibrated_domains(self) -> frozenset[str]:
        """Domains of which the idle line is known."""
        return frozenset(domain.id for domain in self.domains if self._idle_uj(domain.id, 0) is not None)

    def sample(self) -> None:
        """Ends the slot that began with the last call. Never raises."""
        began_ns = self._clock.monotonic_ns()
        readings = self._readings()
        cpu = self._counter.read()
        now_ns = self._clock.monotonic_ns()
        wall_ns, self.at_ns = now_ns - self.at_ns, now_ns
        energies = [SlotEnergy(None)] * len(self.domains)
        for position, reading in enumerate(readings):
            energy_uj = self._fold(position, reading, wall_ns)
            number = self._positions.get(position)
            if number is not None and number in self.gpus:
                if energy_uj is None:
                    self.gpus.forget(number)
                else:
                    self.gpus.add(number, energy_uj, wall_ns)
            elif number is not None and energy_uj is not None:
                energies[number] = SlotEnergy(energy_uj, self._idle_due_uj(number, energy_uj, wall_ns))
        before_ns = self._cpu_ns
        # Most parties sleep: what they did not use is not handed on.
        spent_ns = {n: spent for n, total in cpu.cpu_ns.items() if (spent := total - before_ns.get(n, 0))}
        self._cpu_ns = cpu.cpu_ns
        busy_ns = None if cpu.busy_ns is None or self._busy_ns is None else max(0, cpu.busy_ns - self._busy_ns)
        self._busy_ns = cpu.busy_ns
        self.account.add(wall_ns, energies, spent_ns, busy_ns, mixed=self.mixed.keys())
        self._took_ns = self._clock.monotonic_ns() - began_ns
        self.samples += 1
        self.late += wall_ns > _LATE * self._interval_ns
        self.problems.update(self._counter.problems())

    def sample_if_old(self) -> None:
        """Ends the slot unless it has only just begun."""
        if self._clock.monotonic_ns() - self.at_ns >= max(_FRESH_NS, _PAUSE_FACTOR * self._took_ns):
            self.sample()

    def settle(self) -> None:
        """Splits what only longer slots can tell: GPUs, and what pooled parties used."""
        for number, wall_ns, energy in self.gpus.split(self.at_ns, self._idle_uj, self.party_of):
            self.account.add_gpu(number, wall_ns, energy)
        self.account.settle()

    def spread_uj(self, domain: str, wall_ns: int) -> int:
        """How far the idle line of a domain may be off over so much time."""
        return 0 if self._baseline is None else self._baseline.spread_uj(domain, wall_ns)

    def _idle_due_uj(self, number: int, energy_uj: int, wall_ns: int) -> int | None:
        """The baseline over a slot, with what the counter had not shown of it yet in the slot before."""
        domain = self.domains[number].id
        idle_uj = self._idle_uj(domain, wall_ns)
        if idle_uj is None:
            return None
        due_uj = idle_uj + self._idle_owed_uj.get(number, 0)
        self._idle_owed_uj[number] = min(max(0, due_uj - energy_uj), self._idle_uj(domain, _LAG_NS) or 0)
        return due_uj

    def _idle_uj(self, domain: str, wall_ns: int) -> int | None:
        return None if self._baseline is None else self._baseline.idle_uj(domain, wall_ns)

    def _fold(self, position: int, reading: Reading, wall_ns: int) -> int | None:
        """Microjoules since the last reading of a domain, or None when they are not known."""
        domain = self.all_domains[position]
        before, self._last[position] = self._last[position], reading
        change = delta(domain, before, reading)
        energy_uj = change.energy_uj if isinstance(change, (Difference, Wrapped)) else None
        if energy_uj is None and not isinstance(change, First):
            self.gaps += 1
            self.gaps_by_domain[domain.id] += 1
            self.problems[getattr(change, "code", "RESET")] += 1
        self.power_w[domain.id] = None if energy_uj is None or wall_ns <= 0 else energy_uj * 1e3 / wall_ns
        if domain.id in self.uncounted and energy_uj is not None:
            self.uncounted[domain.id].counter_uj += energy_uj
            self.uncounted[domain.id].counted_ns += wall_ns
        return energy_uj

    def _readings(self) -> list[Reading]:
        found: list[Reading] = []
        for source in self._sources:
            try:
                found += source.read()
            except Exception as error:  # noqa: BLE001 - whatever a source raises, the others go on
                code = f"SOURCE_RAISED:{type(error).__name__}"
                found += [Reading(self._clock.monotonic_ns(), None, code)] * len(source.domains)
        return found

    @property
    def free(self) -> int:
        """How many more parties there can be."""
        return len(self._free)

    def open(
        self,
        tids: Iterable[int],
        role: Role,
        *,
        pooled: bool = False,
        within: int | None = None,
        stays_over_exec: bool = True,
        used: Party | None = None,
    ) -> int:
        """Opens a party of threads.

        Args:
            tids: threads; none for a party that was taken up and of which nothing runs any more.
            role: whose its joules are.
            pooled: whether they are split once a second only.
            within: the party the threads were in.
            stays_over_exec: False for parties that a thread leaves when it runs another program.
            used: what it had used before the agent was restarted.

        Raises:
            SourceError: it cannot be counted; AGENT_FULL when there are too many.
        """
        if not self._free:
            raise SourceError("AGENT_FULL", "the agent watches as many tasks as it can", "end some of them")
        number, tids = self._free.pop(), tuple(tids)
        try:
            if tids or used is None:
                self._counter.add(number, tids, within=within, stays_over_exec=stays_over_exec)
        except Exception:
            self._free.append(number)
            raise
        self._cpu_ns.pop(number, None)
        party = self.account.open(number, role, pooled=pooled)
        if used is not None:
            party.energy_uj[:] = used.energy_uj
            party.cpu_ns, party.lost_ns = used.cpu_ns, used.lost_ns
        return number

    def party_of_thread(self, tid: int) -> int | None:
        """The open party that a thread is in, where the counter can tell."""
        number = self._counter.party_of(tid)
        return number if number in self.account.parties else None

    @property
    def moves_threads(self) -> bool:
        """Whether a thread can be moved from one open party to another."""
        return self._counter.moves_threads

    def add_threads(self, number: int, tids: Iterable[int], *, within: int) -> None:
        """Puts more threads into a party that is open; one that cannot be counted is passed over."""
        with contextlib.suppress(SourceError):
            self._counter.add(number, tids, within=within)

    def remove(self, number: int) -> None:
        """Counts no more for a party. What it had used at the last sample stays known until it is closed."""
        self._counter.remove(number)

    def close(self, number: int) -> Party:
        """Ends a party that was removed, and says what it used."""
        self.mixed.pop(number, None)
        self._cpu_ns.pop(number, None)
        self.gpus.party_ended(number)
        self._free.append(number)
        return self.account.close(number)

    def mix(self, number: int, by: int) -> None:
        """Notes that a window opened (1) or ended (-1) whose code shares the party's threads with the engine's."""
        count = self.mixed.get(number, 0) + by
        if count > 0:
            self.mixed[number] = count
        else:
            self.mixed.pop(number, None)
