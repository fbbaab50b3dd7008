"""Energies and how well they are known: frozen records, each with one JSON form.

Energies are whole microjoules (``*_uj``) inside and joules (``*_j``) in JSON. ``None`` means unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tao_flows.units import j_from_uj

METHOD = "tao-flows/attribution/2"
"""Version of the rules that turn readings into figures. A rule that shifts a figure is a new version."""


AGENT_PENDING = "AGENT_PENDING"
"""Event of a measurement that a node agent is going to complete: the complete one takes its place."""


class Quality(str, Enum):
    """How a figure was come by, best first."""

    MEASURED = "measured"
    """A counter of a whole domain, or of a GPU held by this task alone."""
    ATTRIBUTED = "attributed"
    """A counter times a share of it."""
    ESTIMATED = "estimated"
    """A model; no counter was read."""
    UNKNOWN = "unknown"
    """No reading. Never zero."""

    @property
    def rank(self) -> int:
        """0 for the best quality, growing as it gets worse."""
        return _RANKS[self]

    def __str__(self) -> str:
        return self.value


_RANKS = {quality: rank for rank, quality in enumerate(Quality)}


def joules(energy_uj: int | None) -> float | None:
    """Microjoules to joules, unknown staying unknown."""
    return None if energy_uj is None else j_from_uj(energy_uj)


@dataclass(frozen=True, slots=True)
class Figure:
    """An energy with its interval, quality and origin.

    ``coverage`` is the known share of the parts the figure is made of, and ``unknown_parts`` names the rest:
    one unknown part does not void a total, and does not hide in it either.
    """

    value_uj: int | None
    low_uj: int | None
    high_uj: int | None
    quality: Quality
    sources: tuple[str, ...] = ()
    coverage: float = 1.0
    unknown_parts: tuple[str, ...] = ()

    @property
    def value_j(self) -> float | None:
        """Joules, or None when unknown."""
        return joules(self.value_uj)

    @property
    def low_j(self) -> float | None:
        """Lower bound in joules."""
        return joules(self.low_uj)

    @property
    def high_j(self) -> float | None:
        """Upper bound in joules."""
        return joules(self.high_uj)

    @classmethod
    def unknown(cls, part: str) -> Figure:
        """The figure of a part that was not read."""
        return cls(None, None, None, Quality.UNKNOWN, coverage=0.0, unknown_parts=(part,))

    @classmethod
    def total(cls, parts: Iterable[Figure]) -> Figure:
        """Sum of disjoint parts: the known joules, the worst quality among them, and what is unknown."""
        parts = tuple(parts)
        known = [p for p in parts if p.value_uj is not None]
        unknown_parts = tuple(dict.fromkeys([name for p in parts for name in p.unknown_parts]))
        if not known:
            return cls(None, None, None, Quality.UNKNOWN, coverage=0.0, unknown_parts=unknown_parts)
        value_uj = low_uj = high_uj = 0
        quality = known[0].quality
        for p in known:
            value_uj += p.value_uj or 0
            low_uj += p.low_uj or 0
            high_uj += p.high_uj or 0
            if p.quality is not quality and p.quality.rank > quality.rank:
                quality = p.quality
        sources = tuple(dict.fromkeys([source for p in known for source in p.sources]))
        coverage = sum([p.coverage for p in parts]) / len(parts)
        return cls(value_uj, low_uj, high_uj, quality, sources, coverage, unknown_parts)

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {
            "value_j": self.value_j,
            "low_j": self.low_j,
            "high_j": self.high_j,
            "quality": self.quality.value,
            "sources": list(self.sources),
            "coverage": self.coverage,
            "unknown_parts": list(self.unknown_parts),
        }


@dataclass(frozen=True, slots=True)
class DomainEnergy:
    """What one domain's counter said over a window, and the task's part of it.

    ``counted`` is False for a domain that lies inside another, contains others (psys), or mirrors another:
    it is shown, and never summed.
    """

    domain: str
    source: str
    kind: str
    counter_uj: int | None
    idle_uj: int | None
    task_uj: int | None
    quality: Quality
    counted: bool = True
    events: tuple[str, ...] = ()
    allocated_idle_uj: int | None = None
    """Of a GPU: what it drew while it was held and not used; None for what is no GPU."""

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {
            "domain": self.domain,
            "source": self.source,
            "kind": self.kind,
            "counter_j": joules(self.counter_uj),
            "idle_j": joules(self.idle_uj),
            "allocated_idle_j": joules(self.allocated_idle_uj),
            "task_j": joules(self.task_uj),
            "quality": self.quality.value,
            "counted": self.counted,
            "events": list(self.events),
        }


@dataclass(frozen=True, slots=True)
class Account:
    """Where the joules of one host and window went.

    With counters, ``counter = tasks + overhead + idle + allocated_idle + unattributed`` to the microjoule, a null line
    counting as zero (idle is null until it is calibrated, allocated_idle where there is no GPU). Without counters ``counter_uj`` is None and the same lines sum to
    ``estimate_uj``. A host whose CPU is estimated and whose GPU is counted has both, and the lines sum to both.
    """

    counter_uj: int | None = None
    estimate_uj: int | None = None
    tasks_uj: int | None = None
    overhead_uj: int | None = None
    idle_uj: int | None = None
    unattributed_uj: int | None = None
    quality: Quality = Quality.UNKNOWN
    unknown_parts: tuple[str, ...] = ()
    allocated_idle_uj: int | None = None
    """Of GPUs that a process held and did not use, and what held GPUs draw at rest; in no task's figure."""

    @property
    def overhead_share(self) -> float | None:
        """rho = overhead / (tasks + overhead), between 0 and 1; None when it cannot be said."""
        if self.tasks_uj is None or self.overhead_uj is None or self.tasks_uj + self.overhead_uj <= 0:
            return None
        return self.overhead_uj / (self.tasks_uj + self.overhead_uj)

    @classmethod
    def total(cls, accounts: Iterable[Account]) -> Account:
        """Line by line sum over hosts or windows that do not overlap; a line unknown everywhere stays unknown."""
        accounts = tuple(accounts)

        def line(name: str) -> int | None:
            known = [value for account in accounts if (value := getattr(account, name)) is not None]
            return sum(known) if known else None

        known_qualities = [a.quality for a in accounts if a.quality is not Quality.UNKNOWN]
        return cls(
            counter_uj=line("counter_uj"),
            estimate_uj=line("estimate_uj"),
            tasks_uj=line("tasks_uj"),
            overhead_uj=line("overhead_uj"),
            idle_uj=line("idle_uj"),
            unattributed_uj=line("unattributed_uj"),
            quality=max(known_qualities, key=lambda quality: quality.rank, default=Quality.UNKNOWN),
            unknown_parts=tuple(dict.fromkeys(part for account in accounts for part in account.unknown_parts)),
            allocated_idle_uj=line("allocated_idle_uj"),
        )

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {
            "counter_j": joules(self.counter_uj),
            "estimate_j": joules(self.estimate_uj),
            "tasks_j": joules(self.tasks_uj),
            "overhead_j": joules(self.overhead_uj),
            "idle_j": joules(self.idle_uj),
            "allocated_idle_j": joules(self.allocated_idle_uj),
            "unattributed_j": joules(self.unattributed_uj),
            "quality": self.quality.value,
            "unknown_parts": list(self.unknown_parts),
        }


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU seconds of a task, and how they were come by."""

    cpu_s: float | None
    source: str
    covers_children: bool
    """True when processes that the task started, and what those started, are in the figure."""
    lower_bound: bool = False
    """True when CPU time can have been missed (polling)."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one window measured."""

    label: str
    started_wall_ns: int
    wall_s: float
    cpu: CpuTime
    energy: Figure
    domains: tuple[DomainEnergy, ...]
    account: Account
    events: tuple[str, ...] = ()
    method: str = METHOD
    model: str | None = None
    """Name, version and coefficients of the estimate, where one was used."""
    memory_bytes: int | None = None
    baseline: str | None = None
    """When the idle baseline was calibrated, its watts and their spread; None where none was taken off."""

    @property
    def cpu_s(self) -> float | None:
        """CPU seconds of the task."""
        return self.cpu.cpu_s

    @property
    def pending(self) -> bool:
        """Whether a complete measurement is still to come."""
        return AGENT_PENDING in self.events

    @property
    def power_w(self) -> float | None:
        """Mean watts of the task over the window."""
        return None if self.energy.value_j is None or self.wall_s <= 0 else self.energy.value_j / self.wall_s
