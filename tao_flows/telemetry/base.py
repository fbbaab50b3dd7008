"""What a source of energy readings is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

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


@runtime_checkable
class DeviceHolders(Protocol):
    """A source whose devices are held by processes (GPUs)."""

    def holders(self) -> Mapping[str, frozenset[int] | None]:
        """By domain, the processes that hold the device now; None where it cannot be said."""
        ...
