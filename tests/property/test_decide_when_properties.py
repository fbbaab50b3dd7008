"""Laws of when a task starts, over random requests, against a plain search of the whole grid."""

from __future__ import annotations

import copy
import math
from datetime import datetime, timedelta
from typing import Any

import moocore
import numpy as np
import pytest
from decide_requests import NOW, after, answer, known, law, of, requests, seconds_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from whole_grid import KWH, as_set, closed, every_candidate, front, latest_s, objectives

from tao_flows.controller.choose import choose
from tao_flows.controller.decide import decide
from tao_flows.controller.model import iso
from tao_flows.controller.parse import parse_request


@given(requests(most=4, least_price=-9.0))
@settings(law, max_examples=1500)
def test_the_front_of_what_is_kept_is_the_front_of_the_whole_grid(request: dict[str, Any]) -> None:
    decision = answer(request)
    whole = every_candidate(request, decision)
    kept = [c for c in decision["candidates"] if c["feasible"]]
    assert as_set(kept) <= as_set(whole)
    if any(decision["weights"].values()):
        assert as_set([c for c in kept if c["pareto_rank"] == 0]) == as_set(front(whole))


@given(requests(most=4))
@settings(law, max_examples=400)
def test_coverage_and_hypervolume_of_the_exact_front_are_1(request: dict[str, Any]) -> None:
    decision = answer(request)
    whole = every_candidate(request, decision)
    assume(len(whole) > 1)
    points = np.array([known(c) for c in whole])
    ours = np.array([known(c) for c in decision["candidates"] if c["pareto_rank"] == 0])
    exact = points[moocore.is_nondominated(points, keep_weakly=True)]
    covered = [any((point == one).all() for one in ours) for point in exact]
    assert sum(covered) / len(covered) == 1.0
    # Scaled to the unit cube, as one of the objectives may be a million times another.
    low, span = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-300)
    reference = np.full(points.shape[1], 1.1)
    volumes = [moocore.hypervolume((some - low) / span, ref=reference) for some in (ours, points)]
    assert volumes[0] / volumes[1] == pytest.approx(1.0, rel=1e-12)


@given(requests(unknowns=True, most=8, least_price=-9.0))
@settings(law, max_examples=3000)
def test_the_choice_alone_is_that_of_the_decision_and_the_first_of_its_candidates(request: dict[str, Any]) -> None:
    parsed = parse_request(request)
    choice, decision = choose(parsed), decide(parsed)
    for name in ("action", "pool", "start", "penalty", "utilisation", "regime", "budget", "latest_start"):
        assert getattr(choice, name) == getattr(decision, name), name
    if choice.action != "deny":
        best = decision.candidates[0]
        assert (best.pool, best.start, best.score) == (choice.pool, choice.start, choice.score)


@given(requests(most=5, least_price=-9.0))
@settings(law, max_examples=1500)
def test_the_choice_is_the_least_score_on_the_front_of_the_whole_grid(request: dict[str, Any]) -> None:
    decision = answer(request)
    whole = front(every_candidate(request, decision))
    assume(whole)
    assume(any(decision["weights"].values()))
    home = next(pool for pool in request["pools"] if pool["pool_id"] == request["task"]["home_pool"])
    by_id = {pool["pool_id"]: pool for pool in request["pools"]}
    at_home = objectives(request, home, 0.0)
    reference_j = max(at_home["energy_j"] or 0.0, 1e-3)
    since_ready_s = latest_s(request, home) - seconds_of(request["task"]["ready_at"])
    reference = {
        "energy": reference_j,
        "carbon": max(at_home["carbon_g"] or 0.0, reference_j / KWH * 10),
        "cost": max(at_home["cost"] or 0.0, 0.1 * max(home["runtime_s"]["p50"], 1) / 3600),
        "latency": max(since_ready_s, home["runtime_s"]["p95"], 1.0),
    }
    budgets = request.get("budget") or []

    def score(candidate: dict[str, Any]) -> float:
        pool = by_id[candidate["pool"]]
        task_j = pool["energy_j"]["mean"] + pool["dispatch_energy_j"]
        uses = [
            (budget["spent_j"] + budget["reserved_j"] + task_j) / budget["limit_j"]
            for budget in (budgets if isinstance(budgets, list) else [budgets])
        ]
        priority = math.exp(min(10 * (max(uses) - 1), 30)) if uses else 0.0
        parts = zip(reference, known(candidate), strict=True)
        weights = {**decision["weights"], "energy": decision["weights"]["energy"] * (1 + priority)}
        return sum(weights[name] * value / reference[name] for name, value in parts)

    chosen = next(c for c in whole if (c["pool"], c["start_s"]) == (decision["pool"], seconds_of(decision["start"])))
    least = min(map(score, whole))
    assert score(chosen) == pytest.approx(least, rel=1e-9, abs=1e-9 * max(abs(score(c)) for c in whole))


@given(requests(least_price=-9.0))
@settings(law, max_examples=1500)
def test_no_start_is_later_than_the_latest_or_than_the_task_may_wait_and_none_is_before_now(
    request: dict[str, Any],
) -> None:
    decision = answer(request)
    by_id = {pool["pool_id"]: pool for pool in request["pools"]}
    ready_s, most_s = seconds_of(request["task"]["ready_at"]), request["task"]["max_defer_s"]
    for candidate in decision["candidates"]:
        start_s = seconds_of(candidate["start"])
        assert start_s >= 0
        if start_s > 0:
            assert request["task"]["deferrable"]
            assert request["signal_meta"]["follow"]
            assert start_s <= latest_s(request, by_id[candidate["pool"]]) + 1e-9
            assert start_s - ready_s <= most_s + 1e-9
            assert start_s >= request["min_dwell_s"]
            assert start_s / request["slot_s"] == pytest.approx(round(start_s / request["slot_s"]))
            assert not closed(request, by_id[candidate["pool"]], start_s)
    if decision["action"] == "defer":
        assert decision["start"] <= decision["latest_start"]


@given(requests(unknowns=True), st.sampled_from(["null", "zone", "late", "stale", "unheard of"]))
@law
def test_an_unknown_or_stale_signal_never_raises_and_means_to_run_now(request: dict[str, Any], how: str) -> None:
    carbon = request["signals"]["carbon_g_per_kwh"]
    for zone in carbon:
        if how == "null":
            carbon[zone] = [{"start": after(-60), "value": None}]
        elif how == "late":
            carbon[zone] = [{"start": after(1), "value": 1.0}, {"start": after(2), "value": 0.0}]
    if how == "zone":
        request["signals"]["carbon_g_per_kwh"] = {"SE": carbon["DE"]}
    elif how == "stale":
        request["signal_meta"].update(issued_at=after(-100), max_age_s=99)
    elif how == "unheard of":
        request["signals"] = {}
    decision = answer(request)
    assert decision["action"] in ("run", "reroute", "deny")
    assert "carbon" not in decision["weights"]
    assert {seconds_of(c["start"]) for c in decision["candidates"]} == {0.0}


@given(requests(most=3), st.integers(0, 30), st.sampled_from(["carbon_g_per_kwh", "price_per_kwh"]))
@settings(law, max_examples=200)
def test_a_value_unknown_to_a_later_run_means_to_run_now(request: dict[str, Any], index: int, name: str) -> None:
    before = answer(request)
    later = [c for c in before["candidates"] if seconds_of(c["start"]) > 0]
    assume(later)
    assume(name in request["signals"])
    candidate = later[index % len(later)]
    pool = next(pool for pool in request["pools"] if pool["pool_id"] == candidate["pool"])
    steps = request["signals"][name][pool["zone"]]
    begin_s = seconds_of(candidate["start"]) + request["engine_latency_s"] + pool["queue_wait_s"]
    met = max((step for step in steps if seconds_of(step["start"]) <= begin_s), key=lambda step: step["start"])
    met["value"] = None
    assert {seconds_of(c["start"]) for c in answer(request)["candidates"]} == {0.0}


@given(requests(), st.floats(0, 2000))
@law
def test_a_retry_is_decided_afresh_and_starts_neither_before_it_is_nor_later_than_it_may(
    request: dict[str, Any], passed_s: float
) -> None:
    retried = copy.deepcopy(request)
    now = NOW + timedelta(seconds=passed_s)
    retried["now"] = retried["task"]["ready_at"] = now.isoformat()
    decision = decide(parse_request(retried))
    for candidate in decision.candidates:
        assert now <= candidate.start
        if candidate.start > now:
            assert (candidate.start - now).total_seconds() <= retried["task"]["max_defer_s"] + 1e-6


@given(requests(most=1, least_price=-9.0), st.sampled_from([0.1, 1.0, 2.0, 1e9]))
@settings(law, max_examples=800)
def test_a_larger_margin_never_makes_a_task_wait_that_would_not(request: dict[str, Any], more: float) -> None:
    before = answer(request)
    wary = copy.deepcopy(request)
    wary["signal_meta"]["margin"] = (wary["signal_meta"]["margin"] or 0.0) + more
    assert answer(wary)["action"] in ("run", before["action"])


@given(requests(unknowns=True))
@law
def test_a_wait_that_has_no_end_reaches_no_further_than_the_signals_change(request: dict[str, Any]) -> None:
    request["task"].update(max_defer_s=1e18, deadline=None, deferrable=True)
    steps = [s for zones in request["signals"].values() for zone in zones.values() for s in zone]
    last = max(0.0, *(seconds_of(step["start"]) for step in steps), request["min_dwell_s"])
    for candidate in answer(request)["candidates"]:
        assert seconds_of(candidate["start"]) <= last + 6 * request["slot_s"]


@given(requests(most=4), st.sampled_from(["x", "y"]))
@law
def test_with_several_budgets_the_answer_is_that_of_the_one_that_binds_most(request: dict[str, Any], name: str) -> None:
    loose = {"limit_j": 1e18, "spent_j": 0, "reserved_j": 0}
    tight = {"limit_j": 100.0, "spent_j": 60.0, "reserved_j": 5.0}
    alone = answer({**request, "budget": {**tight, "name": name}})
    several = answer({**request, "budget": [{**loose, "name": "a"}, {**tight, "name": name}, loose]})
    assert several["budget"] == name
    assert several == alone


@given(requests())
@law
def test_the_same_moment_is_the_same_whatever_zone_it_is_written_in(request: dict[str, Any]) -> None:
    moved = copy.deepcopy(request)
    moved["now"] = "2026-03-02T13:30:00+05:30"
    assert datetime.fromisoformat(moved["now"]) == NOW
    assert answer(moved) == answer(request)
    start = answer(request)["start"]
    assert start is None or start == iso(datetime.fromisoformat(start.replace("Z", "+00:00")))
    assert of(answer(request), request["task"]["home_pool"])
