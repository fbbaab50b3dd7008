"""The candidates of a request, and what each would cost.

A candidate is a pool and a start. Energy is ``pue * (mean + dispatch)``, at the building's meter, and does not depend
on the start; carbon is its kilowatt-hours times the mean of the signal over the run; cost is ``price_per_h`` times the
median runtime, plus the kilowatt-hours times the mean of the price signal where there is one.

Every pool may be started now. What a pool costs, what it must meet and when else it could be started is worked out
once a pool, in a :class:`Prospect`; what a later start costs, only for the starts that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import NamedTuple

from tao_flows.controller.constraints import constraints_now
from tao_flows.controller.forecast import Forecast
from tao_flows.controller.model import (
    Constraint,
    DecisionRequest,
    Objectives,
    Pool,
    Signal,
    seconds_between,
    time_after,
)
from tao_flows.controller.pareto import Vector, staircase
from tao_flows.controller.penalty import Penalty, binding, penalty_of
from tao_flows.controller.plan import later_starts_us, latest_start_s
from tao_flows.controller.score import Scale, scale_of, weights_in_use
from tao_flows.units import S_PER_H, US_PER_S, kwh_from_j


@dataclass(frozen=True, slots=True)
class Prospect:
    """A pool as far as its candidates are alike, and the start now."""

    pool: Pool
    away: bool
    """It is not the home pool."""
    now: Objectives
    constraints: tuple[Constraint, ...]
    """Of the start now."""
    feasible: bool
    penalty: Penalty
    budget: str | None
    """Name of the budget that binds it most."""
    latest_s: float
    scale: Scale
    base: float
    """What energy adds to the score of each start."""
    # Of a pool that may be started later, none of these is unknown but a rent that nobody asks for; else they are 0.
    kwh: float
    """At the building's meter."""
    rent: float
    begin_s: float
    """Seconds from a start to where the run begins: the engine's latency and the queue."""
    length_s: float
    carbon: Forecast | None
    price: Forecast | None
    starts_us: Sequence[int]
    """The later starts that it may wait for, in microseconds from now."""

    def now_score(self) -> float:
        """The score of its start now."""
        return self._score(self.now)

    def scores(self, starts_us: Sequence[int]) -> list[float]:
        """The scores of later starts."""
        _, carbon, cost, latency = self.scale
        base, columns = self.base, zip(*self._columns(starts_us), strict=True)
        return [base + carbon * grams + cost * money + latency * finish_s for grams, money, finish_s in columns]

    def least(self, start_us: int) -> Objectives:
        """What neither a later start nor any after it costs less than: as if its run met each signal's least value."""
        carbon_g = 0.0 if self.carbon is None else self.kwh * self.carbon.least
        cost = self.rent + (0.0 if self.price is None else self.kwh * self.price.least)
        return self._row(carbon_g, cost, self.finish_s(start_us))

    def least_score(self) -> Callable[[int], float]:
        """The score of ``least``, by start."""
        floor, latency = self._score(self.least(0)._replace(finish_s=0.0)), self.scale.latency
        return lambda start_us: floor + latency * self.finish_s(start_us)

    def kept(self) -> list[tuple[int, Objectives, float]]:
        """The start now and the later starts that improve some objective over each one before them.

        Energy is the same for all and the finish is no better, so that carbon and cost tell: the front over what is
        kept is the front over everything. Each with what it would cost and its score.
        """
        rows = [self.now, *self.at(self.starts_us)]
        starts_us, scores = [0, *self.starts_us], [self.now_score(), *self.scores(self.starts_us)]
        kept = staircase([(row.carbon_g or 0.0, row.cost or 0.0) for row in rows])
        return [(starts_us[number], rows[number], scores[number]) for number in kept]

    def at(self, starts_us: Sequence[int]) -> list[Objectives]:
        """What later starts would cost."""
        return [self._row(*row) for row in zip(*self._columns(starts_us), strict=True)]

    def finish_s(self, start_us: int) -> float:
        """Expected finish of a later start, in seconds from now."""
        return start_us / US_PER_S + self.begin_s + self.length_s

    def _row(self, carbon_g: float, cost: float, finish_s: float) -> Objectives:
        """The objectives of a later start, without what is not asked for."""
        now = self.now
        return Objectives(
            now.energy_j, None if now.carbon_g is None else carbon_g, None if now.cost is None else cost, finish_s
        )

    def _score(self, row: Objectives) -> float:
        (_, carbon, cost, latency), (_, grams, money, finish_s) = self.scale, row
        return self.base + carbon * (grams or 0.0) + cost * (money or 0.0) + latency * (finish_s or 0.0)

    def _columns(self, starts_us: Sequence[int]) -> tuple[list[float], list[float], list[float]]:
        """Carbon, cost and finish of later starts; nothing for what is not asked for."""
        kwh, rent = self.kwh, self.rent
        begin_us, length_us = round(self.begin_s * US_PER_S), round(self.length_s * US_PER_S)
        begins_us = [start_us + begin_us for start_us in starts_us]
        carbon = price = [0.0] * len(starts_us)
        if self.carbon is not None:
            carbon = [kwh * mean for mean in self.carbon.means(begins_us, length_us)]
        if self.price is not None:
            price = [kwh * mean for mean in self.price.means(begins_us, length_us)]
        return carbon, [rent + power for power in price], [self.finish_s(start_us) for start_us in starts_us]


class Weighed(NamedTuple):
    """A request, worked out as far as both the choice and its explanation need."""

    request: DecisionRequest
    prospects: list[Prospect]
    weights: dict[str, float]
    """As used: objectives that are unknown have no entry."""

    @property
    def scored(self) -> bool:
        """Whether any objective is both known and weighted."""
        return any(self.weights.values())


def weigh(request: DecisionRequest) -> Weighed:
    """Works out what each pool would cost, what it must meet and when it could be started."""
    latest_s = {pool.pool_id: latest_start_s(request, pool) for pool in request.pools}
    end = _last_end(request, max(latest_s.values()))
    carbon = _lookup(request, request.signals.carbon_g_per_kwh, end)
    price = _lookup(request, request.signals.price_per_kwh, end)
    rows = only_known_to_all([_now(request, pool, carbon(pool.zone), price(pool.zone)) for pool in request.pools])
    home = next(row for row, pool in zip(rows, request.pools, strict=True) if pool.pool_id == request.task.home_pool)
    weights = weights_in_use(request, home)
    scale = scale_of(request, weights, home)
    wait = any(weights.values()) and _may_wait(request, home)

    def prospect(pool: Pool, row: Objectives) -> Prospect:
        budget = None if pool.predicted_j is None else binding(request.budgets, pool.predicted_j, pool.predicted_s)
        penalty = penalty_of(budget or next(iter(request.budgets), None), pool.predicted_j, pool.predicted_s)
        constraints = constraints_now(request, pool)
        feasible = all(constraint.ok for constraint in constraints)
        forecasts = (carbon(pool.zone), price(pool.zone)) if wait and feasible else (None, None)
        begin_s = _begin_s(request, pool) or 0.0
        return Prospect(
            pool=pool,
            away=pool.pool_id != request.task.home_pool,
            now=row,
            constraints=constraints,
            feasible=feasible,
            penalty=penalty,
            budget=None if budget is None else budget.name,
            latest_s=latest_s[pool.pool_id],
            scale=scale,
            base=scale.energy * (1.0 + penalty.priority) * (row.energy_j or 0.0),
            kwh=kwh_from_j(row.energy_j or 0.0),
            rent=_rent(pool) or 0.0,
            begin_s=begin_s,
            length_s=0.0 if pool.runtime_s is None else pool.runtime_s.p50,
            carbon=forecasts[0],
            price=forecasts[1],
            starts_us=_starts_us(request, pool, latest_s[pool.pool_id], begin_s, forecasts),
        )

    prospects = [prospect(pool, row) for pool, row in zip(request.pools, rows, strict=True)]
    if any(map(_meets_a_gap, prospects)):
        prospects = [replace(each, starts_us=()) for each in prospects]
    return Weighed(request, prospects, weights)


def preference(weighed: Weighed, prospect: Prospect, start_us: int, score: float) -> tuple[float, int, str]:
    """Orders candidates, least first: score, start, pool id; where nothing can be scored, home first."""
    return (score if weighed.scored else float(prospect.away), start_us, prospect.pool.pool_id)


def vector(row: Objectives) -> Vector:
    """The known objectives. Unknown ones are unknown for all, so that those of all candidates have the same parts."""
    return tuple(value for value in row if value is not None)


def only_known_to_all(rows: list[Objectives]) -> list[Objectives]:
    """The rows with every objective that is unknown in one of them dropped from all: they could not be compared."""
    known = [all(value is not None for value in column) for column in zip(*rows, strict=True)]
    if all(known):
        return rows
    return [Objectives(*(v if keep else None for v, keep in zip(row, known, strict=True))) for row in rows]


def _may_wait(request: DecisionRequest, known: Objectives) -> bool:
    """Whether a later start is worth a look: the task may wait, and nothing that is asked for is unknown.

    A carbon signal that the request does not have at all is not asked for, nor are costs where it names no price.
    """
    if not request.task.deferrable or (request.signal_meta is not None and not request.signal_meta.follow):
        return False
    unknown = {name for name, value in known._asdict().items() if value is None}
    if request.signals.carbon_g_per_kwh is None:
        unknown.discard("carbon_g")
    if request.signals.price_per_kwh is None and all(pool.price_per_h is None for pool in request.pools):
        unknown.discard("cost")
    return not unknown


def _last_end(request: DecisionRequest, latest_s: float) -> datetime:
    """When the last run would end, that starts at its latest; the end of time where that is unknown."""
    lengths_s = [
        math.inf if begin_s is None or pool.runtime_s is None else begin_s + pool.runtime_s.p50
        for pool, begin_s in ((pool, _begin_s(request, pool)) for pool in request.pools)
    ]
    wait_s = max(latest_s, 0.0) if request.task.deferrable else 0.0
    return time_after(request.now, wait_s + max(lengths_s))


def _lookup(request: DecisionRequest, signal: Signal | None, end: datetime) -> Callable[[str | None], Forecast | None]:
    """What is known of a signal by zone, up to an end: nothing where it is missing, starts after now or is stale."""
    margin = 0.0 if request.signal_meta is None else request.signal_meta.margin or 0.0
    fresh = {} if signal is None or _stale(request) else signal

    @cache
    def forecast(zone: str | None) -> Forecast | None:
        steps = () if zone is None else fresh.get(zone, ())
        return Forecast(steps, request.now, end, margin) if steps and steps[0].start <= request.now else None

    return forecast


def _stale(request: DecisionRequest) -> bool:
    meta = request.signal_meta
    if meta is None or meta.max_age_s is None:
        return False
    return meta.issued_at is None or seconds_between(meta.issued_at, request.now) > meta.max_age_s


def _now(request: DecisionRequest, pool: Pool, carbon: Forecast | None, price: Forecast | None) -> Objectives:
    """What starting in ``pool`` now would cost; each objective None where unknown."""
    predicted_j = pool.predicted_j
    energy_j = None if predicted_j is None or pool.pue is None else pool.pue * predicted_j
    length_s = None if pool.runtime_s is None else pool.runtime_s.p50
    begin_s, rent = _begin_s(request, pool), _rent(pool)
    carbon_g = _priced(energy_j, carbon, begin_s, length_s)
    power = 0.0 if request.signals.price_per_kwh is None else _priced(energy_j, price, begin_s, length_s)
    return Objectives(
        energy_j=energy_j,
        carbon_g=carbon_g,
        cost=None if rent is None or power is None else rent + power,
        finish_s=None if begin_s is None or length_s is None else begin_s + length_s,
    )


def _priced(
    energy_j: float | None, forecast: Forecast | None, begin_s: float | None, length_s: float | None
) -> float | None:
    if energy_j is None or forecast is None:
        return None
    begin_us, length_us = (None if part_s is None else round(part_s * US_PER_S) for part_s in (begin_s, length_s))
    mean = forecast.mean(begin_us, length_us)
    return None if mean is None else kwh_from_j(energy_j) * mean


def _begin_s(request: DecisionRequest, pool: Pool) -> float | None:
    return None if pool.queue_wait_s is None else request.engine_latency_s + pool.queue_wait_s


def _rent(pool: Pool) -> float | None:
    # A pool that is free by the hour costs nothing however long the task runs.
    if not pool.price_per_h or pool.runtime_s is None:
        return None if pool.price_per_h is None or pool.price_per_h else 0.0
    return pool.price_per_h * pool.runtime_s.p50 / S_PER_H


def _starts_us(
    request: DecisionRequest, pool: Pool, latest_s: float, begin_s: float, forecasts: Iterable[Forecast | None]
) -> Sequence[int]:
    """The later starts of a pool; none where no signal changes."""
    changes_us = [forecast.settled_us for forecast in forecasts if forecast is not None and forecast.changes]
    if not changes_us:
        return ()
    return later_starts_us(request, pool, latest_s, max(max(changes_us) - round(begin_s * US_PER_S), 0))


def _meets_a_gap(prospect: Prospect) -> bool:
    """Whether the run of a later start would meet a value that is unknown."""
    if not prospect.starts_us:
        return False
    begin_us = prospect.starts_us[0] + round(prospect.begin_s * US_PER_S)
    end_us = prospect.starts_us[-1] + round((prospect.begin_s + prospect.length_s) * US_PER_S)
    return any(
        forecast is not None and forecast.gap(begin_us, end_us) for forecast in (prospect.carbon, prospect.price)
    )
