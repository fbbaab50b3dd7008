"""``@tao_flow`` on a real engine: the account and the two artifacts, however the run ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect import flow
from prefect.futures import wait
from prefect.states import Cancelled
from support import artifacts_of, burn, only_run, ref, tasks_of

from tao_flows import tao_flow, tao_task
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.prefect import TaoFlow
from tao_flows.records import TaskState
from tao_flows.report.model import read_report
from tao_flows.telemetry.procfs import is_alive

FLOWS = Path(__file__).parent / "flows"


@tao_task
def work(cpu_s: float = 0.02) -> float:
    burn(cpu_s)
    return cpu_s


def page_of(run_id: str) -> str:
    """The last version of the page."""
    (key,) = [key for key in artifacts_of(run_id) if key.startswith("tao-energy-")]
    return str(artifacts_of(run_id)[key][-1])


def table_of(run_id: str) -> list[dict[str, object]]:
    """The last version of the table."""
    (key,) = [key for key in artifacts_of(run_id) if key.startswith("tao-tasks-")]
    return json.loads(str(artifacts_of(run_id)[key][-1]))


def test_a_run_ends_with_a_page_and_a_table_under_stable_keys(ledger: Ledger) -> None:
    @tao_flow(name="Nightly Ünits 1")
    def main() -> None:
        work()
        work.submit(0.05).wait()

    main()
    main()
    newer, older = ledger.runs()
    assert newer.state == older.state == "completed"
    keys = set(artifacts_of(newer.run_id))
    assert keys == set(artifacts_of(older.run_id)) == {"tao-energy-nightly-nits-1", "tao-tasks-nightly-nits-1"}
    page, table = page_of(newer.run_id), table_of(newer.run_id)
    assert "estimated" in page
    assert "data:image/svg+xml;base64," in page
    for line in ("tasks", "overhead", "idle", "unattributed"):
        assert line in page.lower()
    assert [row["quality"] for row in table] == ["estimated", "estimated"]
    known = {round(t.measurement.energy.value_j or 0, 6) for t in ledger.tasks(ref(newer)) if t.measurement}
    assert {round(float(str(row["energy_j"])), 6) for row in table} == known


def test_the_account_tells_tasks_body_engine_and_rest_apart(ledger: Ledger) -> None:
    @tao_flow
    def main() -> None:
        burn(0.2)  # the flow's own code
        work(0.3)

    main()
    run = only_run(ledger)
    (host,) = ledger.accounts(ref(run))
    account = host.account
    (task,) = tasks_of(ledger)
    assert host.body_cpu_s == pytest.approx(0.2, rel=0.1)
    assert host.overhead_cpu_s is not None
    assert host.overhead_cpu_s > 0
    assert account.counter_uj is None
    assert account.quality.value == "estimated"
    assert host.body is not None
    assert task.measurement is not None
    assert account.tasks_uj == (host.body.value_uj or 0) + (task.measurement.energy.value_uj or 0)
    resting = (account.idle_uj, account.allocated_idle_uj)
    lines = (account.tasks_uj, account.overhead_uj, *resting, account.unattributed_uj)
    assert sum(line or 0 for line in lines) == account.estimate_uj
    assert min(line or 0 for line in lines) >= 0
    report = read_report(ledger, run)
    assert report.overhead_share == pytest.approx(
        (account.overhead_uj or 0) / ((account.overhead_uj or 0) + (account.tasks_uj or 1))
    )


def test_an_async_flow_is_accounted_for_too(ledger: Ledger) -> None:
    @tao_task
    async def step() -> None:
        burn(0.05)
        await asyncio.sleep(0.01)

    @tao_flow
    async def main() -> str:
        burn(0.1)
        await asyncio.gather(step(), step())
        return "done"

    assert asyncio.run(main()) == "done"
    (host,) = ledger.accounts(ref(only_run(ledger)))
    assert host.body_cpu_s == pytest.approx(0.1, rel=0.3)
    assert host.account.estimate_uj


def test_a_failed_run_is_published_too(ledger: Ledger) -> None:
    @tao_flow
    def main() -> None:
        work()
        raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="broken on purpose"):
        main()
    run = only_run(ledger)
    assert run.state == "failed"
    assert "failed" in page_of(run.run_id)
    assert len(table_of(run.run_id)) == 1


def test_a_run_cancelled_by_its_own_code_is_published_too(ledger: Ledger) -> None:
    @tao_flow
    def main():
        work()
        return Cancelled(message="enough")

    state = main(return_state=True)
    assert state.is_cancelled()
    run = only_run(ledger)
    assert len(tasks_of(ledger)) == 1
    assert run.state == "cancelled"
    assert page_of(run.run_id)


def test_a_flow_that_is_retried_has_an_account_for_each_attempt(ledger: Ledger) -> None:
    attempts: list[int] = []

    @tao_flow(retries=1)
    def main() -> str:
        attempts.append(1)
        work()
        if len(attempts) < 2:
            raise ValueError("once more")
        return "done"

    assert main() == "done"
    run = only_run(ledger)
    assert run.state == "completed"
    windows = [host.window.split() for host in ledger.accounts(ref(run))]
    assert sorted(attempt for attempt, *_ in windows) == ["attempt-1", "attempt-2"]


def test_tasks_that_outlive_the_flow_are_in_the_report_in_the_end(ledger: Ledger) -> None:
    @tao_task(task_run_name="late-{n}")
    def late(n: int) -> None:
        time.sleep(0.7)
        burn(0.05)

    @tao_flow
    def main() -> str:
        for n in range(2):
            late.submit(n)
        time.sleep(0.3)  # both have started
        return "not waited for"

    main()
    run = only_run(ledger)
    for _ in range(100):
        versions = artifacts_of(run.run_id)["tao-energy-main"]
        if len(versions) == 2:
            break
        time.sleep(0.1)
    assert len(versions) == 2
    assert "late-0" in str(versions[-1])
    assert {row["state"] for row in table_of(run.run_id)} == {"completed"}
    (host,) = ledger.accounts(ref(run))
    tasks_uj = sum(t.measurement.energy.value_uj or 0 for t in tasks_of(ledger) if t.measurement)
    assert (host.account.tasks_uj or 0) >= tasks_uj


@pytest.mark.alone  # other tests' servers are engine, too
def test_a_subflow_is_a_run_of_its_own_and_not_its_parents_overhead(ledger: Ledger) -> None:
    @tao_flow
    def child() -> None:
        work(3)

    @tao_flow
    def parent() -> None:
        child()

    parent()
    accounts = {run.flow: ledger.accounts(ref(run))[0] for run in ledger.runs()}
    assert set(accounts) == {"parent", "child"}
    # What a server of Prefect's uses meanwhile is in both.
    overheads_s = {flow: account.overhead_cpu_s or 0 for flow, account in accounts.items()}
    assert overheads_s["parent"] - overheads_s["child"] < 3, "the child's work is not the parent's overhead"


def test_an_existing_flow_is_taken_over_and_keeps_its_hooks(ledger: Ledger) -> None:
    seen: list[str] = []

    def mine(flow, flow_run, state) -> None:
        seen.append(state.name)

    @flow(name="theirs", on_completion=[mine], log_prints=True)
    def theirs() -> int:
        return 1

    taken = tao_flow(theirs)
    assert isinstance(taken, TaoFlow)
    assert (taken.name, taken.log_prints) == ("theirs", True)
    other = taken.with_options(name="other", on_completion=[mine, mine])
    assert taken() == 1
    assert seen == ["Completed"]
    assert other() == 1
    assert seen == ["Completed"] * 3
    for run in ledger.runs():
        assert page_of(run.run_id)


def test_nothing_is_published_when_the_settings_say_so(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_REPORT_ARTIFACTS", "failures")

    @tao_flow
    def main(*, fail: bool) -> None:
        if fail:
            raise ValueError

    main(fail=False)
    assert artifacts_of(only_run(ledger).run_id) == {}
    with pytest.raises(ValueError):
        main(fail=True)
    assert len(artifacts_of(ledger.runs()[0].run_id)) == 2


def test_names_from_users_cannot_break_the_page(ledger: Ledger) -> None:
    @tao_task(name="<script>alert(1)</script>|x`", task_run_name="{name}")
    def hostile(name: str) -> None: ...

    @tao_flow(name="a | b `img` [x](javascript:y)")
    def main() -> None:
        hostile("<script>alert(2)</script>\n# heading | cell")

    main()
    page = page_of(only_run(ledger).run_id)
    assert "<script" not in page
    assert "[x](javascript" not in page


@pytest.mark.parametrize("kind", ["thread", "process", "dask"])
def test_every_task_is_in_the_report_under_every_runner(ledger: Ledger, ledger_path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FLOWS / "runners.py"), kind], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"elsewhere {{{kind != 'thread'}}}" in done.stdout
    run = only_run(ledger)
    assert run.run_id in done.stdout
    tasks = {t.task_label: t for t in tasks_of(ledger)}
    assert set(tasks) == {f"work-{n}" for n in (1, 2, 3, 4)}
    for n in (1, 2, 3, 4):
        task = tasks[f"work-{n}"]
        assert task.state is TaskState.COMPLETED
        assert task.measurement is not None
        assert task.measurement.cpu_s == pytest.approx(0.05 * n, rel=0.1)
        assert (task.who.team, task.budget) == ("runners", "task:work")
        assert (task.segment.pid == run.segment.pid) == (kind == "thread")
    assert {row["task"] for row in table_of(run.run_id)} == set(tasks)
    assert len(ledger.decisions(ref(run))) == 4
    (host,) = ledger.accounts(ref(run))
    assert (host.account.overhead_uj or 0) > 0


def test_a_flow_process_that_is_killed_leaves_a_record_that_says_so(ledger: Ledger, ledger_path: Path) -> None:
    process = subprocess.Popen([sys.executable, str(FLOWS / "killed.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "endless has started" in line
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    reader = open_ledger(f"sqlite:///{ledger_path}")
    states = {t.key.task: t.state for t in reader.tasks(ref(reader.runs()[0]))}
    assert states == {"done": TaskState.COMPLETED, "endless": TaskState.RUNNING}
    assert [key.task for key in reader.reconcile(is_alive)] == ["endless"]
    report = read_report(reader, reader.find_runs("latest")[0])
    assert report.run.state == "lost"
    lost = next(row for row in report.tasks if row.key.task == "endless")
    assert lost.state is TaskState.LOST
    assert lost.energy.value_j is None
    assert report.energy.value_j is not None, "what was known stays known"
    assert report.energy.coverage == pytest.approx(0.5)
    reader.close()


def test_a_futures_list_of_many_tasks_is_waited_for_once(ledger: Ledger) -> None:
    @tao_task
    def tiny(n: int) -> int:
        return n

    @tao_flow
    def main() -> int:
        futures = tiny.map(range(40))
        wait(futures)
        return sum(future.result() for future in futures)

    assert main() == sum(range(40))
    assert len(tasks_of(ledger)) == 40
    assert os.getpid() == tasks_of(ledger)[0].segment.pid
