"""The budget penalty and the regimes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tao_flows.controller.decide import decide
from tao_flows.controller.model import Budget
from tao_flows.controller.parse import parse_request
from tao_flows.controller.penalty import penalty_of
from tao_flows.controller.regime import regime_of


@pytest.mark.parametrize(("spent_j", "penalty"), [(80.0, 1.1192), (100.0, 1.5), (0.0, 1.0000454), (1e6, 2.0)])
def test_the_papers_figures_come_out(spent_j: float, penalty: float) -> None:
    assert penalty_of(Budget(100.0, spent_j, 0.0), 0.0).penalty == pytest.approx(penalty, abs=5e-5)


def test_spent_reserved_and_predicted_joules_all_count() -> None:
    found = penalty_of(Budget(100.0, spent_j=50.0, reserved_j=20.0), 10.0)
    assert found.utilisation == pytest.approx(0.8)
    assert found.penalty == pytest.approx(1.1192, abs=5e-5)


def test_the_priority_is_the_weight_ratio_that_the_penalty_stands_for() -> None:
    found = penalty_of(Budget(100.0, 90.0, 0.0), 2.0)
    assert found.penalty is not None
    assert found.priority == pytest.approx((found.penalty - 1) / (2 - found.penalty))
    assert found.priority == pytest.approx(math.exp(10 * (0.92 - 1)))


def test_without_a_budget_nothing_is_penalised() -> None:
    assert penalty_of(None, 1e9) == (1.0, None, 0.0)


def test_unknown_joules_have_an_unknown_penalty() -> None:
    assert penalty_of(Budget(100.0, 80.0, 0.0), None) == (None, None, 0.0)


def decided(*pools: tuple[str, float, float], limit_j: float, **request: Any) -> dict[str, Any]:
    """The answer for pools of a name, joules and seconds, the first of them home, with 70 J of the budget in use."""
    whole = {
        "now": "2026-03-02T08:00:00Z",
        "task": {"key": "t", "home_pool": pools[0][0], "reroutable": True},
        "budget": {"limit_j": limit_j, "spent_j": 70, "reserved_j": 0},
        "pools": [
            {
                "pool_id": name, "zone": None, "online": True, "capacity_free": 1,
                "energy_j": {"mean": joules, "low": joules, "high": joules},
                "runtime_s": {"p50": seconds, "p95": seconds},
                "queue_wait_s": 0, "dispatch_energy_j": 0, "pue": 1, "price_per_h": 0, "power_w": None,
            }
            for name, joules, seconds in pools
        ],
        **request,
    }  # fmt: skip
    return decide(parse_request(whole)).to_json()


POOLS = (("fast", 30.0, 60.0), ("middle", 20.0, 80.0), ("frugal", 10.0, 120.0))


@pytest.mark.parametrize("limit_j", [1000.0, 120.0, 90.0, 60.0])
def test_where_energy_is_all_that_counts_the_sigmoid_ranks_as_joules_over_the_budget_do(limit_j: float) -> None:
    found = decided(*POOLS, limit_j=limit_j, preference={"energy": 1})
    by_score = [c["pool"] for c in sorted(found["candidates"], key=lambda c: c["score"])]
    joules = {name: joules for name, joules, _ in POOLS}
    penalties = {name: penalty_of(Budget(limit_j, 70.0, 0.0), joules[name]).penalty for name in joules}
    assert by_score == sorted(joules, key=lambda name: joules[name] / limit_j)
    assert by_score == sorted(joules, key=lambda name: penalties[name] or 0.0)
    unpenalised = decided(*POOLS, limit_j=1e18, preference={"energy": 1})
    assert by_score == [c["pool"] for c in sorted(unpenalised["candidates"], key=lambda c: c["score"])]


def test_beside_another_objective_the_sigmoid_decides_and_not_as_a_weight_that_grows_with_the_use_would() -> None:
    weights = {"energy": 1, "latency": 4}
    chosen = {limit_j: decided(*POOLS, limit_j=limit_j, preference=weights)["pool"] for limit_j in (1000.0, 85.0, 60.0)}
    assert chosen == {1000.0: "fast", 85.0: "middle", 60.0: "frugal"}
    by_linear = {
        limit_j: min(POOLS, key=lambda pool: (1 + (70 + pool[1]) / limit_j) * pool[1] / 30 + 4 * pool[2] / 60)[0]
        for limit_j in chosen
    }
    assert set(by_linear.values()) == {"fast"}


@pytest.mark.parametrize("limit_j", [5e-324, 1e-300, 1e-6])
def test_a_vanishing_limit_gives_finite_figures(limit_j: float) -> None:
    found = penalty_of(Budget(limit_j, 1e18, 1e18), 1e18)
    assert found.penalty == pytest.approx(2.0)
    assert found.utilisation is not None
    assert math.isfinite(found.utilisation)
    assert math.isfinite(found.priority)


@pytest.mark.parametrize(
    ("utilisation", "previous", "regime"),
    [
        (0.0, None, "standard"),
        (0.7999, None, "standard"),
        (0.8, None, "transition"),
        (0.9999, "standard", "transition"),
        (1.0, "standard", "inversion"),
        (0.77, "transition", "transition"),
        (0.76, "transition", "transition"),
        (0.7599, "transition", "standard"),
        (0.95, "inversion", "inversion"),
        (0.9499, "inversion", "transition"),
        (0.77, "inversion", "transition"),
        (0.5, "inversion", "standard"),
        (0.96, "transition", "transition"),
        (None, "inversion", None),
    ],
)
def test_a_regime_is_entered_at_its_threshold_and_left_at_95_percent_of_it(
    utilisation: float | None, previous: str | None, regime: str | None
) -> None:
    assert regime_of(utilisation, previous) == regime  # type: ignore[arg-type]
