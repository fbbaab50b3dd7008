"""The best there was in hindsight: exact where nothing limits it, and with full pools a proven optimum or its gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from tao_flows.errors import InputError, MissingExtraError
from tao_flows.simulate.market import Job, Market, Place

TIME_LIMIT_S: Final = 120.0
"""After which the best schedule found is taken, with its gap stated."""


class Start(NamedTuple):
    """Where and when a job starts."""

    place: Place
    start_ns: int


class Optimum(NamedTuple):
    """The cheapest schedule of all jobs that meets every deadline that can be met."""

    starts: Mapping[str, Start]
    gap: float
    """How far the cost could at most be above the least, relative; 0: it is the least."""


def optimum(jobs: Sequence[Job], market: Market, slot_ns: int) -> Optimum:
    """The cheapest schedule. Where a pool can be full, starts are multiples of a slot, as the policies' are.

    Raises:
        MissingExtraError: a pool can be full, and scipy is not installed.
    """
    if market.limited:
        return _scheduled(jobs, market, slot_ns)
    return Optimum({job.job_id: _cheapest(job, market) for job in jobs}, 0.0)


def _cheapest(job: Job, market: Market) -> Start:
    """By the cost at every start where it can have a minimum: it is linear between those."""
    best = min(
        (market.cost(job, place, at), at, order)
        for order, place in enumerate(market.places)
        for at in _turns(job, market, place)
    )
    return Start(market.places[best[2]], best[1])


def _turns(job: Job, market: Market, place: Place) -> Iterator[int]:
    """The ends of the range of starts, and those at which the run begins or ends with a step."""
    yield from (job.arrival_ns, job.latest_ns)
    zone, length_ns = market.zones[place.zone], job.runtime_ns
    yield from zone.starts_between(job.arrival_ns, job.latest_ns)
    yield from (at - length_ns for at in zone.starts_between(job.arrival_ns + length_ns, job.latest_ns + length_ns))


def _scheduled(jobs: Sequence[Job], market: Market, slot_ns: int) -> Optimum:
    """Fewest deadlines missed, then least cost: a time-indexed programme, one start a job, never more than places.

    Where every job takes one slot it is a transportation problem (a minimum-cost flow), whose linear programme has
    whole-numbered vertices; elsewhere the starts are integers.
    """
    in_time = [
        _Option(index, place, at) for index, job in enumerate(jobs) for place, at in _options(job, market, slot_ns)
    ]
    found = _solved(jobs, market, slot_ns, in_time, [0.0] * len(in_time))
    if found is not None:
        return found
    # Some deadline cannot be met: any one missed costs more than all that could be saved.
    more_ns = sum(_whole(job, slot_ns) for job in jobs)
    last_ns = max(job.latest_ns for job in jobs) + more_ns
    options = [
        _Option(index, place, at)
        for index, job in enumerate(jobs)
        for place, at in _options(job, market, slot_ns, last_ns)
    ]
    costs = [market.cost(jobs[option.job], option.place, option.start_ns) for option in options]
    fine = 1.0 + len(jobs) * (max(costs) - min(costs))
    late = [fine * (option.start_ns > jobs[option.job].latest_ns) for option in options]
    found = _solved(jobs, market, slot_ns, options, late)
    if found is None:
        raise InputError("NO_SCHEDULE", "no schedule was found for the pools", "give fewer jobs or more capacity")
    return found


class _Option(NamedTuple):
    job: int
    place: Place
    start_ns: int


def _options(job: Job, market: Market, slot_ns: int, last_ns: int | None = None) -> Iterator[tuple[Place, int]]:
    """The starts on the grid up to the latest, or ``last_ns``; one at least."""
    first_ns = on_grid(job.arrival_ns, slot_ns)
    last_ns = max(job.latest_ns if last_ns is None else last_ns, first_ns)
    for place in market.places:
        yield from ((place, at) for at in range(first_ns, last_ns + 1, slot_ns))


def _solved(
    jobs: Sequence[Job], market: Market, slot_ns: int, options: Sequence[_Option], fines: Sequence[float]
) -> Optimum | None:
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError:
        raise MissingExtraError("simulate", "the optimum with pools that can be full") from None
    costs = np.array([market.cost(jobs[option.job], option.place, option.start_ns) for option in options])
    once = csr_array((np.ones(len(options)), ([option.job for option in options], range(len(options)))))
    rules = [LinearConstraint(once, 1, 1)]
    slots: dict[tuple[str, int], int] = {}
    rows: list[int] = []
    columns: list[int] = []
    places: list[int] = []
    for column, option in enumerate(options):
        if option.place.capacity is None:
            continue
        length_ns = _whole(jobs[option.job], slot_ns)
        for at in range(option.start_ns, option.start_ns + length_ns, slot_ns):
            row = slots.setdefault((option.place.pool_id, at), len(slots))
            if row == len(places):
                places.append(option.place.capacity)
            rows.append(row)
            columns.append(column)
    if slots:
        taken = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(slots), len(options)))
        rules.append(LinearConstraint(taken, -np.inf, places))
    unit = all(_whole(job, slot_ns) == slot_ns for job in jobs)
    scale = max(float(np.abs(costs).max()), 1e-300)
    answer = milp(
        (costs + np.array(fines)) / scale,
        integrality=np.zeros(len(options)) if unit else np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=rules,
        options={"time_limit": TIME_LIMIT_S, "mip_rel_gap": 0.0},
    )
    if answer.x is None:
        return None
    starts = {
        jobs[option.job].job_id: Start(option.place, option.start_ns)
        for option, share in zip(options, answer.x, strict=True)
        if share > 0.5
    }
    return Optimum(starts, float(getattr(answer, "mip_gap", None) or 0.0))


def on_grid(at_ns: int, slot_ns: int) -> int:
    """The first slot that begins then or later."""
    return -(-at_ns // slot_ns) * slot_ns


def _whole(job: Job, slot_ns: int) -> int:
    return on_grid(job.runtime_ns, slot_ns)
