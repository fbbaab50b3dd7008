"""What a compaction leaves and takes, on both databases: the same totals, whatever was killed or came late."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread

import old_runs
import pytest
from old_runs import CUT, T0, S, put_run, run_of, task_of

from tao_flows.budget import EnergyBudget
from tao_flows.figures import METHOD
from tao_flows.ledger import compaction, open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.budgets import BudgetStore, Claim
from tao_flows.ledger.compaction import Compaction, compact
from tao_flows.ledger.lasting import grouped, read_totals
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.ledger.seals import Seal, end_turn, take_turn
from tao_flows.ledger.tally import DAY_NS, Total
from tao_flows.records import Incident, TaskState

GONE = ("runs", "tasks", "decisions", "accounts")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[RelationalLedger]:
    with closing(open_ledger(url)) as ledger:
        yield ledger


def compacted(ledger: RelationalLedger, before: int = CUT, **more: object) -> Compaction:
    done = compact(ledger, before, rest=lambda _: None, **more)  # type: ignore[arg-type]
    assert done.problems == []
    return done


def rows(ledger: RelationalLedger) -> dict[str, int]:
    return {table: count for table, count in ledger.counts().items() if table in GONE}


def test_what_is_old_goes_and_every_total_is_the_same_as_before(ledger: RelationalLedger) -> None:
    for number in range(7):
        run = run_of(number, state="cancelled" if number == 3 else "failed")
        put_run(ledger, run, task_of(run, energy_uj=None if number == 2 else 1_000 + number), task_of(run, "score"))
    before = read_totals(ledger)
    done = compacted(ledger)
    assert (done.runs, done.kept, done.late) == (7, Counter(), 0)
    assert done.rows == Counter(runs=7, tasks=14, decisions=14, accounts=7, processes=7, environments=1)
    assert rows(ledger) == dict.fromkeys(GONE, 0)
    assert read_totals(ledger) == before
    team = grouped(before, "team")["ml"]
    assert team["runs", "failed", ""].parts == 6
    assert team["energy", "unknown", "uJ"] == Total(1, 0)
    assert team["energy", "attributed", "uJ"] == Total(13, 13, 13_019, 6_508, 26_038)
    assert team["overhead", "measured", "uJ"].amount == 7 * 1_500
    assert team["idle", "measured", "uJ"] == Total(7, 0)
    assert team["carbon", "attributed", "ug"] == Total(13, 0)
    assert read_totals(ledger, T0 + DAY_NS) == {}
    again = compacted(ledger)
    assert (again.runs, again.rows, read_totals(ledger)) == (0, Counter(), before)


def test_a_dry_run_counts_and_changes_nothing(ledger: RelationalLedger) -> None:
    run = run_of(1)
    put_run(ledger, run, task_of(run))
    before = ledger.counts()
    done = compacted(ledger, dry_run=True)
    assert (done.runs, done.applied, ledger.counts()) == (1, False, before)


def test_runs_that_are_young_under_way_or_waiting_stay(ledger: RelationalLedger) -> None:
    young = replace(run_of(1), started_wall_ns=CUT + S, ended_wall_ns=CUT + 2 * S)
    long = replace(run_of(2), ended_wall_ns=CUT + S)
    open_ = replace(run_of(3), state="running", ended_wall_ns=None)
    busy = run_of(4)
    put_run(ledger, young)
    put_run(ledger, long, task_of(long))
    put_run(ledger, open_, task_of(open_))
    put_run(ledger, busy, replace(task_of(busy), state=TaskState.RUNNING, ended_wall_ns=None, measurement=None))
    before, kept = read_totals(ledger), rows(ledger)
    assert compacted(ledger).kept == {"under way": 3}
    assert (read_totals(ledger), rows(ledger)) == (before, kept)
    assert ledger.counts()["environments"] == 1


def test_where_bundles_are_made_only_sealed_runs_go(ledger: RelationalLedger) -> None:
    for number in (1, 2):
        put_run(ledger, run_of(number), task_of(run_of(number)))
    ref, holder = RunRef("prefect", "default", "run-0001", "nightly"), old_runs.segment(9)
    assert take_turn(ledger, ref, holder, 60, lambda _: True)
    end_turn(ledger, ref, holder, None, Seal(1, 1, "h", "d", "k", "p", "agent", True, "s", T0))
    done = compacted(ledger, sealed_only=True)
    assert (done.runs, done.kept) == (1, {"not sealed": 1})
    assert [run.run_id for run in ledger.runs()] == ["run-0002"]


def test_predictions_are_the_same_after_a_compaction(ledger: RelationalLedger) -> None:
    for number in range(60):
        run = run_of(number)
        task = task_of(run, energy_uj=number)
        assert task.measurement is not None
        put_run(ledger, run, replace(task, measurement=replace(task.measurement, method=METHOD)))
    rare = run_of(0, flow="yearly", run_id="rare")
    put_run(ledger, rare)
    before, totals = ledger.history("train", "home"), read_totals(ledger)
    done = compacted(ledger)
    assert (done.runs, done.kept) == (11, {"predictions are made from it": 50})
    assert len(before.runs) == 50
    assert (ledger.history("train", "home"), read_totals(ledger)) == (before, totals)


def test_what_is_reserved_stays(ledger: RelationalLedger) -> None:
    store = BudgetStore(ledger)
    store.put(EnergyBudget("team-a", 100.0))
    run = run_of(1)
    put_run(ledger, run, task_of(run, budget="team-a", budgets=("team-a",)))
    assert store.reserve("holder", [Claim("team-a", 5_000_000)], 600.0).granted
    compacted(ledger)
    (standing,) = store.standings(["team-a"])
    assert (standing.reserved_uj, rows(ledger)["tasks"]) == (5_000_000, 0)


def test_what_comes_after_its_run_was_summed_up_is_told_apart_and_never_counted_twice(
    ledger: RelationalLedger,
) -> None:
    run = run_of(1)
    put_run(ledger, run, task_of(run))
    compacted(ledger)
    put_run(ledger, run, task_of(run), task_of(run, "late", 77))  # a spool that was away: all of it once more
    told = grouped(read_totals(ledger), "team")["ml"]
    assert told["energy", "attributed", "uJ"] == Total(1, 1, 1_000, 500, 2_000)
    assert told["late", "attributed", "uJ"] == Total(2, 2, 1_077, 538, 2_154)
    assert told["late accounts", "measured", ""].parts == 1
    assert (told["runs", "failed", ""].parts, told["tries", "", ""].parts) == (1, 1)
    before = read_totals(ledger)
    assert compacted(ledger).late == 3
    assert (rows(ledger), read_totals(ledger)) == (dict.fromkeys(GONE, 0), before)


def test_a_task_that_is_run_again_after_its_run_was_summed_up_counts(ledger: RelationalLedger) -> None:
    run = run_of(1)
    put_run(ledger, run, task_of(run))
    compacted(ledger)
    again = replace(run, started_wall_ns=CUT + S, ended_wall_ns=CUT + 9 * S)
    put_run(ledger, again, replace(task_of(again), key=replace(task_of(again).key, try_number=2)))
    before = read_totals(ledger)
    compacted(ledger, CUT + DAY_NS)
    team = grouped(read_totals(ledger), "team")["ml"]
    assert read_totals(ledger) == before
    assert (team["energy", "attributed", "uJ"].amount, team["tries", "", ""].parts) == (2_000, 2)
    assert (team["runs", "failed", ""].parts, rows(ledger)) == (1, dict.fromkeys(GONE, 0))


def test_tasks_and_decisions_whose_run_was_never_written_go_too(ledger: RelationalLedger) -> None:
    run = run_of(1)
    put_run(ledger, run, task_of(run), task_of(run, "score"))
    with ledger.transaction() as tx:
        tx.change("DELETE FROM runs")
        tx.change("DELETE FROM tasks WHERE task = 'score'")
    before = read_totals(ledger)
    compacted(ledger)
    assert (rows(ledger), read_totals(ledger)) == (dict.fromkeys(GONE, 0), before)


def test_old_incidents_are_counted_by_code(ledger: RelationalLedger) -> None:
    for at in (T0, T0 + S, CUT + S):
        ledger.put_incident(Incident("LEDGER_BUSY", "said", wall_ns=at, count=2, run_id="r", task="t"))
    before = read_totals(ledger)
    assert compacted(ledger).rows == {"incidents": 2}
    assert (ledger.counts()["incidents"], read_totals(ledger)) == (1, before)


def test_two_compactors_at_once_sum_everything_up_once(
    ledger: RelationalLedger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "PAGE", 2)
    for number in range(12):
        run = run_of(number)
        put_run(ledger, run, *(task_of(run, f"t{n}") for n in range(5)))
    before = read_totals(ledger)

    def work() -> None:
        with closing(open_ledger(url)) as own:
            compact(own, CUT, rest=time.sleep)

    threads = [Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    compacted(ledger)
    assert (rows(ledger), read_totals(ledger)) == (dict.fromkeys(GONE, 0), before)


def test_a_compactor_that_is_killed_at_any_moment_leaves_the_totals_exact(ledger: RelationalLedger, url: str) -> None:
    for number in range(25):
        run = run_of(number)
        put_run(ledger, run, *(task_of(run, f"t{n}", n) for n in range(6)))
    before, chance = read_totals(ledger), random.Random(8)
    command = [sys.executable, old_runs.__file__, url]
    killed = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        left = sum(rows(ledger).values())
        while process.poll() is None and sum(rows(ledger).values()) == left:
            time.sleep(0.002)  # until it has begun
        time.sleep(chance.random() * 0.05)
        killed += process.poll() is None
        process.kill()
        process.communicate()
        assert read_totals(ledger) == before
    compacted(ledger)
    assert killed > 0
    assert (rows(ledger), read_totals(ledger)) == (dict.fromkeys(GONE, 0), before)
