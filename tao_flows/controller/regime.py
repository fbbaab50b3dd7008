"""The regime a budget is in: standard, transition (from 80 % of it) or inversion (from all of it)."""

from __future__ import annotations

from typing import Final

from tao_flows.controller.model import Regime

TRANSITION_FROM: Final = 0.8
INVERSION_FROM: Final = 1.0
STAY: Final = 0.95
"""A regime is left downward only below this part of its threshold, so that it does not flicker at the edge."""

_ORDER: Final[tuple[Regime, ...]] = ("standard", "transition", "inversion")


def regime_of(utilisation: float | None, previous: Regime | None = None) -> Regime | None:
    """The regime at a share of the budget in use; None when that is unknown or there is no budget."""
    if utilisation is None:
        return None
    before = 0 if previous is None else _ORDER.index(previous)
    level = 0
    for rank, threshold in enumerate((TRANSITION_FROM, INVERSION_FROM), start=1):
        if utilisation >= (threshold * STAY if before >= rank else threshold):
            level = rank
    return _ORDER[level]
