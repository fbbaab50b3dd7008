"""Stand-ins for hardware and time, for users' tests and our own: real files, no patching."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, Literal

from tao_flows.units import NS_PER_S

INTEL_RANGE_UJ: Final = 262_143_328_850
"""A common ``max_energy_range_uj``: 32 bits of 61 microjoules."""

_WIDTH = 20
"""Digits of the largest 64-bit number. Padding to it lets one write replace the value, so no reader meets an
empty or a mixed file."""


class FakeClock:
    """A clock that moves only when told to; both of its times are in nanoseconds.

    ``FakeClock`` is a ``tao_flows.clock.Clock``.
    """

    def __init__(self, monotonic_ns: int = 0, wall_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns

    def monotonic_ns(self) -> int:
        """Nanoseconds for intervals."""
        return self._monotonic_ns

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return self._wall_ns

    def advance(self, duration_s: float) -> None:
        """Moves both times on by ``duration_s`` seconds."""
        step_ns = round(duration_s * NS_PER_S)
        self._monotonic_ns += step_ns
        self._wall_ns += step_ns


class PowercapTree:
    """A powercap tree of plain files; give its ``root`` to ``TAO_FLOWS_POWERCAP_ROOT``.

    Args:
        root: the directory to be the class directory; made if it is not there.
        layout: ``nested`` puts zones inside their control type and parent; ``linked`` does so beside ``root``
            and links each from it, as the kernel does; ``flat`` puts every zone straight into ``root``.

    Example::

        tree = PowercapTree(tmp_path)
        tree.add_zone("intel-rapl:0", "package-0")
        tree.add_zone("intel-rapl:0:0", "dram", range_uj=65_532_610_987)
        tree.move("intel-rapl:0", 5_000_000)  # five joules
    """

    def __init__(self, root: Path, layout: Literal["nested", "linked", "flat"] = "nested") -> None:
        self.root = root
        self.layout = layout
        root.mkdir(parents=True, exist_ok=True)

    def add_zone(self, zone: str, name: str, energy_uj: int = 0, range_uj: int | None = INTEL_RANGE_UJ) -> Path:
        """Makes the zone with this id (``intel-rapl:0:1`` lies in ``intel-rapl:0``) and returns its directory."""
        path = self.path(zone)
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        if range_uj is not None:
            (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (path / "energy_uj").write_text(_padded(energy_uj))
        if self.layout == "linked":
            (self.root / zone).symlink_to(path)
        return path

    def path(self, zone: str) -> Path:
        """The zone's real directory."""
        if self.layout == "flat":
            return self.root / zone
        control, *indexes = zone.split(":")
        parts = [":".join([control, *indexes[:depth]]) for depth in range(len(indexes) + 1)]
        top = self.root if self.layout == "nested" else self.root.with_name(f"{self.root.name}-devices")
        return top.joinpath(*parts)

    def energy_uj(self, zone: str) -> int:
        """What the counter shows now."""
        return int((self.path(zone) / "energy_uj").read_text())

    def move(self, zone: str, by_uj: int) -> None:
        """Moves the counter on, past its range if need be."""
        range_file = self.path(zone) / "max_energy_range_uj"
        value_uj = self.energy_uj(zone) + by_uj
        self.set(zone, value_uj % int(range_file.read_text()) if range_file.exists() else value_uj)

    def set(self, zone: str, energy_uj: int, *, replace: bool = False) -> None:
        """Sets the counter: in place as the kernel does, or with ``replace`` by renaming a new file over it."""
        file = self.path(zone) / "energy_uj"
        if replace:
            fresh = file.with_name("energy_uj.new")
            fresh.write_text(_padded(energy_uj))
            fresh.rename(file)
            return
        fd = os.open(file, os.O_WRONLY)
        try:
            os.pwrite(fd, _padded(energy_uj).encode(), 0)
        finally:
            os.close(fd)

    def rubbish(self, zone: str, text: str = "rubbish\n") -> None:
        """Puts something that is no number where the counter was."""
        (self.path(zone) / "energy_uj").write_text(text)

    def vanish(self, zone: str) -> None:
        """Takes the zone away, with those inside it."""
        shutil.rmtree(self.path(zone))

    def deny(self, zone: str) -> None:
        """Takes away the right to read the counter; root reads it nevertheless."""
        (self.path(zone) / "energy_uj").chmod(0)


def _padded(energy_uj: int) -> str:
    return f"{energy_uj}".ljust(_WIDTH) + "\n"
