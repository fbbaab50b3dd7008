"""What a source of energy readings is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

DomainKind = Literal["package", "core", "uncore", "dram", "psys", "gpu", "other"]


@dataclass(frozen=True, slots=True)
class Domain:
    """One counter's scope.

    ``counted`` is True for the disjoint domains whose joules may be summed: core and uncore lie inside their
    package, psys contains everything, a second interface to the same package is the same package.
    """

    id: str
    """Unique on the host: ``package-0``, ``package-0/dram``, ``gpu-1``."""
    kind: DomainKind
    source: str
    counted: bool = True
    within: str | None = None
    range_uj: int | None = None
    """The counter returns to zero after this many microjoules; None when it never does."""
    max_power_w: float = 1_000.0
    """More than this domain can draw: bounds how often its counter can wrap between two readings."""
    events: tuple[str, ...] = ()
    """Standing remarks on how it is read, such as ``INTEGRATED_POWER``."""


class Reading(NamedTuple):
    """A counter's raw value, or why there is none."""

    at_ns: int
    """Monotonic nanoseconds."""
    raw_uj: int | None
    error: str = ""
    """A code such as ``READ_VANISHED`` or ``READ_RUBBISH``; empty when there is a value."""


class EnergySource(Protocol):
    """Reads a fixed list of domains. Construction raises SourceError; reading never raises."""

    id: str
    domains: tuple[Domain, ...]
    max_interval_s: float
    """Must be read at least this often while a window is open: half the time in which a counter could wrap,
    or the step of the integration where there is only a power."""

    def read(self) -> tuple[Reading, ...]:
        """One reading a domain, in the order of ``domains``."""
        ...

    def close(self) -> None:
        """Gives back what it holds. May be called twice."""
        ...


UNSEEN_PROCESS: Final = 0
"""Stands, where process numbers do, for processes that a device may have and does not name."""


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Which processes hold a device, and use it."""

    holders: frozenset[int] | None
    """Those that hold it now; None where it cannot be said."""
    utilisation: Mapping[int, float] | None
    """By process, seconds of full use since the last call that said something; a process that is not in it did not
    use it. None where nothing can be said, or not yet: what comes later then covers this time, too."""
    code: str = ""
    """Why nothing can be said; empty where something is said, or nothing yet."""

    @property
    def pids(self) -> frozenset[int]:
        """Every process that is named."""
        return (self.holders or frozenset()) | (self.utilisation or {}).keys()


@runtime_checkable
class RawReader(Protocol):
    """A source that can be read with less work while nothing is out of the ordinary."""

    def read_raw(self) -> tuple[int, ...] | None:
        """Microjoules in the order of ``domains``, no older than ``read`` would give them; None where that must say."""
        ...


@runtime_checkable
class DeviceUsers(Protocol):
    """A source whose devices are used by processes (GPUs). One source object serves one caller."""

    domains: tuple[Domain, ...]

    def use(self, domain: str) -> DeviceUse:
        """Who holds the device now, and how much each process used it since the last call for it."""
        ...
