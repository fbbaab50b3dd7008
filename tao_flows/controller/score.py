"""The one number that chooses within the Pareto front.

    J = (1 + g) w_e E/E_ref + w_c C/C_ref + w_m M/M_ref + w_l finish/S

The references are the home pool started now and nothing else, so that no other candidate's coming or going can turn
the order of two. ``g`` is the priority that the budget's penalty gives to energy (see ``penalty``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from tao_flows.controller.model import DecisionRequest, Objectives, Weights
from tao_flows.controller.plan import slack_s
from tao_flows.units import S_PER_H, kwh_from_j

OBJECTIVES: Final = ("energy", "carbon", "cost", "latency")
"""Names of the weights, in the order of the fields of ``Objectives``."""

DEFAULT_WEIGHTS: Final = Weights(energy=0.4, carbon=0.3, cost=0.2, latency=0.1)
"""Energy first, being what is measured here; carbon and cost after it, being partly energy again; latency last, yet
enough that, on energy alone, a pool that takes twice as long must save a quarter of it to be worth the wait."""

# Floors of the references. A home pool that is free or carbon-free would otherwise make any price infinitely dear.
# Each is either constant or proportional to home's energy together with what it floors: with any other floor a pool
# could lose by becoming cheaper.
LEAST_ENERGY_J: Final = 1e-3
LEAST_CARBON_G_PER_KWH: Final = 10.0
"""About the yearly mean of the cleanest grids."""
LEAST_PRICE_PER_H: Final = 0.1
"""About the price of a small virtual machine, in euros or dollars."""


def weights_in_use(request: DecisionRequest, known: Objectives) -> dict[str, float]:
    """The weights by name, without those of unknown objectives. ``known`` is any candidate's objectives."""
    weights = request.preference or DEFAULT_WEIGHTS
    named = zip(OBJECTIVES, known, strict=True)
    return {name: getattr(weights, name) for name, value in named if value is not None}


def references(request: DecisionRequest, home: Objectives) -> tuple[float, ...]:
    """What each objective is divided by: home now, floored above zero, and the slack for the finish.

    An unknown objective has its floor, which nothing is divided by.
    """
    runtime_s = request.home.runtime_s
    energy_j = max(home.energy_j or 0.0, LEAST_ENERGY_J)
    carbon_g = max(home.carbon_g or 0.0, LEAST_CARBON_G_PER_KWH * kwh_from_j(energy_j))
    least_cost = LEAST_PRICE_PER_H * max(1.0 if runtime_s is None else runtime_s.p50, 1.0) / S_PER_H
    return (energy_j, carbon_g, max(home.cost or 0.0, least_cost), slack_s(request))


class Scale(NamedTuple):
    """What a unit of each objective adds to the score: its weight over its reference. 0 where it is unknown."""

    energy: float
    carbon: float
    cost: float
    latency: float


def scale_of(request: DecisionRequest, weights: Mapping[str, float], home: Objectives) -> Scale:
    """The scale of a request, with the home pool started now as the reference."""
    reference = references(request, home)
    return Scale(*(weights.get(name, 0.0) / unit for name, unit in zip(OBJECTIVES, reference, strict=True)))
