"""Who is at the other end of a socket, and which of its processes and threads are meant.

The kernel says which process connected and as whom (unix(7), SO_PEERCRED). Where several tenants share a user number,
as Airflow's pods do, their control groups tell them apart. All numbers here are this process's own: to see those of
containers the agent must share the host's PID namespace, or the kernel says 0 for every client.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tao_flows.errors import SourceError
from tao_flows.telemetry import procfs

_CREDENTIALS: Final = struct.Struct("=iII")
_PEER_GROUPS: Final = 59
"""SO_PEERGROUPS of asm-generic/socket.h, which Python does not name."""
_GROUP_BYTES: Final = 1024
"""The most that Python's getsockopt takes: 256 groups. A client with more is known by its first group alone."""
_POD: Final = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")


_MOST_ANCESTORS: Final = 1024
"""Parents can change while they are followed: a circle has to end."""

Process = tuple[int, int]
"""A process's number, and when it started in ticks: numbers are used again, both together are not."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A client's process."""

    pid: int
    start_ticks: int
    uid: int
    gid: int
    groups: frozenset[int]
    tenant: str
    """Pod or container it runs in; empty on the host itself."""

    @property
    def process(self) -> Process:
        """Names it for good."""
        return self.pid, self.start_ticks

    @property
    def owner(self) -> tuple[int, str]:
        """Whose it is."""
        return self.uid, self.tenant


def peer_of(connection: socket.socket, proc_root: Path) -> Peer:
    """Who connected.

    Raises:
        SourceError: PEER_HIDDEN, its process is not to be seen from here; PEER_GONE, it has ended already.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    if pid <= 0:
        raise SourceError(
            "PEER_HIDDEN",
            "the agent does not see the client's process: it runs in another PID namespace",
            "run the agent in the host's PID namespace (hostPID: true)",
        )
    stat = procfs.process_stat(pid, proc_root)
    if stat is None:
        raise SourceError("PEER_GONE", f"process {pid} has ended")
    return Peer(pid, stat.start_ticks, uid, gid, _groups(connection) | {gid}, tenant_of(pid, proc_root))


def tenant_of(pid: int, proc_root: Path) -> str:
    """The pod a process runs in, or its container; empty where it runs in neither, or cannot be seen."""
    try:
        text = (proc_root / str(pid) / "cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    pod, container = _POD.search(text), _CONTAINER.search(text)
    if pod is not None:
        return f"pod {pod[1].replace('_', '-')}"
    return f"container {container[0]}" if container is not None else ""


def real_uid(pid: int, proc_root: Path) -> int | None:
    """The user a process runs as; None when it is gone."""
    found = _status(proc_root / str(pid)).get("Uid", "").split()
    return int(found[0]) if found else None


def own_number(session_pid: int, number: int, proc_root: Path) -> int | None:
    """This process's number of a process that the client of ``session_pid`` knows as ``number``; None if there is none.

    The same number where the two see the same processes; else that of the descendant of the client's which has the
    number in the client's PID namespace.
    """
    depth = _depth(session_pid, proc_root)
    if depth == 1:
        return number
    for pid in procfs.processes(proc_root):
        numbers = _status(proc_root / str(pid)).get("NSpid", "").split()
        if numbers[depth - 1 : depth] == [str(number)] and is_descendant(pid, session_pid, proc_root):
            return pid
    return None


def is_descendant(pid: int, of_pid: int, proc_root: Path) -> bool:
    """Whether a process was started by another, or by one that it started, all of which still run."""
    return any(parent == of_pid for parent, _ in ancestors(pid, proc_root)[1:])


def own_thread(session_pid: int, tid: int, proc_root: Path) -> int | None:
    """This process's number of a thread that the process ``session_pid`` itself knows as ``tid``; None for no such."""
    tasks = proc_root / str(session_pid) / "task"
    if _depth(session_pid, proc_root) == 1:
        return tid if os.path.exists(tasks / str(tid)) else None
    for own in procfs.processes(tasks):
        numbers = _status(tasks / str(own)).get("NSpid", "").split()
        if numbers and numbers[-1] == str(tid):
            return own
    return None


def threads_of(pid: int, proc_root: Path) -> tuple[int, ...]:
    """The threads of a process; empty when it is gone."""
    return procfs.processes(proc_root / str(pid) / "task")


def ancestors(pid: int, proc_root: Path) -> list[Process]:
    """The process, its parent, and so on; those that can be seen."""
    found: list[Process] = []
    while pid > 0 and (stat := procfs.process_stat(pid, proc_root)) is not None:
        found.append((pid, stat.start_ticks))
        pid = stat.parent if len(found) < _MOST_ANCESTORS else 0
    return found


def _groups(connection: socket.socket) -> frozenset[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _PEER_GROUPS, _GROUP_BYTES)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"={len(raw) // 4}I", raw))


def _depth(pid: int, proc_root: Path) -> int:
    """In how many PID namespaces a process has a number, from this one down."""
    return max(1, len(_status(proc_root / str(pid)).get("NSpid", "").split()))


def _status(directory: Path) -> dict[str, str]:
    try:
        lines = (directory / "status").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return {}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
