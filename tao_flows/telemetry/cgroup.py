"""Control groups, version 2: where they are, and one made for a single command.

Formats and rules are those of the kernel's Documentation/admin-guide/cgroup-v2.rst. ``cpu.stat`` is kept for every
group, whether or not a controller is enabled for it, and holds whatever ran in the group and below, ended or not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tao_flows.errors import SourceError
from tao_flows.telemetry.procfs import PROC_ROOT
from tao_flows.units import NS_PER_US, s_from_ns

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_PREFIX: Final = "tao-flows-"
_BUSY_US: Final = re.compile(rb"^user_usec ([0-9]+)\nsystem_usec ([0-9]+)$", re.MULTILINE)
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_SCOPE_REMEDY: Final = "start it with `systemd-run --user --scope`, or have the group's directory delegated to the user"


@dataclass(frozen=True, slots=True)
class Mount:
    """Where version 2 is mounted, and which group the mount shows at its top."""

    point: Path
    top: str


def find_root(cgroup_root: Path = CGROUP_ROOT, proc_root: Path = PROC_ROOT) -> Path | None:
    """The top of version 2: ``cgroup_root`` itself, or the mount below it where versions 1 and 2 share it."""
    below = [mount.point for mount in _mounts(proc_root) if cgroup_root in mount.point.parents]
    return next((point for point in (cgroup_root, *below) if os.path.exists(point / "cgroup.controllers")), None)


def own_group(cgroup_root: Path = CGROUP_ROOT, proc_root: Path = PROC_ROOT) -> Path:
    """The directory of the group this process is in.

    Raises:
        SourceError: CGROUP_V1_ONLY, CGROUP_ABSENT, or CGROUP_HIDDEN when our group lies outside what is mounted.
    """
    root = find_root(cgroup_root, proc_root)
    if root is None:
        raise _absence(cgroup_root, proc_root)
    top = next((mount.top for mount in _mounts(proc_root) if mount.point == root), "/")
    path = _own_path(proc_root)
    group = None if path is None else root / os.path.relpath(path, top)
    if group is None or ".." in group.parts or not os.path.exists(group / "cgroup.procs"):
        raise SourceError("CGROUP_HIDDEN", f"this process's control group is not to be seen below {root}")
    return group


class Leaf:
    """A control group made for one command alone, below our own.

    Args:
        parent: our own group.
        proc_root: tells which leaves of earlier commands have lost their maker, and can go once they are empty.

    Raises:
        SourceError: CGROUP_NOT_WRITABLE or CGROUP_FAILED.
    """

    source: Final = "cgroup"

    def __init__(self, parent: Path, proc_root: Path = PROC_ROOT) -> None:
        _sweep(parent, proc_root)
        self.path = parent / f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        if not os.access(parent / "cgroup.procs", os.W_OK):
            # A group can be made in a directory one may write; moving a process there takes the parent's list too.
            raise _failure("CGROUP_NOT_WRITABLE", parent / "cgroup.procs", os.strerror(errno.EACCES))
        try:
            self.path.mkdir()
        except OSError as error:
            raise _refusal(error, parent) from error

    def join(self, pid: int) -> None:
        """Moves a process in; what it starts from now on is in too.

        Raises:
            SourceError: CGROUP_NOT_WRITABLE or CGROUP_FAILED.
        """
        try:
            (self.path / "cgroup.procs").write_text(f"{pid}\n")
        except OSError as error:
            raise _refusal(error, self.path) from error

    def cpu_s(self) -> float | None:
        """CPU seconds of everything that ever ran in it, or None when it cannot be read."""
        usage_us = _flat(self.path / "cpu.stat").get("usage_usec")
        return None if usage_us is None else s_from_ns(usage_us * NS_PER_US)

    def pids(self) -> tuple[int, ...]:
        """The processes in it and below."""
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            found += _numbers(Path(directory) / "cgroup.procs")
        return tuple(found)

    def memory_peak_bytes(self) -> int | None:
        """Most memory it ever held, page cache included, where the memory controller counts it; else None."""
        return next(iter(_numbers(self.path / "memory.peak")), None)

    def close(self) -> bool:
        """Removes it and what is below; False when something still lives in it, and it stays."""
        try:
            for directory, _, _ in os.walk(self.path, topdown=False):
                os.rmdir(directory)
        except OSError:
            return False
        return True


def root_busy_s(cpu_stat: bytes) -> float | None:
    """CPU seconds since boot in which the host's processors worked, from the root group's ``cpu.stat``, or None.

    User and system time are added here because some kernels count stolen time in ``usage_usec``.
    """
    busy_us = _BUSY_US.search(cpu_stat)
    return None if busy_us is None else s_from_ns((int(busy_us[1]) + int(busy_us[2])) * NS_PER_US)


def is_host_root(group: Path) -> bool:
    """Whether this is the root of all groups: a container's top group has a type, as every other group does."""
    return os.path.exists(group / "cpu.stat") and not os.path.exists(group / "cgroup.type")


def _absence(cgroup_root: Path, proc_root: Path) -> SourceError:
    elsewhere = next((str(mount.point) for mount in _mounts(proc_root)), "")
    if not elsewhere and any(fields[-3] == "cgroup" for fields in _mount_lines(proc_root)):
        remedy = "boot with systemd.unified_cgroup_hierarchy=1"
        return SourceError("CGROUP_V1_ONLY", "only version 1 of control groups is mounted", remedy)
    remedy = f"set TAO_FLOWS_CGROUP_ROOT to {elsewhere}" if elsewhere else "mount cgroup2"
    return SourceError("CGROUP_ABSENT", f"no control groups of version 2 at {cgroup_root}", remedy)


def _sweep(parent: Path, proc_root: Path) -> None:
    for stale in parent.glob(f"{_PREFIX}*"):
        maker = stale.name.removeprefix(_PREFIX).partition("-")[0]
        if not os.path.exists(proc_root / maker):
            with contextlib.suppress(OSError):  # something still lives in it
                stale.rmdir()


def _refusal(error: OSError, path: Path) -> SourceError:
    code = "CGROUP_NOT_WRITABLE" if error.errno in _DENIED else "CGROUP_FAILED"
    return _failure(code, path, error.strerror or str(error))


def _failure(code: str, path: Path, said: str) -> SourceError:
    return SourceError(code, f"no control group of its own for a command: {path}: {said}", _SCOPE_REMEDY)


def _own_path(proc_root: Path) -> str | None:
    for line in _lines(proc_root / "self/cgroup"):
        # "0::/.." lies outside our cgroup namespace.
        if line.startswith("0::/") and ".." not in line.split("/"):
            return line.removeprefix("0::")
    return None


def _mounts(proc_root: Path) -> list[Mount]:
    return [Mount(Path(_unescaped(f[4])), _unescaped(f[3])) for f in _mount_lines(proc_root) if f[-3] == "cgroup2"]


def _mount_lines(proc_root: Path) -> list[list[str]]:
    # id parent device root point options [tags] - type source options
    lines = [line.split(" ") for line in _lines(proc_root / "self/mountinfo")]
    return [fields for fields in lines if len(fields) >= 9 and fields[-4] == "-"]


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _numbers(path: Path) -> list[int]:
    return [int(line) for line in _lines(path) if line.isdecimal()]


def _flat(path: Path) -> dict[str, int]:
    try:
        return _parse_flat(path.read_bytes())
    except OSError:
        return {}


def _parse_flat(raw: bytes) -> dict[str, int]:
    pairs = (line.split() for line in raw.decode("ascii", "replace").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
