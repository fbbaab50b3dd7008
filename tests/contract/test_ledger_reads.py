"""What the pages ask of a ledger, on both databases, against sums made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger, reads
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.reads import Deadlines, IncidentSum, Moved, RunEnergy, Scope, TimeSum
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

S = 1_000_000_000
T0 = 1_790_000_000 * S
SEGMENT = Segment("node-1", "boot", 1, 1)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else str(tmp_path / "l.db")
    opened = open_ledger(url)
    yield opened
    opened.close()


def task(run: str = "r1", name: str = "train", energy_uj: int | None = 1_000, **more: Any) -> TaskRecord:
    begin_s, flow = more.pop("begin_s", 0), more.pop("flow", "nightly")
    state = more.pop("state", TaskState.COMPLETED)
    key = RunKey("airflow", more.pop("namespace", "default"), flow, run, name, "", more.pop("try_number", 1))
    quality = more.pop("quality", Quality.MEASURED)
    figure = (
        Figure.unknown(name)
        if energy_uj is None
        else Figure(energy_uj, energy_uj // 2, energy_uj * 2, quality, ("rapl",))
    )
    measured = Measurement(name, T0, 1.0, CpuTime(0.5, "perf", covers_children=True), figure, (), Account())
    ended = state is not TaskState.RUNNING
    at = T0 + begin_s * S
    return TaskRecord(
        key, more.pop("segment", SEGMENT), state, at, more.pop("who", Who(team="ml", owner="ada")),
        more.pop("pool", "home"), ended_wall_ns=at + 10 * S if ended else None,
        measurement=measured if ended else None, **more,
    )  # fmt: skip


def run(run_id: str = "r1", begin_s: int = 0, **more: Any) -> RunRecord:
    flow = more.pop("flow", "nightly")
    at = T0 + begin_s * S
    return RunRecord("airflow", "default", flow, run_id, "success", at, SEGMENT, at + 60 * S, **more)


def decision(key: RunKey, action: str = "defer", *, deadline: str | None = None, **more: Any) -> DecisionRecord:
    about = {"home_pool": "home", "ready_at": "2026-09-21T14:13:10Z"} | ({"deadline": deadline} if deadline else {})
    return DecisionRecord(
        key, more.pop("at", T0), "enforce", action, "green", "because", {"task": about}, {}, more.pop("enforced", True)
    )


def test_the_fleet_is_summed_by_run_pool_state_and_quality(ledger: Ledger) -> None:
    ledger.put_task(task(name="a", energy_uj=1_000))
    ledger.put_task(task(name="b", energy_uj=500))
    ledger.put_task(task(name="c", energy_uj=None))
    ledger.put_task(task(name="d", energy_uj=70, state=TaskState.FAILED))
    rows = {(row.state, row.quality): row for row in reads.task_sums(ledger, Scope(0))}
    assert set(rows) == {("completed", "measured"), ("completed", "unknown"), ("failed", "measured")}
    known = rows["completed", "measured"]
    assert (known.segments, known.energy_uj, known.low_uj, known.high_uj, known.coverage) == (2, 1_500, 750, 3_000, 2)
    assert (known.run_id, known.flow, known.team, known.pool) == ("r1", "nightly", "ml", "home")
    assert rows["completed", "unknown"].energy_uj is None


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, {"a", "b"}),
        ({"engine": "airflow"}, {"a", "b"}),
        ({"engine": "prefect"}, set()),
        ({"flow": "hourly"}, {"b"}),
        ({"team": "ml"}, {"a"}),
        ({"owner": "bob"}, {"b"}),
        ({"pool": "green"}, {"b"}),
        ({"quality": "estimated"}, {"b"}),
        ({"namespace": "elsewhere"}, {"b"}),
        ({"flows": ["nightly", "no such"]}, {"a"}),
        ({"flows": []}, set()),
        ({"until_wall_ns": T0 + 5 * S}, {"a"}),
    ],
)
def test_a_scope_leaves_in_what_it_names(ledger: Ledger, changes: dict[str, Any], left: set[str]) -> None:
    ledger.put_task(task("a"))
    ledger.put_task(
        task(
            "b", flow="hourly", who=Who(team="data", owner="bob"), pool="green", quality=Quality.ESTIMATED,
            namespace="elsewhere", begin_s=10,
        )
    )  # fmt: skip
    scope = Scope(T0, **changes)
    assert {row.run_id for row in reads.task_sums(ledger, scope)} == left
    assert sum(row.energy_uj for row in reads.energy_by_time(ledger, scope, S)) == 1_000 * len(left)
    assert sum(row.segments for row in reads.hosts(ledger, scope)) == len(left)


def test_known_energy_is_summed_by_the_span_in_which_the_middle_of_a_segment_lies(ledger: Ledger) -> None:
    ledger.put_task(task(name="a", begin_s=0))
    ledger.put_task(task(name="b", begin_s=4, energy_uj=30))
    ledger.put_task(task(name="c", begin_s=8, energy_uj=500))
    ledger.put_task(task(name="d", energy_uj=None))
    first = T0 // (10 * S)
    assert sorted(reads.energy_by_time(ledger, Scope(0), 10 * S)) == [
        TimeSum("home", "measured", first, 1_030, 515, 2_060),
        TimeSum("home", "measured", first + 1, 500, 250, 1_000),
    ]


def test_a_try_that_was_put_off_or_moved_is_told_once_with_where_and_when_it_would_have_run(ledger: Ledger) -> None:
    for record in (task(name="put-off", pool="green"), task(name="ran"), task(name="advised"), task(name="released")):
        ledger.put_task(record)
    ledger.put_decision(decision(task(name="put-off").key))
    ledger.put_decision(decision(task(name="put-off").key, "reroute", at=T0 + S))
    ledger.put_decision(decision(task(name="ran").key, "run"))
    ledger.put_decision(decision(task(name="advised").key, enforced=False))
    ledger.put_decision(decision(task(name="released").key, "release"))
    ready = 1_790_000_000 * S - 10 * S
    (told,) = reads.moved(ledger, Scope(0))
    assert told == Moved("home", "green", "measured", ready, T0, T0 + 10 * S, 1_000, 500, 2_000)
    assert reads.moved(ledger, Scope(0, pool="home")) == []
    assert reads.moved(ledger, Scope(T0 + 2 * S)) == []


def test_deadlines_are_missed_by_what_ended_late_or_has_not_ended(ledger: Ledger) -> None:
    # T0 is 14:13:20; every task that ends does so ten seconds later.
    ends = {"kept": "2026-09-21T14:14:00Z", "late": "2026-09-21T14:13:25Z", "none": None}
    for name, deadline in ends.items():
        ledger.put_task(task(name=name))
        ledger.put_decision(decision(task(name=name).key, "run", deadline=deadline, enforced=False))
    ledger.put_task(task(name="open", state=TaskState.RUNNING))
    ledger.put_decision(decision(task(name="open").key, deadline="2026-09-21T14:14:00Z"))
    ledger.put_decision(decision(task(name="unseen").key, deadline="2026-09-21T14:14:00Z"))
    scope = Scope(0)
    assert reads.deadlines(ledger, scope, T0 + 20 * S) == Deadlines(4, 1, 0)
    assert reads.deadlines(ledger, scope, T0 + 3_600 * S) == Deadlines(4, 2, 1)
    assert reads.deadlines(ledger, Scope(0, team="ml"), T0 + 3_600 * S) == Deadlines(3, 2, 0)
    assert reads.deadlines(ledger, Scope(0, flow="hourly"), T0) == Deadlines(0, 0, 0)


def test_a_decision_of_another_form_is_kept_and_tells_of_no_deadline(ledger: Ledger) -> None:
    key = task().key
    for number, about in enumerate(({"deadline": "soon", "ready_at": 5, "home_pool": ["x"]}, "no table", None)):
        ledger.put_decision(DecisionRecord(key, T0 + number, "enforce", "defer", "p", "", {"task": about}, {}, True))
    assert len(ledger.decisions(RunRef("airflow", "default", "r1"))) == 3
    assert reads.deadlines(ledger, Scope(0), T0) == Deadlines(0, 0, 0)
    assert reads.moved(ledger, Scope(0)) == []


def test_the_earlier_runs_of_a_flow_are_the_last_ones_oldest_first(ledger: Ledger) -> None:
    for number in range(4):
        ledger.put_run(run(f"r{number}", number * 100))
        ledger.put_task(task(f"r{number}", energy_uj=number * 10, begin_s=number * 100))
    ledger.put_task(task("r1", "dark", None, begin_s=100))
    ledger.put_run(run("other", 50, flow="hourly"))
    assert reads.earlier_runs(ledger, run("r3", 300), 2) == [
        RunEnergy("r1", T0 + 100 * S, "success", 10, 2, 1),
        RunEnergy("r2", T0 + 200 * S, "success", 20, 1, 1),
    ]
    assert [each.coverage for each in reads.earlier_runs(ledger, run("r3", 300), 2)] == [0.5, 1.0]


def test_a_run_is_found_by_what_names_it_wholly(ledger: Ledger) -> None:
    ledger.put_run(run("r1"))
    assert reads.find_run(ledger, RunRef("airflow", "default", "r1", "nightly")) == run("r1")
    assert reads.find_run(ledger, RunRef("airflow", "default", "r1")) == run("r1")
    for wrong in (RunRef("airflow", "default", "r1", "hourly"), RunRef("prefect", "default", "r1")):
        assert reads.find_run(ledger, wrong) is None


def test_overheads_and_held_gpus_are_of_the_runs_in_scope(ledger: Ledger) -> None:
    for flow, idle in (("nightly", 40), ("hourly", None)):
        ledger.put_run(run(flow=flow, who=Who(team=flow)))
        account = Account(100, None, 30, 20, None, 10, Quality.MEASURED, allocated_idle_uj=idle)
        ledger.put_account(RunRef("airflow", "default", "r1", flow), HostAccount("node-1", account, 5.0, "w"))
    assert {each.flow: (each.tasks_uj, each.overhead_uj) for each in reads.overheads(ledger, Scope(0))} == {
        "nightly": (30, 20), "hourly": (30, 20),
    }  # fmt: skip
    assert [each.flow for each in reads.overheads(ledger, Scope(0, team="hourly"))] == ["hourly"]
    assert [each.account.allocated_idle_uj for each in reads.gpu_accounts(ledger, Scope(0))] == [40]
    assert reads.gpu_accounts(ledger, Scope(0, flow="hourly")) == []


def test_incidents_are_counted_by_code_with_the_latest_words(ledger: Ledger) -> None:
    for at, words in ((1, "first"), (3, "last"), (2, "between")):
        ledger.put_incident(Incident("BUSY", words, "wait", T0 + at, 2, f"r{at}"))
    ledger.put_incident(Incident("OLD", "long ago", "", T0 - S))
    assert reads.incident_sums(ledger, T0) == [IncidentSum("BUSY", 6, T0 + 3, "last", "wait")]


def test_the_filters_offer_what_there_is_to_see(ledger: Ledger) -> None:
    ledger.put_run(run(who=Who(team="ml")))
    ledger.put_run(run(flow="hourly", who=Who(owner="bob")))
    every = {"engine": ("airflow",), "flow": ("hourly", "nightly"), "team": ("ml",), "owner": ("bob",)}
    assert reads.choices(ledger, Scope(0, flow="nightly")) == every
    assert reads.choices(ledger, Scope(0, flows=["nightly"]))["owner"] == ()
