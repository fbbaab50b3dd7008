"""What is metered of a task, in the process that runs it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from in_process import encoded

from tao_flows import runtime
from tao_flows.figures import Quality
from tao_flows.ledger.base import RunRef
from tao_flows.records import TaskState
from tao_flows.telemetry.procfs import is_alive

pytestmark = pytest.mark.airflow

RUN = RunRef("airflow", "default", "manual__2026-01-01", "dag")
HEAD = """
import os, subprocess, sys, time
from datetime import timedelta
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, TaskGroup, dag, task
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
try:
    from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred
except ImportError:
    from airflow.exceptions import AirflowSkipException, TaskDeferred

def burn(cpu_s):
    until_s = time.process_time() + cpu_s
    while time.process_time() < until_s:
        pass
"""


def dag_of(body: str) -> str:
    """A DAG file; the body is the DAG's."""
    indented = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    return f"{HEAD}\nwith DAG('dag', schedule=None, tags=['team:ml']):\n{indented}\n"


def in_a_process(act) -> int:
    """Does something in a process of its own, as Airflow does for each try; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def until(condition, timeout_s: float = 60.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def test_a_task_is_recorded_with_its_energy_its_pool_and_whose_it_is(run_here, ledger):
    run_here(dag_of("@task\ndef work():\n    burn(0.1)\nwork()"), "work")
    (record,) = ledger.tasks(RUN)
    assert (record.state, record.key.try_number, record.map_index, record.pool) == (
        TaskState.COMPLETED, 1, None, "local"
    )  # fmt: skip
    assert record.who.team == "ml"
    assert record.measurement.cpu_s == pytest.approx(0.1, abs=0.05)
    assert record.measurement.energy.quality is not Quality.UNKNOWN
    assert record.started_wall_ns <= record.measurement.started_wall_ns < record.ended_wall_ns


ENDS = {
    "success": ("return 1", TaskState.COMPLETED, ()),
    "skipped": ("raise AirflowSkipException('not today')", TaskState.COMPLETED, ("SKIPPED",)),
    "failed": ("raise ValueError('no')", TaskState.FAILED, ()),
    "deferred": (
        "raise TaskDeferred(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name='go_on')",
        TaskState.DEFERRED,
        (),
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_try_is_recorded_however_it_ends(run_here, ledger, end):
    code, state, events = ENDS[end]
    source = dag_of(f"class Op(BaseOperator):\n    def execute(self, context):\n        {code}\nOp(task_id='work')")
    assert run_here(source, "work").state == end
    (record,) = ledger.tasks(RUN)
    assert (record.state, record.measurement.events) == (state, events)
    assert record.measurement.energy.value_j is not None


def test_a_poke_of_a_sensor_that_gives_its_slot_away_is_a_part_of_its_try(run_here, ledger):
    source = dag_of(
        """
class Op(BaseSensorOperator):
    def poke(self, context):
        return False
Op(task_id='look', mode='reschedule', poke_interval=60, timeout=600)
"""
    )
    assert run_here(source, "look").state == "up_for_reschedule"
    (record,) = ledger.tasks(RUN)
    assert record.state is TaskState.DEFERRED


def test_each_try_has_a_record_of_its_own(run_here, ledger):
    source = dag_of("@task(retries=1)\ndef work():\n    raise ValueError('no')\nwork()")
    assert run_here(source, "work", max_tries=1).state == "up_for_retry"
    assert run_here(source, "work", max_tries=1, try_number=2).state == "failed"
    assert [(record.key.try_number, record.state) for record in ledger.tasks(RUN)] == [
        (1, TaskState.FAILED),
        (2, TaskState.FAILED),
    ]


def test_mapped_tasks_are_told_apart_and_groups_are_in_their_names(run_here, ledger):
    source = dag_of(
        """
with TaskGroup("group"):
    @task
    def work(x):
        return x
    work.expand(x=[1, 2, 3])
    BashOperator.partial(task_id="shell").expand(bash_command=["true", "true"])
"""
    )
    for index in (0, 2):
        run_here(source, "group.work", map_index=index)
    run_here(source, "group.shell", map_index=1)
    assert [(record.key.task, record.key.instance, record.map_index) for record in ledger.tasks(RUN)] == [
        ("group.work", "0", 0),
        ("group.work", "2", 2),
        ("group.shell", "1", 1),
    ]


def test_a_try_that_deferred_and_went_on_elsewhere_is_the_sum_of_its_parts(run_here, ledger):
    source = dag_of(
        """
class Op(BaseOperator):
    def execute(self, context):
        burn(0.05)
        raise TaskDeferred(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="go_on")
    def go_on(self, context, event=None):
        burn(0.05)
Op(task_id="work")
"""
    )
    run_here(source, "work")
    time.sleep(0.5)  # a wait is no work
    assert run_here(source, "work", next_method="go_on", next_kwargs=encoded({})).state == "success"
    first, second = ledger.tasks(RUN)
    assert (first.key, first.state, second.state) == (second.key, TaskState.DEFERRED, TaskState.COMPLETED)
    assert first.segment != second.segment
    whole_s = (second.ended_wall_ns - first.started_wall_ns) / 1e9
    assert first.measurement.wall_s + second.measurement.wall_s < whole_s - 0.5
    assert first.measurement.cpu_s == pytest.approx(second.measurement.cpu_s, abs=0.04)
    ((settled,),) = [ledger.history("work", "local").runs]
    assert settled.energy_uj == first.measurement.energy.value_uj + second.measurement.energy.value_uj


def test_a_task_that_runs_out_of_time_is_recorded_up_to_there(run_here, ledger):
    body = "@task(execution_timeout=timedelta(seconds=1))\ndef work():\n    burn(30)\nwork()"
    assert run_here(dag_of(body), "work").state == "failed"
    (record,) = ledger.tasks(RUN)
    assert record.state is TaskState.FAILED
    assert 1.0 <= record.measurement.wall_s < 15


def test_the_authors_own_hooks_run_where_they_ran_and_are_in_the_tasks_figure(run_here, ledger):
    source = dag_of(
        """
def before(context):
    burn(0.1)
    os.environ["SAID"] = "before"
def after(context, result):
    burn(0.1)
    os.environ["SAID"] += f" after {result}"
@task(pre_execute=before, post_execute=after)
def work():
    os.environ["SAID"] += " work"
    return 7
work()
def yielding(context):
    os.environ["SAID"] = "yielding"
    yield None
@task(pre_execute=yielding)
def other():
    pass
other()
"""
    )
    assert run_here(source, "work").state == "success"
    assert os.environ.pop("SAID") == "before work after 7"
    assert ledger.tasks(RUN)[0].measurement.cpu_s == pytest.approx(0.2, abs=0.06)
    assert run_here(source, "other").state == "success"
    assert os.environ.pop("SAID") == "yielding"


def test_reading_the_dag_and_storing_the_result_are_overhead_and_the_tasks_code_is_not(run_here, ledger):
    source = dag_of(
        """
burn(0.5)
@task(on_success_callback=lambda context: burn(0.2))
def work():
    burn(0.3)
    return "x"
work()
"""
    )
    assert in_a_process(lambda: run_here(source, "work")) == 0
    (record,), (account,) = ledger.tasks(RUN), ledger.accounts(RUN)
    assert record.measurement.cpu_s == pytest.approx(0.3, abs=0.1)
    assert account.overhead_cpu_s > 0.6
    lines = account.account
    assert lines.tasks_uj == record.measurement.energy.value_uj
    assert lines.overhead_uj > 0
    assert (lines.idle_uj, lines.unattributed_uj) == (None, None)
    assert (lines.counter_uj or 0) + (lines.estimate_uj or 0) == lines.tasks_uj + lines.overhead_uj
    assert account.window.rpartition("/")[0] == record.segment.id.rpartition("/")[0]  # of the same process


def test_what_a_command_starts_is_the_tasks(run_here, ledger):
    command = "python3 -c 'import time\nwhile time.process_time() < 0.3: pass'"
    run_here(dag_of(f"BashOperator(task_id='work', bash_command={command!r})"), "work")
    assert ledger.tasks(RUN)[0].measurement.cpu_s > 0.3


def test_where_perf_is_refused_the_process_has_its_code_to_itself(run_here, ledger, monkeypatch):
    monkeypatch.setattr("tao_flows.codeclock.task_clock", lambda: None)
    command = "python3 -c 'import time\nwhile time.process_time() < 0.3: pass'"
    run_here(dag_of(f"BashOperator(task_id='work', bash_command={command!r})"), "work")
    cpu = ledger.tasks(RUN)[0].measurement.cpu
    assert (cpu.source, cpu.covers_children) == ("process-clock+wait4", True)
    assert cpu.cpu_s > 0.3


WAITING = """
@task
def work(path):
    open(path, "w").close()
    while True:
        time.sleep(0.05)
work({path!r})
"""


def started(run_here, tmp_path: Path, body: str = WAITING) -> int:
    """A process that runs a task for ever; its number, once the task's code runs."""
    sign = tmp_path / "runs"
    child = os.fork()
    if child == 0:
        try:
            run_here(dag_of(body.format(path=str(sign))), "work")
        finally:
            os._exit(1)
    until(sign.exists)
    return child


def test_a_task_whose_process_is_killed_is_running_in_the_ledger_and_then_lost(run_here, ledger, tmp_path):
    child = started(run_here, tmp_path)
    (record,) = ledger.tasks(RUN)
    assert (record.state, is_alive(record.segment)) == (TaskState.RUNNING, True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert ledger.reconcile(is_alive) == [record.key]
    assert [(each.state, each.measurement) for each in ledger.tasks(RUN)] == [(TaskState.LOST, None)]


def test_a_task_that_is_told_to_end_is_recorded_as_cancelled_before_it_may_be_killed(run_here, ledger, tmp_path):
    child = started(run_here, tmp_path)
    os.kill(child, signal.SIGTERM)
    until(lambda: ledger.tasks(RUN)[0].state is not TaskState.RUNNING)
    (record,) = ledger.tasks(RUN)
    assert (record.state, is_alive(record.segment)) == (TaskState.CANCELLED, True)
    assert record.measurement.energy.value_j is not None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not ledger.reconcile(is_alive)


KILLED = """
class Op(BaseOperator):
    def execute(self, context):
        open({path!r}, "w").close()
        while True:
            time.sleep(0.05)
    def on_kill(self):
        open({path!r} + ".killed", "w").close()
Op(task_id="work")
"""


def test_what_a_task_has_started_elsewhere_is_ended_though_the_ledger_does_not_answer(run_here, ledger, tmp_path):
    child = started(run_here, tmp_path, KILLED)
    try:
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            os.kill(child, signal.SIGTERM)
            until(Path(tmp_path / "runs.killed").exists, timeout_s=1.0)
        until(lambda: ledger.tasks(RUN)[0].state is TaskState.CANCELLED)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("how", ["the kill switch", "the author"])
def test_what_is_switched_off_leaves_no_trace(run_here, ledger, monkeypatch, how):
    by_author = how == "the author"
    if not by_author:
        monkeypatch.setenv("TAO_FLOWS_MODE", "off")
    config = ", executor_config={'tao_flows': {'off': True}}" if by_author else ""
    outcome = run_here(dag_of(f"@task(multiple_outputs=False{config})\ndef work():\n    return 1\nwork()"), "work")
    assert outcome.state == "success"
    assert outcome.ti.task._post_execute_hook is None
    assert not ledger.tasks(RUN)
    assert not ledger.accounts(RUN)


def test_a_task_runs_all_the_same_where_metering_fails_and_that_is_shown(run_here, ledger, monkeypatch):
    monkeypatch.setattr("airflow_plugin.metering.CodeClock", lambda **_: 1 / 0)
    assert run_here(dag_of("@task\ndef work():\n    return 1\nwork()"), "work").state == "success"
    assert not ledger.accounts(RUN)  # its code would be taken for overhead
    incidents = {(incident.code, incident.run_id, incident.task) for incident in ledger.incidents()}
    assert ("INTERNAL", RUN.run_id, "work") in incidents


def test_a_task_runs_all_the_same_where_nothing_can_be_decided(run_here, ledger, monkeypatch):
    monkeypatch.setattr("airflow_plugin.metering.admit", lambda *_, **__: 1 / 0)
    assert run_here(dag_of("@task\ndef work():\n    return 1\nwork()"), "work").state == "success"
    assert [record.state for record in ledger.tasks(RUN)] == [TaskState.COMPLETED]


def test_what_cannot_be_written_to_the_ledger_is_kept_and_the_task_succeeds(run_here, monkeypatch):
    monkeypatch.setenv("TAO_FLOWS_LEDGER", "http://127.0.0.1:1/none")
    runtime.forget()
    outcome = run_here(dag_of("@task\ndef work():\n    return 1\nwork()"), "work")
    assert outcome.state == "success"
    kept = [entry.record.state for entry in runtime.built().ledger.pending() if hasattr(entry.record, "measurement")]
    assert kept == [TaskState.RUNNING, TaskState.COMPLETED]
    assert runtime.built().incidents.of_run(RUN.run_id)
    runtime.forget()


def test_a_dag_that_asks_for_nothing_is_serialized_as_it_was(run_here, tmp_path):
    code = f"""
import sys
if sys.argv[1] == "without":
    from airflow.policies import hookimpl
    import airflow_plugin.policy as ours
    del ours.task_policy
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
import json
bag = DagBag({str(tmp_path)!r})
assert not bag.import_errors, bag.import_errors
print("DAG", json.dumps(DagSerialization.to_dict(bag.dags["dag"]), sort_keys=True, default=str))
"""
    if not _has_new_serialization():
        code = code.replace("airflow.dag_processing.dagbag", "airflow.models.dagbag").replace(
            "DagSerialization", "SerializedDAG"
        )
    (tmp_path / "dag.py").write_text(
        dag_of(
            """
with TaskGroup("group"):
    @task(pre_execute=lambda context: None)
    def work(x):
        return x
    work.expand(x=[1, 2, 3])
    BashOperator.partial(task_id="shell").expand(bash_command=["true"])
BashOperator(task_id="plain", bash_command="true")
"""
        )
    )
    said = [
        subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout
        for how in ("with", "without")
    ]
    dags = [line for text in said for line in text.splitlines() if line.startswith("DAG ")]
    assert len(dags) == 2
    assert dags[0] == dags[1]
    assert "tao_flows" not in dags[0]


def _has_new_serialization() -> bool:
    from airflow.serialization import serialized_objects

    return hasattr(serialized_objects, "DagSerialization")


def test_what_task_processes_need_is_imported_where_they_are_forked_and_nowhere_else():
    code = """
import os, sys
import airflow

def metering_after_a_fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "airflow_plugin.metering" in sys.modules

before = metering_after_a_fork()
import airflow.sdk.execution_time.supervisor
print("FORKED", before, metering_after_a_fork())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "FORKED False True" in done.stdout
