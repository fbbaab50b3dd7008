"""The candidates of a request, and what each would cost.

A candidate is a pool and a start. Energy is ``pue * (mean + dispatch)``, at the building's meter, and does not depend
on the start; carbon is its kilowatt-hours times the mean of the signal over the run; cost is ``price_per_h`` times the
median runtime, plus the kilowatt-hours times the mean of the price signal where there is one.

Every pool may be started now. What is alike for all starts of a pool is worked out once a pool, in a
:class:`Prospect`; the exact means over its runs, only for the starts that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from tao_flows.lazily import lazily
from tao_flows.units import S_PER_H, US_PER_S, kwh_from_j


@dataclass(eq=False)
class Run:
    """A run of the task in a pool, as far as the weights and the other pools do not matter. None: unknown."""

    pool: Pool
    energy_j: float | None
    """At the building's meter."""
    rent: float | None
    begin_s: float | None
    """Seconds from a start to where the run begins: the engine's latency and the queue."""
    length_s: float | None
    carbon: Forecast | None
    price: Forecast | None
    has_price: bool
    """The request has a price signal."""

    def is_known(self) -> tuple[bool, bool, bool, bool]:
        """Which objectives of the start now are known."""
        energy, begin_us, length_us = self.energy_j is not None, us(self.begin_s), us(self.length_s)
        carbon, price = (
            energy and signal is not None and signal.is_known(begin_us, length_us)
            for signal in (self.carbon, self.price)
        )
        rent = self.rent is not None and (price or not self.has_price)
        return energy, carbon, rent, begin_us is not None and length_us is not None

    @lazily
    def now(self) -> Objectives:
        """What starting now would cost."""
        begin_s, length_s, rent = self.begin_s, self.length_s, self.rent
        power = self._priced(self.price) if self.has_price else 0.0
        return Objectives(
            energy_j=self.energy_j,
            carbon_g=self._priced(self.carbon),
            cost=None if rent is None or power is None else rent + power,
            finish_s=None if begin_s is None or length_s is None else begin_s + length_s,
        )

    def _priced(self, signal: Forecast | None) -> float | None:
        if self.energy_j is None or signal is None:
            return None
        mean = signal.mean(us(self.begin_s), us(self.length_s))
        return None if mean is None else kwh_from_j(self.energy_j) * mean


@dataclass(eq=False)
class Prospect:
    """A pool as far as its candidates are alike. What only some choices need is worked out when they ask for it."""

    request: DecisionRequest
    run: Run
    known: Objectives
    """The objectives of the start now in the home pool: those that are None count for no pool."""
    away: bool
    """It is not the home pool."""
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
    waits: bool
    """It may be started later, and a signal is to change. Nothing is unknown then but a rent that nobody asks for."""
    # Where these are unknown they are 0, and count for nothing.
    kwh: float
    """At the building's meter."""
    rent: float
    begin_s: float
    length_s: float
    carbon: Forecast | None
    price: Forecast | None

    @property
    def pool(self) -> Pool:
        """Where it is."""
        return self.run.pool

    @property
    def now(self) -> Objectives:
        """What its start now would cost, in the objectives that are known for all pools."""
        return only_as_known(self.run.now, self.known)

    @lazily
    def starts_us(self) -> Sequence[int]:
        """The later starts that it may wait for, in microseconds from now."""
        if not self.waits:
            return ()
        changes_us = [signal.settled_us for signal in (self.carbon, self.price) if signal is not None]
        settled_us = max(max(changes_us) - round(self.begin_s * US_PER_S), 0)
        return later_starts_us(self.request, self.pool, self.latest_s, settled_us)

    def now_score(self) -> float:
        """The score of its start now."""
        return self._score(self.now)

    def scores(self, starts_us: Sequence[int]) -> list[float]:
        """The scores of later starts."""
        _, carbon, cost, latency = self.scale
        base, columns = self.base, zip(*self._columns(starts_us), strict=True)
        return [base + carbon * grams + cost * money + latency * finish_s for grams, money, finish_s in columns]

    def least_now(self) -> Objectives:
        """What the start now does not cost less than, without its means: as if it met each signal's least value."""
        carbon_g = 0.0 if self.carbon is None else self.kwh * self.carbon.least_issued
        cost = self.rent + (0.0 if self.price is None else self.kwh * self.price.least_issued)
        return self._row(carbon_g, cost, self.begin_s + self.length_s)

    def least(self, start_us: int) -> Objectives:
        """What neither a later start nor any after it costs less than: as if its run met each signal's least value."""
        carbon_g = 0.0 if self.carbon is None else self.kwh * self.carbon.least
        cost = self.rent + (0.0 if self.price is None else self.kwh * self.price.least)
        return self._row(carbon_g, cost, self.finish_s(start_us))

    def least_now_score(self) -> float:
        """The score of ``least_now``."""
        return self._score(self.least_now())

    def least_score(self, start_us: int) -> float:
        """The score of ``least``."""
        return self._score(self.least(start_us))

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
        """The objectives of a start, without those that are unknown or not asked for."""
        return only_as_known(Objectives(self.run.energy_j, carbon_g, cost, finish_s), self.known)

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
    latest_s = [latest_start_s(request, pool) for pool in request.pools]
    runs = _runs(request, max(latest_s))
    home = next(run for run in runs if run.pool.pool_id == request.task.home_pool)
    # An objective that is unknown for one pool is dropped from all: they could not be compared.
    for_all = [all(column) for column in zip(*(run.is_known() for run in runs), strict=True)]
    known = Objectives(*(value if keep else None for value, keep in zip(home.now, for_all, strict=True)))
    weights = weights_in_use(request, known)
    scale = scale_of(request, weights, known)
    wait = any(weights.values()) and _may_wait(request, known)
    prospects = [
        _prospect(request, run, known, scale, latest, wait) for run, latest in zip(runs, latest_s, strict=True)
    ]
    if any(map(_meets_a_gap, prospects)):
        prospects = [replace(each, waits=False) for each in prospects]
    return Weighed(request, prospects, weights)


def _prospect(
    request: DecisionRequest, run: Run, known: Objectives, scale: Scale, latest_s: float, wait: bool
) -> Prospect:
    pool, energy_j, predicted_j, predicted_s = run.pool, run.energy_j or 0.0, run.pool.predicted_j, run.length_s
    budget = None if predicted_j is None else binding(request.budgets, predicted_j, predicted_s)
    penalty = penalty_of(budget or next(iter(request.budgets), None), predicted_j, predicted_s)
    constraints = constraints_now(request, pool)
    feasible = all(constraint.ok for constraint in constraints)
    carbon = None if known.carbon_g is None else run.carbon
    price = None if known.cost is None else run.price
    changes = (carbon is not None and carbon.changes) or (price is not None and price.changes)
    return Prospect(
        request=request,
        run=run,
        known=known,
        away=pool.pool_id != request.task.home_pool,
        constraints=constraints,
        feasible=feasible,
        penalty=penalty,
        budget=None if budget is None else budget.name,
        latest_s=latest_s,
        scale=scale,
        base=scale.energy * (1.0 + penalty.priority) * energy_j,
        waits=wait and feasible and changes,
        kwh=kwh_from_j(energy_j),
        rent=run.rent or 0.0,
        begin_s=run.begin_s or 0.0,
        length_s=run.length_s or 0.0,
        carbon=carbon,
        price=price,
    )


def preference(weighed: Weighed, prospect: Prospect, start_us: int, score: float) -> tuple[float, int, str]:
    """Orders candidates, least first: score, start, pool id; where nothing can be scored, home first."""
    return (score if weighed.scored else float(prospect.away), start_us, prospect.pool.pool_id)


def vector(row: Objectives) -> Vector:
    """The known objectives. Unknown ones are unknown for all, so that those of all candidates have the same parts."""
    return tuple([value for value in row if value is not None])


def only_as_known(row: Objectives, known: Objectives) -> Objectives:
    """The row without the objectives that are unknown in ``known``."""
    if None not in known:
        return row
    return Objectives(*(None if limit is None else value for value, limit in zip(row, known, strict=True)))


def us(part_s: float | None) -> int | None:
    """Seconds as whole microseconds."""
    return None if part_s is None else round(part_s * US_PER_S)


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


def _runs(request: DecisionRequest, latest_s: float) -> list[Run]:
    """The run of each pool, by signals up to where the last run would end that starts at its latest."""
    signals = request.signals
    begins_s = [
        None if pool.queue_wait_s is None else request.engine_latency_s + pool.queue_wait_s for pool in request.pools
    ]
    lengths_s = [pool.predicted_s for pool in request.pools]
    # The end of time where one is unknown.
    runs_s = [
        math.inf if begin_s is None or length_s is None else begin_s + length_s
        for begin_s, length_s in zip(begins_s, lengths_s, strict=True)
    ]
    wait_s = max(latest_s, 0.0) if request.task.deferrable else 0.0
    end = time_after(request.now, wait_s + max(runs_s))
    carbon, price = (_lookup(request, signal, end) for signal in (signals.carbon_g_per_kwh, signals.price_per_kwh))
    has_price = signals.price_per_kwh is not None
    return [
        Run(pool, _energy_j(pool), _rent(pool), begin_s, length_s, carbon(pool.zone), price(pool.zone), has_price)
        for pool, begin_s, length_s in zip(request.pools, begins_s, lengths_s, strict=True)
    ]


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


def _energy_j(pool: Pool) -> float | None:
    predicted_j = pool.predicted_j
    return None if predicted_j is None or pool.pue is None else pool.pue * predicted_j


def _rent(pool: Pool) -> float | None:
    # A pool that is free by the hour costs nothing however long the task runs.
    if not pool.price_per_h or pool.runtime_s is None:
        return None if pool.price_per_h is None or pool.price_per_h else 0.0
    return pool.price_per_h * pool.runtime_s.p50 / S_PER_H


def _meets_a_gap(prospect: Prospect) -> bool:
    """Whether the run of a later start would meet a value that is unknown."""
    signals = [signal for signal in (prospect.carbon, prospect.price) if signal is not None and signal.has_nulls]
    if not signals or not prospect.starts_us:
        return False
    begin_us = prospect.starts_us[0] + round(prospect.begin_s * US_PER_S)
    end_us = prospect.starts_us[-1] + round((prospect.begin_s + prospect.length_s) * US_PER_S)
    return any(signal.gap(begin_us, end_us) for signal in signals)
