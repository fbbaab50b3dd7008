"""The model of a run: what is summed, what is unknown, and what is said about it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.records import (
    DecisionRecord,
    HostAccount,
    Incident,
    RunKey,
    RunRecord,
    Segment,
    TaskRecord,
    TaskState,
    Who,
)
from tao_flows.report.model import RunReport, build_report
from tao_flows.report.summary import account_lines, dearest, overview

S = 1_000_000_000
T0 = 1_790_000_000 * S
MODEL = "cpu-min-max/1 (Sapphire Rapids, confidence 0.6)"
RUN = RunRecord(
    "prefect", "default", "nightly", "run-1", "completed", T0, Segment("node-1", "boot", 1, 1), T0 + 10 * S, name="fox"
)


def task(
    name: str = "train",
    energy_uj: int | None = 2_000_000,
    *,
    quality: Quality = Quality.ESTIMATED,
    instance: str = "a",
    try_number: int = 1,
    sequence: int = 0,
    start_s: float = 0,
    state: TaskState = TaskState.COMPLETED,
    cpu: CpuTime | None = None,
    **more: Any,
) -> TaskRecord:
    start_ns = T0 + round(start_s * S)
    figure = (
        Figure.unknown("package-0")
        if energy_uj is None
        else Figure(energy_uj, energy_uj // 2, energy_uj * 2, quality, (f"{quality}-source",))
    )
    cpu = cpu or CpuTime(0.5, "perf", covers_children=True)
    model = MODEL if quality is Quality.ESTIMATED else None
    record = TaskRecord(
        key=RunKey("prefect", "default", "nightly", "run-1", name, instance, try_number),
        segment=Segment("node-1", "boot", 10, 20, sequence),
        state=state,
        started_wall_ns=start_ns,
        ended_wall_ns=start_ns + S,
        pool="home",
        measurement=Measurement(name, start_ns, 1.0, cpu, figure, (), Account(), model=model),
    )
    return replace(record, **more)


def lost(name: str = "train", **more: Any) -> TaskRecord:
    return task(name, state=TaskState.LOST, measurement=None, ended_wall_ns=None, **more)


def decision(record: TaskRecord, at_s: float = 0, **answer: Any) -> DecisionRecord:
    action = answer.pop("action", "run")
    return DecisionRecord(record.key, T0 + round(at_s * S), "advise", action, "home", "cheapest", {}, answer)


def report(*tasks: TaskRecord, **parts: Any) -> RunReport:
    given: dict[str, Any] = {"decisions": [], "accounts": [], "incidents": [], **parts}
    return build_report(given.pop("run", RUN), tasks, **given)


def test_the_segments_of_one_try_are_summed_and_its_state_is_the_last_ones() -> None:
    first = task(energy_uj=2_000_000, sequence=0, state=TaskState.RUNNING)
    second = task(energy_uj=3_000_000, sequence=1, start_s=5, state=TaskState.FAILED)
    (row,) = report(second, first).tasks
    assert row.energy.value_uj == 5_000_000
    assert (row.energy.low_uj, row.energy.high_uj) == (2_500_000, 10_000_000)
    assert row.cpu_s == 1.0
    assert row.wall_s == 2.0
    assert row.power_w == 2.5
    assert row.state is TaskState.FAILED
    assert [span.started_wall_ns for span in row.spans] == [T0, T0 + 5 * S]


def test_rows_stand_in_order_of_start_and_each_try_has_its_own() -> None:
    rows = report(task("c", start_s=3), task("a", start_s=1, try_number=2), task("a", start_s=0)).tasks
    assert [row.title for row in rows] == ["a", "a (try 2)", "c"]


def test_instances_of_one_task_are_told_apart_by_map_index_or_by_order() -> None:
    mapped = report(task(instance="x", map_index=7), task(instance="y", map_index=3, start_s=1))
    assert [row.title for row in mapped.tasks] == ["train[7]", "train[3]"]
    submitted = report(task(instance="x"), task(instance="y", start_s=1), task("other", start_s=2))
    assert [row.title for row in submitted.tasks] == ["train[0]", "train[1]", "other"]


def test_shares_are_of_the_known_joules_and_unknown_where_the_joules_are() -> None:
    rows = report(task("a", 3_000_000), task("b", 1_000_000), task("c", None), lost("d")).tasks
    assert [row.share for row in rows] == [0.75, 0.25, None, None]


def test_a_lost_task_is_an_unknown_part_of_the_total_and_never_zero() -> None:
    made = report(task("a", 3_000_000), lost("b"))
    assert made.energy.value_uj == 3_000_000
    assert made.energy.coverage == 0.5
    assert made.energy.unknown_parts == ("b: lost",)
    row = made.to_json()["tasks"][1]
    assert row["state"] == "lost"
    assert row["energy"]["value_j"] is None
    assert row["wall_s"] is None
    assert row["cpu_s"] is None
    assert any("1 task is lost" in note for note in made.notes)


def test_a_lost_segment_makes_the_cpu_seconds_of_its_try_a_lower_bound() -> None:
    (row,) = report(task(sequence=0), lost(sequence=1, start_s=2)).tasks
    assert row.cpu_s == 0.5
    assert row.cpu_lower_bound


def test_a_run_of_nothing_known_is_unknown_and_says_so() -> None:
    made = report(lost())
    assert made.energy.value_uj is None
    assert made.energy.quality is Quality.UNKNOWN
    assert any("Nothing is known" in note for note in made.notes)


def test_the_total_has_the_worst_quality_and_keeps_the_mix_beside_it() -> None:
    made = report(task("a", 3_000_000, quality=Quality.MEASURED), task("b", 1_000_000, quality=Quality.ESTIMATED))
    assert made.energy.quality is Quality.ESTIMATED
    assert made.by_quality_uj == {Quality.MEASURED: 3_000_000, Quality.ESTIMATED: 1_000_000}


def test_an_estimate_names_its_model_and_its_interval_rule() -> None:
    notes = " ".join(report(task()).notes)
    assert "-50 % and +100 %" in notes
    assert MODEL in notes
    assert report(task()).models == (MODEL,)


def test_a_run_without_estimates_names_no_model() -> None:
    made = report(task(quality=Quality.ATTRIBUTED))
    assert made.models == ()
    assert not any("model" in note for note in made.notes)


def test_an_uncalibrated_counter_is_said_to_be_wholly_active() -> None:
    account = Account(5_000_000, None, 3_000_000, 1_000_000, None, 1_000_000, Quality.ATTRIBUTED)
    notes = report(task(quality=Quality.ATTRIBUTED), accounts=[HostAccount("n", account, 10.0, "w")]).notes
    assert any("not calibrated on n" in note and "the whole counter" in note for note in notes)
    calibrated = replace(account, idle_uj=0)
    notes = report(task(quality=Quality.ATTRIBUTED), accounts=[HostAccount("n", calibrated, 10.0, "w")]).notes
    assert not any("calibrated" in note for note in notes)


def test_where_the_idle_line_comes_from_is_said_with_its_host() -> None:
    taken_off = task(quality=Quality.ATTRIBUTED)
    origin = "calibrated on 2026-09-21, 12.3 W ± 400 mW"
    taken_off = replace(taken_off, measurement=replace(taken_off.measurement, baseline=origin))
    (note,) = (note for note in report(taken_off, task("gpu", instance="b")).notes if "baseline" in note)
    assert f"node-1 {origin}" in note
    assert not any("baseline" in note for note in report(task()).notes)


def test_windows_of_one_host_are_one_line_and_hosts_sum_to_the_account() -> None:
    one = Account(10, None, 4, 3, 2, 1, Quality.ATTRIBUTED)
    accounts = [HostAccount("b", one, 1.0, "w1"), HostAccount("a", one, 1.0, "w1"), HostAccount("b", one, 2.0, "w2")]
    made = report(task(), accounts=accounts)
    assert [(host.host, host.account.counter_uj, host.wall_s) for host in made.hosts] == [
        ("a", 10, 1.0),
        ("b", 20, 3.0),
    ]
    assert made.account.counter_uj == 30
    assert [line.value_j for line in account_lines(made.account)] == [12e-6, 9e-6, 6e-6, 3e-6]


@pytest.mark.parametrize(
    ("tasks_uj", "overhead_uj", "share", "inverted"),
    [(1, 1, 0.5, False), (1, 3, 0.75, True), (3, 1, 0.25, False), (None, 1, None, None), (0, 0, None, None)],
)
def test_inversion_is_an_overhead_share_above_one_half_and_unknown_with_it(
    tasks_uj: int | None, overhead_uj: int, share: float | None, inverted: bool | None
) -> None:
    account = Account(None, 4, tasks_uj, overhead_uj, None, None, Quality.ESTIMATED)
    made = report(task(), accounts=[HostAccount("n", account, 1.0, "w")])
    assert made.overhead_share == share
    assert made.to_json()["inversion"] is inverted


def test_the_last_decision_about_a_try_is_the_one_shown() -> None:
    record = task()
    made = report(record, decisions=[decision(record, 5, penalty=1.5), decision(record, 1, action="defer")])
    shown = made.tasks[0].decision
    assert shown is not None
    assert (shown.action, shown.penalty) == ("run", 1.5)


def test_a_denied_task_that_never_ran_is_still_among_the_decisions() -> None:
    denied = decision(task("never"), action="deny")
    made = report(task("ran"), decisions=[denied])
    assert [row.title for row in made.tasks] == ["ran"]
    assert [(group.choice.action, group.count) for group in made.decisions] == [("deny", 1)]


def test_alike_decisions_are_counted_with_the_range_of_their_penalties() -> None:
    records = [task(instance=str(number)) for number in range(3)]
    made = report(*records, decisions=[decision(r, penalty=1 + n / 10) for n, r in enumerate(records)])
    (group,) = made.decisions
    assert (group.count, group.penalty_low, group.penalty_high) == (3, 1.0, 1.2)


def test_decisions_that_differ_in_figures_only_are_alike_and_the_last_speaks_for_them() -> None:
    records = [task(instance=str(number)) for number in range(3)]
    decisions = [
        replace(decision(record, number), reason=f"{30 + number}.5 % of the budget is then in use")
        for number, record in enumerate(records)
    ]
    (group,) = report(*records, decisions=decisions).decisions
    assert group.count == 3
    assert group.choice.reason == "32.5 % of the budget is then in use; the figures are the last one's"
    other = replace(decisions[0], reason="the budget is used up")
    assert len(report(*records, decisions=[other, *decisions[1:]]).decisions) == 2


def test_violations_are_incidents_and_constraints_that_were_not_kept() -> None:
    record = task()
    broken = {"pool": "gpu", "id": "deadline", "value": 130.0, "limit": 120.0, "unit": "s", "slack": -10.0, "ok": False}
    incident = Incident("LEDGER_BUSY", "the ledger was busy", "try a local disk", 0, 3, "run-1", "train")
    decided = [decision(record, 0, violations=[broken]), decision(record, 1, violations=[broken])]
    first, second = report(record, decisions=decided, incidents=[incident]).to_json()["violations"]
    assert (first["kind"], first["code"], first["count"], first["remedy"]) == (
        "incident",
        "LEDGER_BUSY",
        3,
        "try a local disk",
    )
    assert (second["kind"], second["code"], second["task"], second["count"]) == ("constraint", "deadline", "train", 2)
    assert second["summary"] == "not kept in pool gpu: 130 against a limit of 120 s"


def test_figures_under_different_methods_are_flagged() -> None:
    other = task("b")
    assert other.measurement
    other = replace(other, measurement=replace(other.measurement, method="tao-flows/attribution/9"))
    made = report(task("a"), other)
    assert made.methods == ("tao-flows/attribution/2", "tao-flows/attribution/9")
    assert any("do not compare" in note for note in made.notes)


def test_an_account_that_disagrees_with_the_tasks_is_pointed_out() -> None:
    account = Account(None, 4_000_000, 1_000_000, 1_000_000, None, 2_000_000, Quality.ESTIMATED)
    made = report(task(energy_uj=2_000_000), accounts=[HostAccount("n", account, 1.0, "w")])
    assert any("-50 % from the sum of the tasks" in note for note in made.notes)


def test_the_flows_own_code_makes_up_the_difference_to_the_account() -> None:
    body = Figure(1_000_000, 500_000, 2_000_000, Quality.ESTIMATED)
    account = Account(None, 8_000_000, 3_000_000, 1_000_000, None, 4_000_000, Quality.ESTIMATED)
    hosts = [HostAccount("n", account, 1.0, window, body=body, body_cpu_s=0.25) for window in ("w1", "w2")]
    made = report(task(energy_uj=2_000_000), task(energy_uj=2_000_000, instance="b"), accounts=hosts)
    assert made.energy.value_uj == 4_000_000, "the total is of the tasks"
    shown = made.to_json()["flow_body"]
    assert (shown["energy"]["value_j"], shown["energy"]["quality"], shown["cpu_s"]) == (2.0, "estimated", 0.5)
    assert not any("from the sum of the tasks" in note for note in made.notes)
    assert report(task()).to_json()["flow_body"] is None


def test_a_run_begins_with_its_first_task_where_its_own_record_is_of_a_later_process() -> None:
    resumed = replace(RUN, started_wall_ns=T0 + 8 * S)
    made = report(task(start_s=1), task(start_s=9, instance="b"), run=resumed)
    assert made.run.started_wall_ns == T0 + S
    assert made.wall_s == 9.0


def test_a_running_run_has_no_duration() -> None:
    made = report(task(state=TaskState.RUNNING), run=replace(RUN, ended_wall_ns=None, state="running"))
    assert made.wall_s is None
    assert made.to_json()["run"]["ended"] is None


def test_the_json_has_the_fields_of_the_contract() -> None:
    record = task(map_index=4, who=Who(team="ml", tags=("x",)))
    account = Account(None, 3_000_000, 2_000_000, 1_000_000, None, None, Quality.ESTIMATED)
    made = report(record, decisions=[decision(record)], accounts=[HostAccount("n", account, 10.0, "w")]).to_json()
    assert made["schema"] == "tao-flows/report/1"
    assert {"engine", "namespace", "flow", "run_id", "state", "started", "ended"} <= made["run"].keys()
    assert made["run"]["started"].endswith("Z")
    assert made["hosts"][0].keys() >= {"host", "account"}
    assert made["account"].keys() >= {"counter_j", "tasks_j", "overhead_j", "idle_j", "unattributed_j"}
    assert made["account"]["counter_j"] is None
    assert made["overhead_share"] == pytest.approx(1 / 3)
    (row,) = made["tasks"]
    expected = {"task", "instance", "map_index", "try_number", "pool", "state", "wall_s", "cpu_s", "energy", "decision"}
    assert expected <= row.keys()
    assert row["energy"] == {
        "value_j": 2.0,
        "low_j": 1.0,
        "high_j": 4.0,
        "quality": "estimated",
        "sources": ["estimated-source"],
        "coverage": 1.0,
        "unknown_parts": [],
    }
    assert {"action": "run", "pool": "home", "reason": "cheapest"}.items() <= row["decision"].items()
    assert row["who"]["team"] == "ml"
    json.dumps(made, allow_nan=False)


def test_a_task_that_is_not_mapped_has_no_map_index_and_one_not_decided_no_decision() -> None:
    (row,) = report(task()).to_json()["tasks"]
    assert "map_index" not in row
    assert row["decision"] is None


def test_the_dearest_rows_come_first_and_the_rest_is_summed_without_loss() -> None:
    made = report(*(task(f"t{n}", n * 1_000_000, start_s=n) for n in range(1, 6)), task("u", None))
    shown, rest = dearest(made.tasks, 2)
    assert [row.title for row in shown] == ["t5", "t4"]
    assert rest is not None
    assert (rest.label, rest.count, rest.energy.value_uj) == ("and 4 more", 4, 6_000_000)
    assert rest.energy.unknown_parts == ("package-0",)
    assert dearest(made.tasks, 6) == (made.tasks, None)


def test_many_tries_share_a_line_by_label_with_their_sum_least_and_most() -> None:
    tasks = [task(instance=str(n), map_index=n, energy_uj=1_000_000 * (n + 1), start_s=n) for n in range(40)]
    groups, rest = overview(report(*tasks, task("load", 500_000, start_s=50)).tasks, 30)
    assert rest is None
    assert [group.title for group in groups] == ["train ×40", "load"]
    assert (groups[0].energy.value_uj, groups[0].least_uj, groups[0].most_uj) == (820_000_000, 1_000_000, 40_000_000)


def test_more_labels_than_lines_leave_one_line_for_the_rest() -> None:
    tasks = [task(f"t{n}", (n + 1) * 1_000, start_s=n) for n in range(40)]
    groups, rest = overview(report(*tasks).tasks, 30)
    assert len(groups) == 30
    assert rest is not None
    assert rest.count == 10
    assert sum(group.energy.value_uj or 0 for group in (*groups, rest)) == 820_000
