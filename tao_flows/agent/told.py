"""What a node agent told of a window, as a measurement. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tao_flows.agent.wire import AgentFigure, FigureDomain
from tao_flows.attribution import SHORT_WINDOW_S
from tao_flows.figures import Account, DomainEnergy, Figure, Measurement, Quality
from tao_flows.measurement import NO_SOURCE
from tao_flows.telemetry.base import Domain
from tao_flows.units import format_duration, s_from_ns

_SOURCE = "agent"


def completed(ours: Measurement, told: AgentFigure, domains: Mapping[str, Domain]) -> Measurement:
    """A measurement with the agent's energies in it, beside those of other domains that were read here.

    Args:
        ours: what was measured here, with the CPU time that holds.
        told: what the agent said.
        domains: those of the agent whose energy is taken from it, by id; empty for none.

    Raises:
        ValueError: a figure has a quality that this version does not know.
    """
    known = [(each, domains[each.id]) for each in told.domains if each.id in domains]
    if not known:
        return replace(ours, events=_together(ours.events, told.codes))
    counted = [(each, domain) for each, domain in known if domain.counted]
    gap = _gap(told)
    parts = [_figure(each, domain, told, gap) for each, domain in counted]
    rest = [ours.energy] if ours.domains else []
    events = [code for code in ours.events if code != NO_SOURCE or not parts]
    if ours.wall_s < SHORT_WINDOW_S:
        events.append("SHORT_WINDOW")
    return replace(
        ours,
        energy=Figure.total((*parts, *rest)) if parts else ours.energy,
        domains=(*(_domain(each, domain) for each, domain in known), *ours.domains),
        account=Account.total((_account(counted), *([ours.account] if ours.domains else []))),
        events=_together(events, told.codes),
    )


def incomplete(ours: Measurement, code: str, *, of_energy: bool) -> Measurement:
    """A measurement that lacks the agent's part, for the reason in ``code``; ``of_energy`` if energies were in it."""
    if not of_energy:
        return replace(ours, events=_together(ours.events, (code,)))
    rest = [ours.energy] if ours.domains else []
    return replace(
        ours,
        energy=Figure.total((Figure.unknown(code), *rest)),
        account=replace(ours.account, unknown_parts=_together(ours.account.unknown_parts, (code,))),
        events=_together((event for event in ours.events if event != NO_SOURCE), (code,)),
    )


def _together(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


def _gap(told: AgentFigure) -> str:
    return f"gap of {format_duration(s_from_ns(told.gap_ns))}: the agent was restarted" if told.gap_ns > 0 else ""


def _figure(each: FigureDomain, domain: Domain, told: AgentFigure, gap: str) -> Figure:
    if each.task_uj is None:
        return Figure.unknown(domain.id)
    coverage = each.known
    if gap and coverage >= 1.0:
        coverage = 1.0 - min(1.0, told.gap_ns / max(told.wall_ns, told.gap_ns))
    return Figure(
        value_uj=each.task_uj,
        low_uj=each.task_uj if each.low_uj is None else each.low_uj,
        high_uj=each.task_uj if each.high_uj is None else each.high_uj,
        quality=Quality(each.quality),
        sources=(_source(domain),),
        coverage=coverage,
        unknown_parts=() if coverage >= 1.0 else (gap or f"{domain.id}: not known all the time",),
    )


def _source(domain: Domain) -> str:
    return f"{_SOURCE}:{domain.source}"


def _domain(each: FigureDomain, domain: Domain) -> DomainEnergy:
    # As where counters are read here: the counter is measured, whatever the task's share of it is.
    quality = Quality(each.quality) if each.counter_uj is None else Quality.MEASURED
    return DomainEnergy(
        domain=domain.id,
        source=_source(domain),
        kind=domain.kind,
        counter_uj=each.counter_uj,
        idle_uj=each.idle_uj,
        task_uj=each.task_uj,
        quality=quality,
        counted=domain.counted,
        events=each.codes,
        allocated_idle_uj=each.allocated_idle_uj,
    )


def _account(counted: Iterable[tuple[FigureDomain, Domain]]) -> Account:
    """The lines that the agent told. An ordinary client's account has its own lines and nothing of the host's."""
    accounts = []
    for each, domain in counted:
        unread = each.counter_uj is None and each.task_uj is None
        accounts.append(
            Account(
                counter_uj=each.counter_uj,
                tasks_uj=each.task_uj,
                overhead_uj=each.overhead_uj,
                idle_uj=each.idle_uj,
                unattributed_uj=each.unattributed_uj,
                quality=Quality(each.quality),
                unknown_parts=(domain.id,) if unread else (),
                allocated_idle_uj=each.allocated_idle_uj,
            )
        )
    return Account.total(accounts)
