"""How the node agent stands at one moment: one frozen record, what the metrics endpoint and ``status`` show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tao_flows.telemetry.base import DomainKind


@dataclass(frozen=True, slots=True)
class DomainSnapshot:
    """One domain since the agent started."""

    id: str
    kind: DomainKind
    source: str
    counted: bool
    """True for the disjoint domains whose joules may be summed."""
    within: str | None = None
    """The domain it lies inside."""
    counter_uj: int | None = None
    """Microjoules since the agent started, gaps left out; None when none were ever known. Never falls."""
    power_w: float | None = None
    """Mean watts over the last sampling slot; None when that slot is unknown."""
    gaps: int = 0
    """Slots of which nothing is known: a reset, a failed reading, readings too far apart."""


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """The agent and its node. Nothing in it names a task; every count is since the agent started and never falls.

    The lines of the account are in microjoules, over all counted domains; None is unknown, never zero.
    """

    host: str
    version: str
    cpu_source: str
    """Where CPU time by party comes from: ``ebpf``, ``perf`` or ``polling``."""
    started_wall_ns: int
    domains: tuple[DomainSnapshot, ...] = ()

    tasks_uj: int | None = None
    overhead_uj: int | None = None
    idle_uj: int | None = None
    allocated_idle_uj: int | None = None
    """GPUs that a task held and did not use."""
    unattributed_uj: int | None = None

    tasks_cpu_s: float | None = None
    overhead_cpu_s: float | None = None
    busy_cpu_s: float | None = None
    """The whole host's, tasks and overhead included."""

    parties: int = 0
    """Registered now."""
    parties_refused: int = 0
    clients: int = 0
    """Connected now."""
    samples: int = 0
    samples_late: int = 0
    gaps: int = 0
    """Spans in which nothing was sampled, a restart of the agent among them."""
    agent_cpu_s: float = 0.0
    """CPU seconds of the agent itself."""
    records_forwarded: int = 0
    """Tasks' records that the ledger has taken."""
    incidents: Mapping[str, int] = field(default_factory=dict)
    """How often each code came up."""
