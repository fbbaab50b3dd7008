"""CPU time by party from ``/proc`` alone: for hosts that allow neither BPF nor perf events. A lower bound.

All that is not seen is missing: what starts and ends between two readings unless its parent waits for it, what has
lost its parent before it was first seen, and what a thread starts in a process whose threads are in several parties
where the kernel does not say who started it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tao_flows.errors import SourceError
from tao_flows.telemetry import procfs
from tao_flows.telemetry.cgroup import CGROUP_ROOT
from tao_flows.telemetry.cputime import HostBusy
from tao_flows.telemetry.parties import PartyCpu
from tao_flows.telemetry.procfs import PROC_ROOT, ProcessStat
from tao_flows.units import NS_PER_S

_PROCESS_CPU_CLOCK: Final = 0b010
"""CPUCLOCK_SCHED of linux/posix-timers.h: a process's clock, its ended threads and the slice in progress included."""
_LOOKS_UNTIL_WAITED: Final = 2
"""A child that was gone at one look is in its parent's figure at the next one at the latest."""


@dataclass(eq=False, slots=True)
class _Party:
    stays_over_exec: bool
    outer: _Party | None
    named: set[int] = field(default_factory=set)
    """The threads that were put into it."""
    cpu_ns: int = 0


@dataclass(slots=True)
class _Thread:
    party: _Party | None
    cpu_ns: int


@dataclass(slots=True)
class _Process:
    """A process of a party, or a child of one: what its parent waits for is then known not to be the parent's."""

    stat: ProcessStat
    cpu_ns: int
    waited_ns: int
    """CPU time of the children it has waited for."""
    party: _Party | None = None
    """The party of all its threads; where they differ they are in ``threads``."""
    threads: dict[int, _Thread] = field(default_factory=dict)
    seen_ns: int = 0
    """What of ``waited_ns`` was seen while the children lived, or was there at first."""
    charged_ns: int = 0
    """The most that ``waited_ns`` has been above ``seen_ns``."""
    strangers: int = 0
    """For how many looks yet that may be of a child of another party, after it was last seen."""

    @property
    def total_ns(self) -> int:
        """What its parent is told when it waits for it, as far as it was seen."""
        return self.cpu_ns + max(self.waited_ns, self.seen_ns)

    @property
    def age(self) -> tuple[int, int]:
        """Orders parents before their children: numbers tell where the clock's ticks do not."""
        return self.stat.start_ticks, self.stat.pid

    def threads_of(self, party: _Party) -> bool:
        """Whether any of its threads is in the party."""
        return self.party is party or any(thread.party is party for thread in self.threads.values())


class PolledParties:
    """A PartyCounter that looks at ``/proc`` at each reading: once at its list, and at each process of a party.

    It should be read several times a second.

    Args:
        proc_root: must number processes as this process's kernel calls do.

    Raises:
        SourceError: PROC_UNREADABLE.
    """

    source: Final = "polling"
    lower_bound: Final = True
    moves_threads: Final = False
    max_parties: Final = 1024

    def __init__(self, proc_root: Path = PROC_ROOT, cgroup_root: Path = CGROUP_ROOT) -> None:
        if procfs.process_stat("self", proc_root) is None:
            remedy = "mount proc, or set TAO_FLOWS_PROC_ROOT to where it is"
            raise SourceError("PROC_UNREADABLE", f"{proc_root} shows no processes", remedy)
        self._proc_root = proc_root
        self._parties: dict[int, _Party] = {}
        self._processes: dict[int, _Process] = {}
        self._known = set(procfs.processes(proc_root))
        self._busy = HostBusy(proc_root, cgroup_root)

    def add(self, party: int, tids: Iterable[int], *, within: int | None = None, stays_over_exec: bool = True) -> None:
        if not 0 <= party < self.max_parties:
            raise SourceError("PARTY_FAILED", f"party {party} is not below {self.max_parties}")
        self._look()
        outer = None if within is None else self._parties.get(within)
        joined = self._parties.get(party) or _Party(stays_over_exec, outer)
        named: dict[int, set[int]] = {}
        for tid in tids:
            pid = procfs.process_of(tid, self._proc_root)
            if pid is not None and self._track(pid):
                named.setdefault(pid, set()).add(tid)
        placed = [tid for pid, chosen in named.items() for tid in self._move(pid, dict.fromkeys(chosen, joined))]
        if not placed:
            raise SourceError("PARTY_GONE", f"party {party} is not counted: none of its threads is there")
        joined.named.update(placed)
        self._parties[party] = joined

    def remove(self, party: int) -> None:
        self._look()
        removed = self._parties.pop(party, None)
        if removed is None:
            return
        outer = removed.outer if removed.outer in self._parties.values() else None
        for pid, process in list(self._processes.items()):
            if process.threads_of(removed):
                there = procfs.processes(self._proc_root / f"{pid}/task")
                mine = {tid for tid in there if process.threads.get(tid, process).party is removed}
                self._move(pid, {tid: outer if tid in removed.named else None for tid in mine})

    def party_of(self, _tid: int) -> int | None:
        return None

    def read(self) -> PartyCpu:
        self._look()
        cpu_ns = {number: party.cpu_ns for number, party in self._parties.items()}
        return PartyCpu(time.monotonic_ns(), cpu_ns, self._busy.read_ns())

    def problems(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self._parties.clear()
        self._processes.clear()
        self._busy.close()

    def _look(self) -> None:
        """Takes in what has happened since the last look."""
        if not self._parties:
            self._processes.clear()
            self._known = set(procfs.processes(self._proc_root))
            return
        # Parents first: a child that is there after its parent was read is not yet in the parent's figure. A child
        # that is gone is taken off that figure before it is charged, whether or not it is in it already.
        stats = {pid: procfs.process_stat(pid, self._proc_root) for pid in self._processes}
        self._find_new()
        ended: dict[int, _Process] = {}
        for pid, process in list(self._processes.items()):
            stat = stats.get(pid, process.stat)
            if stat is None or not self._count(pid, stat):
                ended[pid] = self._processes.pop(pid)
        for process in sorted(ended.values(), key=lambda each: each.age, reverse=True):
            parent = self._processes.get(process.stat.parent) or ended.get(process.stat.parent)
            if parent is not None:
                parent.seen_ns += process.total_ns
                if process.strangers or process.party is not parent.party:
                    parent.strangers = _LOOKS_UNTIL_WAITED
        for process in self._processes.values():
            _charge_waited(process)

    def _find_new(self) -> None:
        there = set(procfs.processes(self._proc_root))
        new = {pid: procfs.process_stat(pid, self._proc_root) for pid in there - self._known}
        self._known = there
        born = [_Process(stat, 0, 0) for stat in new.values() if stat is not None]
        for process in sorted(born, key=lambda each: each.age):
            parent = self._processes.get(process.stat.parent)
            if parent is not None and (parent.party is not None or parent.threads):
                # It is in that party from its first instruction on.
                process.party = self._party_of_child(process.stat, parent)
                self._processes[process.stat.pid] = process

    def _party_of_child(self, child: ProcessStat, parent: _Process) -> _Party | None:
        party = parent.party
        for tid, thread in parent.threads.items():
            if child.pid in procfs.children_of_thread(parent.stat.pid, tid, self._proc_root):
                party = thread.party
        same_program = child.stack_start == parent.stat.stack_start != 0
        return party if party is None or party.stays_over_exec or same_program else None

    def _count(self, pid: int, stat: ProcessStat) -> bool:
        """Charges what a process has used since the last look; False when it is gone."""
        process = self._processes[pid]
        try:
            cpu_ns = time.clock_gettime_ns(~pid << 3 | _PROCESS_CPU_CLOCK)
        except OSError:
            return False
        if stat.start_ticks != process.stat.start_ticks:
            return False
        if stat.stack_start not in {0, process.stat.stack_start}:  # 0: it has ended, and was not waited for
            _run_another_program(process)
        if process.party is not None:
            process.party.cpu_ns += max(0, cpu_ns - process.cpu_ns)
        for tid in list(process.threads):
            thread = process.threads[tid]
            now_ns = procfs.thread_cpu_ns(pid, tid, self._proc_root)
            if now_ns is None:
                del process.threads[tid]
                continue
            if thread.party is not None:
                thread.party.cpu_ns += max(0, now_ns - thread.cpu_ns)
            thread.cpu_ns = max(thread.cpu_ns, now_ns)
        process.stat, process.cpu_ns = stat, max(process.cpu_ns, cpu_ns)
        process.waited_ns = round(stat.children_cpu_s * NS_PER_S)
        if process.threads:
            # Which thread started a new one, nobody can say.
            _join(process, self._list_threads(pid, process, None))
        return True

    def _track(self, pid: int) -> bool:
        """Sees to it that a process and its children are known; False when it is gone."""
        if pid in self._processes:
            return True
        for number in procfs.tree(pid, self._proc_root):
            stat = procfs.process_stat(number, self._proc_root)
            if stat is None or number in self._processes:
                continue
            if pid not in {number, stat.parent}:
                break
            process = _Process(stat, 0, round(stat.children_cpu_s * NS_PER_S))
            process.seen_ns = process.waited_ns
            self._processes[number] = process
            self._known.add(number)
            if not self._count(number, stat):
                del self._processes[number]
        return pid in self._processes

    def _move(self, pid: int, parties: Mapping[int, _Party | None]) -> list[int]:
        """Puts threads of a process into parties, and gives those that are there."""
        process = self._processes[pid]
        there = self._list_threads(pid, process, process.party)
        process.party = None
        found = [tid for tid in parties if tid in there]
        for tid in found:
            process.threads[tid].party = parties[tid]
        _join(process, there)
        return found

    def _list_threads(self, pid: int, process: _Process, party: _Party | None) -> tuple[int, ...]:
        """Lists a process's threads. Those that are new are in ``party`` from now on."""
        there = procfs.processes(self._proc_root / f"{pid}/task")
        for tid in there:
            if tid not in process.threads:
                process.threads[tid] = _Thread(party, procfs.thread_cpu_ns(pid, tid, self._proc_root) or 0)
        return there


def _join(process: _Process, there: Iterable[int]) -> None:
    """Counts a process as a whole again where its living threads are in one party."""
    parties = {id(process.threads[tid].party): process.threads[tid].party for tid in there}
    if len(parties) == 1:
        (process.party,) = parties.values()
        process.threads.clear()


def _run_another_program(process: _Process) -> None:
    if process.party is not None and not process.party.stays_over_exec:
        process.party = None
    for thread in process.threads.values():
        if thread.party is not None and not thread.party.stays_over_exec:
            thread.party = None


def _charge_waited(process: _Process) -> None:
    """Charges the CPU time of children that were never seen, or not to their end.

    A party that threads leave when they run another program is charged for none: those will have been such.
    """
    unseen_ns = process.waited_ns - process.seen_ns
    if process.strangers:
        process.strangers -= 1
    elif process.party is not None and process.party.stays_over_exec:
        process.party.cpu_ns += max(0, unseen_ns - process.charged_ns)
    process.charged_ns = max(process.charged_ns, unseen_ns)
