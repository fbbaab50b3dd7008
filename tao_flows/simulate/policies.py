"""The policies that decide as time goes by, each from what was known by then.

``now`` starts each job in the home pool at once. ``forecast`` follows the newest forecast as issued: it starts a job
when no later start is forecast to be cheaper. ``tao`` is the product's own choice, fed with the forecast and margin
that the product learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Final, NamedTuple, Protocol

from tao_flows.controller.choose import choose
from tao_flows.controller.model import (
    DecisionRequest,
    Pool,
    PredictedEnergy,
    PredictedRuntime,
    SignalMeta,
    Signals,
    Step,
    Task,
    Weights,
)
from tao_flows.signals.trailing import MOST_LEADS, Margin, Trail, alike_s
from tao_flows.simulate.market import Job, Market, Place
from tao_flows.simulate.published import Published
from tao_flows.simulate.room import Room
from tao_flows.units import NS_PER_S, NS_PER_US, S_PER_H

RELEARN_NS: Final = S_PER_H * NS_PER_S
"""How often a margin is looked up anew."""
_ONLY_COST: Final = Weights(energy=0.0, carbon=0.0, cost=1.0, latency=0.0)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Plan(NamedTuple):
    """Where and when a job is to start."""

    place: Place
    start_ns: int
    final: bool = False
    """It starts then, whatever becomes known meanwhile."""


class Policy(Protocol):
    """Decides for one job after another, in order of time."""

    def plan(self, job: Job, now_ns: int, room: Room) -> Plan:
        """Where and when the job is to start, as far as is known now."""


class Now:
    """Starts every job in the home pool as soon as there is room."""

    def __init__(self, market: Market) -> None:
        self._home = market.home

    def plan(self, job: Job, now_ns: int, room: Room) -> Plan:
        return Plan(self._home, room.first_fit(job.job_id, self._home, now_ns, job.runtime_ns), final=True)


class Forecast:
    """Starts a job where and when the newest forecast says it is cheapest, once that is now.

    A zone without forecasts is expected to repeat the day before.
    """

    def __init__(self, market: Market, slot_ns: int, horizon_s: float) -> None:
        self._market, self._slot_ns = market, slot_ns
        self._published = {name: Published(market.zones[name], horizon_s) for name in market.zone_names}

    def plan(self, job: Job, now_ns: int, room: Room) -> Plan:
        best: tuple[float, int, int] | None = None
        for order, place in enumerate(self._market.places):
            view = self._published[place.zone].at(now_ns)
            for start_ns in range(now_ns, max(job.latest_ns, now_ns) + 1, self._slot_ns):
                mean = view.mean(start_ns, start_ns + job.runtime_ns)
                if mean is None:
                    break
                if room.fits(job.job_id, place, start_ns, job.runtime_ns):
                    found = (mean * place.energy_factor, start_ns, order)
                    best = found if best is None or found < best else best
        if best is None:
            return Now(self._market).plan(job, now_ns, room)
        return Plan(self._market.places[best[2]], best[1], final=best[1] == now_ns)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Parts of the policy that an ablation takes away or replaces."""

    corrected: bool | None = None
    """Whether to follow the corrected forecast; None: as learned."""
    margin: Callable[[Trail, Job], float] | None = None
    """In place of the learned margin, and forecasts are always followed."""
    cheap: Callable[[Trail, Job], bool] | None = None
    """Whether a run now is so cheap that it is not put off."""
    believed: Callable[[Job], tuple[float, float]] | None = None
    """Median and 95 % runtime that the policy believes in, in seconds; None: the truth."""


class Tao:
    """The product's own choice, with what it learns from the signal.

    Args:
        market: the signals and pools.
        slot_ns: spacing of the starts on offer.
        horizons_s: how far the jobs need to look ahead, slack and runtime together, in seconds.
        tuning: what an ablation changes.
    """

    def __init__(self, market: Market, slot_ns: int, horizons_s: Sequence[float], tuning: Tuning = Tuning()) -> None:
        self._market, self._slot_ns, self._tuning = market, slot_ns, tuning
        step_s = max(market.zones[name].step_ns for name in market.zone_names) / NS_PER_S
        self._horizons_s = _classes(step_s * MOST_LEADS, horizons_s)
        self._trails: dict[tuple[str, float], Trail] = {}
        self._margins: dict[tuple[float, float, float], tuple[int, Margin]] = {}
        self._steps: dict[tuple[str, float, bool], tuple[int, tuple[Step, ...]]] = {}

    def plan(self, job: Job, now_ns: int, room: Room) -> Plan:
        horizon_s = next(one for one in self._horizons_s if one >= _horizon_s(job))
        margin = self._margin(horizon_s, job, now_ns)
        steps = {name: self._forecast(name, horizon_s, margin.corrected, now_ns) for name in self._market.zone_names}
        home, cheap = self._market.home, self._tuning.cheap
        if cheap is not None and cheap(self._trail(home.zone, horizon_s, now_ns), job):
            return Now(self._market).plan(job, now_ns, room)
        choice = choose(self._request(job, now_ns, room, margin, steps))
        place = next((place for place in self._market.places if place.pool_id == choice.pool), home)
        start_ns = now_ns if choice.start is None else max(_ns(choice.start), now_ns)
        start_ns = room.first_fit(job.job_id, place, start_ns, job.runtime_ns)
        return Plan(place, start_ns, final=start_ns == now_ns)

    def _request(
        self, job: Job, now_ns: int, room: Room, margin: Margin, steps: Mapping[str, tuple[Step, ...]]
    ) -> DecisionRequest:
        now, places = _time(now_ns), self._market.places
        task = Task(
            key=job.job_id,
            home_pool=self._market.home.pool_id,
            ready_at=_time(job.arrival_ns),
            deadline=_time(job.deadline_ns),
            max_defer_s=(job.latest_ns - job.arrival_ns) / NS_PER_S,
            deferrable=True,
            reroutable=len(places) > 1,
        )
        return DecisionRequest(
            now=now,
            task=task,
            pools=tuple(self._pool(place, job, now_ns, room) for place in places),
            signals=Signals(price_per_kwh=steps),
            signal_meta=SignalMeta(now, None, margin.margin, margin.follow),
            slot_s=self._slot_ns / NS_PER_S,
            preference=_ONLY_COST,
        )

    def _pool(self, place: Place, job: Job, now_ns: int, room: Room) -> Pool:
        believed = self._tuning.believed
        median_s, high_s = (job.runtime_s, job.runtime_s) if believed is None else believed(job)
        energy_j = job.energy_j * place.energy_factor
        starts = () if place.capacity is None else range(now_ns + self._slot_ns, job.latest_ns + 1, self._slot_ns)
        full = (at for at in starts if not room.fits(job.job_id, place, at, job.runtime_ns))
        return Pool(
            pool_id=place.pool_id,
            zone=place.zone,
            online=True,
            capacity_free=place.capacity,
            energy_j=PredictedEnergy(energy_j, energy_j, energy_j),
            runtime_s=PredictedRuntime(median_s, high_s),
            queue_wait_s=0.0,
            dispatch_energy_j=0.0,
            pue=1.0,
            price_per_h=0.0,
            power_w=None,
            capacity_by_slot=tuple((_time(at), 0) for at in full),
        )

    def _trail(self, zone: str, horizon_s: float, now_ns: int) -> Trail:
        trail = self._trails.get((zone, horizon_s))
        if trail is None:
            series = self._market.zones[zone].series
            trail = self._trails[zone, horizon_s] = Trail(self._market.zones[zone].step_ns, horizon_s)
            trail.add(series.issues, series.actuals)
        trail.advance(now_ns)
        return trail

    def _margin(self, horizon_s: float, job: Job, now_ns: int) -> Margin:
        """Of the home pool's zone, where a job is that nobody moves."""
        slack_s, runtime_s = alike_s((job.latest_ns - job.arrival_ns) / NS_PER_S), alike_s(job.runtime_s)
        kept = self._margins.get((horizon_s, slack_s, runtime_s))
        trail = self._trail(self._market.home.zone, horizon_s, now_ns)
        if kept is None or now_ns - kept[0] >= RELEARN_NS:
            kept = self._margins[horizon_s, slack_s, runtime_s] = (now_ns, trail.margin(slack_s, runtime_s))
        margin = kept[1]
        if self._tuning.corrected is not None:
            margin = replace(margin, corrected=self._tuning.corrected)
        if self._tuning.margin is not None:
            margin = replace(margin, margin=self._tuning.margin(trail, job), follow=True)
        return margin

    def _forecast(self, zone: str, horizon_s: float, corrected: bool, now_ns: int) -> tuple[Step, ...]:
        kept = self._steps.get((zone, horizon_s, corrected))
        if kept is None or kept[0] != now_ns:
            found = self._trail(zone, horizon_s, now_ns).forecast(corrected=corrected)
            kept = (now_ns, tuple(Step(_time(start), value) for start, value in found))
            self._steps[zone, horizon_s, corrected] = kept
        return kept[1]


def _horizon_s(job: Job) -> float:
    return (job.latest_ns - job.arrival_ns + job.runtime_ns) / NS_PER_S


def _classes(fine_s: float, horizons_s: Sequence[float]) -> list[float]:
    """The longest of those that are looked at in the signal's own steps, and of each doubling beyond."""
    classes: dict[int, float] = {}
    for horizon_s in horizons_s:
        doubling = max(math.ceil(math.log2(horizon_s / fine_s)), 0)
        classes[doubling] = max(horizon_s, classes.get(doubling, 0.0))
    return sorted(classes.values())


def _time(at_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_ns // NS_PER_US)


def _ns(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1) * NS_PER_US
