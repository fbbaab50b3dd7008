"""CPU time by party from perf task clocks: for hosts that allow perf events and not BPF.

A clock is opened on each thread of a party, and counts what the thread starts from its first instruction on. A clock
is a file descriptor. To open one on another user's process needs CAP_PERFMON.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tao_flows.errors import SourceError
from tao_flows.telemetry.cgroup import CGROUP_ROOT
from tao_flows.telemetry.cputime import HostBusy
from tao_flows.telemetry.parties import PartyCpu
from tao_flows.telemetry.perf import TaskClock
from tao_flows.telemetry.procfs import PROC_ROOT

_RESERVED_DESCRIPTORS: Final = 256
"""Left to the rest of the process: its sockets, counters and files."""
_MOST_PARTIES: Final = 16_384


@dataclass(slots=True)
class _Clocks:
    """Task clocks of several threads, as one that never falls."""

    open: list[TaskClock] = field(default_factory=list)
    cpu_ns: int = 0

    def read(self) -> bool:
        """Brings ``cpu_ns`` up to date; False when a clock could not be read."""
        readings = [clock.cpu_ns() for clock in self.open]
        known = [reading for reading in readings if reading is not None]
        if len(known) == len(readings):
            self.cpu_ns = max(self.cpu_ns, sum(known))
        return len(known) == len(readings)

    def close(self) -> None:
        for clock in self.open:
            clock.close()


@dataclass(eq=False, slots=True)
class _Party:
    until_exec: bool
    outer: _Party | None
    own: _Clocks
    """Counts the party, and the parties within it."""
    shared: _Clocks
    """Counts what of it the outer party's clocks count too; ``own`` where both treat exec alike."""
    shared_from_ns: int = 0
    """What of ``shared`` was taken from an outer party that has ended."""
    nested_ns: int = 0
    """CPU time of parties within it that have ended."""
    cpu_ns: int = 0
    """Its alone, as last read."""

    @property
    def taken_ns(self) -> int:
        """CPU time that is not the outer party's."""
        return self.shared.cpu_ns - self.shared_from_ns

    def clocks(self) -> Iterator[_Clocks]:
        yield self.own
        if self.shared is not self.own:
            yield self.shared


class PerfParties:
    """A PartyCounter made of one inherited task clock a thread.

    A thread that moves from party A into B is counted by the clocks of both: A's CPU time is what its clocks say
    less what those of the parties within it say. It follows that ``within`` must be told, or two parties count the
    same second; and that what B leaves running when it is removed is A's, where it should be nobody's.
    ``stays_over_exec=False`` is kept by the kernel, from Linux 5.13 on.

    Raises:
        SourceError: PERF_PARANOID, PERF_SECCOMP, PERF_ABSENT or PERF_FAILED.
    """

    source: Final = "perf"
    lower_bound: Final = False
    moves_threads: Final = False

    def __init__(self, proc_root: Path = PROC_ROOT, cgroup_root: Path = CGROUP_ROOT) -> None:
        TaskClock(proc_root=proc_root).close()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = _MOST_PARTIES if soft == resource.RLIM_INFINITY else soft - _RESERVED_DESCRIPTORS
        self.max_parties = max(1, min(room, _MOST_PARTIES))
        self._proc_root = proc_root
        self._parties: dict[int, _Party] = {}
        self._unread = False
        self._busy = HostBusy(proc_root, cgroup_root)

    def add(self, party: int, tids: Iterable[int], *, within: int | None = None, stays_over_exec: bool = True) -> None:
        if not 0 <= party < self.max_parties:
            raise SourceError("PARTY_FAILED", f"party {party} is not below {self.max_parties}", "raise `ulimit -n`")
        joined = self._parties.get(party)
        if joined is None:
            outer = None if within is None else self._parties.get(within)
            joined = _new(outer, until_exec=not stays_over_exec)
        with contextlib.ExitStack() as undo:
            opened = [clocks for clocks in (self._open(joined, tid, undo) for tid in tids) if clocks]
            if not opened:
                raise SourceError("PARTY_GONE", f"party {party} is not counted: none of its threads is there")
            undo.pop_all()
        for clocks in opened:
            for kept, clock in zip(joined.clocks(), clocks, strict=True):
                kept.open.append(clock)
        self._parties[party] = joined

    def remove(self, party: int) -> None:
        removed = self._parties.pop(party, None)
        if removed is None:
            return
        self._read_clocks((removed, *self._within(removed)))
        for inner in self._within(removed):
            # Up to now it was the removed party's, whose clocks have said as much to the outer one.
            inner.outer, inner.shared_from_ns = removed.outer, inner.shared.cpu_ns
        if removed.outer is not None:
            removed.outer.nested_ns += removed.taken_ns
        for clocks in removed.clocks():
            clocks.close()

    def party_of(self, _tid: int) -> int | None:
        return None

    def read(self) -> PartyCpu:
        parties = self._parties.values()
        self._read_clocks(parties)
        inside_ns: dict[int, int] = {}
        for party in parties:
            if party.outer is not None:
                inside_ns[id(party.outer)] = inside_ns.get(id(party.outer), 0) + party.taken_ns
        for party in parties:
            alone_ns = party.own.cpu_ns - party.nested_ns - inside_ns.get(id(party), 0)
            party.cpu_ns = max(party.cpu_ns, alone_ns)
        cpu_ns = {number: party.cpu_ns for number, party in self._parties.items()}
        return PartyCpu(time.monotonic_ns(), cpu_ns, self._busy.read_ns())

    def problems(self) -> tuple[str, ...]:
        unread, self._unread = self._unread, False
        return ("PARTY_UNREADABLE",) if unread else ()

    def close(self) -> None:
        for party in self._parties.values():
            for clocks in party.clocks():
                clocks.close()
        self._parties.clear()
        self._busy.close()

    def _open(self, party: _Party, tid: int, undo: contextlib.ExitStack) -> list[TaskClock]:
        """The thread's clocks, one for each of the party's; none when it is gone."""
        found: list[TaskClock] = []
        rules = [party.until_exec]
        if party.outer is not None and party.shared is not party.own:
            rules.append(party.outer.until_exec)
        for until_exec in rules:
            try:
                clock = TaskClock(tid, until_exec=until_exec, proc_root=self._proc_root) if tid > 0 else None
            except SourceError as error:
                if error.code != "PERF_GONE":
                    raise SourceError("PARTY_FAILED", error.summary, error.remedy) from error
                clock = None
            if clock is None:
                return []
            undo.callback(clock.close)
            found.append(clock)
        return found

    def _within(self, outer: _Party) -> list[_Party]:
        return [party for party in self._parties.values() if party.outer is outer]

    def _read_clocks(self, parties: Iterable[_Party]) -> None:
        for party in parties:
            for clocks in party.clocks():
                self._unread |= not clocks.read()


def _new(outer: _Party | None, *, until_exec: bool) -> _Party:
    own = _Clocks()
    alike = outer is None or outer.until_exec == until_exec
    return _Party(until_exec, outer, own, own if alike else _Clocks())
