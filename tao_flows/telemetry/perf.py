"""CPU seconds from the kernel's ``task-clock`` event, with inheritance: a task and all that it starts.

perf_event_open(2) counts a software event in the scheduler, so that nothing is sampled and nothing short-lived is
missed: processes and threads started later are counted from their first instruction, also those whose parent has
ended. It needs no privilege for one's own processes while ``kernel.perf_event_paranoid`` is 2 or less.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

from tao_flows.errors import SourceError
from tao_flows.telemetry.procfs import PROC_ROOT
from tao_flows.units import s_from_ns

_SYSCALL: Final = {"x86_64": 298, "aarch64": 241}
"""Number of perf_event_open by machine (asm/unistd_64.h, asm-generic/unistd.h)."""
# struct perf_event_attr as it was first published: type, size, config, sample_period, sample_type, read_format, flags,
# wakeup_events, bp_type, config1. The kernel takes every later field to be zero.
_ATTRIBUTES: Final = struct.Struct("=IIQQQQQIIQ")
_TYPE_SOFTWARE: Final = 1
_TASK_CLOCK: Final = 1
_DISABLED: Final = 1 << 0
_INHERIT: Final = 1 << 1
# Without these two the call needs privilege. A task clock counts the kernel's part all the same.
_EXCLUDE_KERNEL: Final = 1 << 5
_EXCLUDE_HYPERVISOR: Final = 1 << 6
_ENABLE_ON_EXEC: Final = 1 << 12
_REMOVE_ON_EXEC: Final = 1 << 36
_CLOSE_ON_EXEC: Final = 8
_ANY_CPU: Final = -1
_NO_GROUP: Final = -1
_COUNT_BYTES: Final = 8
_UNPRIVILEGED_PARANOID: Final = 2


class TaskClock:
    """CPU seconds of one thread and of every thread and process it starts from here on.

    Args:
        tid: the thread, 0 for the calling one. Other threads of that process are not counted.
        on_exec: count from the moment the thread runs another program, for a child that waits to do so.
        until_exec: no longer count a thread that runs another program. It needs Linux 5.13.
        proc_root: where the kernel's limit is read to explain a refusal.

    Raises:
        SourceError: PERF_PARANOID, PERF_SECCOMP, PERF_ABSENT, PERF_GONE (no such thread) or PERF_FAILED.
    """

    source: Final = "perf"

    def __init__(
        self, tid: int = 0, *, on_exec: bool = False, until_exec: bool = False, proc_root: Path = PROC_ROOT
    ) -> None:
        self._fd = -1
        flags = _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR | (_REMOVE_ON_EXEC if until_exec else 0)
        self._fd = _open(tid, flags | (_DISABLED | _ENABLE_ON_EXEC if on_exec else 0), proc_root)

    def cpu_s(self) -> float | None:
        """CPU seconds counted so far, of what has ended and of what still runs; None when it cannot be read."""
        count_ns = self.cpu_ns()
        return None if count_ns is None else s_from_ns(count_ns)

    def cpu_ns(self) -> int | None:
        """The same in nanoseconds."""
        try:
            raw = os.read(self._fd, _COUNT_BYTES)
        except OSError:
            return None
        return int.from_bytes(raw, sys.byteorder) if len(raw) == _COUNT_BYTES else None

    def close(self) -> None:
        """Stops counting. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # It fails when someone has closed every descriptor of this process.
            with contextlib.suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        self.close()


def _open(tid: int, flags: int, proc_root: Path) -> int:
    import ctypes  # costs milliseconds, and only this needs it

    machine = os.uname().machine
    number = _SYSCALL.get(machine) if sys.platform == "linux" and sys.maxsize > 2**32 else None
    if number is None:
        raise SourceError("PERF_ABSENT", f"perf events are not known to tao-flows on {machine} ({sys.platform})")
    fd = int(
        _syscall()(
            ctypes.c_long(number),
            _attributes(flags),
            ctypes.c_int(tid),
            ctypes.c_int(_ANY_CPU),
            ctypes.c_int(_NO_GROUP),
            ctypes.c_ulong(_CLOSE_ON_EXEC),
        )
    )
    if fd < 0:
        raise _refusal(ctypes.get_errno(), proc_root)
    return fd


@cache
def _syscall() -> Any:
    # Looking it up costs more than the call itself, which is made for every task.
    import ctypes

    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    return syscall


@cache
def _attributes(flags: int) -> Any:
    import ctypes

    packed = _ATTRIBUTES.pack(_TYPE_SOFTWARE, _ATTRIBUTES.size, _TASK_CLOCK, 0, 0, 0, flags, 0, 0, 0)
    return ctypes.create_string_buffer(packed, len(packed))


def _refusal(number: int, proc_root: Path) -> SourceError:
    said = os.strerror(number)
    paranoid = _paranoid(proc_root)
    if number in {errno.EACCES, errno.EPERM} and paranoid is not None and paranoid > _UNPRIVILEGED_PARANOID:
        return SourceError(
            "PERF_PARANOID",
            f"the kernel keeps perf events from users: kernel.perf_event_paranoid is {paranoid}",
            f"sysctl -w kernel.perf_event_paranoid={_UNPRIVILEGED_PARANOID}, or give the process CAP_PERFMON",
        )
    if number in {errno.EACCES, errno.EPERM}:
        return SourceError(
            "PERF_SECCOMP",
            f"perf_event_open is refused, as container runtimes do by default: {said}",
            "allow perf_event_open in the container's seccomp profile, or give the container CAP_PERFMON",
        )
    if number in {errno.ENOSYS, errno.ENOENT, errno.EOPNOTSUPP}:
        return SourceError("PERF_ABSENT", f"the kernel has no perf task-clock: {said}")
    if number == errno.ESRCH:
        return SourceError("PERF_GONE", f"there is no such thread: {said}")
    if number in {errno.EMFILE, errno.ENFILE}:
        return SourceError("PERF_FAILED", f"no file descriptor is left for a perf event: {said}", "raise `ulimit -n`")
    return SourceError("PERF_FAILED", f"the perf event cannot be opened: {said}")


def _paranoid(proc_root: Path) -> int | None:
    try:
        return int((proc_root / "sys/kernel/perf_event_paranoid").read_text())
    except (OSError, ValueError):
        return None
