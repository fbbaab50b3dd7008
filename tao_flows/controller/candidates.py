"""The candidates of a request, and what each would cost.

In this form the candidates are the pools, started now. Energy is ``pue * (mean + dispatch)``, at the building's
meter; carbon is its kilowatt-hours times the mean of the signal over the run; cost is ``price_per_h`` times the
median runtime, plus the kilowatt-hours times the mean of the price signal where there is one.
"""

from __future__ import annotations

import math

from tao_flows.controller.model import DecisionRequest, Objectives, Pool, Signal, seconds_between
from tao_flows.units import S_PER_H, kwh_from_j


def objectives_of(request: DecisionRequest, pool: Pool, start_s: float) -> Objectives:
    """What starting in ``pool``, ``start_s`` seconds from now, would cost; each objective None where unknown."""
    predicted_j, runtime_s = pool.predicted_j, pool.runtime_s
    energy_j = None if predicted_j is None or pool.pue is None else pool.pue * predicted_j
    length_s = None if runtime_s is None else runtime_s.p50
    wait_s = pool.queue_wait_s
    begin_s = None if wait_s is None else start_s + request.engine_latency_s + wait_s
    carbon, price = request.signals.carbon_g_per_kwh, request.signals.price_per_kwh
    return Objectives(
        energy_j=energy_j,
        carbon_g=_priced(energy_j, mean_over_run(request, carbon, pool.zone, begin_s, length_s)),
        cost=_cost(pool, energy_j, length_s, price, mean_over_run(request, price, pool.zone, begin_s, length_s)),
        finish_s=None if begin_s is None or length_s is None else begin_s + length_s,
    )


def only_known_to_all(rows: list[Objectives]) -> list[Objectives]:
    """The rows with every objective that is unknown in one of them dropped from all: they could not be compared."""
    known = [all(value is not None for value in column) for column in zip(*rows, strict=True)]
    return [Objectives(*(v if keep else None for v, keep in zip(row, known, strict=True))) for row in rows]


def mean_over_run(
    request: DecisionRequest, signal: Signal | None, zone: str | None, begin_s: float | None, length_s: float | None
) -> float | None:
    """Time-weighted mean of a signal over a run that begins ``begin_s`` seconds from now; None when unknown.

    Each value holds until the next step starts, the last one without end. Unknown are: a signal that is missing for
    the zone, starts after now or is stale, and a null value within the run. A signal that no longer changes needs to
    know neither when the run begins nor how long it is.
    """
    steps = _steps_from_now(request, signal, zone)
    if len(steps) > 1:
        if begin_s is None or length_s is None:
            return None
        end_s = begin_s + length_s
        ends_s = [*(start_s for start_s, _ in steps[1:]), math.inf]
        steps = [
            (min(until_s, end_s) - max(start_s, begin_s), value)
            for (start_s, value), until_s in zip(steps, ends_s, strict=True)
            if start_s <= begin_s < until_s or begin_s < start_s < end_s
        ]
    known = [(part_s, value) for part_s, value in steps if value is not None]
    if not known or len(known) < len(steps):
        return None
    if len(known) == 1:
        return known[0][1]
    return sum(value * part_s for part_s, value in known) / sum(part_s for part_s, _ in known)


def _steps_from_now(
    request: DecisionRequest, signal: Signal | None, zone: str | None
) -> list[tuple[float, float | None]]:
    """The step that holds now and those after it, as seconds from now and value; empty when none holds or is fresh."""
    if signal is None or zone is None or _stale(request):
        return []
    steps = [(seconds_between(request.now, step.start), step.value) for step in signal.get(zone, ())]
    begun = sum(start_s <= 0 for start_s, _ in steps)
    return steps[begun - 1 :] if begun else []


def _stale(request: DecisionRequest) -> bool:
    meta = request.signal_meta
    if meta is None or meta.max_age_s is None:
        return False
    return meta.issued_at is None or seconds_between(meta.issued_at, request.now) > meta.max_age_s


def _priced(energy_j: float | None, per_kwh: float | None) -> float | None:
    return None if energy_j is None or per_kwh is None else kwh_from_j(energy_j) * per_kwh


def _cost(
    pool: Pool, energy_j: float | None, length_s: float | None, signal: Signal | None, per_kwh: float | None
) -> float | None:
    if pool.price_per_h is None:
        return None
    # A pool that is free by the hour costs nothing however long the task runs.
    rent = 0.0 if pool.price_per_h == 0 else None if length_s is None else pool.price_per_h * length_s / S_PER_H
    power = 0.0 if signal is None else _priced(energy_j, per_kwh)
    return None if rent is None or power is None else rent + power
