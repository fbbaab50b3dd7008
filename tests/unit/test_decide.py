"""Decisions, and the command that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tao_flows.cli.decide import decide_command
from tao_flows.controller.decide import decide
from tao_flows.controller.parse import parse_request

EXAMPLES = Path(__file__).parents[2] / "examples" / "decide"
NOW = "2026-03-02T08:00:00Z"
CANDIDATE = {"pool", "start", "objectives", "constraints", "feasible", "pareto_rank", "dominated_by", "score"}


def pool(pool_id: str, energy_j: float | None = 100.0, **fields: Any) -> dict[str, Any]:
    energy = None if energy_j is None else {"mean": energy_j, "low": energy_j, "high": energy_j}
    return {
        "pool_id": pool_id,
        "zone": "DE",
        "online": True,
        "capacity_free": 1,
        "energy_j": energy,
        "runtime_s": {"p50": 60.0, "p95": 90.0},
        "queue_wait_s": 0.0,
        "dispatch_energy_j": 0.0,
        "pue": 1.0,
        "price_per_h": 0.0,
        "power_w": 10.0,
        **fields,
    }


def answer(*pools: dict[str, Any], task: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
    """The JSON answer to a request of a reroutable task whose home is the first pool."""
    whole = {
        "now": NOW,
        "task": {"key": "t", "home_pool": pools[0]["pool_id"], "reroutable": True, **(task or {})},
        "pools": list(pools),
        **request,
    }
    decision = decide(parse_request(whole)).to_json()
    json.dumps(decision, allow_nan=False)
    return decision


def candidate(decision: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in decision["candidates"] if c["pool"] == name)


def constraint(decision: dict[str, Any], name: str, id: str) -> dict[str, Any]:
    return next(c for c in candidate(decision, name)["constraints"] if c["id"] == id)


def carbon(**zones: list[tuple[str, float | None]]) -> dict[str, Any]:
    return {"carbon_g_per_kwh": {z: [{"start": s, "value": v} for s, v in steps] for z, steps in zones.items()}}


@pytest.mark.parametrize(("in_use_j", "penalty", "regime"), [(80, 1.1192, "transition"), (100, 1.5, "inversion")])
def test_the_papers_demo(in_use_j: float, penalty: float, regime: str) -> None:
    found = answer(pool("a", 0.0), budget={"limit_j": 100, "spent_j": in_use_j, "reserved_j": 0})
    assert found["penalty"] == pytest.approx(penalty, abs=5e-5)
    assert found["regime"] == regime
    assert found["utilisation"] == in_use_j / 100


def test_an_answer_has_exactly_the_fields_of_the_contract() -> None:
    found = answer(pool("a"))
    assert set(found) == {
        "action", "pool", "start", "reason", "penalty", "utilisation", "regime", "budget", "latest_start", "weights",
        "candidates", "violations",
    }  # fmt: skip
    assert set(found["candidates"][0]) == CANDIDATE
    assert set(found["candidates"][0]["objectives"]) == {"energy_j", "carbon_g", "cost", "finish_s"}
    assert set(found["candidates"][0]["constraints"][0]) == {"id", "value", "limit", "unit", "slack", "ok"}
    assert (found["action"], found["pool"], found["start"]) == ("run", "a", NOW)
    assert (found["penalty"], found["utilisation"], found["regime"]) == (1.0, None, None)


def test_energy_is_at_the_buildings_meter_and_the_budget_counts_it_joules() -> None:
    found = answer(
        pool("a", 100.0, pue=1.5, dispatch_energy_j=20.0), budget={"limit_j": 1000, "spent_j": 0, "reserved_j": 0}
    )
    assert found["candidates"][0]["objectives"]["energy_j"] == 180.0
    assert found["utilisation"] == pytest.approx(0.12)


def test_carbon_follows_the_signal_over_the_run_each_value_holding_until_the_next() -> None:
    signals = carbon(DE=[("2026-03-02T07:00:00Z", 100), ("2026-03-02T08:00:30Z", 400), ("2026-03-02T08:00:45Z", 0)])
    found = answer(pool("a", 3.6e6), signals=signals)
    assert found["candidates"][0]["objectives"]["carbon_g"] == pytest.approx((30 * 100 + 15 * 400) / 60)


def test_the_run_begins_after_the_wait_and_the_last_value_holds_to_its_end() -> None:
    signals = carbon(DE=[("2026-03-02T07:00:00Z", 100), ("2026-03-02T08:00:30Z", 400)])
    found = answer(pool("a", 3.6e6, queue_wait_s=15.0), signals=signals, engine_latency_s=5)
    assert found["candidates"][0]["objectives"]["carbon_g"] == pytest.approx((10 * 100 + 50 * 400) / 60)
    assert found["candidates"][0]["objectives"]["finish_s"] == 80.0


def test_cost_is_rent_and_the_kilowatt_hours_where_they_have_a_price() -> None:
    paid = pool("a", 3.6e6, price_per_h=6.0)
    signals = {"price_per_kwh": {"DE": [{"start": NOW, "value": -0.25}]}}
    assert answer(paid)["candidates"][0]["objectives"]["cost"] == pytest.approx(0.1)
    assert answer(paid, signals=signals)["candidates"][0]["objectives"]["cost"] == pytest.approx(0.1 - 0.25)


@pytest.mark.parametrize(
    "request_",
    [
        {"signals": carbon(FR=[(NOW, 1)])},
        {"signals": carbon(DE=[])},
        {"signals": carbon(DE=[("2026-03-02T08:00:01Z", 1)])},
        {"signals": carbon(DE=[(NOW, None)])},
        {"signals": carbon(DE=[(NOW, 1), ("2026-03-02T08:00:10Z", None)])},
        {
            "signals": carbon(DE=[(NOW, 1)]),
            "signal_meta": {"issued_at": "2026-03-02T07:00:00Z", "max_age_s": 3599, "margin": 0},
        },
        {"signals": carbon(DE=[(NOW, 1)]), "signal_meta": {"issued_at": None, "max_age_s": 60, "margin": None}},
        {"signals": {}},
        {},
    ],
    ids=["other zone", "empty", "from later", "null", "null within", "stale", "age unknown", "none", "no signals"],
)
def test_a_signal_that_is_not_there_or_not_fresh_is_unknown_and_never_zero(request_: dict[str, Any]) -> None:
    found = answer(pool("a"), **request_)
    assert found["candidates"][0]["objectives"]["carbon_g"] is None
    assert "carbon" not in found["weights"]
    assert found["action"] == "run"


def test_a_signal_as_old_as_allowed_is_used() -> None:
    meta = {"issued_at": "2026-03-02T07:00:00Z", "max_age_s": 3600, "margin": 0}
    found = answer(pool("a", 3.6e6), signals=carbon(DE=[(NOW, 7)]), signal_meta=meta)
    assert found["candidates"][0]["objectives"]["carbon_g"] == pytest.approx(7.0)


def test_a_signal_that_no_longer_changes_needs_no_runtime() -> None:
    found = answer(pool("a", 3.6e6, runtime_s=None, queue_wait_s=None), signals=carbon(DE=[(NOW, 7)]))
    assert found["candidates"][0]["objectives"] == {"energy_j": 3.6e6, "carbon_g": 7.0, "cost": 0.0, "finish_s": None}


@pytest.mark.parametrize("field", ["energy_j", "dispatch_energy_j", "pue"])
def test_an_objective_unknown_for_one_pool_is_dropped_for_all(field: str) -> None:
    found = answer(pool("a"), pool("b", **{field: None}), signals=carbon(DE=[(NOW, 1)]))
    for one in found["candidates"]:
        assert one["objectives"]["energy_j"] is None
        assert one["objectives"]["carbon_g"] is None
        assert one["objectives"]["finish_s"] == 60.0
    assert set(found["weights"]) == {"cost", "latency"}


def test_with_nothing_known_to_weigh_the_task_stays_home_whatever_the_names() -> None:
    unknown = {"energy_j": None, "runtime_s": None, "price_per_h": None}
    found = answer(pool("z", **unknown), pool("a", **unknown))
    assert (found["action"], found["pool"], found["weights"]) == ("run", "z", {})
    assert candidate(found, "z")["score"] is None
    assert "stays in its home pool" in found["reason"]


def test_default_weights_have_an_effect_without_a_budget() -> None:
    frugal_but_slower = pool("b", 60.0, runtime_s={"p50": 80.0, "p95": 120.0})
    assert answer(pool("a"), frugal_but_slower)["pool"] == "b"
    much_slower = pool("b", 60.0, runtime_s={"p50": 600.0, "p95": 700.0})
    assert answer(pool("a"), much_slower)["pool"] == "a"
    dearer = pool("b", 60.0, price_per_h=5.0)
    assert answer(pool("a", price_per_h=1.0), dearer)["pool"] == "a"


@pytest.mark.parametrize(("preference", "pool_id"), [("energy", "frugal"), ("latency", "fast"), ("cost", "cheap")])
def test_a_preference_names_what_counts(preference: str, pool_id: str) -> None:
    found = answer(
        pool("home", price_per_h=1.0),
        pool("frugal", 10.0, price_per_h=1.0),
        pool("fast", runtime_s={"p50": 5.0, "p95": 5.0}, price_per_h=20.0),
        pool("cheap", price_per_h=0.1),
        preference={preference: 1},
    )
    assert found["pool"] == pool_id
    assert found["action"] == "reroute"


def test_as_the_budget_binds_energy_outweighs_the_rest() -> None:
    pools = (pool("fast", 100.0), pool("frugal", 90.0, runtime_s={"p50": 120.0, "p95": 180.0}))
    assert answer(*pools, budget={"limit_j": 10_000, "spent_j": 0, "reserved_j": 0})["pool"] == "fast"
    assert answer(*pools, budget={"limit_j": 1_000, "spent_j": 950, "reserved_j": 100})["pool"] == "frugal"


@pytest.mark.parametrize(
    ("fields", "task", "id"),
    [
        ({"online": False}, {}, "online"),
        ({"trusted": False}, {}, "trust"),
        ({"zone": "US"}, {"allowed_zones": ["DE"]}, "zone"),
        ({"zone": None}, {"allowed_zones": ["DE"]}, "zone"),
        ({}, {"allowed_zones": []}, "zone"),
        ({"capabilities": ["cpu"]}, {"requires": ["gpu"]}, "capabilities"),
    ],
)
def test_a_hard_constraint_is_never_relaxed(fields: dict[str, Any], task: dict[str, Any], id: str) -> None:
    found = answer(pool("a", **fields), task=task, on_infeasible="run")
    assert (found["action"], found["pool"], found["start"]) == ("deny", None, None)
    assert [violation["id"] for violation in found["violations"]] == [id]
    assert found["violations"][0]["pool"] == "a"
    assert id in found["reason"]


def test_a_task_that_may_not_move_stays_and_the_alternative_is_still_shown() -> None:
    found = answer(pool("a", 100.0), pool("b", 1.0), task={"reroutable": False})
    assert (found["action"], found["pool"]) == ("run", "a")
    assert not candidate(found, "b")["feasible"]
    assert candidate(found, "b")["score"] < candidate(found, "a")["score"]
    assert constraint(found, "b", "reroutable")["ok"] is False


def test_the_ceiling_is_hard_to_the_microjoule() -> None:
    budget = {"limit_j": 100, "spent_j": 0.1, "reserved_j": 0.2, "ceiling_j": 1.3}
    fits = answer(pool("a", 1.0), budget=budget)
    assert fits["action"] == "run"
    assert constraint(fits, "a", "budget_ceiling") == {
        "id": "budget_ceiling", "value": 1.3, "limit": 1.3, "unit": "J", "slack": 0.0, "ok": True,
    }  # fmt: skip
    over = answer(pool("a", 1.000001), budget=budget)
    assert over["action"] == "deny"
    assert constraint(over, "a", "budget_ceiling")["slack"] == pytest.approx(-1e-6)


def test_unknown_joules_break_the_ceiling_only_when_it_is_already_passed() -> None:
    budget = {"limit_j": 100, "spent_j": 90, "reserved_j": 0, "ceiling_j": 95}
    found = answer(pool("a", None), budget=budget)
    assert found["action"] == "run"
    assert constraint(found, "a", "budget_ceiling")["value"] is None
    assert (found["penalty"], found["regime"]) == (None, None)
    assert answer(pool("a", None), budget={**budget, "reserved_j": 6})["action"] == "deny"


def test_no_free_capacity_is_waiting_and_not_a_refusal() -> None:
    found = answer(pool("a", capacity_free=0, queue_wait_s=600.0))
    assert found["action"] == "run"
    assert found["candidates"][0]["objectives"]["finish_s"] == 660.0


def test_the_deadline_counts_wait_p95_latency_and_safety() -> None:
    timing = {"engine_latency_s": 5, "safety_s": 15}
    just = answer(pool("a", queue_wait_s=10.0), task={"deadline": "2026-03-02T08:02:00Z"}, **timing)
    assert constraint(just, "a", "deadline") == {
        "id": "deadline", "value": 120.0, "limit": 120.0, "unit": "s", "slack": 0.0, "ok": True,
    }  # fmt: skip
    late = answer(pool("a", queue_wait_s=10.0), task={"deadline": "2026-03-02T08:01:59Z"}, **timing)
    assert constraint(late, "a", "deadline")["slack"] == -1.0


def test_if_only_soft_constraints_fail_the_least_violation_runs_and_is_recorded() -> None:
    pools = (pool("a", power_w=200.0, power_cap_w=100.0), pool("b", power_w=110.0, power_cap_w=100.0))
    found = answer(*pools)
    assert (found["action"], found["pool"]) == ("reroute", "b")
    assert found["violations"] == [
        {"pool": "b", "id": "power_cap", "value": 110.0, "limit": 100.0, "unit": "W", "slack": -10.0, "ok": False}
    ]
    assert candidate(found, "b")["pareto_rank"] is None
    denied = answer(*pools, on_infeasible="deny")
    assert denied["action"] == "deny"
    assert {violation["pool"] for violation in denied["violations"]} == {"a", "b"}


def test_among_equal_violations_the_home_pool_runs() -> None:
    hot = {"temperature_c": 90.0, "temperature_limit_c": 80.0}
    assert answer(pool("z", **hot), pool("a", 1.0, **hot))["pool"] == "z"


def test_a_soft_failure_is_preferred_to_a_hard_one() -> None:
    found = answer(pool("a", online=False), pool("b", power_w=900.0, power_cap_w=1.0))
    assert (found["action"], found["pool"]) == ("reroute", "b")


def test_ties_go_to_the_smaller_pool_id() -> None:
    assert answer(pool("b"), pool("a"))["pool"] == "a"


@pytest.mark.parametrize(
    ("task", "timing", "latest"),
    [
        ({}, {}, NOW),
        ({"ready_at": "2026-03-02T07:50:00Z", "max_defer_s": 1800}, {}, "2026-03-02T08:20:00Z"),
        ({"max_defer_s": 1e18}, {}, "9999-12-31T23:59:59.999999Z"),
        ({"max_defer_s": 7200, "deadline": "2026-03-02T09:00:00Z"}, {}, "2026-03-02T08:58:20Z"),
        (
            {"max_defer_s": 7200, "deadline": "2026-03-02T09:00:00Z"},
            {"engine_latency_s": 5, "safety_s": 15},
            "2026-03-02T08:58:00Z",
        ),
        ({"max_defer_s": 60, "deadline": "2026-03-02T09:00:00Z"}, {}, "2026-03-02T08:01:00Z"),
        ({"deadline": "2026-03-02T08:00:00Z"}, {}, "2026-03-02T07:58:20Z"),
    ],
)
def test_the_latest_start_is_the_earlier_of_patience_and_deadline(
    task: dict[str, Any], timing: dict[str, Any], latest: str
) -> None:
    assert answer(pool("a", queue_wait_s=10.0), task=task, **timing)["latest_start"] == latest


def test_a_start_elsewhere_leaves_room_to_come_home() -> None:
    slow_home = pool("home", runtime_s={"p50": 900.0, "p95": 1200.0})
    found = answer(slow_home, pool("b", 1.0), task={"max_defer_s": 7200, "deadline": "2026-03-02T09:00:00Z"})
    assert found["pool"] == "b"
    assert found["latest_start"] == "2026-03-02T08:40:00Z"


def test_with_an_unknown_runtime_the_deadline_itself_bounds_the_start() -> None:
    found = answer(pool("a", runtime_s=None), task={"max_defer_s": 7200, "deadline": "2026-03-02T09:00:00Z"})
    assert found["latest_start"] == "2026-03-02T09:00:00Z"
    assert constraint(found, "a", "deadline")["value"] is None


def test_the_regime_remembers_the_one_before() -> None:
    budget = {"limit_j": 100, "spent_j": 97, "reserved_j": 0}
    assert answer(pool("a", 0.0), budget=budget, previous_regime="inversion")["regime"] == "inversion"
    assert answer(pool("a", 0.0), budget=budget)["regime"] == "transition"


def test_the_reason_names_the_figures_that_decided() -> None:
    found = answer(pool("home", 200.0), pool("gpu", 80.0, runtime_s={"p50": 70.0, "p95": 90.0}))
    assert found["reason"].startswith("reroute to gpu now: score ")
    assert "energy 80.0 J against 200 J" in found["reason"]
    assert "finish in 1 min 10 s against 1 min 0 s" in found["reason"]


def test_a_dominated_candidate_says_by_which() -> None:
    found = answer(pool("a", 100.0), pool("b", 50.0), pool("c", 200.0))
    assert candidate(found, "b")["pareto_rank"] == 0
    assert candidate(found, "a")["pareto_rank"] == 1
    assert candidate(found, "c")["pareto_rank"] == 2
    assert candidate(found, "c")["dominated_by"] == [f"b@{NOW}"]


app = typer.Typer()
app.command()(decide_command)


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_the_command_prints_json_alone(cli: CliRunner) -> None:
    result = cli.invoke(app, [str(EXAMPLES / "paper.json"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["penalty"] == pytest.approx(1.1192, abs=5e-5)
    assert result.stderr == ""


def test_the_command_shows_people_the_chosen_pool_first_and_what_decided_against_the_others(cli: CliRunner) -> None:
    result = cli.invoke(app, [str(EXAMPLES / "training.json")])
    assert result.exit_code == 0
    assert result.stdout.startswith("Reroute to paris-gpu now: score ")
    rows = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
    assert (rows[0][1].strip(), rows[0][2].strip()) == (">", "paris-gpu")
    assert "lulea-gpu: fails power_cap (350 W, limit 300)" in result.stdout
    assert "virginia-cpu: fails trust, zone (US, allowed: DE, FR, SE), capabilities (lacks gpu)" in result.stdout


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_denial_ends_with_1(cli: CliRunner, flags: list[str]) -> None:
    result = cli.invoke(app, [str(EXAMPLES / "over-ceiling.json"), *flags])
    assert result.exit_code == 1
    assert "budget_ceiling (62240 J, limit 60000)" in result.stdout


def test_a_dash_reads_standard_input(cli: CliRunner) -> None:
    result = cli.invoke(app, ["-", "--json"], input=(EXAMPLES / "paper.json").read_bytes())
    assert result.exit_code == 0
    assert json.loads(result.stdout)["pool"] == "lab"


def test_names_that_look_like_markup_are_shown_as_they_are(cli: CliRunner, tmp_path: Path) -> None:
    request = json.loads((EXAMPLES / "paper.json").read_text())
    request["pools"][0]["pool_id"] = request["task"]["home_pool"] = "[red]lab[/red]"
    (tmp_path / "r.json").write_text(json.dumps(request))
    result = cli.invoke(app, [str(tmp_path / "r.json")])
    assert result.exit_code == 0
    assert "[red]lab[/red]" in result.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "request: [] is not an object"),
        (b'{"now": 1, "now": 2}', "'now' is there twice"),
        (b'{"slot_s": NaN, "now": "2026-03-02T08:00:00Z"}', "slot_s: nan is not finite"),
        (b'{"slot_s": -Infinity, "now": "2026-03-02T08:00:00Z"}', "slot_s: -inf is not finite"),
        (b'{"now": "2026-03-02T08:00:00Z", "pools": [], "pol": 1}', "pol: unknown field"),
        (None, "No such file"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(cli: CliRunner, tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "request.json"
    if content is not None:
        path.write_bytes(content)
    result = cli.invoke(app, [str(path), "--json"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
