"""What a task is expected to cost, from its settled runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.ledger.base import History
from tao_flows.profiles import expect


def test_a_task_that_never_ran_is_expected_to_cost_something_unknown() -> None:
    expected = expect(History((), ()))
    assert (expected.energy_j, expected.runtime_s, expected.runs) == (None, None, 0)


def test_the_energy_is_the_mean_with_the_extremes_that_were_seen() -> None:
    expected = expect(History((3_000_000, 1_000_000, 5_000_000), ()))
    assert expected.energy_j == PredictedEnergy(mean=3.0, low=1.0, high=5.0)
    assert expected.runtime_s is None
    assert expected.runs == 3


def test_the_runtime_is_the_median_and_the_95th_percentile_that_were_seen() -> None:
    assert expect(History((), (4.0,))).runtime_s == PredictedRuntime(p50=4.0, p95=4.0)
    hundred = tuple(float(second) for second in range(100, 0, -1))
    assert expect(History((), hundred)).runtime_s == PredictedRuntime(p50=50.0, p95=95.0)
    assert expect(History((), (1.0, 2.0))).runtime_s == PredictedRuntime(p50=1.0, p95=2.0)


@given(st.lists(st.integers(0, 10**15), min_size=1), st.lists(st.floats(0, 1e9), min_size=1))
def test_an_expectation_lies_within_what_was_seen_and_does_not_depend_on_its_order(
    energies_uj: list[int], runtimes_s: list[float]
) -> None:
    expected = expect(History(tuple(energies_uj), tuple(runtimes_s)))
    energy, runtime = expected.energy_j, expected.runtime_s
    assert energy is not None
    assert runtime is not None
    assert min(energies_uj) / 1e6 == energy.low <= energy.mean <= energy.high == max(energies_uj) / 1e6
    assert runtime.p50 <= runtime.p95
    assert {runtime.p50, runtime.p95} <= set(runtimes_s)
    assert expect(History(tuple(energies_uj[::-1]), tuple(runtimes_s[::-1]))) == expected
