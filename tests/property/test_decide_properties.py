"""Laws of the controller, over random requests. The references here are written from the formulas alone."""

from __future__ import annotations

import copy
import json
import math
from datetime import timedelta
from typing import Any

import pytest
from decide_requests import NOW, amounts, answer, better, law, of, requests, seconds_of, wide
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tao_flows.controller.decide import MOST_DOMINATORS, decide
from tao_flows.controller.model import Budget
from tao_flows.controller.parse import parse_request
from tao_flows.controller.penalty import P_MAX, penalty_of
from tao_flows.controller.regime import regime_of


@given(requests(unknowns=True, most=8))
@settings(law, max_examples=1200)
def test_pareto_ranks_are_those_of_peeling_front_after_front(request: dict[str, Any]) -> None:
    left = [c for c in answer(request)["candidates"] if c["feasible"]]
    rank = 0
    while left:
        front = [c for c in left if not any(better(other, c) for other in left)]
        assert all(c["pareto_rank"] == rank for c in front)
        left = [c for c in left if c not in front]
        rank += 1


@given(requests(unknowns=True, most=8))
@law
def test_dominators_stand_on_the_front_and_do_dominate(request: dict[str, Any]) -> None:
    candidates = answer(request)["candidates"]
    by_id = {f"{c['pool']}@{c['start']}": c for c in candidates}
    for c in candidates:
        assert bool(c["dominated_by"]) == bool(c["pareto_rank"])
        assert len(c["dominated_by"]) <= MOST_DOMINATORS
        for name in c["dominated_by"]:
            assert by_id[name]["pareto_rank"] == 0
            assert better(by_id[name], c)


@given(requests(unknowns=True))
@settings(law, max_examples=1200)
def test_the_chosen_is_feasible_whenever_one_is_and_has_rank_0_and_the_least_score(request: dict[str, Any]) -> None:
    decision = answer(request)
    feasible = [c for c in decision["candidates"] if c["feasible"]]
    for c in decision["candidates"]:
        assert c["feasible"] == all(constraint["ok"] for constraint in c["constraints"])
    if feasible:
        chosen = of(decision, decision["pool"], decision["start"])
        assert chosen is decision["candidates"][0]
        assert chosen["feasible"]
        assert chosen["pareto_rank"] == 0
        assert decision["violations"] == []
        if chosen["score"] is not None:
            assert chosen["score"] == min(c["score"] for c in feasible if c["pareto_rank"] == 0)


HARD = {"online", "trust", "reroutable", "zone", "capabilities", "budget_ceiling"}


def hard(constraint_id: str) -> bool:
    return constraint_id.partition(":")[0] in HARD


@given(requests(unknowns=True))
@law
def test_where_nothing_is_feasible_the_least_soft_violation_runs_if_asked_and_a_hard_one_never(
    request: dict[str, Any],
) -> None:
    for pool in request["pools"]:
        pool.update(power_w=2.0 + (pool["power_w"] or 0.0), power_cap_w=1.0)
    decision = answer(request)
    scale = 1.0
    if request["task"]["deadline"]:
        scale = max(seconds_of(request["task"]["deadline"]) - seconds_of(request["task"]["ready_at"]), 1.0)
    excess = {}
    for c in decision["candidates"]:
        assert not c["feasible"]
        failed = {k["id"]: k for k in c["constraints"] if not k["ok"]}
        if not any(map(hard, failed)):
            late_s = 0.0
            if "deadline" in failed:
                # What is unknown of it counts as nothing.
                slack_s = failed["deadline"]["slack"]
                late_s = -(seconds_of(request["task"]["deadline"]) if slack_s is None else slack_s)
            excess[c["pool"]] = -failed["power_cap"]["slack"] + late_s / scale
    assert len(decision["candidates"]) == len(request["pools"])
    if excess and request["on_infeasible"] == "run":
        least, home = min(excess.values()), request["task"]["home_pool"]
        assert excess[decision["pool"]] == pytest.approx(least)
        assert decision["pool"] == home or excess.get(home) != least
        failed_ids = [k["id"] for k in of(decision, decision["pool"])["constraints"] if not k["ok"]]
        assert [v["id"] for v in decision["violations"]] == failed_ids
    else:
        assert (decision["action"], decision["pool"]) == ("deny", None)
        assert decision["violations"]


@given(requests(unknowns=True), st.randoms(use_true_random=False))
@law
def test_the_order_of_pools_zones_and_budgets_is_irrelevant(request: dict[str, Any], random: Any) -> None:
    before = answer(request)
    shuffled = copy.deepcopy(request)
    random.shuffle(shuffled["pools"])
    if isinstance(shuffled.get("budget"), list):
        random.shuffle(shuffled["budget"])
    for name, signal in shuffled["signals"].items():
        shuffled["signals"][name] = dict(reversed(signal.items()))
    assert answer(shuffled) == before


@given(requests(unknowns=True))
@law
def test_the_same_request_has_the_same_answer_also_when_written_and_read_back(request: dict[str, Any]) -> None:
    parsed = parse_request(request)
    again = parse_request(json.loads(json.dumps(parsed.to_json(), allow_nan=False)))
    assert again == parsed
    assert decide(again) == decide(parsed) == decide(parsed)


@given(
    requests(),
    st.sampled_from(["energy_j", "price_per_h", "dispatch_energy_j"]),
    st.sampled_from([0.0, 0.1, 0.5, 0.999]),
)
@settings(law, max_examples=1500)
def test_making_the_chosen_pool_cheaper_never_unchooses_it(request: dict[str, Any], what: str, factor: float) -> None:
    """Cheaper is: less energy of the task, less of its dispatch, or a lower price by the hour. The start may change.

    Exempt is the home pool chosen for later, where electricity has a price: its own cost now is what all costs are
    measured by, and a smaller one makes the same money weigh more.
    """
    before = answer(request)
    assume(before["action"] != "deny")
    at_home = before["pool"] == request["task"]["home_pool"]
    assume(not (at_home and before["action"] == "defer" and "price_per_kwh" in request["signals"]))
    cheaper = copy.deepcopy(request)
    pool = next(p for p in cheaper["pools"] if p["pool_id"] == before["pool"])
    if what == "energy_j":
        pool["energy_j"] = {name: value * factor for name, value in pool["energy_j"].items()}
    else:
        pool[what] *= factor
    assert answer(cheaper)["pool"] == before["pool"]


@given(requests(), st.integers(0, 5), st.tuples(amounts, amounts, amounts), st.sampled_from("0z"))
@settings(law, max_examples=1200)
def test_adding_a_dominated_pool_never_changes_the_choice(
    request: dict[str, Any], index: int, worse: tuple[float, float, float], name: str
) -> None:
    """Dominated is a pool of which every candidate is."""
    before = answer(request)
    feasible = [c for c in before["candidates"] if c["feasible"]]
    assume(feasible)
    copied = feasible[index % len(feasible)]["pool"]
    added = copy.deepcopy(next(p for p in request["pools"] if p["pool_id"] == copied))
    added["pool_id"] = name
    added["energy_j"] = {key: value + worse[0] for key, value in added["energy_j"].items()}
    added["price_per_h"] += worse[1]
    added["queue_wait_s"] += worse[2]
    after = answer({**request, "pools": [*request["pools"], added]})
    newcomers = [c for c in after["candidates"] if c["pool"] == name]
    assume(all(any(better(c, newcomer) for c in feasible) for newcomer in newcomers))
    assert [after[key] for key in ("action", "pool", "start")] == [before[key] for key in ("action", "pool", "start")]
    for c in before["candidates"]:
        assert of(after, c["pool"], c["start"])["score"] == c["score"]


@given(requests(unknowns=True))
@settings(law, max_examples=1000)
def test_an_unknown_objective_is_null_everywhere_weighs_nothing_and_nothing_waits(request: dict[str, Any]) -> None:
    decision = answer(request)
    names = {"energy": "energy_j", "carbon": "carbon_g", "cost": "cost", "latency": "finish_s"}
    unknown = set()
    for weight, objective in names.items():
        nulls = {c["objectives"][objective] is None for c in decision["candidates"]}
        assert len(nulls) == 1
        assert (weight in decision["weights"]) == (nulls == {False})
        unknown |= {objective} if nulls == {True} else set()
    if "price_per_kwh" not in request["signals"] and all(pool["price_per_h"] is None for pool in request["pools"]):
        unknown.discard("cost")  # nobody asks for it
    if unknown:
        assert {c["start"] for c in decision["candidates"]} == {"2026-03-02T08:00:00Z"}


@given(requests(unknowns=True))
@law
def test_every_figure_is_finite_and_every_slack_agrees_with_its_verdict(request: dict[str, Any]) -> None:
    decision = answer(request)
    json.dumps(decision, allow_nan=False)
    if "budget" not in request:
        assert decision["budget"] is None
        assert (decision["penalty"], decision["utilisation"], decision["regime"]) == (1.0, None, None)
    for c in decision["candidates"]:
        for constraint in c["constraints"]:
            if constraint["slack"] is not None:
                assert constraint["ok"] == (constraint["slack"] >= 0)


extreme = st.sampled_from([0.0, 1e-300, 1e-9, 1.0, 1e9, 1e18])


@given(requests(), st.lists(extreme, min_size=9, max_size=9))
@law
def test_extreme_figures_overflow_nothing(request: dict[str, Any], values: list[float]) -> None:
    for pool in request["pools"]:
        energy, runtime, pool["queue_wait_s"], pool["price_per_h"], pool["dispatch_energy_j"] = values[:5]
        pool["energy_j"] = {"mean": energy, "low": 0, "high": 1e18}
        pool["runtime_s"] = {"p50": runtime, "p95": 1e18}
        pool["pue"] = 1e18
    request["signal_meta"]["margin"] = values[8]
    request["budget"] = {"limit_j": max(values[5], 5e-324), "spent_j": values[6], "reserved_j": values[7]}
    request["task"]["max_defer_s"] = values[8]
    request["preference"] = {"energy": 1e18, "carbon": 1e18, "cost": 1e18, "latency": 1e18}
    decision = answer(request)
    json.dumps(decision, allow_nan=False)
    assert decision["regime"] in ("standard", "transition", "inversion")
    assert all(math.isfinite(c["score"]) for c in decision["candidates"])


@given(st.integers(-50, 0), st.lists(st.tuples(st.integers(1, 60), amounts), max_size=5), amounts,
       st.integers(0, 60), st.integers(1, 120))  # fmt: skip
@law
def test_carbon_is_the_sum_of_the_signal_second_by_second(
    first: int, later: list[tuple[int, float]], value: float, wait_s: int, runtime_s: int
) -> None:
    signal, at = [(first, value)], first
    for gap, next_value in later:
        at += gap
        signal.append((at, next_value))
    request = {
        "now": NOW.isoformat(),
        "task": {"key": "t", "home_pool": "a"},
        "pools": [
            {
                "pool_id": "a", "zone": "DE", "online": True, "capacity_free": 1,
                "energy_j": {"mean": 3.6e6, "low": 0, "high": 4e6}, "runtime_s": {"p50": runtime_s, "p95": runtime_s},
                "queue_wait_s": wait_s, "dispatch_energy_j": 0, "pue": 1, "price_per_h": 0, "power_w": None,
            }
        ],
        "signals": {
            "carbon_g_per_kwh": {
                "DE": [{"start": (NOW + timedelta(seconds=s)).isoformat(), "value": v} for s, v in signal]
            }
        },
    }  # fmt: skip
    by_second = [[v for s, v in signal if s <= second][-1] for second in range(wait_s, wait_s + runtime_s)]
    found = answer(request)["candidates"][0]["objectives"]["carbon_g"]
    assert found == pytest.approx(math.fsum(by_second) / runtime_s, rel=1e-9, abs=1e-12)


@given(requests())
@law
def test_scores_and_penalties_are_those_of_the_formula(request: dict[str, Any]) -> None:
    request["signals"] = {"carbon_g_per_kwh": {"DE": [{"start": NOW.isoformat(), "value": 400.0}],
                                               "FR": [{"start": NOW.isoformat(), "value": 50.0}]}}  # fmt: skip
    decision = answer(request)
    budgets, weights = request.get("budget") or [], decision["weights"]
    budgets = budgets if isinstance(budgets, list) else [budgets]
    by_id = {pool["pool_id"]: pool for pool in request["pools"]}

    def figures(pool: dict[str, Any]) -> tuple[float, float, float, float]:
        energy_j = pool["pue"] * (pool["energy_j"]["mean"] + pool["dispatch_energy_j"])
        grams = energy_j / 3.6e6 * (400.0 if pool["zone"] == "DE" else 50.0)
        median_s = pool["runtime_s"]["p50"]
        finish_s = request["engine_latency_s"] + pool["queue_wait_s"] + median_s
        return energy_j, grams, pool["price_per_h"] * median_s / 3600, finish_s

    home = by_id[request["task"]["home_pool"]]
    energy_ref, carbon_ref, cost_ref, _ = figures(home)
    energy_ref = max(energy_ref, 1e-3)
    carbon_ref = max(carbon_ref, energy_ref / 3.6e6 * 10)
    cost_ref = max(cost_ref, 0.1 * max(home["runtime_s"]["p50"], 1) / 3600)
    slack = request["task"]["max_defer_s"]
    if request["task"]["deadline"]:
        until = seconds_of(request["task"]["deadline"]) - seconds_of(request["task"]["ready_at"])
        keep_s = request["engine_latency_s"] + request["safety_s"] + home["queue_wait_s"] + home["runtime_s"]["p95"]
        slack = min(slack, until - keep_s)
    slack = max(slack, home["runtime_s"]["p95"], 1.0)
    for candidate in decision["candidates"]:
        pool = by_id[candidate["pool"]]
        energy_j, grams, cost, finish_s = figures(pool)
        g, penalty = 0.0, 1.0
        if budgets:
            task_j = pool["energy_j"]["mean"] + pool["dispatch_energy_j"]
            u = max((budget["spent_j"] + budget["reserved_j"] + task_j) / budget["limit_j"] for budget in budgets)
            penalty = 1 + 1 / (1 + math.exp(-10 * (u - 1))) if u < 5 else 2.0
            g = math.exp(min(10 * (u - 1), 30))
        expected = (
            (1 + g) * weights["energy"] * energy_j / energy_ref
            + weights["carbon"] * grams / carbon_ref
            + weights["cost"] * cost / cost_ref
            + weights["latency"] * finish_s / slack
        )
        assert candidate["score"] == pytest.approx(expected, rel=1e-9, abs=1e-300)
        if candidate["pool"] == decision["pool"]:
            assert decision["penalty"] == pytest.approx(penalty)
            assert (decision["utilisation"] is None) == (not budgets)


@given(st.floats(1e-3, 1e6), wide, wide, wide, wide)
@law
def test_the_penalty_rises_with_use_and_stays_between_1_and_its_maximum(
    limit_j: float, spent_j: float, reserved_j: float, task_j: float, more_j: float
) -> None:
    budget = Budget(limit_j, spent_j, reserved_j)
    one, other = penalty_of(budget, task_j), penalty_of(budget, task_j + more_j)
    assert one.penalty is not None
    assert other.penalty is not None
    assert 1.0 <= one.penalty <= other.penalty <= P_MAX
    assert 0.0 < one.priority <= other.priority < math.inf


@given(st.floats(0, 3), st.floats(0, 3), st.sampled_from(["standard", "transition", "inversion"]))
@law
def test_regimes_rise_with_use_and_once_settled_stay(one: float, other: float, previous: Any) -> None:
    order = ["standard", "transition", "inversion", None]
    low, high = sorted((one, other))
    assert order.index(regime_of(low, previous)) <= order.index(regime_of(high, previous))
    settled = regime_of(one, previous)
    assert regime_of(one, settled) == settled
