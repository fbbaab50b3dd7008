"""Laws of the simulation: the oracle is the best there is, and no policy is late where running at once is not."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tao_flows.signals.csvfile import Series
from tao_flows.signals.model import Issue
from tao_flows.simulate.market import Job, Market, Place, Zone
from tao_flows.simulate.run import POLICIES, Result, simulate

MINUTE_NS = 60 * 10**9
FIRST_NS = 20_000 * 86_400 * 10**9
STEP_MIN = 30
STEPS = 40
VALUES = st.lists(st.integers(-50, 100).map(float), min_size=STEPS, max_size=STEPS)


@st.composite
def zones(draw: st.DrawFn) -> Zone:
    """A signal in steps of half an hour, with forecasts of any quality, or none."""
    values = draw(VALUES)
    actuals = tuple((FIRST_NS + n * STEP_MIN * MINUTE_NS, value) for n, value in enumerate(values))
    issues = []
    for at_min in sorted(draw(st.sets(st.integers(0, STEPS * STEP_MIN - 1), max_size=6))):
        first = at_min // STEP_MIN + 1
        told = draw(st.lists(st.integers(-50, 100).map(float), min_size=1, max_size=12))
        steps = tuple((FIRST_NS + (first + n) * STEP_MIN * MINUTE_NS, value) for n, value in enumerate(told))
        issues.append(Issue(FIRST_NS + at_min * MINUTE_NS, steps))
    return Zone(Series(actuals, tuple(issues)))


@st.composite
def jobs(draw: st.DrawFn, most: int = 4, grain_min: int = 1) -> list[Job]:
    """Some that cannot make their deadline are among them."""
    found = []
    for number in range(draw(st.integers(1, most))):
        arrival = draw(st.integers(0, 600 // grain_min)) * grain_min
        runtime = draw(st.integers(1, 180 // grain_min)) * grain_min
        patience = draw(st.integers(0, 360 // grain_min)) * grain_min
        found.append(
            Job(
                job_id=str(number),
                arrival_ns=FIRST_NS + arrival * MINUTE_NS,
                deadline_ns=FIRST_NS + (arrival + patience) * MINUTE_NS,
                runtime_s=runtime * 60.0,
                energy_j=draw(st.integers(0, 10)) * 3.6e6,
            )
        )
    return sorted(found, key=lambda job: (job.arrival_ns, job.job_id))


def total(result: Result, work: list[Job], market: Market, name: str) -> float:
    return sum(market.cost(job, *result.schedules[name][job.job_id]) for job in work)


@given(zone=zones(), work=jobs())
@settings(max_examples=60, deadline=None)
def test_the_oracle_is_exact_where_nothing_limits_it(zone: Zone, work: list[Job]) -> None:
    market = Market({"Z": zone}, (Place("home", "Z"), Place("away", "Z", energy_factor=0.9)))
    found = simulate(work, market, ["oracle"])
    # All times are whole minutes, and the cost is linear between them.
    for job in work:
        least = min(
            market.cost(job, place, at)
            for place in market.places
            for at in range(job.arrival_ns, job.latest_ns + 1, MINUTE_NS)
        )
        assert market.cost(job, *found.schedules["oracle"][job.job_id]) == pytest.approx(least, abs=1e-9)


@given(zone=zones(), work=jobs(most=6))
@settings(max_examples=60, deadline=None)
def test_no_policy_beats_the_oracle_and_none_is_late_where_now_is_not(zone: Zone, work: list[Job]) -> None:
    market = Market({"Z": zone}, (Place("home", "Z"),))
    found = simulate(work, market)
    best = total(found, work, market, "oracle")
    for name in POLICIES:
        assert total(found, work, market, name) >= best - 1e-9
        for job in work:
            start_ns = found.schedules[name][job.job_id].start_ns
            assert job.arrival_ns <= start_ns <= job.latest_ns
        assert found.scores[name].missed_deadlines == found.scores["now"].missed_deadlines
    assert simulate(work, market).scores == found.scores


@given(zone=zones(), work=jobs(most=3, grain_min=STEP_MIN), capacities=st.tuples(st.integers(1, 2), st.integers(1, 2)))
@settings(max_examples=40, deadline=None)
def test_with_capacities_the_oracle_is_what_trying_everything_finds(
    zone: Zone, work: list[Job], capacities: tuple[int, int]
) -> None:
    pytest.importorskip("scipy")
    places = (Place("home", "Z", capacities[0]), Place("away", "Z", capacities[1], energy_factor=1.3))
    market = Market({"Z": zone}, places)
    slot_ns = STEP_MIN * MINUTE_NS
    found = simulate(work, market, slot_ns=slot_ns)
    in_time = [
        [(place, at) for place in places for at in range(job.arrival_ns, job.latest_ns + 1, slot_ns)] for job in work
    ]
    least = cheapest(work, market, in_time)
    if least is None:
        assert any(found.schedules["oracle"][job.job_id].start_ns > job.latest_ns for job in work)
    else:
        assert total(found, work, market, "oracle") == pytest.approx(least, abs=1e-6)
    assert fits(work, [found.schedules["oracle"][job.job_id] for job in work])
    for name in POLICIES:
        late = any(found.schedules[name][job.job_id].start_ns > job.latest_ns for job in work)
        assert fits(work, [found.schedules[name][job.job_id] for job in work])
        if not late and least is not None:
            assert total(found, work, market, name) >= least - 1e-6


def cheapest(work: list[Job], market: Market, options: list[list[tuple[Place, int]]]) -> float | None:
    costs = [
        sum(market.cost(job, place, at) for job, (place, at) in zip(work, chosen, strict=True))
        for chosen in product(*options)
        if fits(work, list(chosen))
    ]
    return min(costs, default=None)


def fits(work: list[Job], chosen: list[tuple[Place, int]]) -> bool:
    return all(
        sum(
            other == place and begin <= at < begin + job.runtime_ns
            for job, (other, begin) in zip(work, chosen, strict=True)
        )
        <= (place.capacity or 0)
        for place, at in chosen
    )
