"""What a page says of decisions, and after which runs there is one."""

from __future__ import annotations

import pytest

from tao_flows.budget import EnergyBudget
from tao_flows.ledger.budget_rows import Standing
from tao_flows.records import DecisionRecord, RunKey, RunRecord, TaskRecord, TaskState
from tao_flows.report.carbon import Amount, Origin
from tao_flows.report.lanes import timeline
from tao_flows.report.markdown import render_markdown
from tao_flows.report.model import build_report
from tao_flows.report.runview import RunView, blocks_of
from tao_flows.report.wanted import report_wanted
from tao_flows.report.weighed import weighed_markdown
from tao_flows.telemetry.procfs import this_segment
from tao_flows.units import NS_PER_S

T0 = 1_700_000_000 * NS_PER_S
START = "2023-11-14T22:13:20Z"
LATER = "2023-11-15T01:00:00Z"


def candidate(pool: str, start: str, score: float, **changes):
    objectives = {"energy_j": 100.0, "carbon_g": 5.0, "cost": None, "finish_s": 60.0}
    constraints = [{"id": "trust", "value": 0, "limit": 1, "unit": "", "slack": None, "ok": changes.get("ok", True)}]
    return {
        "pool": pool, "start": start, "objectives": objectives, "constraints": constraints,
        "feasible": changes.get("ok", True), "pareto_rank": changes.get("rank", 0), "dominated_by": [], "score": score,
    }  # fmt: skip


def decided(action: str, at_s: int, *candidates, task: str = "train", enforced: bool = True) -> DecisionRecord:
    answer = {
        "action": action, "pool": "north", "start": LATER, "latest_start": LATER, "candidates": list(candidates),
        "regime": "inversion", "budget": "night",
    }  # fmt: skip
    key = RunKey("prefect", "default", "nightly", "run", task, task and "i", 1)
    return DecisionRecord(
        key, T0 + at_s * NS_PER_S, "enforce", action, "north", "it is [cleaner](x) then", {}, answer, enforced
    )


def view_of(*decisions: DecisionRecord, **changes) -> RunView:
    segment = this_segment()
    run = RunRecord("prefect", "default", "nightly", "run", "completed", T0 + 600 * NS_PER_S, segment)
    key = RunKey("prefect", "default", "nightly", "run", "train", "i", 1)
    task = TaskRecord(key, segment, TaskState.COMPLETED, T0 + 900 * NS_PER_S, ended_wall_ns=T0 + 960 * NS_PER_S)
    report = build_report(run, [task], decisions, [], [])
    blocks, _ = blocks_of(report, [each for each in decisions if each.key.task])
    return RunView(report, blocks=blocks, timeline=timeline(report, decisions, (), T0), **changes)


DEFERRED = decided(
    "defer", 0, candidate("north", LATER, 0.5), candidate("north", START, 0.7), candidate("south", START, 0.6, rank=1),
    candidate("west", START, 0.1, ok=False),
)  # fmt: skip


def test_the_candidates_that_lost_say_why() -> None:
    said = weighed_markdown(view_of(DEFERRED), [DEFERRED])
    rows = {line.split("|")[-2].strip() for line in said.splitlines() if line.startswith("| ")}
    assert {"**chosen**", "behind by 0.2", "dominated", "not feasible: trust"} <= rows
    assert "Cost" not in said, "nothing of it is known"
    assert "unknown" not in said


def test_names_and_reasons_are_shown_and_not_obeyed() -> None:
    assert "[cleaner](x)" not in weighed_markdown(view_of(DEFERRED), [DEFERRED])


def test_a_wait_is_on_the_time_line_and_a_run_that_waited_as_a_whole_too() -> None:
    whole = decided("defer", -300, candidate("north", LATER, 0.5), candidate("north", START, 0.7), task="")
    view = view_of(DEFERRED, whole)
    lanes = {lane.title: lane for lane in view.timeline.lanes} if view.timeline else {}
    waited = lanes["the whole run"].stretches[0]
    assert (waited.kind, waited.end_ns) == ("deferred", T0 + 600 * NS_PER_S)
    said = weighed_markdown(view, [DEFERRED, whole])
    assert "### When it ran" in said
    assert "data:image/svg+xml;base64," in said
    assert "the whole run: defer" in said


def test_a_run_with_nothing_to_choose_says_nothing_of_choices() -> None:
    plain = decided("run", 0, candidate("north", LATER, 0.5))
    view = view_of(plain)
    assert weighed_markdown(view, [plain]) == ""
    assert render_markdown(view.report, weighed_markdown(view, [plain])) == render_markdown(view.report)


def test_what_was_saved_bears_its_quality_and_an_unknown_saving_is_not_zero() -> None:
    known = Amount("g", 12.0, 6.0, 24.0, 1.0, 1.0, (Origin.ACTUAL,))
    said = weighed_markdown(view_of(DEFERRED, saved=known), [DEFERRED])
    assert "saved **12 gCO2e** [6, 24]" in said
    assert "came true" in said
    assert "is unknown" in weighed_markdown(view_of(DEFERRED, saved=Amount("g")), [DEFERRED])


def test_budgets_are_shown_with_their_regime() -> None:
    budget = EnergyBudget("night", limit_j=1000.0)
    standing = Standing(budget, 900_000_000, 200_000_000, 0, T0, None, "inversion")
    said = weighed_markdown(view_of(), standings=[standing])
    assert "| night | inversion |" in said
    assert "110" in said.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("setting", "good", "bad"), [("always", True, True), ("failures", False, True), ("never", False, False)]
)
def test_reports_are_made_after_the_runs_that_are_asked_for(setting: str, good: bool, bad: bool) -> None:
    assert (report_wanted(setting, "r", good=True), report_wanted(setting, "r", good=False)) == (good, bad)


def test_of_1_in_n_every_failure_and_about_one_good_run_in_n_has_a_report_the_same_every_time() -> None:
    runs = [f"run-{number}" for number in range(4000)]
    chosen = [run for run in runs if report_wanted("1/10", run, good=True)]
    assert 300 <= len(chosen) <= 500
    assert chosen == [run for run in runs if report_wanted("1/10", run, good=True)]
    assert all(report_wanted("1/10", run, good=False) for run in runs)
    assert all(report_wanted("1/1", run, good=True) for run in runs)
