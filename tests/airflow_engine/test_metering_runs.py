"""What becomes of DAG runs: their records, accounts, lost tries and notes, written beside the scheduler's loop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_metering import dag_of, until

from airflow_plugin import listener, runs
from airflow_plugin.account import NodeAccount
from airflow_plugin.facts import run_ref
from airflow_plugin.note import MARK, note_line, with_line
from airflow_plugin.settings import tao_here
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger.totals import run_totals
from tao_flows.records import HostAccount, RunKey, Segment, TaskRecord, TaskState
from tao_flows.report.model import read_report
from tao_flows.testing import PowercapTree

pytestmark = pytest.mark.airflow

REF = run_ref("flow", "run", "default")
AWAY = Segment(host="elsewhere", boot_id="b", pid=1, process_started=1)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(runs, "SETTLE_S", 0.05)
    monkeypatch.setattr(runs, "GRACE_S", 0.5)
    chronicler = runs.Chronicler()
    monkeypatch.setattr(runs, "_chronicler", chronicler)
    yield
    chronicler.close()


def dag_run(state: str, *, dag_id: str = "flow", run_id: str = "run", tags: tuple[str, ...] = ()):
    """Airflow's own, as a scheduler holds it: what is not loaded would be asked of a database that is not there."""
    from airflow.models.dagrun import DagRun

    run = DagRun(dag_id=dag_id, run_id=run_id, run_type="manual", state=state)
    run.start_date = datetime(2026, 1, 1, tzinfo=timezone.utc)
    run.end_date = None if state == "running" else datetime(2026, 1, 1, 0, 1, tzinfo=timezone.utc)
    run.dag = SimpleNamespace(tags=set(tags))
    return run


def tell(state: str, **which) -> None:
    getattr(listener, f"on_dag_run_{state}")(dag_run=dag_run(state, **which))


def record(
    state: TaskState, *, segment: Segment = AWAY, task: str = "task", energy_uj: int | None = None
) -> TaskRecord:
    measured = None
    if energy_uj is not None:
        figure = Figure(energy_uj, energy_uj // 2, energy_uj * 2, Quality.ESTIMATED)
        measured = Measurement(task, 1, 1.0, CpuTime(1.0, "perf", covers_children=True), figure, (), Account())
    key = RunKey("airflow", "default", "flow", "run", task, "-1", 1)
    return TaskRecord(key, segment, state, 1, ended_wall_ns=None if measured is None else 2, measurement=measured)


def test_a_dag_run_is_in_the_ledger_from_its_start_to_its_end_with_whom_its_tags_name(ledger):
    tell("running", tags=("team:ml", "owner:ada"))
    until(lambda: bool(ledger.runs()))
    (run,) = ledger.runs()
    assert (run.flow, run.run_id, run.state, run.ended_wall_ns) == ("flow", "run", "running", None)
    assert (run.who.team, run.who.owner) == ("ml", "ada")
    tell("success", tags=("team:ml",))
    until(lambda: ledger.runs()[0].ended_wall_ns is not None)
    assert ledger.runs()[0].state == "success"


def test_a_run_is_no_process_and_no_schedulers_end_makes_it_lost(ledger):
    tell("running")
    until(lambda: bool(ledger.runs()))
    ledger.reconcile(lambda segment: None if segment.host != "vm" else False)
    assert ledger.runs()[0].state == "running"


def test_the_same_run_id_of_two_dags_is_two_runs(ledger):
    tell("running", dag_id="one")
    tell("running", dag_id="two")
    until(lambda: len(ledger.runs()) == 2)


def test_nothing_is_done_in_the_schedulers_thread_and_nothing_is_asked_of_its_session(ledger, monkeypatch):
    go_on, seen = threading.Event(), []

    def slow():
        seen.append(threading.current_thread())
        go_on.wait()

    monkeypatch.setattr(runs, "tao_here", slow)
    for _ in range(100):
        tell("running")  # none of these waits
    go_on.set()
    until(lambda: len(seen) == 100)
    assert threading.main_thread() not in seen


def test_what_has_not_ended_when_its_run_has_is_lost_and_an_end_that_comes_late_holds(ledger):
    ledger.put_task(record(TaskState.RUNNING))
    tell("failed")
    until(lambda: ledger.tasks(REF)[0].state is TaskState.LOST)
    ledger.put_task(record(TaskState.COMPLETED, energy_uj=5))
    assert ledger.tasks(REF)[0].state is TaskState.COMPLETED


def test_a_try_that_the_executor_gives_up_is_lost_while_its_run_goes_on(ledger):
    ledger.put_task(record(TaskState.RUNNING))
    ledger.put_task(record(TaskState.RUNNING, task="another"))
    seen = SimpleNamespace(dag_id="flow", run_id="run", task_id="task", map_index=-1, try_number=1)
    listener.on_task_instance_failed(task_instance=seen, error=None)
    until(lambda: TaskState.LOST in {each.state for each in ledger.tasks(REF)})
    assert {each.key.task: each.state for each in ledger.tasks(REF)} == {
        "task": TaskState.LOST,
        "another": TaskState.RUNNING,
    }


def test_a_run_is_read_once_of_which_many_tries_are_given_up_together(ledger, monkeypatch):
    asked, open_segments = [], runs.open_segments
    monkeypatch.setattr(runs, "open_segments", lambda *about: asked.append(about) or open_segments(*about))
    chronicler, long_ago_s = runs.Chronicler(), time.monotonic() - runs.GRACE_S
    for number in range(100):
        ledger.put_task(record(TaskState.RUNNING, task=f"task-{number}"))
        gone = runs.TryEnded("flow", "run", f"task-{number}", -1, 1)
        chronicler._endings.append(runs._Ending(REF, long_ago_s, long_ago_s, gone))
    chronicler._look_after(tao_here())
    assert (len(asked), chronicler._endings) == (1, [])
    assert {each.state for each in ledger.tasks(REF)} == {TaskState.LOST}


@pytest.fixture
def counted_host(tmp_path, monkeypatch, ledger):
    """A host with a counter that a test moves, and no processes but its own."""
    tree = PowercapTree(tmp_path / "powercap")
    tree.add_zone("intel-rapl:0", "package-0")
    monkeypatch.setenv("TAO_FLOWS_POWERCAP_ROOT", str(tree.root))
    return tree


def test_runs_that_are_open_at_once_are_told_no_more_than_the_host_had(counted_host):
    node, names = NodeAccount(tao_here()), [run_ref("flow", name, "default") for name in ("a", "b", "c")]
    shares = []
    for step, name in enumerate(names):
        node.open(name)
        counted_host.move("intel-rapl:0", round(1.0 + step * 1e6))
    for name in names:
        shares.append(node.close(name))
        counted_host.move("intel-rapl:0", round(1.0 * 1e6))
    accounts = [share.account("vm", []).account for share in shares]
    assert all(account.unattributed_uj is None for account in accounts)
    assert sum(account.counter_uj for account in accounts) <= 8_000_000
    assert all(account.counter_uj == sum(_lines(account)) for account in accounts)


def test_of_a_run_that_was_alone_the_whole_host_is_accounted_for(counted_host):
    node = NodeAccount(tao_here())
    node.open(REF)
    counted_host.move("intel-rapl:0", round(10.0 * 1e6))
    share = node.close(REF)
    own = HostAccount("vm", Account(4_000_000, tasks_uj=3_000_000, overhead_uj=1_000_000), 1.0, "a task's process")
    rest = share.account("vm", [own], tasks_known=True).account
    total = Account.total((rest, own.account))
    assert total.counter_uj == sum(_lines(total)) == 10_000_000
    assert total.tasks_uj == 3_000_000


def _lines(account: Account) -> list[int]:
    lines = (account.tasks_uj, account.overhead_uj, account.idle_uj, account.unattributed_uj, account.allocated_idle_uj)
    return [line for line in lines if line is not None]


def test_the_report_adds_the_schedulers_part_to_those_of_the_tasks_processes(ledger):
    tell("running")
    until(lambda: bool(ledger.runs()))
    segment = replace(AWAY, host=tao_here().segment.host)
    ledger.put_task(record(TaskState.COMPLETED, segment=segment, energy_uj=700))
    lines = Account(estimate_uj=1_000, tasks_uj=700, overhead_uj=300, quality=Quality.ESTIMATED)
    ledger.put_account(REF, HostAccount(segment.host, lines, 1.0, segment.id))
    tell("success")
    until(lambda: len(ledger.accounts(REF)) == 2)
    report = read_report(ledger, ledger.runs()[0])
    assert report.account.tasks_uj == 700
    assert report.account.overhead_uj >= 300
    assert len(report.hosts) == 1


def test_a_run_that_airflow_no_longer_has_takes_no_more_of_the_hosts_overhead(ledger, monkeypatch):
    for name in ("TICK_S", "RECONCILE_S"):
        monkeypatch.setattr(runs, name, 0.1)
    there = {("flow", "kept"), ("flow", "deleted")}
    monkeypatch.setattr(runs, "runs_under_way", lambda: set(there))
    for run_id in ("kept", "deleted"):
        tell("running", run_id=run_id)
    until(lambda: len(ledger.runs()) == 2)
    time.sleep(0.5)
    assert len(runs._chronicler._opened) == 2
    there.remove(("flow", "deleted"))
    until(lambda: [ref.run_id for ref in runs._chronicler._node.shares()] == ["kept"])
    assert [ref.run_id for ref in runs._chronicler._opened] == ["kept"]
    until(lambda: bool(ledger.accounts(run_ref("flow", "deleted", "default"))))


def test_settings_that_cannot_be_read_do_not_end_the_thread(ledger, monkeypatch):
    tao = tao_here()
    with monkeypatch.context() as broken:
        broken.setattr(type(tao), "config", property(lambda _: 1 / 0))
        tell("running", run_id="lost")
        time.sleep(0.2)
    tell("running", run_id="kept")
    until(lambda: [run.run_id for run in ledger.runs()] == ["kept"])


def test_a_run_of_whose_tasks_nothing_is_known_has_no_share_of_overhead(ledger):
    tell("running")
    until(lambda: bool(ledger.runs()))
    ledger.put_task(record(TaskState.RUNNING))
    tell("failed")
    until(lambda: bool(ledger.accounts(REF)))
    ((account,),) = [ledger.accounts(REF)]
    assert account.account.tasks_uj is None
    assert run_totals(ledger, REF).overhead_share is None


def test_a_note_says_what_the_run_cost(ledger):
    ledger.put_task(record(TaskState.COMPLETED, energy_uj=12_000_000))
    ledger.put_task(replace(record(TaskState.LOST, task="another"), measurement=None))
    lines = Account(tasks_uj=12_000_000, overhead_uj=4_000_000)
    ledger.put_account(REF, HostAccount("vm", lines, 1.0, "window"))
    assert note_line(run_totals(ledger, REF)) == (
        "tao-flows: 12.0 J [6.00, 24.0] estimated, 50% of the parts unknown, overhead 25%, 1 lost"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, f"{MARK}2 J"),
        ("", f"{MARK}2 J"),
        ("do not touch", f"do not touch\n{MARK}2 J"),
        (f"a\n{MARK}1 J\nb", f"a\nb\n{MARK}2 J"),
        (f"a\n{MARK}2 J", None),
        ("x" * 999, None),
    ],
)
def test_our_line_is_put_below_an_authors_note_and_takes_only_its_own_place(before, after):
    assert with_line(before, f"{MARK}2 J") == after


DAG_TEST = """
if __name__ == "__main__":
    run = dag.test()
    print("STATE", run.state)
"""


def test_dag_test_meters_every_task_and_leaves_a_note_on_its_run(ledger, airflow_database):
    source = dag_of(
        """
class Op(BaseOperator):
    def execute(self, context):
        raise TaskDeferred(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="go_on")
    def go_on(self, context, event=None):
        burn(0.05)
@task
def work(x):
    burn(0.05)
    return x
Op(task_id="waits") >> work.expand(x=[1, 2])
"""
    ).replace("with DAG('dag', schedule=None, tags=['team:ml']):", "with DAG('tested', schedule=None) as dag:")
    file = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"], "tested.py")
    file.write_text(source + DAG_TEST)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True)
    assert "STATE success" in done.stdout or "STATE DagRunState.SUCCESS" in done.stdout, done.stdout + done.stderr
    (run,) = ledger.runs()
    tasks = ledger.tasks(run_ref(run.flow, run.run_id, "default"))
    assert {(each.key.task, each.map_index, each.segment.sequence, each.state) for each in tasks} == {
        ("waits", None, 0, TaskState.DEFERRED),
        ("waits", None, 1, TaskState.COMPLETED),
        ("work", 0, 0, TaskState.COMPLETED),
        ("work", 1, 0, TaskState.COMPLETED),
    }
    assert run.state == "success"
    assert _note(run.run_id).startswith(MARK)


def _note(run_id: str) -> str:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        return session.scalar(select(DagRun).where(DagRun.run_id == run_id)).note or ""
