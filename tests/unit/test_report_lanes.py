"""When tries were queued, put off and running; and what their decisions weighed."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.records import DecisionRecord, Deferral, RunKey, RunRecord, Segment, TaskRecord, TaskState
from tao_flows.report.carbon import Curve, Origin, Step
from tao_flows.report.gantt import gantt_chart
from tao_flows.report.lanes import BINS, Lane, Stretch, timeline
from tao_flows.report.model import RunReport, build_report
from tao_flows.report.weigh import MOST_CANDIDATES, explain

S = 1_000_000_000
T0 = 1_790_000_000 * S
SVG = "{http://www.w3.org/2000/svg}"


def at(seconds: float) -> int:
    return T0 + round(seconds * S)


def key(task: str = "train", instance: str = "") -> RunKey:
    return RunKey("airflow", "default", "nightly", "r1", task, instance, 1)


def record(begin_s: float, end_s: float | None, name: str = "train", *, pid: int = 1, **more: Any) -> TaskRecord:
    state = more.get("state", TaskState.COMPLETED if end_s is not None else TaskState.RUNNING)
    quality = more.get("quality", Quality.MEASURED)
    measured = None
    if end_s is not None:
        watts = more.get("watts", 2)
        uj = round((end_s - begin_s) * watts * 1e6)
        cpu = CpuTime(1.0, "perf", covers_children=True)
        measured = Measurement(name, at(begin_s), end_s - begin_s, cpu, Figure(uj, uj, uj, quality), (), Account())
    return TaskRecord(
        key(name, more.get("instance", "")), Segment("node-1", "b", pid, 1), state, at(begin_s), pool="home",
        ended_wall_ns=None if end_s is None else at(end_s), measurement=measured,
    )  # fmt: skip


def report(*tasks: TaskRecord, ended_s: float | None = 100.0) -> RunReport:
    end = None if ended_s is None else at(ended_s)
    run = RunRecord("airflow", "default", "nightly", "r1", "success", T0, Segment("n", "b", 1, 1), end)
    return build_report(run, tasks, (), (), ())


def decided(action: str, at_s: float, *, latest_s: float = 90.0, **more: Any) -> DecisionRecord:
    request = {"task": {"ready_at": iso_from_ns(at(more.get("ready_s", 5.0))), "home_pool": "home"}}
    answer = more.get("answer", {"latest_start": iso_from_ns(at(latest_s))})
    enforced = action in ("defer", "release")
    return DecisionRecord(key(), at(at_s), "enforce", action, "home", "because", request, answer, enforced)


def spans(lane: Lane) -> list[tuple[str, float, float | None]]:
    return [
        (each.kind, (each.begin_ns - T0) / S, None if each.end_ns is None else (each.end_ns - T0) / S)
        for each in lane.stretches
    ]


def test_a_try_is_queued_from_when_it_was_ready_until_it_starts() -> None:
    (lane,) = timeline(report(record(20, 30)), [decided("run", 6)], (), at(100)).lanes
    assert spans(lane) == [("queued", 5, 20), ("running", 20, 30)]
    assert lane.stretches[1].power_w == 2.0
    assert lane.latest_ns == ()


def test_a_try_that_was_put_off_shows_it_until_its_start_with_the_latest_start() -> None:
    decisions = [decided("defer", 8), decided("defer", 30, latest_s=85), decided("run", 58)]
    (lane,) = timeline(report(record(60, 70)), decisions, (), at(100)).lanes
    assert spans(lane) == [("queued", 5, 8), ("deferred", 8, 60), ("running", 60, 70)]
    assert lane.latest_ns == (at(85),)


def test_a_release_ends_what_was_put_off() -> None:
    (lane,) = timeline(report(record(60, 70)), [decided("defer", 8), decided("release", 50)], (), at(100)).lanes
    assert spans(lane) == [("queued", 5, 8), ("deferred", 8, 50), ("queued", 50, 60), ("running", 60, 70)]


def test_between_two_parts_of_a_try_no_process_is_held() -> None:
    made = report(record(10, 20, state=TaskState.DEFERRED), record(50, 60, pid=2))
    (lane,) = timeline(made, (), (), at(100)).lanes
    assert spans(lane) == [("running", 10, 20), ("between", 20, 50), ("running", 50, 60)]


def test_a_try_that_waits_for_its_next_part_is_between_them_still() -> None:
    (lane,) = timeline(report(record(10, 20, state=TaskState.DEFERRED), ended_s=None), (), (), at(40)).lanes
    assert spans(lane) == [("running", 10, 20), ("between", 20, None)]


def test_what_waits_without_a_record_of_its_own_has_a_lane_up_to_its_latest_start() -> None:
    waiting = [Deferral(key("later"), "home", at(10), at(200), at(400), "cheaper at noon")]
    made = timeline(report(record(10, 20), ended_s=None), (), waiting, at(50))
    assert [lane.title for lane in made.lanes] == ["train", "later"]
    assert spans(made.lanes[1]) == [("deferred", 10, None)]
    assert (made.until_ns, made.end_ns) == (at(50), at(400))
    assert made.lanes[1].latest_ns == (at(400),)


def test_many_tries_of_a_task_share_a_lane_whose_watts_add_up() -> None:
    tasks = [record(0, 50, "embed", instance=str(n), pid=n, watts=3) for n in range(60)]
    made = timeline(report(*tasks, record(50, 100, "publish")), (), (), at(100))
    assert [lane.title for lane in made.lanes] == ["embed ×60", "publish"]
    running = [each for each in made.lanes[0].stretches if each.kind == "running"]
    assert len(running) <= BINS
    assert round(max(each.power_w or 0 for each in running), 6) == 180.0
    joules = sum((each.power_w or 0) * ((each.end_ns or 0) - each.begin_ns) / S for each in running)
    assert round(joules) == 60 * 3 * 50


def test_the_chart_ticks_the_latest_start_and_draws_the_signal_behind() -> None:
    line = timeline(report(record(60, 70)), [decided("defer", 8)], (), at(100))
    steps = (Step(at(0), at(50), 300.0, Origin.ACTUAL), Step(at(50), at(100), 200.0, Origin.FORECAST))
    drawing = ET.fromstring(gantt_chart(line, Curve("DE", "g/kWh", "x", steps)).inline())
    shapes = [each.get("class") for each in drawing.iter() if each.find(f"{SVG}title") is not None]
    assert shapes == ["signal", "signal forecast", "queued", "deferred", "span", "latest"]
    heights = {
        each.get("class"): float(each.get("height") or 0)
        for each in drawing.iter(f"{SVG}rect")
        if each.find(f"{SVG}title") is not None and "signal" in (each.get("class") or "")
    }
    assert round(heights["signal forecast"] / heights["signal"], 1) == 0.7


def test_the_watts_of_a_model_are_hatched() -> None:
    def hatched(quality: Quality) -> int:
        chart = gantt_chart(timeline(report(record(10, 20, quality=quality)), (), (), at(100)))
        return sum("hatch" in (each.get("fill") or "") for each in ET.fromstring(chart.inline()).iter(f"{SVG}rect"))

    assert hatched(Quality.ATTRIBUTED) == 0
    assert hatched(Quality.ESTIMATED) == 2  # the stretch and its key in the legend


def candidate(pool: str, score: float | None, *, feasible: bool = True, start: str = "2026-09-21T14:13:20Z") -> Any:
    constraint = {"id": "deadline", "value": 10.0, "limit": 8.0, "unit": "s", "slack": -2.0, "ok": feasible}
    objectives = {"energy_j": 5.0, "carbon_g": None, "cost": None, "finish_s": 10.0}
    return {
        "pool": pool, "start": start, "objectives": objectives, "constraints": [constraint], "feasible": feasible,
        "pareto_rank": 0 if feasible else None, "score": score,
    }  # fmt: skip


def test_the_chosen_candidate_comes_first_and_the_losing_ones_with_what_they_had_to_spare() -> None:
    candidates = [candidate("dear", 2.0), candidate("home", 1.0), candidate("late", None, feasible=False)]
    answer = {"pool": "home", "start": "2026-09-21T14:13:20Z", "candidates": candidates}
    (made,) = explain([decided("run", 1, answer=answer)])
    assert [(each.pool, each.chosen, each.feasible) for each in made.candidates] == [
        ("home", True, True), ("dear", False, True), ("late", False, False),
    ]  # fmt: skip
    late = made.candidates[2].constraints[0]
    assert (late.id, late.ok, late.slack, late.unit) == ("deadline", False, -2.0, "s")
    assert made.candidates[0].carbon_g is None
    assert made.candidates[0].start_wall_ns == T0


def test_decisions_alike_are_told_once_by_the_last_of_them() -> None:
    told = explain([decided("run", 1), decided("defer", 2), decided("run", 3)])
    assert [(each.action, each.count, each.decided_wall_ns) for each in told] == [
        ("run", 2, at(3)), ("defer", 1, at(2)),
    ]  # fmt: skip


def test_of_very_many_candidates_the_first_are_shown() -> None:
    answer = {"pool": "p3", "candidates": [candidate(f"p{n}", float(n)) for n in range(40)]}
    (made,) = explain([decided("run", 1, answer=answer)])
    assert len(made.candidates) == MOST_CANDIDATES
    assert made.more == 40 - MOST_CANDIDATES


def test_an_answer_of_another_form_is_told_without_candidates() -> None:
    odd: list[Any] = [None, 5, "x", {"objectives": 3, "constraints": "none"}, {"constraints": [1, {"slack": "much"}]}]
    for answer in ({"candidates": "none"}, {"candidates": odd}, {"latest_start": 7}):
        (made,) = explain([decided("run", 1, answer=answer)])
        assert not any(each.chosen and each.feasible for each in made.candidates)
        assert made.latest_wall_ns is None


def test_stretches_of_no_length_are_left_out() -> None:
    (lane,) = timeline(report(record(5, 30)), [decided("run", 6)], (), at(100)).lanes
    assert lane.stretches == (Stretch("running", at(5), at(30), 2.0, "completed"),)
