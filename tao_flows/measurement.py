"""What one window's readings amount to. Pure: differences in, a Measurement out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tao_flows.attribution import (
    SHORT_WINDOW_S,
    CpuShares,
    Split,
    account,
    split_domain,
    split_estimate,
)
from tao_flows.calibration import Baseline
from tao_flows.figures import Account, CpuTime, DomainEnergy, Figure, Measurement, Quality
from tao_flows.gpu import GpuUse, split_gpu
from tao_flows.telemetry.base import Domain
from tao_flows.telemetry.estimate import Estimator
from tao_flows.units import NS_PER_S

NO_SOURCE = "NO_ENERGY_SOURCE"


class Span(NamedTuple):
    """What one domain's counter did over the window."""

    domain: Domain
    energy_uj: int | None
    """None when any part of the window is unknown."""
    codes: tuple[str, ...] = ()
    gpu: GpuUse | None = None


class MemoryUse(NamedTuple):
    """Resident bytes over the window, for the estimate; None where they were not read."""

    task_bytes: int | None
    host_bytes: int | None


class _Line(NamedTuple):
    energy: DomainEnergy
    split: Split | None


def measurement(
    *,
    label: str,
    started_wall_ns: int,
    wall_s: float,
    spans: Sequence[Span],
    shares: CpuShares,
    estimator: Estimator | None,
    memory: MemoryUse,
    baseline: Baseline | None = None,
) -> Measurement:
    """The figures of one window.

    Args:
        label: the window's name.
        started_wall_ns: when it was opened.
        wall_s: how long it was open, in seconds.
        spans: one for each domain read.
        shares: whose the CPU seconds were.
        estimator: the model for CPU and memory where no counter covers the CPU; None for none.
        memory: resident bytes, for the estimate.
        baseline: what the counted domains draw at rest; None where the host is not calibrated.
    """
    counted = [_counted(span, shares, wall_s, baseline) for span in spans]
    estimated = [] if estimator is None else _estimated(estimator, shares, memory, wall_s)
    lines = (*counted, *estimated)
    parts = [line.split for line in lines if line.split is not None]
    energy = Figure.total([split.figure for split in parts]) if parts else Figure.unknown(NO_SOURCE)
    counters, estimates = _read(counted), _read(estimated)
    unread: tuple[str, ...] = ()
    if len(counters) + len(estimates) < len(parts):
        unread = tuple(line.energy.domain for line in lines if line.split and line.energy.quality is Quality.UNKNOWN)
    events = ("SHORT_WINDOW",) if wall_s < SHORT_WINDOW_S and counted else ()
    return Measurement(
        label=label,
        started_wall_ns=started_wall_ns,
        wall_s=wall_s,
        cpu=shares.task,
        energy=energy,
        domains=tuple([line.energy for line in lines]),
        account=account(counters, estimates, unread),
        events=(*events, *(() if parts else (NO_SOURCE,))),
        model=None if estimator is None else estimator.model,
        memory_bytes=memory.task_bytes,
        baseline=None if baseline is None else baseline.origin(_with_idle(counted)),
    )


def unmeasured(label: str, started_wall_ns: int, wall_s: float, code: str) -> Measurement:
    """The measurement of what was not measured at all, for the reason in ``code``."""
    return Measurement(
        label=label,
        started_wall_ns=started_wall_ns,
        wall_s=wall_s,
        cpu=CpuTime(None, "none", covers_children=False),
        energy=Figure.unknown(code),
        domains=(),
        account=Account(),
        events=(code,),
    )


def _read(lines: Sequence[_Line]) -> list[Split]:
    return [line.split for line in lines if line.split is not None and line.energy.quality is not Quality.UNKNOWN]


def _with_idle(lines: Sequence[_Line]) -> list[str]:
    return [line.energy.domain for line in lines if line.energy.idle_uj is not None]


def _counted(span: Span, shares: CpuShares, wall_s: float, baseline: Baseline | None) -> _Line:
    domain, codes = span.domain, span.codes
    if span.energy_uj is None:
        split = Split(None, None, None, None, Figure.unknown(domain.id)) if domain.counted else None
        return _Line(_energy(domain, None, split, Quality.UNKNOWN, codes), split)
    if not domain.counted:
        return _Line(_energy(domain, span.energy_uj, None, Quality.MEASURED, codes), None)
    wall_ns = round(wall_s * NS_PER_S)
    idle_uj = None if baseline is None else baseline.idle_uj(domain.id, wall_ns)
    spread_uj = 0 if baseline is None else baseline.spread_uj(domain.id, wall_ns)
    if span.gpu is not None:
        split, why = split_gpu(
            domain.id, domain.source, span.energy_uj, idle_uj, span.gpu, wall_s, idle_spread_uj=spread_uj
        )
        codes = (*codes, *why)
    else:
        split = split_domain(
            domain.id, domain.source, span.energy_uj, idle_uj, shares, wall_s, idle_spread_uj=spread_uj
        )
    return _Line(_energy(domain, span.energy_uj, split, Quality.MEASURED, codes), split)


def _energy(
    domain: Domain, counter_uj: int | None, split: Split | None, quality: Quality, codes: tuple[str, ...]
) -> DomainEnergy:
    return DomainEnergy(
        domain=domain.id,
        source=domain.source,
        kind=domain.kind,
        counter_uj=counter_uj,
        idle_uj=split.idle_uj if split else None,
        task_uj=split.tasks_uj if split else None,
        quality=quality,
        counted=domain.counted,
        events=tuple(dict.fromkeys((*domain.events, *codes))) if codes else domain.events,
        allocated_idle_uj=split.allocated_idle_uj if split else None,
    )


def _estimated(estimator: Estimator, shares: CpuShares, memory: MemoryUse, wall_s: float) -> list[_Line]:
    cpu_uj = None
    if shares.weights is not None:
        task_s, overhead_s, rest_s = shares.weights
        cpu_uj = (estimator.active_uj(task_s), estimator.active_uj(overhead_s), estimator.active_uj(rest_s))
    memory_uj = None
    if memory.task_bytes is not None and memory.host_bytes is not None:
        rest_bytes = max(0, memory.host_bytes - memory.task_bytes)
        memory_uj = (estimator.memory_uj(memory.task_bytes, wall_s), 0, estimator.memory_uj(rest_bytes, wall_s))
    lines = []
    for domain, lines_uj, idle_uj in (("cpu", cpu_uj, estimator.idle_uj(wall_s)), ("memory", memory_uj, None)):
        lower_bound = domain == "cpu" and shares.task.lower_bound
        split = split_estimate(f"{domain} (estimate)", estimator, lines_uj, idle_uj, lower_bound=lower_bound)
        quality = Quality.UNKNOWN if lines_uj is None else Quality.ESTIMATED
        kind = "package" if domain == "cpu" else "dram"
        energy = DomainEnergy(domain, "estimate", kind, None, split.idle_uj, split.tasks_uj, quality)
        lines.append(_Line(energy, split))
    return lines
