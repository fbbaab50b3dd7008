"""What stands on the node's account at one moment, and what lies between two: a window's figure. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from tao_flows.agent.wire import AgentFigure, FigureDomain
from tao_flows.attribution import cpu_interval
from tao_flows.figures import Quality
from tao_flows.node_account import Lines, Party
from tao_flows.telemetry.base import Domain
from tao_flows.units import UJ_PER_MJ, s_from_ns


@dataclass(frozen=True, slots=True)
class Usage:
    """What a party, or several together, used: microjoules by domain, CPU time, and time it was not watched."""

    energy_uj: tuple[int, ...]
    cpu_ns: int = 0
    lost_ns: int = 0

    @classmethod
    def of(cls, party: Party) -> Usage:
        """What a party has used so far."""
        return cls(tuple(party.energy_uj), party.cpu_ns, party.lost_ns)

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        energy_uj = tuple(a + b for a, b in zip(self.energy_uj, other.energy_uj, strict=True))
        return Usage(energy_uj, self.cpu_ns + other.cpu_ns, max(self.lost_ns, other.lost_ns))

    def since(self, before: Usage) -> Usage:
        """What was added after ``before``."""
        energy_uj = tuple(now - then for now, then in zip(self.energy_uj, before.energy_uj, strict=True))
        return Usage(energy_uj, self.cpu_ns - before.cpu_ns, self.lost_ns - before.lost_ns)

    def part(self, cpu_ns: int) -> Usage:
        """The part of it that ``cpu_ns`` of its CPU time stands for; all of it where that is more than it used."""
        cpu_ns = max(0, min(cpu_ns, self.cpu_ns))
        if cpu_ns == self.cpu_ns:
            return self
        return Usage(tuple(each * cpu_ns // self.cpu_ns for each in self.energy_uj), cpu_ns, self.lost_ns)

    def with_all(self, whole: Usage, numbers: AbstractSet[int]) -> Usage:
        """The same, with all that ``whole`` has of these domains."""
        if not numbers:
            return self
        pairs = zip(self.energy_uj, whole.energy_uj, strict=True)
        energy_uj = tuple(all_uj if number in numbers else uj for number, (uj, all_uj) in enumerate(pairs))
        return Usage(energy_uj, self.cpu_ns, self.lost_ns)

    def at_most(self, limit: Usage) -> Usage:
        """No more of it, by domain, than ``limit``."""
        energy_uj = tuple(max(0, min(a, b)) for a, b in zip(self.energy_uj, limit.energy_uj, strict=True))
        return Usage(energy_uj, min(self.cpu_ns, limit.cpu_ns), self.lost_ns)


@dataclass(frozen=True, slots=True)
class Stamp:
    """The node's account at one moment."""

    at_ns: int
    lines: tuple[Lines, ...]
    uncounted: tuple[tuple[str, int, int], ...]
    """Domains that are shown and never summed: id, microjoules, nanoseconds counted."""
    busy_ns: int
    overhead_cpu_ns: int


@dataclass(frozen=True, slots=True)
class Span:
    """Two moments, and what a window has of what lies between them."""

    before: Stamp
    after: Stamp
    task: Usage
    overhead: Usage | None
    """The engine's part, where it is known otherwise than from the node's overhead line."""


def figure(
    span: Span,
    domains: Sequence[Domain],
    *,
    wall_ns: int,
    cpu_source: str,
    lower_bound: bool,
    calibrated: AbstractSet[str],
    privileged: bool,
    codes: tuple[str, ...],
    gpus: Mapping[int, Quality],
    spread_uj: Callable[[str, int], int],
) -> AgentFigure:
    """What a window came to.

    Args:
        span: what was read at its begin and end, and its own part.
        domains: the node's counted domains, in the order of the lines.
        wall_ns: how long the window was open.
        cpu_source: how CPU time is counted.
        lower_bound: whether CPU time can have been missed.
        calibrated: the domains whose idle line means anything.
        privileged: whether the client may see the host's lines.
        codes: what happened meanwhile.
        spread_uj: by how much a domain's idle line may be off over so many nanoseconds.
        gpus: by number of the domain, how well the window's part of a GPU is known.
    """
    lines = [
        _domain(
            number,
            domain,
            span,
            quality=gpus.get(number, Quality.ATTRIBUTED),
            spread_uj=spread_uj(domain.id, span.after.at_ns - span.before.at_ns),
            calibrated=domain.id in calibrated,
            privileged=privileged,
            lower_bound=lower_bound,
        )
        for number, domain in enumerate(domains)
    ]
    overhead_ns = None
    if span.overhead is not None:
        overhead_ns = span.overhead.cpu_ns
    elif privileged:
        overhead_ns = span.after.overhead_cpu_ns - span.before.overhead_cpu_ns
    return AgentFigure(
        wall_ns=wall_ns,
        cpu_ns=span.task.cpu_ns,
        cpu_source=cpu_source,
        lower_bound=lower_bound or span.task.lost_ns > 0,
        domains=(*lines, *(_uncounted(span) if privileged else ())),
        gap_ns=span.task.lost_ns,
        codes=codes,
        overhead_cpu_ns=overhead_ns,
    )


def _domain(
    number: int,
    domain: Domain,
    span: Span,
    *,
    quality: Quality,
    spread_uj: int,
    calibrated: bool,
    privileged: bool,
    lower_bound: bool,
) -> FigureDomain:
    lines = span.after.lines[number].since(span.before.lines[number])
    span_ns = span.after.at_ns - span.before.at_ns
    known = 1.0 if span_ns <= 0 else min(1.0, lines.shared_ns / span_ns)
    if span_ns > 0 and lines.shared_ns <= 0:
        return FigureDomain(domain.id, None, None, None, Quality.UNKNOWN.value, known=0.0)
    if quality is Quality.UNKNOWN:
        seen = _seen(lines, calibrated=calibrated) if privileged else {}
        return FigureDomain(domain.id, None, None, None, quality.value, known, **seen)
    task_uj = span.task.energy_uj[number]
    active_uj = lines.counter_uj - lines.idle_uj - lines.allocated_idle_uj
    busy_ns = max(0, span.after.busy_ns - span.before.busy_ns - span.task.cpu_ns)
    weights = (float(span.task.cpu_ns), 0.0, float(busy_ns))
    low_uj, high_uj = (task_uj, task_uj)
    if domain.kind != "gpu" and sum(weights) > 0:
        most_uj = lines.counter_uj - max(0, lines.idle_uj - spread_uj)
        least_uj = lines.counter_uj - min(lines.counter_uj, lines.idle_uj + spread_uj)
        low_uj, high_uj = cpu_interval((least_uj, most_uj), weights, s_from_ns(span_ns), lower_bound=lower_bound)
    low_uj, high_uj = min(low_uj, task_uj), max(high_uj, task_uj)
    if not privileged:
        overhead_uj = None if span.overhead is None else _coarse(span.overhead.energy_uj[number])
        rounded = (_coarse(task_uj), _coarse(low_uj), _coarse(high_uj))
        return FigureDomain(domain.id, *rounded, quality.value, known, overhead_uj=overhead_uj)
    overhead_uj = lines.overhead_uj if span.overhead is None else span.overhead.energy_uj[number]
    overhead_uj = max(0, min(overhead_uj, active_uj - task_uj))
    return FigureDomain(
        domain.id,
        task_uj,
        low_uj,
        high_uj,
        quality.value,
        known,
        counter_uj=lines.counter_uj,
        idle_uj=lines.idle_uj if calibrated else None,
        overhead_uj=overhead_uj,
        allocated_idle_uj=lines.allocated_idle_uj if domain.kind == "gpu" else None,
        unattributed_uj=active_uj - task_uj - overhead_uj,
    )


def _seen(lines: Lines, *, calibrated: bool) -> dict[str, Any]:
    """What is to be seen of a GPU of which the window's part is not known: the rest is unattributed."""
    return {
        "counter_uj": lines.counter_uj,
        "idle_uj": lines.idle_uj if calibrated else None,
        "overhead_uj": 0,
        "allocated_idle_uj": lines.allocated_idle_uj,
        "unattributed_uj": lines.counter_uj - lines.idle_uj - lines.allocated_idle_uj,
    }


def _coarse(energy_uj: int) -> int:
    return round(energy_uj / UJ_PER_MJ) * UJ_PER_MJ


def _uncounted(span: Span) -> list[FigureDomain]:
    before = {name: (energy_uj, counted_ns) for name, energy_uj, counted_ns in span.before.uncounted}
    span_ns = span.after.at_ns - span.before.at_ns
    found = []
    for name, energy_uj, counted_ns in span.after.uncounted:
        energy_before_uj, counted_before_ns = before.get(name, (0, 0))
        known = 1.0 if span_ns <= 0 else min(1.0, (counted_ns - counted_before_ns) / span_ns)
        counter_uj = energy_uj - energy_before_uj if known else None
        quality = Quality.MEASURED if known else Quality.UNKNOWN
        found.append(FigureDomain(name, None, None, None, quality.value, known, counter_uj=counter_uj))
    return found
