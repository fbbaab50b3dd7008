"""What lies between two readings of one counter: a sum type, so that a first reading is never taken for energy."""

from __future__ import annotations

from dataclasses import dataclass

from tao_flows.telemetry.base import Domain, Reading
from tao_flows.units import NS_PER_S, UJ_PER_J

_NEAR_THE_END = 16
"""In a span of microseconds almost no energy is possible, yet a counter caught in its last sixteenth that then
reads a small value has wrapped: a reset would have to have struck just there."""


@dataclass(frozen=True, slots=True)
class First:
    """There was no reading before: nothing can be said of the energy yet."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The counter moved on by ``energy_uj``."""

    energy_uj: int


@dataclass(frozen=True, slots=True)
class Wrapped:
    """The counter passed its range once, and moved on by ``energy_uj`` in all."""

    energy_uj: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The counter started again: the energy of this span is unknown."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The energy of this span is unknown, for the reason in ``code``."""

    code: str


Delta = First | Difference | Wrapped | Reset | Gap


def delta(domain: Domain, before: Reading | None, after: Reading) -> Delta:
    """What happened to ``domain``'s counter between two readings.

    Nothing is claimed over a span in which the counter could have wrapped at ``domain.max_power_w`` and come
    all the way round. A counter that ran backwards in a shorter span wrapped if the energy that implies could
    have been drawn, and was reset otherwise.
    """
    if before is None:
        return First()
    if after.raw_uj is None:
        return Gap(after.error or "READ_FAILED")
    if before.raw_uj is None:
        return Gap(before.error or "READ_FAILED")
    if after.at_ns < before.at_ns:
        return Gap("CLOCK_BACKWARDS")
    possible_uj = domain.max_power_w * (after.at_ns - before.at_ns) / NS_PER_S * UJ_PER_J
    if domain.range_uj is not None and possible_uj >= domain.range_uj:
        return Gap("SAMPLED_TOO_SLOWLY")
    moved_uj = after.raw_uj - before.raw_uj
    if moved_uj >= 0:
        return Difference(moved_uj)
    if domain.range_uj is None or before.raw_uj > domain.range_uj:
        return Reset()
    wrapped_uj = moved_uj + domain.range_uj
    plausible_uj = max(possible_uj, domain.range_uj / _NEAR_THE_END)
    return Wrapped(wrapped_uj) if 0 <= wrapped_uj <= plausible_uj else Reset()
