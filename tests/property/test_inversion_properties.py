"""Laws of the Optimization Inversion detector."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.inversion import INVERSION_SHARE, LEAST_RUNS, LEAVE_SHARE, detect, follow
from tao_flows.ledger.base import RunOverhead

joules = st.none() | st.integers(0, 10**6) | st.integers(0, 2**62)
overheads = st.lists(
    st.builds(
        RunOverhead, st.just("default"), st.just("nightly"), st.uuids().map(str), st.just("home"), st.integers(0, 50),
        joules, joules,
    ),
    max_size=40,
)  # fmt: skip


@given(overheads, st.booleans())
def test_the_share_is_exact_and_within_its_bounds_and_every_run_is_counted(
    runs: list[RunOverhead], previous: bool
) -> None:
    found = detect(runs, previous=previous)
    known = [
        (run.tasks_uj, run.overhead_uj)
        for run in runs
        if run.tasks_uj is not None and run.overhead_uj is not None and run.tasks_uj + run.overhead_uj > 0
    ]
    assert (found.runs, found.unknown) == (len(known), len(runs) - len(known))
    assert 0 <= found.coverage <= 1
    if known:
        assert found.share == sum(own for _, own in known) / sum(tasks + own for tasks, own in known)
    if len(known) < LEAST_RUNS:
        assert found.inverted is (True if previous else None)
        return
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.share <= found.high <= 1
    assert math.isfinite(found.low + found.high)
    if found.low > INVERSION_SHARE:
        assert found.inverted
    elif found.high < LEAVE_SHARE:
        assert not found.inverted
    else:
        assert found.inverted is previous


@given(overheads, st.integers(1, 50), st.randoms(use_true_random=False))
def test_the_order_of_the_runs_is_irrelevant(runs: list[RunOverhead], window: int, rng: random.Random) -> None:
    shuffled = rng.sample(runs, len(runs))
    assert detect(shuffled) == detect(runs)
    assert follow(shuffled, window) == follow(runs, window)


@given(overheads)
def test_a_window_that_never_rolls_ends_as_one_look_at_all_of_it(runs: list[RunOverhead]) -> None:
    followed = follow(runs, window=len(runs) + 1)
    assert followed == detect(runs, previous=followed.inverted or False)


@given(overheads, st.integers(2, 10))
def test_only_what_the_joules_are_to_one_another_matters(runs: list[RunOverhead], factor: int) -> None:
    scaled = [
        RunOverhead(
            run.namespace, run.flow, run.run_id, run.pool, run.started_wall_ns,
            None if run.tasks_uj is None else run.tasks_uj * factor,
            None if run.overhead_uj is None else run.overhead_uj * factor,
        )
        for run in runs
    ]  # fmt: skip
    plain, larger = detect(runs), detect(scaled)
    assert (plain.inverted, plain.runs) == (larger.inverted, larger.runs)
    assert plain.share == pytest.approx(larger.share)
    assert plain.low == pytest.approx(larger.low)


@pytest.mark.parametrize("count", [10, 20, 50])
def test_each_bound_holds_the_true_share_about_nineteen_times_in_twenty(count: int) -> None:
    rng, trials, below, above = random.Random(count), 1_000, 0, 0
    true_share = 0.4
    for _ in range(trials):
        runs = []
        for number in range(count):
            whole_uj = round(1e6 * rng.lognormvariate(0, 0.5))
            share = rng.betavariate(4, 6)
            own = round(whole_uj * share)
            runs.append(RunOverhead("n", "f", str(number), "p", number, whole_uj - own, own))
        found = detect(runs)
        assert found.low is not None
        assert found.high is not None
        below += true_share < found.low
        above += true_share > found.high
    # Three standard errors are 2.1 points; linearised bounds of few, uneven runs fall a little short.
    assert max(below, above) / trials <= 0.05 + (0.035 if count < 50 else 0.025)
