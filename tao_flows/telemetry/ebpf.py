"""CPU time by party from BPF programs in the kernel's scheduler: taskcpu.bpf.c, in what user space has to do with it.

What the scheduler counts for each thread is charged to its party at every switch, so that nothing short-lived is
missed and a party has to the nanosecond what a control group of its own would have; threads and processes that it
starts are in it from their first instruction, and stay in it when their parent has ended. Sums are kept in memory
shared with the kernel: to read them is no system call. It needs CAP_BPF and CAP_PERFMON, and no compiler.

Known only up to the last switch or tick of the clock, at most some milliseconds behind, are a thread that computes
while it is added, given back or runs another program; and the slice in progress, which is read from the monotonic
clock, can be too long by what a hypervisor took from it, until the thread is switched.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tao_flows.errors import SourceError
from tao_flows.records import Diagnosis
from tao_flows.telemetry import libbpf, procfs
from tao_flows.telemetry.parties import PartyCpu

OBJECT: Final = Path(__file__).with_name("taskcpu.bpf.o")
BTF: Final = Path("/sys/kernel/btf/vmlinux")
MAX_THREADS: Final = 65_536
"""Threads that can be in parties at once, by default. A table of this size takes 6 MB of the kernel's memory."""
_PARTY_BITS: Final = 32
_PARTY_MASK: Final = (1 << _PARTY_BITS) - 1
_IDLE: Final = 1
# struct sum in 64-bit words and in 32-bit halves, and struct cpu likewise: taskcpu.bpf.c.
_SUM_BYTES: Final = 16
_SUM_WORDS: Final = 2
_SUM_HALVES: Final = 4
_ERA: Final = 2
_LEAVES_ON_EXEC: Final = 3
_CPU_BYTES: Final = 64
_CPU_WORDS: Final = 8
_CPU_HALVES: Final = 16
_READ_TRIES: Final = 5
_SHORT_NS: Final = 1_000_000
_CAPABILITIES: Final = {"CAP_PERFMON": 38, "CAP_BPF": 39}
_CAP_SYS_ADMIN: Final = 21
_CAP_EFFECTIVE: Final = re.compile(r"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)
_SPARSE: Final = 8
"""When the numbers in use are spread this thin, it is looked up how far they reach."""
_STATUS: Final = {"EBPF_DENIED": "denied", "EBPF_PID_NAMESPACE": "denied", "EBPF_FAILED": "broken"}


class _Owner(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint64), ("task", ctypes.c_uint64), ("charged_ns", ctypes.c_uint64))


@dataclass(eq=False, slots=True)
class _Party:
    id: int
    """As the kernel's part knows it: era and number."""
    returns: dict[int, _Party] = field(default_factory=dict)
    """The party to which a thread goes back, by thread."""


class EbpfParties:
    """A PartyCounter over every thread of the host. Only threads of the first PID namespace can be named.

    A thread that runs on a processor when it is added or goes back is in its new party at once. Whether threads stay
    over exec is a party's own property, said when it begins.

    Args:
        max_threads: more threads than this cannot be in parties at once; those are nobody's, and ``problems`` says so.
        library: the name under which the dynamic linker finds libbpf.
        btf: where the kernel describes its types.

    Raises:
        SourceError: EBPF_ABSENT, EBPF_PID_NAMESPACE, EBPF_NO_BTF, EBPF_NO_LIBBPF, EBPF_DENIED or EBPF_FAILED.
    """

    source: str = "ebpf"
    lower_bound: Final = False
    moves_threads: Final = True
    max_parties: Final = 16_384

    def __init__(self, max_threads: int = MAX_THREADS, *, library: str = libbpf.LIBRARY, btf: Path = BTF) -> None:
        self._parties: dict[int, _Party] = {}
        self._most = 0
        """More than the number of any party there is."""
        self._shown_ns: dict[int, int] = {}
        """By party, what was last said of those whose slice in progress was in it: it may not fall."""
        self._busy_ns = 0
        self._found_no_room = 0
        self._said_no_room = 0
        self._views: list[memoryview] = []
        self._object: libbpf.BpfObject | None = None
        _require_a_kernel_that_can(btf)
        try:
            self._load(max_threads, library)
        except OSError as error:
            self.close()
            raise _refusal(error) from error

    def add(self, party: int, tids: Iterable[int], *, within: int | None = None, stays_over_exec: bool = True) -> None:
        if self._object is None or not 0 <= party < self.max_parties:
            raise SourceError(
                "PARTY_FAILED", f"party {party} cannot be counted: closed, or not below {self.max_parties}"
            )
        joined = self._parties.get(party) or self._new(party, stays_over_exec=stays_over_exec)
        outer = None if within is None else self._parties.get(within)
        found_no_room, tids = self._found_no_room, set(tids)
        self._look_again(tids)  # so that what they have run so far is charged to the party they are in
        placed = {tid for tid in tids if self._place(tid, joined)}
        if not placed and self._found_no_room != found_no_room:
            raise SourceError("PARTY_FAILED", f"party {party} is not counted: the table of threads is full")
        if not placed:
            raise SourceError("PARTY_GONE", f"party {party} is not counted: none of its threads is there")
        self._parties[party] = joined
        self._most = max(self._most, party + 1)
        for tid in placed:
            joined.returns.pop(tid, None)
            if outer is not None and outer is not joined:
                joined.returns[tid] = outer
        self._look_again(placed)

    def remove(self, party: int) -> None:
        removed = self._parties.pop(party, None)
        self._shown_ns.pop(party, None)
        if removed is None:
            return
        self._look_again(removed.returns)
        # From here on whatever still has the party's old id is nobody's.
        self._sum_halves[_SUM_HALVES * party + _ERA] = _next_era(removed.id >> _PARTY_BITS)
        back = {tid for tid, outer in removed.returns.items() if self._give_back(tid, removed, outer)}
        self._look_again(back)

    def party_of(self, tid: int) -> int | None:
        owner = None if self._object is None else self._owners.get(tid)
        if owner is None:
            return None
        number = int(owner.id & _PARTY_MASK)
        party = self._parties.get(number)
        return number if party is not None and party.id == owner.id else None

    def read(self) -> PartyCpu:
        if self._object is None:
            return PartyCpu(time.monotonic_ns(), {}, None)
        if self._most > _SPARSE * (len(self._parties) + 1):
            self._most = max(self._parties, default=-1) + 1
        at_ns, cpu_ns, busy_ns, in_progress = self._read_all()
        ahead_ns = {number: shown_ns for number, shown_ns in self._shown_ns.items() if shown_ns > cpu_ns[number]}
        cpu_ns |= ahead_ns
        self._shown_ns = {number: cpu_ns[number] for number in in_progress} | ahead_ns
        self._busy_ns = max(self._busy_ns, busy_ns, sum(cpu_ns.values()))
        return PartyCpu(at_ns, cpu_ns, self._busy_ns)

    def problems(self) -> tuple[str, ...]:
        before, self._said_no_room = self._said_no_room, self._found_no_room
        if self._object is not None:
            self._said_no_room += sum(self._lost_by_cpu)
        return ("PARTY_TABLE_FULL",) if self._said_no_room > before else ()

    def close(self) -> None:
        self._parties.clear()
        self._shown_ns.clear()
        loaded, self._object = self._object, None
        for view in self._views:
            view.release()
        self._views.clear()
        if loaded is not None:
            loaded.close()

    def _load(self, max_threads: int, library: str) -> None:
        cpus = libbpf.possible_cpus(library)
        sizes = {"owners": max_threads, "sums": self.max_parties, "cpus": cpus}
        loaded = self._object = libbpf.BpfObject(OBJECT, sizes, library)
        self._owners = loaded.table("owners", _Owner)
        self._look_again_fd = loaded.program_fd("look_again")
        sums = memoryview(loaded.memory("sums", self.max_parties, _SUM_BYTES))
        by_cpu = memoryview(loaded.memory("cpus", cpus, _CPU_BYTES))
        self._sum_words, self._sum_halves = sums.cast("Q"), sums.cast("I")
        words, halves = by_cpu.cast("Q"), by_cpu.cast("I")
        self._since_ns, self._ids, self._busy_by_cpu = (words[column::_CPU_WORDS] for column in range(3))
        self._tids, self._lost_by_cpu = (halves[column::_CPU_HALVES] for column in (6, 7))
        # In the order in which they can be released: what is made from another one before that one.
        self._views += [self._since_ns, self._ids, self._busy_by_cpu, self._tids, self._lost_by_cpu]
        self._views += [words, halves, by_cpu, self._sum_words, self._sum_halves, sums]
        for cpu in range(cpus):
            # Until its first switch a processor would not be counted, and one that computes may not switch for long.
            loaded.run_on(cpu, self._look_again_fd)

    def _new(self, number: int, *, stays_over_exec: bool) -> _Party:
        era = self._sum_halves[_SUM_HALVES * number + _ERA] or _next_era(0)
        self._sum_words[_SUM_WORDS * number] = 0
        self._sum_halves[_SUM_HALVES * number + _LEAVES_ON_EXEC] = not stays_over_exec
        self._sum_halves[_SUM_HALVES * number + _ERA] = era
        return _Party(era << _PARTY_BITS | number)

    def _place(self, tid: int, party: _Party) -> bool:
        if tid <= 0:
            return False
        if not self._owners.put(tid, _Owner(party.id)):
            self._found_no_room += 1
            return False
        # Asked afterwards: what is there now is taken out by the kernel's part when it ends.
        if _is_there(tid):
            return True
        self._owners.delete(tid)
        return False

    def _give_back(self, tid: int, removed: _Party, outer: _Party) -> bool:
        owner = self._owners.get(tid)
        if owner is None:
            return False
        if owner.id == removed.id:
            return self._owners.put(tid, _Owner(outer.id, owner.task, owner.charged_ns), libbpf.BPF_EXIST)
        # It ends before a party that began within it: the one next to it inside gives the thread to the outer one.
        inner = self._parties.get(owner.id & _PARTY_MASK)
        for _ in range(len(self._parties)):
            if inner is not None and inner.returns.get(tid) is removed:
                inner.returns[tid] = outer
                break
            inner = None if inner is None else inner.returns.get(tid)
        return False

    def _look_again(self, tids: Collection[int]) -> None:
        if self._object is None or not tids:
            return
        for cpu, tid in enumerate(self._tids):
            if tid in tids:
                with contextlib.suppress(OSError):  # then it counts for its new party from its next switch on
                    self._object.run_on(cpu, self._look_again_fd)

    def _read_all(self) -> tuple[int, dict[int, int], int, set[int]]:
        now_ns, busy_ns = 0, 0
        begun: list[int] = []
        then: list[int] = []
        ids: list[int] = []
        sums: list[int] = []
        for _ in range(_READ_TRIES):
            begun, ids = self._since_ns.tolist(), self._ids.tolist()
            now_ns = time.monotonic_ns()
            sums = self._sum_words[: _SUM_WORDS * self._most : _SUM_WORDS].tolist()
            busy_ns = sum(self._busy_by_cpu)
            then = self._since_ns.tolist()
            # A slice that ended meanwhile may be in the sums or not. It is left out, and is in the next reading; a
            # long one would be missed by whoever reads this one, so read again.
            if all(a == b or now_ns - a < _SHORT_NS for a, b in zip(begun, then, strict=True)):
                break
        cpu_ns = {number: sums[number] for number in self._parties}
        in_progress = set()
        for since_ns, later_ns, identity in zip(begun, then, ids, strict=True):
            if since_ns and since_ns == later_ns and identity != _IDLE:
                slice_ns = max(0, now_ns - since_ns)
                busy_ns += slice_ns
                party = self._parties.get(identity & _PARTY_MASK)
                if party is not None and party.id == identity:
                    cpu_ns[identity & _PARTY_MASK] += slice_ns
                    in_progress.add(identity & _PARTY_MASK)
        return now_ns, cpu_ns, busy_ns, in_progress


def diagnose() -> Diagnosis:
    """Whether it can be had here, found by loading it; nothing is left behind."""
    try:
        EbpfParties(max_threads=1).close()
    except SourceError as error:
        status = _STATUS.get(error.code, "absent")
        return Diagnosis("ebpf", "cpu_time", status, error.code, error.summary, error.remedy)
    return Diagnosis(
        "ebpf",
        "cpu_time",
        "ready",
        "",
        "what the scheduler counts for each thread, summed in the kernel, for the agent",
    )


def _next_era(era: int) -> int:
    return (era + 1) & _PARTY_MASK or 1


def _is_there(tid: int) -> bool:
    try:
        os.getpriority(os.PRIO_PROCESS, tid)  # takes any thread's number, and needs no right over it
    except ProcessLookupError:
        return False
    return True


def _require_a_kernel_that_can(btf: Path) -> None:
    if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 2**32:
        raise SourceError("EBPF_ABSENT", "the BPF object fits 64-bit little-endian Linux only")
    if not procfs.in_hosts_pid_namespace():
        raise SourceError(
            "EBPF_PID_NAMESPACE",
            "this process numbers threads in a PID namespace of its own, and the scheduler in the host's",
            "run it in the host's: hostPID: true in Kubernetes, --pid=host with Docker",
        )
    if not os.access(btf, os.R_OK):
        remedy = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, 5.11 or later, and let /sys be seen"
        raise SourceError("EBPF_NO_BTF", f"the kernel does not describe its types: {btf} cannot be read", remedy)


def _refusal(error: OSError) -> SourceError:
    said = getattr(error, "said", "") or error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        remedy = "install libbpf 1.0 or later: apt-get install libbpf1, or dnf install libbpf"
        return SourceError("EBPF_NO_LIBBPF", f"libbpf cannot be loaded: {said}", remedy)
    missing = _missing_capabilities()
    if error.errno in {errno.EPERM, errno.EACCES} and missing:
        return SourceError(
            "EBPF_DENIED",
            f"the kernel keeps BPF from this process, which lacks {' and '.join(missing)}",
            "give it CAP_BPF and CAP_PERFMON: AmbientCapabilities= in systemd, capabilities.add in Kubernetes",
        )
    if error.errno == errno.EPERM:
        return SourceError(
            "EBPF_DENIED",
            "BPF is refused in spite of CAP_BPF and CAP_PERFMON, as a container's seccomp profile or a user namespace does",
            "allow bpf and perf_event_open in the seccomp profile, and run it in the host's user namespace",
        )
    return SourceError("EBPF_FAILED", f"the BPF programs cannot be loaded: {said}", "report it with `uname -r`")


def _missing_capabilities() -> list[str]:
    try:
        found = _CAP_EFFECTIVE.search((procfs.PROC_ROOT / "self/status").read_text())
    except OSError:
        found = None
    held = int(found[1], 16) if found else 0
    if held >> _CAP_SYS_ADMIN & 1:
        return []
    return [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
