"""What a task is expected to cost, from its settled runs, from other pools, or from a description."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from scipy import stats

from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import History, Ledger, Settled
from tao_flows.ledger.costs import _COSTS, recent_costs
from tao_flows.profiles import PROFILE_TTL_S, Described, Expectation, Profiles, expect, explored
from tao_flows.profiles.cache import COSTS_TTL_S, SETTLED_TTL_S
from tao_flows.profiles.cold import EXPLORE_RUNS, EXPLORE_SHARE
from tao_flows.profiles.interval import t95
from tao_flows.profiles.learned import Estimate
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState
from tao_flows.units import NS_PER_S

NOW_NS = 1_790_000_000 * NS_PER_S


def ran(energies_j: Sequence[float | None], sizes: Sequence[float | None] | None = None) -> History:
    """Runs in order of time, one a second, each taking a second for ten joules."""
    return History(
        tuple(
            Settled(
                None if energy_j is None else round(energy_j * 1e6),
                None if energy_j is None else energy_j / 10,
                None if sizes is None else sizes[number],
                number * NS_PER_S,
            )
            for number, energy_j in enumerate(energies_j)
        )
    )


def energy(history: History, size: float | None = None) -> Estimate:
    found = expect(history, size).energy
    assert found is not None
    return found


def test_a_task_that_never_ran_is_expected_to_cost_something_unknown() -> None:
    expected = expect(History(()))
    assert (expected.energy_j, expected.runtime_s, expected.runs, expected.fresh) == (None, None, 0, True)


def test_the_energy_is_the_mean_with_an_interval_about_all_that_was_seen() -> None:
    expected = expect(ran([3.0, 1.0, 5.0]))
    assert expected.energy_j is not None
    assert expected.energy_j.mean == 3.0
    assert expected.energy_j.low < 1.0
    assert expected.energy_j.high > 5.0
    assert (expected.runs, expected.fresh) == (3, False)


def test_the_runtime_is_the_median_and_a_95th_percentile_that_allows_for_few_runs() -> None:
    one, ten, many = (expect(ran([40.0] * count)).runtime_s for count in (1, 10, 19))
    assert one is not None
    assert ten is not None
    assert one.p50 == ten.p50 == 4.0
    assert one.p95 > ten.p95 > 4.0
    assert many == PredictedRuntime(4.0, 4.0)


def test_the_interval_narrows_with_every_run_that_costs_the_same() -> None:
    found = [energy(ran([10.0] * count)) for count in range(1, 20)]
    widths = [each.high / each.low for each in found]
    assert all(wider > narrower for wider, narrower in pairwise(widths))
    assert widths[-1] == 1.0


def test_of_many_runs_the_interval_is_between_those_of_rank_one_in_twenty() -> None:
    found = energy(ran(random.Random(1).sample(range(1, 40), 39)))
    assert (found.low, found.p50, found.high) == (2.0, 20.0, 38.0)


def test_runs_without_an_energy_tell_only_the_runtime() -> None:
    history = History((Settled(None, 3.0), Settled(None, 3.0)))
    expected = expect(history)
    assert expected.energy is None
    assert expected.runtime is not None
    assert expected.fresh


def test_the_percentiles_of_students_t_are_those_of_the_tables() -> None:
    exact = [float(stats.t.ppf(0.95, degrees)) for degrees in range(2, 21)]
    assert [t95(degrees) for degrees in range(2, 21)] == pytest.approx(exact, abs=6e-4)
    assert t95(10_000) == t95(20) == pytest.approx(float(stats.norm.ppf(0.95)), rel=0.05)


def test_joules_are_learned_as_a_fixed_part_and_a_part_a_unit() -> None:
    sizes = [10.0, 20.0, 30.0, 40.0, 50.0, 25.0, 35.0]
    history = ran([100 + 2 * size for size in sizes], sizes)
    assert energy(history, 45.0).mean == pytest.approx(190.0)
    assert energy(history, 45.0).p50 == pytest.approx(190.0)
    runtime = expect(history, 15.0).runtime
    assert runtime is not None
    assert runtime.mean == pytest.approx(13.0)


def test_one_wild_run_in_four_does_not_bend_the_line() -> None:
    sizes = [float(size) for size in range(1, 17)]
    wild = [500.0 if number % 4 == 3 else 3 * size for number, size in enumerate(sizes)]
    assert energy(ran(wild, sizes), 8.0).p50 == pytest.approx(24.0, rel=0.3)


def test_beyond_the_sizes_seen_the_interval_widens_by_how_far_beyond_it_is() -> None:
    sizes = [float(size) for size in range(1, 101)]
    history = ran([2 * size for size in sizes], sizes)
    edge, beyond = energy(history, 100.0), energy(history, 400.0)
    assert beyond.mean == pytest.approx(4 * edge.mean)
    assert beyond.low <= edge.mean, "it may grow no further"
    assert beyond.high >= 16 * edge.mean, "it may grow with the square"
    small = energy(history, 0.1)
    assert small.high / small.low == pytest.approx(100.0)


def test_a_cost_seen_at_one_size_is_taken_for_a_rate() -> None:
    history = ran([50.0] * 4, [10.0] * 4)
    assert energy(history, 20.0).mean == pytest.approx(100.0)
    assert energy(history, 20.0).low < 50.0


def test_a_cost_that_falls_with_size_is_level() -> None:
    sizes = [float(size) for size in range(1, 11)]
    history = ran([100 - size for size in sizes], sizes)
    assert energy(history, 100.0).p50 == pytest.approx(94.5, rel=0.05)


def test_without_a_size_asked_for_or_told_all_runs_count_alike() -> None:
    assert energy(ran([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])).mean == 2.0
    assert energy(ran([1.0, 2.0, 3.0]), 50.0).mean == 2.0
    for unusable in (0.0, -1.0, float("nan"), float("inf")):
        assert energy(ran([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), unusable).mean == 2.0


def noisy(rng: random.Random, level_j: float, count: int, scatter: float = 0.1) -> list[float]:
    return [level_j * rng.lognormvariate(0, scatter) for _ in range(count)]


@pytest.mark.parametrize(("before", "needed"), [(46, 4), (20, 6), (12, 7)])
def test_a_doubled_energy_makes_only_the_runs_after_it_count(before: int, needed: int) -> None:
    rng = random.Random(before)
    for factor in (2.0, 0.5):
        found = energy(ran(noisy(rng, 100, before) + noisy(rng, 100 * factor, needed)))
        # A run before the change that is as extreme by chance may be counted with those after it.
        assert before - 2 <= found.dropped <= before
        assert found.p50 == pytest.approx(100 * factor, rel=0.25)


def test_of_two_changes_the_last_one_counts() -> None:
    rng = random.Random(2)
    found = energy(ran(noisy(rng, 100, 18) + noisy(rng, 300, 16) + noisy(rng, 20, 16)))
    assert (found.runs, found.dropped) == (16, 34)


def test_a_steady_energy_is_seldom_taken_for_a_changed_one() -> None:
    rng = random.Random(3)
    for count in (10, 20, 50):
        cut = sum(energy(ran(noisy(rng, 100, count, 0.4))).dropped > 0 for _ in range(400))
        assert cut <= 8, f"{cut} of 400 steady histories of {count} runs"


def test_one_wild_run_is_no_change() -> None:
    assert energy(ran([10.0] * 25 + [1_000.0] + [10.0] * 24)).dropped == 0


def test_a_few_percent_are_no_change() -> None:
    rng = random.Random(4)
    found = energy(ran(noisy(rng, 100, 25, 0.001) + noisy(rng, 105, 25, 0.001)))
    assert found.dropped == 0


def test_what_began_at_one_moment_has_no_before_and_after() -> None:
    runs = [Settled(round(energy_j * 1e6), None, None, 5) for energy_j in [1.0] * 10 + [9.0] * 10]
    assert energy(History(tuple(runs))).dropped == 0


def test_a_change_is_told_from_a_change_of_size() -> None:
    sizes = [float(1 + number % 5) for number in range(20)] + [float(50 + number % 5) for number in range(20)]
    rng = random.Random(5)
    costs = [10 * size * rng.lognormvariate(0, 0.05) for size in sizes]
    assert energy(ran(costs, sizes), 20.0).dropped == 0
    doubled = costs[:30] + [2 * cost for cost in costs[30:]]
    found = energy(ran(doubled, sizes), 52.0)
    assert 28 <= found.dropped <= 30
    assert found.p50 == pytest.approx(1040.0, rel=0.1)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    is_postgres = request.param == "postgres"
    ledger = open_ledger(
        str(request.getfixturevalue("postgres_url")) if is_postgres else f"sqlite:///{tmp_path}/ledger.db"
    )
    yield ledger
    ledger.close()


def settle(
    ledger: Ledger, task: str, pool: str, energy_j: float, seconds: float = 2.0, size: float | None = None
) -> None:
    number = len(ledger.history(task, pool, 1_000).runs)
    value_uj = round(energy_j * 1e6)
    figure = Figure(value_uj, value_uj, value_uj, Quality.ATTRIBUTED, ("rapl",))
    started_ns = NOW_NS + number * NS_PER_S
    cpu = CpuTime(1.0, "perf", covers_children=True)
    ledger.put_task(
        TaskRecord(
            key=RunKey("prefect", "default", "nightly", "run", task, f"{pool}-{number}", 1),
            segment=Segment("host", "boot", 1, 1),
            state=TaskState.COMPLETED,
            started_wall_ns=started_ns,
            pool=pool,
            ended_wall_ns=started_ns + round(seconds * NS_PER_S),
            measurement=Measurement(task, started_ns, seconds, cpu, figure, (), Account()),
            size=size,
        )
    )


def test_a_profile_is_read_again_only_when_it_is_old(ledger: Ledger) -> None:
    profiles = Profiles(ledger)
    settle(ledger, "train", "home", 10.0, size=1.0)
    assert profiles.of("train", "home", 0).runs == 1
    settle(ledger, "train", "home", 10.0, size=2.0)
    just_before_ns = round(PROFILE_TTL_S * NS_PER_S) - 1
    assert profiles.of("train", "home", just_before_ns).runs == 1
    assert profiles.of("train", "home", just_before_ns, 5.0).runs == 1
    assert profiles.of("train", "away", just_before_ns).runs == 0
    assert profiles.of("train", "home", just_before_ns + 1).runs == 2


def test_a_run_that_settles_in_this_process_shows_a_second_later(ledger: Ledger) -> None:
    profiles = Profiles(ledger)
    assert profiles.of("train", "home", 0).runs == 0
    settle(ledger, "train", "home", 10.0)
    profiles.settled("train", "home")
    due_ns = round(SETTLED_TTL_S * NS_PER_S)
    assert profiles.of("train", "home", due_ns - 1).runs == 0
    assert profiles.of("train", "home", due_ns).runs == 1
    settle(ledger, "train", "home", 10.0)
    assert profiles.of("train", "home", 2 * due_ns).runs == 1, "nothing more was said to have settled"


def test_many_threads_may_ask_for_profiles_at_once(ledger: Ledger) -> None:
    settle(ledger, "train", "home", 10.0)
    profiles, found = Profiles(ledger), []
    threads = [
        threading.Thread(target=lambda: found.append(profiles.of("train", "home", 0).energy_j)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8


POOLS = {"home": Described(), "away": Described(PredictedEnergy(7.0, 6.0, 8.0), PredictedRuntime(3.0, 4.0))}


def test_a_task_that_never_ran_anywhere_costs_what_the_pool_is_described_with(ledger: Ledger) -> None:
    among = Profiles(ledger).among("train", POOLS, 0)
    assert among["home"] == Expectation()
    assert among["away"].energy_j == PredictedEnergy(7.0, 6.0, 8.0)
    assert among["away"].runtime_s == PredictedRuntime(3.0, 4.0)
    assert among["away"].energy is not None
    assert (among["away"].energy.basis, among["away"].fresh) == ("default", True)


def test_runs_in_another_pool_are_borrowed_before_a_description(ledger: Ledger) -> None:
    for _ in range(5):
        settle(ledger, "train", "home", 10.0)
    among = Profiles(ledger).among("train", POOLS, 0)
    own, borrowed = among["home"].energy, among["away"].energy
    assert own is not None
    assert borrowed is not None
    assert (own.basis, own.runs) == ("runs", 5)
    assert (borrowed.basis, borrowed.donor, borrowed.runs, borrowed.scaled_by) == ("other_pool", "home", 0, 0)
    assert borrowed.mean == own.mean
    assert borrowed.high / borrowed.low > own.high / own.low
    assert among["away"].fresh


def test_what_is_borrowed_is_scaled_by_how_the_pools_compare_over_other_tasks(ledger: Ledger) -> None:
    settle(ledger, "train", "home", 10.0, seconds=2.0)
    for task, at_home_j in (("embed", 4.0), ("index", 100.0), ("clean", 7.0)):
        settle(ledger, task, "home", at_home_j, seconds=8.0)
        settle(ledger, task, "away", at_home_j * 3, seconds=2.0)
    expected = Profiles(ledger).among("train", POOLS, 0)["away"]
    assert expected.energy is not None
    assert expected.runtime is not None
    assert expected.energy.mean == pytest.approx(30.0)
    assert expected.runtime.mean == pytest.approx(0.5)
    assert expected.energy.scaled_by == expected.runtime.scaled_by == 3


def test_the_pool_whose_likeness_is_known_lends_before_the_one_that_is_known_best(ledger: Ledger) -> None:
    for _ in range(4):
        settle(ledger, "train", "busy", 50.0)
    settle(ledger, "train", "home", 10.0)
    settle(ledger, "embed", "home", 4.0)
    settle(ledger, "embed", "away", 8.0)
    borrowed = Profiles(ledger).among("train", {**POOLS, "busy": Described()}, 0)["away"].energy
    assert borrowed is not None
    assert (borrowed.donor, borrowed.mean) == ("home", pytest.approx(20.0))


def test_what_pools_cost_beside_one_another_is_kept_for_a_while(ledger: Ledger) -> None:
    settle(ledger, "train", "home", 10.0)
    profiles = Profiles(ledger)
    assert profiles.among("train", POOLS, 0)["away"].energy_j.mean == 10.0
    settle(ledger, "embed", "home", 4.0)
    settle(ledger, "embed", "away", 8.0)
    due_ns = round(COSTS_TTL_S * NS_PER_S)
    assert profiles.among("train", POOLS, due_ns - 1)["away"].energy_j.mean == 10.0
    assert profiles.among("train", POOLS, due_ns)["away"].energy_j.mean == 20.0


def test_recent_costs_are_those_of_the_newest_records(ledger: Ledger) -> None:
    for number in range(6):
        settle(ledger, "train", "home", float(number))
    assert recent_costs(ledger, recent=2) == [("train", "home", 4_500_000, 2.0)]
    assert recent_costs(ledger) == [("train", "home", 2_500_000, 2.0)]


def test_recent_costs_are_found_by_the_index_on_time(tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.transaction(write=False) as transaction:
        plan = transaction.execute("EXPLAIN QUERY PLAN " + _COSTS, recent=2, method="m")
    steps = [row[3] for row in plan]
    assert any("tasks_started" in step for step in steps), steps
    assert not any("ORDER BY" in step for step in steps), steps
    ledger.close()


def known(runs: int) -> Expectation:
    return Expectation(Estimate(10.0, 10.0, 4.0, 25.0, runs), Estimate(2.0, 2.0, 1.0, 5.0, runs))


def test_a_little_known_pool_is_tried_by_a_share_of_the_decisions() -> None:
    tried = [explored(known(1), f"run-{number}", "away").exploring for number in range(2_000)]
    assert sum(tried) / len(tried) == pytest.approx(EXPLORE_SHARE, abs=0.025)


def test_exploring_takes_the_lower_bound_of_the_energy_and_leaves_the_runtime() -> None:
    expectation = explored(known(0), "run-1", "away", share=1.0)
    assert expectation.energy_j == PredictedEnergy(4.0, 4.0, 25.0)
    assert expectation.runtime == known(0).runtime
    assert expectation.exploring


def test_the_same_request_explores_the_same() -> None:
    first = [explored(known(0), f"run-{number}", "away") for number in range(100)]
    assert first == [explored(known(0), f"run-{number}", "away") for number in range(100)]
    assert first != [explored(known(0), f"run-{number}", "other") for number in range(100)]


def test_a_pool_that_is_known_or_wholly_unknown_is_not_explored() -> None:
    assert explored(known(EXPLORE_RUNS), "run-1", "away", share=1.0) == known(EXPLORE_RUNS)
    nothing = replace(known(0), energy=None)
    assert explored(nothing, "run-1", "away", share=1.0) == nothing
    assert explored(known(0), "run-1", "away", share=0.0) == known(0)
