"""RAPL counters through the kernel's powercap tree, read by kept file descriptors."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tao_flows.clock import Clock
from tao_flows.errors import SourceError
from tao_flows.telemetry.base import Domain, DomainKind, Reading
from tao_flows.telemetry.watch import TreeWatch
from tao_flows.units import UJ_PER_J

DEFAULT_ROOT: Final = Path("/sys/class/powercap")

_ZONE = re.compile(r"(?P<control>[A-Za-z][\w-]*):\d+(?::\d+)*")
_DIE = re.compile(r"(?P<package>package-\d+)-die-\d+(?P<rest>/.*)?")
_KINDS: Final[dict[str, DomainKind]] = {"core": "core", "uncore": "uncore", "dram": "dram", "psys": "psys"}
_WITHIN_PARENT: Final = ("core", "uncore")
_COUNTED: Final = ("package", "dram")
_TEXT_BYTES: Final = 64
_NO_RANGE_LIMIT_UJ: Final = 2**64 - 1
_WRAP_SHARE: Final = 0.4
_LONGEST_INTERVAL_S: Final = 10.0
_SHORTEST_INTERVAL_S: Final = 0.05
"""A nonsensical range must not make a sampler spin; readings closer than this are unreliable anyway."""
_PAUSES_S: Final = (0.0, 0.0002, 0.0005)
"""A file rewritten in place is empty for a moment. The kernel's never are, so no real counter waits here."""
_DIE_TOLERANCE_UJ: Final = UJ_PER_J
"""What a package draws at most (1 kW) in the millisecond between two updates of its counter."""
_DENIED: Final = (errno.EACCES, errno.EPERM)
_VANISHED: Final = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)

_pread: Final = os.pread  # looked up once: it is called for every counter at both ends of every window

_ABSENT_REMEDY: Final = (
    "in a virtual machine the hypervisor does not pass RAPL through: run the node agent on the host; "
    "in a container /sys is masked: mount /sys/class/powercap and /sys/devices/virtual/powercap into it, "
    "or use the agent's socket; on bare metal: modprobe intel_rapl_msr"
)
_PERMISSION_REMEDY: Final = (
    "since Linux 5.10 energy_uj is for root alone (CVE-2020-8694): run the node agent as root, or let a udev or "
    "tmpfiles rule give a group read access, or grant CAP_DAC_READ_SEARCH; never run the flow as root"
)


class RaplSource:
    """The powercap zones under ``root``, as an EnergySource.

    Packages and DRAM are counted. Core and uncore lie inside their package; psys contains everything, and is
    counted only where it is all there is; the second interface to a package (``intel-rapl-mmio``) is that
    package again. A zone that cannot be read stays a domain whose readings say why, and is named in ``notes``:
    leaving it out would make the host's total look complete.

    Args:
        root: the class directory, with nested zones or flat ones, linked or not.
        clock: times the readings.

    Raises:
        SourceError: RAPL_ABSENT, RAPL_PERMISSION, RAPL_NO_PACKAGE, or RAPL_UNREADABLE.
    """

    id = "rapl"

    def __init__(self, root: Path, clock: Clock) -> None:
        zones = _open_zones(root)
        self._counters = tuple(counter for _, counter in zones)
        self._limits_uj = tuple(counter.limit_uj for counter in self._counters)
        self._now = clock.monotonic_ns
        self.domains = tuple(domain for domain, _ in zones)
        self._texts: list[bytes] = []
        self._raws_uj: tuple[int, ...] = ()
        self._fds: list[int] = []  # empty while a counter has to be looked for
        self._looks_each_time = False
        self._watch = self._make_watch()
        try:
            self.notes = _notes(self.domains, self.read())
        except SourceError:
            self.close()
            raise
        safe_s = [_WRAP_SHARE * d.range_uj / (d.max_power_w * UJ_PER_J) for d in self.domains if d.range_uj is not None]
        self.max_interval_s = max(_SHORTEST_INTERVAL_S, min([_LONGEST_INTERVAL_S, *safe_s]))

    def read(self) -> tuple[Reading, ...]:
        """One reading a domain, in the order of ``domains``. Never raises."""
        at_ns = self._now()
        self._arm()
        readings = tuple([counter.read(at_ns) for counter in self._counters])
        well = not any(reading.error for reading in readings)
        self._fds = [counter.fd for counter in self._counters] if well and not self._looks_each_time else []
        return readings

    def read_raw(self) -> tuple[int, ...] | None:
        """What ``read`` would say where nothing is out of the ordinary, with far less work; None elsewhere."""
        fds = self._fds
        if not fds or (self._watch is not None and self._watch.stirred()):
            return None
        try:
            texts = [_pread(fd, _TEXT_BYTES, 0) for fd in fds]
            if texts == self._texts:
                return self._raws_uj
            raws_uj = tuple([int(text) for text in texts])
        except (OSError, ValueError):
            return None
        for raw_uj, limit_uj in zip(raws_uj, self._limits_uj, strict=True):
            if not 0 <= raw_uj <= limit_uj:
                return None
        self._texts, self._raws_uj = texts, raws_uj
        return raws_uj

    def close(self) -> None:
        """Closes the files. May be called twice."""
        self._fds = []
        for counter in self._counters:
            counter.close()
        if self._watch is not None:
            self._watch.close()

    def _make_watch(self) -> TreeWatch | None:
        """Tells when a counter was replaced; None on sysfs, where the kernel answers ENODEV for one that is gone.

        Any other file system goes on serving the deleted or replaced file, as trees in tests and containers do.
        """
        if all(counter.is_on_sysfs() for counter in self._counters):
            return None
        try:
            return TreeWatch(counter.path for counter in self._counters)
        except OSError:
            self._looks_each_time = True
        return None

    def _arm(self) -> None:
        if self._watch is None or not self._watch.stirred():
            return
        try:
            self._watch.arm()
        except OSError:
            self._watch.close()
            self._watch, self._looks_each_time = None, True


def mirrored(domains: Sequence[Domain], begin: Sequence[int | None], end: Sequence[int | None]) -> dict[str, str]:
    """The counted domains that repeat an earlier one's counter over a window: mirror id to the id it mirrors.

    ``begin`` and ``end`` are the raw values of the domains; None where there was no reading.

    Some multi-die processors show one socket's counter as several zones, and summing them multiplies the
    socket. A domain is a mirror of an earlier one of its kind if both show the same raw value at the beginning
    and at the end, and moved in between: two independent counters do not agree to the microjoule twice.

    Reads a few microseconds apart can straddle an update of the counter, so that true mirrors differ by up to
    a millisecond's energy. Dies of one package (``package-0-die-0``, ``package-0-die-1``) may therefore differ
    by 1 J at either end. Elsewhere equality is exact: two packages agreeing by chance is not to be risked.
    """
    found: dict[str, str] = {}
    for later, domain in enumerate(domains):
        if not domain.counted:
            continue
        for earlier in range(later):
            original = domains[earlier]
            if not original.counted or original.kind != domain.kind or original.id in found:
                continue
            tolerance_uj = _DIE_TOLERANCE_UJ if _are_dies_of_one_package(original.id, domain.id) else 0
            if (
                _agree(domain, begin[earlier], begin[later], tolerance_uj)
                and _agree(domain, end[earlier], end[later], tolerance_uj)
                and begin[later] != end[later]
            ):
                found[domain.id] = original.id
                break
    return found


def _are_dies_of_one_package(one: str, other: str) -> bool:
    first, second = _DIE.fullmatch(one), _DIE.fullmatch(other)
    return first is not None and second is not None and first.groups() == second.groups()


def _agree(domain: Domain, one_uj: int | None, other_uj: int | None, tolerance_uj: int) -> bool:
    if one_uj is None or other_uj is None:
        return False
    apart_uj = abs(one_uj - other_uj)
    # One of the two may have been read just before the wrap, and the other just after.
    around_uj = apart_uj if domain.range_uj is None else abs(domain.range_uj - apart_uj)
    return min(apart_uj, around_uj) <= tolerance_uj


class _Counter:
    """One ``energy_uj`` file, kept open."""

    __slots__ = ("_closed", "_same", "fd", "limit_uj", "path")

    def __init__(self, path: Path, limit_uj: int) -> None:
        self.path = str(path)
        self.limit_uj = limit_uj
        self.fd = -1
        self._closed = False
        self._same: tuple[float, ...] = ()  # inode and device, as a slice of a stat result: quicker than by name

    def is_on_sysfs(self) -> bool:
        """Whether the kernel itself serves the file; False when it cannot be said."""
        try:
            return os.stat(self.path).st_dev == os.stat("/sys").st_dev
        except OSError:
            return False

    def read(self, at_ns: int) -> Reading:
        """The counter now, or the code of what went wrong. Never raises."""
        if self._closed:
            return Reading(at_ns, None, "READ_CLOSED")
        try:
            return Reading(at_ns, self._read_raw())
        except (OSError, ValueError):
            return self._read_again(at_ns)

    def close(self) -> None:
        """Closes the file. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self._closed = -1, True

    def _read_raw(self) -> int:
        if os.stat(self.path)[1:3] != self._same:
            self._open()
        raw_uj = int(os.pread(self.fd, _TEXT_BYTES, 0))
        if 0 <= raw_uj <= self.limit_uj:
            return raw_uj
        raise ValueError(raw_uj)

    def _read_again(self, at_ns: int) -> Reading:
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            try:
                self._open()
                return Reading(at_ns, self._read_raw())
            except OSError as error:
                return Reading(at_ns, None, read_code(error))
            except ValueError:
                continue
        return Reading(at_ns, None, "READ_RUBBISH")

    def _open(self) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        self._same = os.fstat(fd)[1:3]
        if self.fd < 0:
            self.fd = fd
        else:
            # Keeps the number: a thread in the midst of a read must not find another file behind it.
            os.dup2(fd, self.fd, inheritable=False)
            os.close(fd)


def read_code(error: OSError) -> str:
    """The code of a reading that failed with ``error``."""
    if error.errno in _DENIED:
        return "READ_DENIED"
    if error.errno in _VANISHED:
        return "READ_VANISHED"
    return f"READ_FAILED:{errno.errorcode.get(error.errno or 0, 'UNKNOWN')}"


_Zone = tuple[Domain, _Counter]


def _open_zones(root: Path) -> list[_Zone]:
    paths = _find_zones(root)
    zones: list[_Zone] = []
    names: dict[str, str] = {}
    first_by_name: dict[str, tuple[str, str]] = {}
    ids: dict[str, str] = {}
    for zone_id in sorted(paths, key=_zone_order):
        path = paths[zone_id]
        if not _has_counter(path):
            continue
        parent = zone_id.rpartition(":")[0]
        own_name = _first_line(path / "name") or zone_id
        is_nested = _ZONE.fullmatch(parent) is not None
        # The name with its parent's, which says the same of the same hardware under every control type.
        name = names[zone_id] = f"{names.get(parent, parent)}/{own_name}" if is_nested else own_name
        control = zone_id.partition(":")[0]
        first_id, first_control = first_by_name.get(name, ("", control))
        is_second_interface = first_control != control
        domain_id = ids[zone_id] = f"{name}@{zone_id}" if first_id else name
        first_by_name.setdefault(name, (domain_id, control))
        kind: DomainKind = "package" if own_name.startswith("package-") else _KINDS.get(own_name, "other")
        range_uj = _range_uj(path)
        within = first_id if is_second_interface else ids.get(parent) if kind in _WITHIN_PARENT else None
        events = (f"SECOND_INTERFACE_OF {first_id}",) if is_second_interface else ()
        domain = Domain(
            id=domain_id,
            kind=kind,
            source=RaplSource.id,
            counted=kind in _COUNTED and not is_second_interface,
            within=within,
            range_uj=range_uj,
            events=events if range_uj is not None else (*events, "RANGE_UNKNOWN"),
        )
        zones.append((domain, _Counter(path / "energy_uj", range_uj or _NO_RANGE_LIMIT_UJ)))
    if not zones:
        raise SourceError("RAPL_ABSENT", f"no RAPL counter lies under {root}", _ABSENT_REMEDY)
    return _with_psys_if_alone(zones)


def _find_zones(root: Path) -> dict[str, Path]:
    """Zone directories by zone id: flat or nested, links or not, each once."""
    found: dict[str, Path] = {}
    real_paths: set[str] = set()
    pending = [root]
    while pending:
        directory = pending.pop(0)
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            if directory != root:
                continue
            if error.errno in _DENIED:
                raise SourceError("RAPL_PERMISSION", f"{root} may not be listed", _PERMISSION_REMEDY) from error
            raise SourceError("RAPL_ABSENT", f"{root}: {error.strerror}", _ABSENT_REMEDY) from error
        for name in names:
            path = directory / name
            is_zone = _ZONE.fullmatch(name) is not None
            # Besides zones only the control types hold zones, and they stand at the top; ``subsystem`` links,
            # found inside zones, lead back to it.
            if not (is_zone or directory == root) or name in found or not os.path.isdir(path):
                continue
            real_path = os.path.realpath(path)
            if real_path in real_paths:
                continue
            real_paths.add(real_path)
            if is_zone:
                found[name] = path
            pending.append(path)
    return found


def _zone_order(zone_id: str) -> tuple[str, list[int]]:
    control, *indexes = zone_id.split(":")
    return control, [int(index) for index in indexes]


def _has_counter(path: Path) -> bool:
    """False for a zone that only limits a power; one that may not be looked at is taken to have a counter."""
    try:
        os.stat(path / "energy_uj")
    except OSError as error:
        return error.errno not in _VANISHED
    return True


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _range_uj(path: Path) -> int | None:
    text = _first_line(path / "max_energy_range_uj")
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) and int(text) > 0 else None


def _with_psys_if_alone(zones: list[_Zone]) -> list[_Zone]:
    if any(domain.counted for domain, _ in zones):
        return zones
    psys = next((domain for domain, _ in zones if domain.kind == "psys"), None)
    return [(replace(domain, counted=domain is psys), counter) for domain, counter in zones]


def _notes(domains: Sequence[Domain], readings: Sequence[Reading]) -> tuple[str, ...]:
    """A note for each domain that cannot be read; SourceError if that leaves nothing to count."""
    failed = [(domain, reading.error) for domain, reading in zip(domains, readings, strict=True) if reading.error]
    notes = tuple(f"{domain.id} cannot be read: {code}" for domain, code in failed)
    unreadable = {domain.id for domain, _ in failed}
    if any(domain.counted and domain.id not in unreadable for domain in domains):
        return notes
    if any(code == "READ_DENIED" for _, code in failed):
        raise SourceError("RAPL_PERMISSION", f"energy_uj may not be read ({'; '.join(notes)})", _PERMISSION_REMEDY)
    if any(domain.counted for domain in domains):
        raise SourceError("RAPL_UNREADABLE", f"no counter can be read ({'; '.join(notes)})", "see what energy_uj holds")
    names = ", ".join(domain.id for domain in domains)
    raise SourceError("RAPL_NO_PACKAGE", f"no zone covers a package, only {names}", "use the estimate on this machine")
