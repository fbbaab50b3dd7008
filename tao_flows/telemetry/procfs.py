"""What ``/proc`` says of processes and of the host.

A process may vanish between two reads of it, and a security module may hide it: both give None, never an exception.
Formats are those of proc(5). Every function takes the root, so that a host's ``/proc`` mounted elsewhere can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from tao_flows.records import Segment
from tao_flows.units import NS_PER_S

PROC_ROOT: Final = Path("/proc")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
BYTES_PER_KIB: Final = 1024
_HOSTS_PID_NAMESPACE: Final = "pid:[4026531836]"
"""The kernel's fixed number of the first PID namespace (PROC_PID_INIT_INO)."""
_READ_BYTES: Final = 1 << 16
_MEMORY_KIB: Final = re.compile(rb"^MemTotal: +(\d+) kB$(?s:.*?)^MemAvailable: +(\d+) kB$", re.MULTILINE)
_BUSY_COLUMNS: Final = (0, 1, 2, 5, 6)
"""user, nice, system, irq, softirq of the ``cpu`` line: not idle and iowait, nor steal, which others ran in.
Guest time is already in user and nice."""
_THREAD_GROUP: Final = re.compile(rb"^Tgid:\s*(\d+)$", re.MULTILINE)
_STAT_BYTES: Final = 512

ProcessId = int | Literal["self"]


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One process's ``stat`` line."""

    pid: int
    """Its number in the PID namespace that this ``/proc`` shows."""
    state: str
    """One letter: ``R`` runs, ``S`` sleeps, ``T`` is stopped, ``Z`` has ended and was not waited for."""
    parent: int
    cpu_s: float
    """User and system CPU seconds of its threads, in steps of 1/TICKS_PER_S."""
    children_cpu_s: float
    """The same of the descendants it has waited for."""
    start_ticks: int
    """When it started, in ticks since boot; with the pid it names the process for good."""
    resident_bytes: int
    stack_start: int
    """Address at which its program's stack begins, drawn anew whenever it runs a program; 0 where it is hidden."""


def process_stat(pid: ProcessId, proc_root: Path = PROC_ROOT) -> ProcessStat | None:
    """The process's state, or None when it is gone or hidden."""
    raw = _read(proc_root / str(pid) / "stat")
    if raw is None:
        return None
    # The name is in parentheses and may itself hold spaces and parentheses.
    number, _, rest = raw.partition(b"(")
    columns = rest.rpartition(b")")[2].split()
    try:
        user, system, children_user, children_system = (int(ticks) for ticks in columns[11:15])
        return ProcessStat(
            pid=int(number),
            state=columns[0].decode("ascii"),
            parent=int(columns[1]),
            cpu_s=(user + system) / TICKS_PER_S,
            children_cpu_s=(children_user + children_system) / TICKS_PER_S,
            start_ticks=int(columns[19]),
            resident_bytes=int(columns[21]) * PAGE_BYTES,
            stack_start=int(columns[25]),
        )
    except (ValueError, IndexError):
        return None


def command_line(pid: ProcessId, proc_root: Path = PROC_ROOT) -> tuple[str, ...] | None:
    """The process's arguments; empty for a kernel thread or a process that has ended, None when gone or hidden."""
    raw = _read(proc_root / str(pid) / "cmdline")
    if raw is None:
        return None
    return tuple(os.fsdecode(part) for part in raw.removesuffix(b"\0").split(b"\0")) if raw else ()


def process_of(tid: int, proc_root: Path = PROC_ROOT) -> int | None:
    """The process that a thread is of, or None when it is gone or hidden."""
    found = _THREAD_GROUP.search(_read(proc_root / str(tid) / "status") or b"")
    return None if found is None else int(found[1])


def thread_cpu_ns(pid: int, tid: int, proc_root: Path = PROC_ROOT) -> int | None:
    """A thread's CPU nanoseconds up to its last tick or switch, or None when it is gone or hidden.

    In steps of 1/TICKS_PER_S where the kernel keeps no scheduling statistics (CONFIG_SCHED_INFO).
    """
    columns = (_read(proc_root / f"{pid}/task/{tid}/schedstat") or b"").split()
    # All three are 0 where the kernel was told not to keep them; and of a thread that never ran.
    if len(columns) == 3 and columns[2] != b"0":
        return int(columns[0])
    stat = process_stat(tid, proc_root / f"{pid}/task")
    return None if stat is None else round(stat.cpu_s * NS_PER_S)


def children_of_thread(pid: int, tid: int, proc_root: Path = PROC_ROOT) -> frozenset[int]:
    """Processes that a thread started and that live; none where the kernel does not tell (CONFIG_PROC_CHILDREN)."""
    return frozenset(map(int, (_read(proc_root / f"{pid}/task/{tid}/children") or b"").split()))


def processes(proc_root: Path = PROC_ROOT) -> tuple[int, ...]:
    """The numbers of all processes that can be seen."""
    try:
        return tuple(int(name) for name in os.listdir(proc_root) if name.isdecimal())
    except OSError:
        return ()


def tree(pid: int, proc_root: Path = PROC_ROOT) -> tuple[int, ...]:
    """``pid`` and its living descendants. Descendants whose parent has ended are nobody's, and not among them."""
    children: dict[int, list[int]] = {}
    top = os.fsencode(proc_root)
    for number in processes(proc_root):
        parent = _parent(b"%b/%d/stat" % (top, number))
        if parent is not None:
            children.setdefault(parent, []).append(number)
    found = [pid]
    for number in found:
        found += children.get(number, ())
    return tuple(found)


def resident_bytes(pids: Iterable[ProcessId] = ("self",), proc_root: Path = PROC_ROOT) -> int | None:
    """Memory resident for these processes, this one by default; None when none of them can be read.

    Pages that processes share are counted once for each.
    """
    stats = [process_stat(pid, proc_root) for pid in pids]
    known = [stat.resident_bytes for stat in stats if stat is not None]
    return sum(known) if known else None


def own_resident_bytes(proc_root: Path = PROC_ROOT) -> int | None:
    """Memory resident for this process, or None; cheap enough to be read around every task."""
    columns = (_read(proc_root / "self/statm") or b"").split()
    return int(columns[1]) * PAGE_BYTES if len(columns) > 1 and columns[1].isdigit() else None


def memory_used_bytes(proc_root: Path = PROC_ROOT) -> int | None:
    """The host's memory that is not available to new work (MemTotal - MemAvailable), or None."""
    kib = _MEMORY_KIB.search(_read(proc_root / "meminfo") or b"")
    return None if kib is None else (int(kib[1]) - int(kib[2])) * BYTES_PER_KIB


def busy_s(first_line: bytes) -> float | None:
    """CPU seconds since boot in which the host's processors worked, from the ``cpu`` line of ``stat``, or None."""
    columns = first_line.split()
    try:
        return sum(int(columns[1 + column]) for column in _BUSY_COLUMNS) / TICKS_PER_S if columns[0] == b"cpu" else None
    except (ValueError, IndexError):
        return None


def boot_id(proc_root: Path = PROC_ROOT) -> str:
    """Names this boot of this machine; empty when it cannot be read."""
    return (_read(proc_root / "sys/kernel/random/boot_id") or b"").decode("ascii", "replace").strip()


@cache
def in_hosts_pid_namespace() -> bool:
    """Whether this process's number is the one the host knows it by."""
    try:
        return os.readlink(PROC_ROOT / "self/ns/pid") == _HOSTS_PID_NAMESPACE
    except OSError:
        return False


def this_segment(proc_root: Path = PROC_ROOT) -> Segment:
    """Names this process so that no other is taken for it."""
    stat = process_stat("self", proc_root)
    pid, started = (os.getpid(), 0) if stat is None else (stat.pid, stat.start_ticks)
    return Segment(host=os.uname().nodename, boot_id=boot_id(proc_root), pid=pid, process_started=started)


def is_alive(segment: Segment, proc_root: Path = PROC_ROOT) -> bool | None:
    """Whether the segment's process still runs; None when it cannot be said from here.

    It cannot be said of another host, nor of a process that is there and hidden from us. A process that has
    ended and was not waited for by its parent is not alive.
    """
    if segment.host != os.uname().nodename:
        return None
    if segment.boot_id != boot_id(proc_root):
        return False
    stat = process_stat(segment.pid, proc_root)
    if stat is not None:
        return stat.start_ticks == segment.process_started and stat.state not in {"Z", "X"}
    try:
        os.kill(segment.pid, 0)  # asks only: 0 is no signal
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return None


def _parent(path: bytes) -> int | None:
    # Of all that process_stat tells, with less work: this is asked of every process of the host, several times a second.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, _STAT_BYTES).rpartition(b")")[2].split(None, 2)[1])
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return None


def _read(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = [os.read(fd, _READ_BYTES)]
            while len(parts[-1]) == _READ_BYTES:
                parts.append(os.read(fd, _READ_BYTES))
        finally:
            os.close(fd)
    except OSError:
        return None
    return b"".join(parts)
