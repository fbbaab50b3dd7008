"""What every ledger does. A new ledger joins by one more factory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from tao_flows.errors import InputError, LedgerError
from tao_flows.figures import AGENT_PENDING, METHOD, Account, CpuTime, DomainEnergy, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger, relational
from tao_flows.ledger.base import Ledger, RunRef, Settled
from tao_flows.ledger.late import LateLedger
from tao_flows.ledger.safe import SafeLedger
from tao_flows.records import (
    UNSEEN_RUN,
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

KEY = RunKey("prefect", "default", "nightly", "run-0001", "train", "instance-1", 1)
RUN = RunRef("prefect", "default", "run-0001")
SEGMENT = Segment("node-1", "boot", 4242, 99)
WHO = Who("ml", "ada", "west", "model-7", ("nightly", "größe"))
START = TaskRecord(KEY, SEGMENT, TaskState.RUNNING, 1_000, who=WHO, pool="home", budget="team-a", map_index=0)
RUN_START = RunRecord("prefect", "default", "nightly", "run-0001", "running", 900, SEGMENT, who=WHO, name="amber-fox")

Opener = Callable[[], Ledger]

LEDGERS = ("sqlite", "postgres")


@pytest.fixture(params=LEDGERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(params=["", "safe", "late"])
def open_again(request: pytest.FixtureRequest, url: str) -> Iterator[Opener]:
    """Opens one and the same ledger as often as it is called, as several processes would."""
    opened: list[Ledger] = []

    def opener() -> Ledger:
        inner: Ledger = open_ledger(url)
        if request.param == "late":
            inner = cast("Ledger", LateLedger("conn:ledger", lambda: open_ledger(url)))
        opened.append(SafeLedger(inner, lambda incident: None) if request.param else inner)
        return opened[-1]

    yield opener
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_again: Opener) -> Ledger:
    return open_again()


def measured(energy_uj: int | None, quality: Quality = Quality.ATTRIBUTED, **changes: Any) -> Measurement:
    figure = Figure.unknown("train")
    if energy_uj is not None:
        figure = Figure(energy_uj, energy_uj - 1, energy_uj + 1, quality, ("rapl",))
    base = Measurement("train", 1_000, 2.0, CpuTime(1.5, "perf", covers_children=True), figure, (), Account())
    return replace(base, **changes)


def ended(record: TaskRecord, measurement: Measurement | None, state: TaskState = TaskState.COMPLETED) -> TaskRecord:
    return replace(record, state=state, ended_wall_ns=record.started_wall_ns + 50, measurement=measurement)


def task(number: int, **changes: Any) -> TaskRecord:
    key_changes = {name: changes.pop(name) for name in list(changes) if name in RunKey.__dataclass_fields__}
    base = replace(
        START, key=replace(KEY, instance=f"instance-{number}", **key_changes), started_wall_ns=1_000 + number
    )
    return replace(base, **changes)


def test_every_kind_of_record_comes_back_as_it_was_written(open_again: Opener) -> None:
    domain = DomainEnergy("package-0", "rapl", "package", 9, 1, 5, Quality.ATTRIBUTED, False, ("WRAPPED",))
    account = Account(90, None, 50, 20, None, 20, Quality.ATTRIBUTED, ("gpu-0",))
    end = ended(START, measured(7, domains=(domain,), account=account, events=("GAP",), model="m/1", memory_bytes=3))
    decision = DecisionRecord(
        KEY, 950, "advise", "run", "home", "only pool", {"pools": [{"id": "x", "n": None}]}, {"ok": 1.5}
    )
    host_account = HostAccount("node-1", account, 12.5, "attempt-1", ("GAP",))
    incident = Incident("RAPL_GAP", "a gap", "none", 960, 2, "run-0001", "train")
    first = open_again()
    first.put_run(RUN_START)
    first.put_task(end)
    first.put_decision(decision)
    first.put_account(RUN, host_account)
    first.put_incident(incident)
    first.close()

    second = open_again()
    assert second.runs() == [RUN_START]
    assert second.tasks(RUN) == [end]
    assert second.decisions(RUN) == [decision]
    assert second.accounts(RUN) == [host_account]
    assert second.incidents(RUN) == [incident]


def test_what_one_handle_writes_another_open_one_reads(open_again: Opener) -> None:
    first, second = open_again(), open_again()
    first.put_run(RUN_START)
    assert second.runs() == [RUN_START]
    second.put_task(START)
    assert first.tasks(RUN) == [START]


def test_an_end_takes_the_place_of_its_start(ledger: Ledger) -> None:
    end = ended(START, measured(7))
    ledger.put_task(START)
    ledger.put_task(end)
    assert ledger.tasks(RUN) == [end]


def test_a_late_start_does_not_undo_an_end(ledger: Ledger) -> None:
    end, run_end = ended(START, measured(7)), replace(RUN_START, state="completed", ended_wall_ns=2_000)
    ledger.put_task(end)
    ledger.put_task(START)
    ledger.put_run(run_end)
    ledger.put_run(RUN_START)
    assert ledger.tasks(RUN) == [end]
    assert ledger.runs() == [run_end]


def test_an_end_holds_though_the_wall_clock_was_set_back(ledger: Ledger) -> None:
    end = replace(ended(START, measured(7)), ended_wall_ns=10)
    run_end = replace(RUN_START, state="failed", ended_wall_ns=10)
    for record in (START, end, START):
        ledger.put_task(record)
    for run in (RUN_START, run_end, RUN_START):
        ledger.put_run(run)
    assert ledger.tasks(RUN) == [end]
    assert ledger.runs() == [run_end]


def test_a_run_taken_up_again_after_its_end_is_running_again(ledger: Ledger) -> None:
    again = replace(RUN_START, started_wall_ns=3_000, segment=replace(SEGMENT, pid=5))
    for run in (RUN_START, replace(RUN_START, state="failed", ended_wall_ns=2_000), again):
        ledger.put_run(run)
    assert ledger.runs() == [again]


@pytest.mark.parametrize("unseen_first", [True, False])
def test_a_run_of_which_only_tasks_were_seen_takes_nobodys_place(ledger: Ledger, *, unseen_first: bool) -> None:
    unseen = replace(RUN_START, state=UNSEEN_RUN, started_wall_ns=5_000, segment=replace(SEGMENT, pid=1))
    for run in (unseen, RUN_START) if unseen_first else (RUN_START, unseen):
        ledger.put_run(run)
    assert ledger.runs() == [RUN_START]
    ledger.put_run(replace(unseen, run_id="run-0002"))
    assert {run.state for run in ledger.runs()} == {"running", UNSEEN_RUN}


def test_segments_of_one_try_are_kept_apart_and_in_order_of_start(ledger: Ledger) -> None:
    later = replace(START, segment=replace(SEGMENT, host="node-2"), started_wall_ns=2_000)
    ledger.put_task(later)
    ledger.put_task(START)
    assert ledger.tasks(RUN) == [START, later]


def test_runs_with_one_id_in_two_flows_are_kept_apart(ledger: Ledger) -> None:
    other = replace(RUN_START, flow="weekly", started_wall_ns=950)
    account = HostAccount("node-1", Account(), 1.0, "w")
    for run in (RUN_START, other):
        ledger.put_run(run)
        ledger.put_task(task(1, flow=run.flow))
        ledger.put_account(replace(RUN, flow=run.flow), account)
    weekly = replace(RUN, flow="weekly")
    assert ledger.find_runs("run-0001") == [other, RUN_START]
    assert [record.key.flow for record in ledger.tasks(weekly)] == ["weekly"]
    assert len(ledger.accounts(weekly)) == 1
    assert len(ledger.tasks(RUN)) == 2


def test_namespaces_are_kept_apart(ledger: Ledger) -> None:
    ledger.put_task(START)
    assert ledger.tasks(replace(RUN, namespace="other")) == []


def test_runs_since_are_newest_first(ledger: Ledger) -> None:
    runs = [replace(RUN_START, run_id=f"run-{n:04}", started_wall_ns=n) for n in (1, 3, 2)]
    for run in runs:
        ledger.put_run(run)
    assert [run.started_wall_ns for run in ledger.runs()] == [3, 2, 1]
    assert [run.started_wall_ns for run in ledger.runs(2)] == [3, 2]


def test_a_run_is_found_by_all_its_names(ledger: Ledger) -> None:
    runs = [
        replace(RUN_START, run_id=run_id, name=name, flow=flow, started_wall_ns=n)
        for n, (run_id, name, flow) in enumerate(
            [("abcd1111", "amber-fox", "nightly"), ("abcd2222", "blue-owl", "weekly"), ("a/b%_", "amber-fox", "weekly")]
        )
    ]
    for run in runs:
        ledger.put_run(run)
    first, second, third = runs
    assert ledger.find_runs("latest") == [third]
    assert ledger.find_runs("abcd1111") == [first]
    assert ledger.find_runs("abcd1") == [first]
    assert ledger.find_runs("abcd") == [second, first]
    assert ledger.find_runs("blue-owl") == [second]
    assert ledger.find_runs("amber-fox") == [third, first]
    assert ledger.find_runs("weekly/amber-fox") == [third]
    assert ledger.find_runs("weekly/abcd") == [second]
    assert ledger.find_runs("a/b%_") == [third]
    assert ledger.find_runs("nightly/latest") == [first]
    assert ledger.find_runs("yearly/latest") == []


@pytest.mark.parametrize("text", ["", "abc", "zzzz", "weekly/abcd1111", "abc%", "%", "____"])
def test_what_names_no_run_finds_none(ledger: Ledger, text: str) -> None:
    ledger.put_run(replace(RUN_START, run_id="abcd1111"))
    assert ledger.find_runs(text) == []


def test_latest_finds_none_in_an_empty_ledger(ledger: Ledger) -> None:
    assert ledger.find_runs("latest") == []


def test_a_decision_written_twice_is_one_and_decisions_are_in_order_of_time(ledger: Ledger) -> None:
    late = DecisionRecord(KEY, 20, "advise", "run", "home", "r", {}, {})
    early = replace(late, decided_wall_ns=10)
    for record in (late, early, late):
        ledger.put_decision(record)
    assert ledger.decisions(RUN) == [early, late]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_longest_account_of_a_window_holds_whatever_the_order(ledger: Ledger, order: tuple[int, int]) -> None:
    accounts = [
        HostAccount("node-1", Account(tasks_uj=9), 1.0, "w"),
        HostAccount("node-1", Account(tasks_uj=10), 2.0, "w"),
    ]
    for index in order:
        ledger.put_account(RUN, accounts[index])
    assert ledger.accounts(RUN) == [accounts[1]]


def test_an_account_written_twice_is_one(ledger: Ledger) -> None:
    accounts = [HostAccount("node-1", Account(tasks_uj=1), 1.0, window) for window in ("a", "b")]
    for account in (*accounts, *accounts):
        ledger.put_account(RUN, account)
    assert ledger.accounts(RUN) == accounts


def test_incidents_add_up_and_one_told_twice_counts_once(ledger: Ledger) -> None:
    first = Incident("GAP", "early", "do this", 10, 2, "run-0001", "train")
    second = replace(first, summary="late", wall_ns=20, count=3)
    other = replace(first, run_id="run-0002", wall_ns=5)
    for incident in (second, first, first, other):
        ledger.put_incident(incident)
    assert ledger.incidents(RUN) == [replace(second, count=5)]
    assert ledger.incidents() == [other, replace(second, count=5)]


def test_history_is_the_completed_tries_newest_first(ledger: Ledger) -> None:
    for number in range(4):
        ledger.put_task(ended(task(number), measured(100 + number, wall_s=float(number))))
    ledger.put_task(ended(task(5), measured(1), TaskState.FAILED))
    ledger.put_task(task(6))
    ledger.put_task(ended(task(7, pool="away"), measured(1)))
    ledger.put_task(ended(task(8, task="other"), measured(1)))
    ledger.put_task(ended(task(9), measured(1, method="tao-flows/attribution/0")))
    history = ledger.history("train", "home", limit=3)
    assert history.runs == (
        Settled(103, 3.0, None, 1_003),
        Settled(102, 2.0, None, 1_002),
        Settled(101, 1.0, None, 1_001),
    )


def test_history_can_be_that_of_one_flows_task_alone(ledger: Ledger) -> None:
    for number, flow in enumerate(("nightly", "hourly")):
        ledger.put_task(ended(task(number, flow=flow), measured(10 + number, wall_s=1.0)))
    runs = {flow: ledger.history("train", "home", flow=flow).runs for flow in ("nightly", "hourly", "weekly", "")}
    assert {flow: [run.energy_uj for run in found] for flow, found in runs.items()} == {
        "nightly": [10],
        "hourly": [11],
        "weekly": [],
        "": [11, 10],
    }


def test_history_sums_the_segments_of_a_try(ledger: Ledger) -> None:
    for number in range(2):
        segment = replace(SEGMENT, sequence=number)
        ledger.put_task(ended(task(1, segment=segment, started_wall_ns=number), measured(10 + number, wall_s=1.0)))
    assert ledger.history("train", "home").runs == (Settled(21, 2.0, None, 1),)


def test_history_says_the_size_that_a_task_was_given(ledger: Ledger) -> None:
    for number in range(2):
        segment = replace(SEGMENT, sequence=number)
        ledger.put_task(ended(task(1, segment=segment, started_wall_ns=number, size=1e6), measured(10)))
    assert ledger.history("train", "home").runs == (Settled(20, 4.0, 1e6, 1),)


def test_the_history_of_a_try_whose_energy_lacks_a_part_has_none(ledger: Ledger) -> None:
    ledger.put_task(ended(task(1), measured(10)))
    ledger.put_task(ended(task(1, segment=replace(SEGMENT, sequence=1)), measured(None)))
    ledger.put_task(ended(task(2), measured(None, wall_s=9.0)))
    assert [(run.energy_uj, run.runtime_s) for run in ledger.history("train", "home").runs] == [
        (None, 9.0),
        (None, 4.0),
    ]


def test_spent_is_the_known_energy_of_a_budget_since(ledger: Ledger) -> None:
    ledger.put_task(ended(task(1), measured(10)))
    ledger.put_task(ended(task(2), measured(20), TaskState.FAILED))
    ledger.put_task(ended(task(3), measured(None)))
    ledger.put_task(ended(task(4, budget="team-b"), measured(400)))
    ledger.put_task(ended(task(5, budget=""), measured(800)))
    ledger.put_task(task(6))
    assert ledger.spent_uj("team-a", 0) == 30
    assert ledger.spent_uj("team-a", 1_002) == 20
    assert ledger.spent_uj("team-c", 0) == 0
    assert ledger.spent_uj("", 0) == 0


def test_the_fleet_is_totalled_by_team_dearest_first(ledger: Ledger) -> None:
    ledger.put_task(ended(task(1), measured(10)))
    ledger.put_task(ended(task(2, run_id="run-0002"), measured(30, Quality.ESTIMATED)))
    ledger.put_task(replace(task(3), state=TaskState.LOST))
    ledger.put_task(ended(task(4, task="predict"), measured(None)))
    ledger.put_task(ended(task(5, who=Who("ops")), measured(500)))
    ledger.put_task(ended(replace(task(6, who=Who("ops")), started_wall_ns=1), measured(7_000)))
    dear, cheap = ledger.fleet(1_000, "team")
    assert (dear.group, dear.energy.value_uj, dear.energy.coverage) == ("ops", 500, 1.0)
    assert (cheap.group, cheap.runs, cheap.tasks, cheap.lost, cheap.cpu_s) == ("ml", 2, 4, 1, 4.5)
    assert (cheap.energy.value_uj, cheap.energy.low_uj, cheap.energy.high_uj) == (40, 38, 42)
    assert cheap.energy.quality is Quality.ESTIMATED
    assert cheap.energy.coverage == 0.5
    assert set(cheap.energy.unknown_parts) == {"train", "predict"}
    assert cheap.energy.sources == ("rapl",)
    assert cheap.by_quality_uj == {"attributed": 10, "estimated": 30}
    assert cheap.methods == (METHOD,)


def test_a_fleet_group_of_which_nothing_is_known_is_unknown_and_last(ledger: Ledger) -> None:
    ledger.put_task(task(1, flow="dark"))
    ledger.put_task(ended(task(2), measured(0)))
    zero, dark = ledger.fleet(0, "flow")
    assert (zero.group, zero.energy.value_uj, zero.methods) == ("nightly", 0, (METHOD,))
    assert (dark.group, dark.energy.value_uj, dark.energy.quality) == ("dark", None, Quality.UNKNOWN)
    assert (dark.energy.coverage, dark.by_quality_uj, dark.methods) == (0.0, {}, ())


def test_a_try_in_two_segments_is_one_task_of_the_fleet(ledger: Ledger) -> None:
    for number in range(2):
        ledger.put_task(ended(task(1, segment=replace(SEGMENT, sequence=number)), measured(10)))
    (row,) = ledger.fleet(0, "flow")
    assert (row.tasks, row.energy.value_uj) == (1, 20)


def test_the_overhead_share_is_said_only_of_whole_runs(ledger: Ledger) -> None:
    ledger.put_task(ended(task(1), measured(75)))
    ledger.put_task(ended(task(2, pool="away"), measured(1)))
    ledger.put_task(ended(task(3, pool="far", run_id="run-0002"), measured(1)))
    ledger.put_account(RUN, HostAccount("node-1", Account(tasks_uj=50, overhead_uj=25), 1.0, "w"))
    ledger.put_account(RUN, HostAccount("node-2", Account(tasks_uj=25, overhead_uj=0), 1.0, "w"))
    ledger.put_account(RUN, HostAccount("node-3", Account(tasks_uj=None, overhead_uj=99), 1.0, "w"))
    ledger.put_account(
        replace(RUN, run_id="run-0002"), HostAccount("node-1", Account(tasks_uj=1, overhead_uj=1), 1.0, "w")
    )
    (by_flow,) = ledger.fleet(0, "flow")
    by_pool = {row.group: row.overhead_share for row in ledger.fleet(0, "pool")}
    assert by_flow.overhead_share == 26 / 102
    assert by_pool == {"home": None, "away": None, "far": 0.5}


def test_a_fleet_by_anything_else_is_refused(ledger: Ledger) -> None:
    with pytest.raises(InputError, match=r"FLEET_GROUP: 'owner; drop' is no grouping \(group by team, flow, pool\)"):
        ledger.fleet(0, "owner; drop")


def test_reconcile_marks_what_runs_in_a_dead_process_as_lost(ledger: Ledger) -> None:
    dead, alive, distant = (replace(SEGMENT, pid=pid) for pid in (1, 2, 3))
    records = [task(1, segment=dead), task(2, segment=alive), task(3, segment=distant)]
    done = ended(task(4, segment=dead), measured(5))
    for record in (*records, done):
        ledger.put_task(record)
    ledger.put_run(replace(RUN_START, segment=dead))
    answers = {1: False, 2: True, 3: None}

    assert ledger.reconcile(lambda segment: answers[segment.pid]) == [records[0].key]
    assert ledger.tasks(RUN) == [replace(records[0], state=TaskState.LOST), *records[1:], done]
    assert [run.state for run in ledger.runs()] == ["lost"]
    assert ledger.reconcile(lambda segment: answers[segment.pid]) == []


def test_an_end_that_comes_after_all_takes_the_place_of_a_loss(ledger: Ledger) -> None:
    ledger.put_task(START)
    ledger.put_run(RUN_START)
    ledger.reconcile(lambda segment: False)
    ledger.put_task(START)
    assert [record.state for record in ledger.tasks(RUN)] == [TaskState.LOST]
    end, run_end = ended(START, measured(7)), replace(RUN_START, state="crashed", ended_wall_ns=2_000)
    ledger.put_task(end)
    ledger.put_run(run_end)
    assert ledger.tasks(RUN) == [end]
    assert ledger.runs() == [run_end]


def test_a_closed_ledger_can_be_closed_again_and_used_again(ledger: Ledger) -> None:
    ledger.put_run(RUN_START)
    ledger.close()
    ledger.close()
    assert ledger.runs() == [RUN_START]


@pytest.mark.parametrize(
    "bad",
    [
        DecisionRecord(KEY, 1, "advise", "run", "home", "r", {"at": datetime(2026, 1, 1)}, {}),  # noqa: DTZ001
        DecisionRecord(KEY, 2**70, "advise", "run", "home", "r", {}, {}),
        DecisionRecord(KEY, 1, "advise", "run", "\ud800", "r", {}, {}),
        DecisionRecord(KEY, 1, "advise", "run", ["home"], "r", {}, {}),  # type: ignore[arg-type]
    ],
    ids=["no-json-form", "too-large", "no-text", "wrong-type"],
)
def test_a_record_no_ledger_can_keep_is_refused_alone(url: str, bad: DecisionRecord) -> None:
    ledger = open_ledger(url)
    with pytest.raises(LedgerError) as caught:
        ledger.put_decision(bad)
    good = replace(bad, decided_wall_ns=1, pool="home", request={})
    ledger.put_decision(good)
    assert caught.value.code == "LEDGER_BAD_RECORD"
    assert caught.value.remedy
    assert ledger.decisions(RUN) == [good]
    ledger.close()


def test_texts_are_in_order_of_their_bytes_whatever_the_language_of_the_database(ledger: Ledger) -> None:
    names = ["a", "B", "ä", "Z", "a b", "a-b", "ab"]
    for name in names:
        ledger.put_task(replace(START, key=replace(KEY, task=name)))
        ledger.put_run(replace(RUN_START, run_id=f"run-{name}"))
    assert [task.key.task for task in ledger.tasks(RUN)] == sorted(names, key=str.encode)
    assert {run.run_id for run in ledger.find_runs("run-")} == {f"run-{name}" for name in names}


@pytest.mark.parametrize("text", ["run\0", "\udcff1111"])
def test_what_no_database_can_hold_names_no_run(ledger: Ledger, text: str) -> None:
    ledger.put_run(RUN_START)
    assert ledger.find_runs(text) == []


def in_ledger(ledger: Ledger, statement: str) -> list[tuple[Any, ...]]:
    with ledger.transaction(write=False) as transaction:
        return transaction.execute(statement)


ADD_POOL = "INSERT INTO pools (pool_id, body, changed_wall_ns) VALUES (:pool, :body, :now)"


def test_a_transaction_is_written_at_its_end_and_undone_where_its_block_raises(open_again: Opener) -> None:
    ledger, other = open_again(), open_again()
    with ledger.transaction() as transaction:
        assert transaction.change(ADD_POOL, pool="kept", body="{}", now=2**60) == 1

    def fail() -> None:
        with ledger.transaction() as transaction:
            transaction.change(ADD_POOL, pool="undone", body="{}", now=1)
            assert transaction.execute("SELECT count(*) FROM pools") == [(2,)]
            raise OSError("the caller's own")

    with pytest.raises(OSError, match="the caller's own"):
        fail()
    assert in_ledger(other, "SELECT pool_id, changed_wall_ns FROM pools") == [("kept", 2**60)]


def test_a_statement_that_fails_undoes_its_transaction_and_the_ledger_goes_on(ledger: Ledger) -> None:
    def add(*numbers: int) -> None:
        with ledger.transaction() as transaction:
            for number in numbers:
                transaction.change(ADD_POOL, pool="a", body="{}", now=number)

    for numbers in ((1, 1), (2**70,)):
        with pytest.raises(LedgerError) as caught:
            add(*numbers)
        assert caught.value.code == "LEDGER_BAD_RECORD"
    assert in_ledger(ledger, "SELECT * FROM pools") == []


def test_a_sum_of_whole_numbers_is_one_and_a_mean_is_none(ledger: Ledger) -> None:
    with ledger.transaction() as transaction:
        for number in range(3):
            transaction.change(ADD_POOL, pool=str(number), body="{}", now=2**60 + number)
        ((total, mean, nothing),) = transaction.execute(
            "SELECT sum(changed_wall_ns), avg(changed_wall_ns % 8), sum(changed_wall_ns - :none) FROM pools", none=None
        )
    assert (total, type(total)) == (3 * 2**60 + 3, int)
    assert (mean, type(mean)) == (1.0, float)
    assert nothing is None


def test_rows_that_are_read_to_be_changed_are_changed_by_one_writer_at_a_time(open_again: Opener) -> None:
    first = open_again()
    with first.transaction() as transaction:
        transaction.change(ADD_POOL, pool="a", body="0", now=0)

    def count_up(ledger: Ledger) -> None:
        for _ in range(10):
            with ledger.transaction() as transaction:
                select = f"SELECT body FROM pools WHERE pool_id = :pool {transaction.for_update}"
                ((body,),) = transaction.execute(select, pool="a")
                transaction.change(
                    "UPDATE pools SET body = :body WHERE pool_id = :pool", body=str(int(body) + 1), pool="a"
                )

    threads = [threading.Thread(target=count_up, args=(open_again(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert in_ledger(first, "SELECT body FROM pools") == [("40",)]


def test_the_databases_clock_tells_the_time_and_does_not_stand_still_in_a_transaction(ledger: Ledger) -> None:
    with ledger.transaction() as transaction:
        first = transaction.now_ns()
        time.sleep(0.01)
        second = transaction.now_ns()
    assert second > first
    assert abs(first - time.time_ns()) < 600e9


def spending(ledger: Ledger) -> dict[str, int]:
    return dict(in_ledger(ledger, "SELECT budget, sum(spent_uj) FROM spending GROUP BY budget"))


def test_an_end_is_charged_to_its_budgets_once_with_the_record_that_says_so(ledger: Ledger) -> None:
    now_ns = time.time_ns()
    record = replace(task(1, budgets=("team-a", "all")), started_wall_ns=now_ns)
    end = replace(ended(record, measured(70)), ended_wall_ns=now_ns)
    ledger.put_task(record)
    assert spending(ledger) == {}
    for _ in range(2):
        ledger.put_task(end)
    assert spending(ledger) == {"team-a": 70, "all": 70}


def test_what_waits_for_the_agents_figures_is_charged_when_they_are_there(ledger: Ledger) -> None:
    now_ns = time.time_ns()
    record = replace(task(1, budgets=("team-a",)), started_wall_ns=now_ns)
    waiting = replace(ended(record, measured(50, events=(AGENT_PENDING,))), ended_wall_ns=now_ns)
    ledger.put_task(waiting)
    assert spending(ledger) == {}
    ledger.put_task(replace(waiting, measurement=measured(60)))
    ledger.put_task(waiting)
    assert spending(ledger) == {"team-a": 60}


def test_a_record_that_cannot_be_charged_is_not_kept_either(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(transaction: object, record: TaskRecord) -> None:
        raise LedgerError("LEDGER_BUSY", "the budget is locked")

    monkeypatch.setattr(relational, "settle", fail)
    end = replace(ended(task(1, budgets=("team-a",)), measured(70)), ended_wall_ns=time.time_ns())
    inner = ledger._inner if isinstance(ledger, SafeLedger) else ledger
    with pytest.raises(LedgerError):
        inner.put_task(end)
    assert ledger.tasks(RUN) == []
