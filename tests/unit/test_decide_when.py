"""When a task starts: by examples, and as the command shows it. The laws are in tests/property."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tao_flows.cli.decide import decide_command
from tao_flows.controller.choose import choose
from tao_flows.controller.decide import decide
from tao_flows.controller.parse import parse_request
from tao_flows.controller.plan import MOST_STARTS

EXAMPLES = Path(__file__).parents[2] / "examples" / "decide"
NOW = "2026-03-02T08:00:00Z"


def pool(pool_id: str = "home", energy_j: float | None = 3.6e6, **fields: Any) -> dict[str, Any]:
    return {
        "pool_id": pool_id,
        "zone": "DE",
        "online": True,
        "capacity_free": 1,
        "energy_j": None if energy_j is None else {"mean": energy_j, "low": energy_j, "high": energy_j},
        "runtime_s": {"p50": 3600.0, "p95": 3600.0},
        "queue_wait_s": 0.0,
        "dispatch_energy_j": 0.0,
        "pue": 1.0,
        "price_per_h": 0.0,
        "power_w": 1000.0,
        **fields,
    }


def at(hour: float) -> str:
    return f"2026-03-02T{int(hour):02}:{round(hour % 1 * 60):02}:00Z"


def hourly(*values: float | None, since: int = 8) -> list[dict[str, Any]]:
    return [{"start": at(since + number), "value": value} for number, value in enumerate(values)]


FALLING = hourly(400, 300, 100, 200, 50)


def answer(*pools: dict[str, Any], task: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
    """The answer to a request of a task that may wait three hours and whose home is the first pool."""
    places = list(pools) or [pool()]
    whole = {
        "now": NOW,
        "task": {
            "key": "t", "home_pool": places[0]["pool_id"], "reroutable": True, "deferrable": True,
            "max_defer_s": 10_800, **(task or {}),
        },
        "pools": places,
        "signals": {"carbon_g_per_kwh": {"DE": FALLING}},
        "slot_s": 1800,
        **request,
    }  # fmt: skip
    parsed = parse_request(whole)
    decision, choice = decide(parsed), choose(parsed)
    assert (choice.action, choice.pool, choice.start) == (decision.action, decision.pool, decision.start)
    json.dumps(decision.to_json(), allow_nan=False)
    return decision.to_json()


def starts(decision: dict[str, Any]) -> list[str]:
    return sorted(candidate["start"] for candidate in decision["candidates"])


def test_a_task_waits_for_the_cleanest_hour_it_may_wait_for() -> None:
    found = answer()
    assert (found["action"], found["pool"], found["start"]) == ("defer", "home", at(10))
    assert found["latest_start"] == at(11)
    assert starts(found) == [at(8), at(8.5), at(9), at(9.5), at(10)]
    chosen = found["candidates"][0]
    assert chosen["objectives"] == {"energy_j": 3.6e6, "carbon_g": 100.0, "cost": 0.0, "finish_s": 10_800.0}
    assert found["reason"].startswith(f"defer to home until {at(10)} (in 2 h 0 min): score ")
    assert "running now in the home pool, home (carbon 100 g against 400 g" in found["reason"]


@pytest.mark.parametrize(
    "request_",
    [
        {"task": {"deferrable": False}},
        {"task": {"max_defer_s": 1799}},
        {"task": {"ready_at": "2026-03-02T05:00:00Z"}},
        {"task": {"deadline": "2026-03-02T09:20:00Z"}},
        {"min_dwell_s": 10_801},
        {"signals": {}},
        {"signals": {"carbon_g_per_kwh": {"DE": hourly(400)}}},
        {"signals": {"carbon_g_per_kwh": {"DE": hourly(100, 400, 300)}}},
        {"signals": {"carbon_g_per_kwh": {"FR": FALLING}}},
        {"signals": {"carbon_g_per_kwh": {"DE": hourly(400, 300, None, 1)}}},
        {"signals": {"carbon_g_per_kwh": {"DE": FALLING}, "price_per_kwh": {"FR": FALLING}}},
        {"signal_meta": {"issued_at": at(6), "max_age_s": 3600, "margin": 0}},
        {"signal_meta": {"issued_at": at(8), "max_age_s": 3600, "margin": 0, "follow": False}},
        {"signal_meta": {"issued_at": at(8), "max_age_s": 3600, "margin": 4}},
        {"preference": {"latency": 1}},
        {"preference": {"energy": 1}},
    ],
    ids=[
        "not deferrable", "too little patience", "patience used up", "no room to the deadline", "dwell too long",
        "no signal", "a signal that does not change", "now is best", "other zone", "unknown within", "no price there",
        "stale", "forecasts that have not paid", "a wide margin", "only latency counts", "only energy counts",
    ],
)  # fmt: skip
def test_a_task_runs_now_where_it_may_not_or_need_not_wait(request_: dict[str, Any]) -> None:
    found = answer(**request_)
    assert (found["action"], found["start"]) == ("run", NOW)


@pytest.mark.parametrize("field", ["energy_j", "runtime_s", "queue_wait_s", "dispatch_energy_j", "pue"])
def test_an_objective_unknown_for_any_pool_keeps_all_from_waiting(field: str) -> None:
    found = answer(pool(), pool("b", **{field: None}))
    assert starts(found) == [NOW, NOW]


def test_carbon_that_nobody_asks_for_keeps_no_task_from_waiting_for_a_price() -> None:
    prices = {"price_per_kwh": {"DE": hourly(0.30, 0.25, -0.05, 0.20)}}
    found = answer(signals=prices)
    assert (found["action"], found["start"]) == ("defer", at(10))
    assert {c["objectives"]["carbon_g"] for c in found["candidates"]} == {None}
    assert found["candidates"][0]["objectives"]["cost"] == pytest.approx(-0.05)


def test_a_later_start_is_weighed_with_the_margin_and_now_is_not() -> None:
    meta = {"issued_at": NOW, "max_age_s": None, "margin": 0.5}
    carbon = {c["start"]: c["objectives"]["carbon_g"] for c in answer(signal_meta=meta)["candidates"]}
    assert carbon[NOW] == 400.0
    assert carbon[at(10)] == pytest.approx(150.0)
    below_zero = {"price_per_kwh": {"DE": hourly(0.1, -0.2)}}
    cost = {c["start"]: c["objectives"]["cost"] for c in answer(signals=below_zero, signal_meta=meta)["candidates"]}
    assert cost[at(9)] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("capacity", "start"),
    [
        ([0, 0, 0, 0, 1, 0], at(10)),
        ([1, 1, 1, 1, 0], at(10.5)),
        ({at(10): 0}, at(10.5)),
        ({at(10): 1, at(9): 0}, at(10)),
        ({at(9.75): 0}, at(10.5)),
        ([1, 0, 0, 0, 0, 0, 0], NOW),
        ([0] * 7, NOW),
    ],
)
def test_a_slot_without_places_left_is_no_start_but_now_always_is(capacity: object, start: str) -> None:
    found = answer(pool(capacity_by_slot=capacity, capacity_free=0))
    assert found["start"] == start
    assert NOW in starts(found)


def test_a_start_before_the_minimum_dwell_is_none() -> None:
    assert starts(answer(min_dwell_s=5401)) == [at(8), at(10)]


def test_a_plan_in_another_pool_keeps_room_for_the_home_pool() -> None:
    slow_home = pool("home", 7.2e6, runtime_s={"p50": 3600.0, "p95": 7200.0})
    found = answer(slow_home, pool("b"), task={"deadline": at(12)}, slot_s=900)
    assert (found["action"], found["pool"]) == ("defer", "b")
    assert found["latest_start"] == at(10)
    assert max(starts(found)) == at(10)


def test_a_hot_pool_is_not_waited_for() -> None:
    hot = pool(temperature_c=90.0, temperature_limit_c=80.0)
    assert (answer(hot)["action"], answer(hot)["start"]) == ("run", NOW)
    assert answer(hot, on_infeasible="deny")["action"] == "deny"


def test_later_starts_that_are_no_better_than_one_before_are_left_out() -> None:
    found = answer(signals={"carbon_g_per_kwh": {"DE": hourly(400, 500, 500, 300, 600)}}, slot_s=3600)
    assert starts(found) == [at(8), at(11)]


def test_ties_go_to_the_earlier_start_and_then_to_the_smaller_pool_id() -> None:
    flat = {"carbon_g_per_kwh": {"DE": hourly(400, 100, 100, 100)}}
    found = answer(pool("b"), pool("a"), signals=flat, slot_s=3600, preference={"carbon": 1})
    assert (found["pool"], found["start"]) == ("a", at(9))


def test_slots_finer_than_anyone_plans_in_are_weighed_as_far_as_the_most_starts_reach() -> None:
    found = answer(slot_s=0.001, task={"max_defer_s": 1e18})
    assert max(starts(found)) <= "2026-03-02T08:00:10Z"
    assert len(found["candidates"]) <= MOST_STARTS + 1


BUDGETS = [
    {"name": "team", "limit_j": 1e7, "spent_j": 4e6, "reserved_j": 0},
    {"name": "all", "limit_j": 1e9, "spent_j": 1e9, "reserved_j": 0},
]


def test_of_several_budgets_the_one_that_binds_most_is_the_penalty_and_named() -> None:
    found = answer(budget=BUDGETS)
    assert (found["budget"], found["regime"]) == ("all", "inversion")
    assert found["utilisation"] == pytest.approx(1.0036)
    assert answer(budget=BUDGETS[:1])["budget"] == "team"
    assert answer(budget={"limit_j": 1e7, "spent_j": 0, "reserved_j": 0})["budget"] is None
    assert "of budget all is then in use" in found["reason"]


def test_which_budget_binds_may_differ_from_pool_to_pool() -> None:
    budgets = [
        {"name": "small", "limit_j": 1e6, "spent_j": 0, "reserved_j": 0},
        {"name": "large", "limit_j": 1e9, "spent_j": 5e8, "reserved_j": 0},
    ]
    assert answer(pool("home", 1e5), budget=budgets)["budget"] == "large"
    assert answer(pool("home", 9e5), budget=budgets)["budget"] == "small"


def test_the_ceiling_of_each_budget_is_a_constraint_of_its_own() -> None:
    ceilings = [{**BUDGETS[0], "ceiling_j": 5e6}, {**BUDGETS[1], "ceiling_j": 2e9}]
    found = answer(budget=ceilings)
    by_id = {c["id"]: c["ok"] for c in found["candidates"][0]["constraints"]}
    assert by_id["budget_ceiling:team"] is False
    assert by_id["budget_ceiling:all"] is True
    assert (found["action"], [v["id"] for v in found["violations"]]) == ("deny", ["budget_ceiling:team"])


app = typer.Typer()
app.command()(decide_command)


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_the_command_shows_when_it_would_start_and_what_that_saves_against_now_at_home(cli: CliRunner) -> None:
    result = cli.invoke(app, [str(EXAMPLES / "deferral.json")])
    assert result.exit_code == 0
    assert result.stdout.startswith("Defer to frankfurt until 2026-06-15T10:40:00Z (in 3 h 30 min): score ")
    assert "Planned start: 2026-06-15T10:40:00Z, in 3 h 30 min." in result.stdout
    assert "forecast with a margin of 10 %" in result.stdout
    saved = "Against running now in the home pool, frankfurt: carbon 329.1 g (42.1 %) less, finish 3 h 30 min later."
    assert saved in result.stdout
    assert "Budget team-search: in use 0.7225" in result.stdout
    assert "Latest start: 2026-06-15T15:00:00Z." in result.stdout
    assert "dublin now: on the Pareto front, with a higher score" in result.stdout


def test_the_command_shows_people_the_best_and_says_how_many_more_there_are(cli: CliRunner, tmp_path: Path) -> None:
    request = json.loads((EXAMPLES / "deferral.json").read_text())
    request["slot_s"] = 300
    (tmp_path / "r.json").write_text(json.dumps(request))
    result = cli.invoke(app, [str(tmp_path / "r.json")])
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == 20
    more = int(next(line.split()[0] for line in result.stdout.splitlines() if "more candidates are in" in line))
    answered = cli.invoke(app, [str(tmp_path / "r.json"), "--json"])
    assert len(json.loads(answered.stdout)["candidates"]) == len(rows) + more
