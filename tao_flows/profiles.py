"""What a task is expected to cost: read off its settled runs in the same pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.ledger.base import History
from tao_flows.units import j_from_uj


@dataclass(frozen=True, slots=True)
class Expectation:
    """Predicted joules and seconds of one run; None where nothing has been settled yet."""

    energy_j: PredictedEnergy | None
    runtime_s: PredictedRuntime | None
    runs: int
    """Settled runs behind the energy."""


def expect(history: History) -> Expectation:
    """The mean and the extremes of the settled runs' energies, and the median and 95th percentile of their seconds."""
    energies = sorted(j_from_uj(run.energy_uj) for run in history.runs if run.energy_uj is not None)
    runtimes = sorted(run.runtime_s for run in history.runs if run.runtime_s is not None)
    energy_j = runtime_s = None
    if energies:
        low, high = energies[0], energies[-1]
        # A mean of equal numbers can round to just beside them.
        energy_j = PredictedEnergy(mean=min(max(fmean(energies), low), high), low=low, high=high)
    if runtimes:
        runtime_s = PredictedRuntime(p50=_quantile(runtimes, 0.5), p95=_quantile(runtimes, 0.95))
    return Expectation(energy_j, runtime_s, len(energies))


def _quantile(ascending: Sequence[float], share: float) -> float:
    """The nearest-rank quantile: always a value that was seen."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
