"""What we ask of Airflow's own database, and of its processes, on every release that is supported."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import encoded
from queueing import airflow_session, parse, queue, row_of, start_run

from airflow_plugin import _compat

pytestmark = pytest.mark.airflow

SOURCE = """
with DAG("compat", schedule=None):
    EmptyOperator(task_id="work", queue="normal") >> EmptyOperator(task_id="next")
try:
    from airflow.sdk.definitions.deadline import AsyncCallback, DeadlineAlert, DeadlineReference
except ImportError:
    pass  # they came with Airflow 3.1
else:
    alert = DeadlineAlert(
        DeadlineReference.DAGRUN_QUEUED_AT, timedelta(minutes=30), AsyncCallback("queueing.nothing")
    )
    with DAG("compat_alert", schedule=None, deadline=alert):
        EmptyOperator(task_id="work")
"""
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def dags(airflow_database):
    parse("compat", SOURCE, "LocalExecutor")


@pytest.fixture
def queued(dags):
    """A task instance that is queued: its workload."""
    return queue("compat", start_run("compat"), "work")


def read(workload):
    with airflow_session() as session:
        (row,) = _compat.queued_rows(session, [workload.ti.id])
    return row


def stored(arguments):
    """As the column takes them: before Airflow 3.2 it encodes them itself."""
    from airflow.models import trigger

    return encoded(arguments) if hasattr(trigger, "_decode_next_kwargs") else arguments


def test_a_row_has_what_the_database_knows_of_the_try_its_run_and_its_dag(queued):
    row = read(queued)
    assert (row.dag_id, row.task_id, row.map_index, row.try_number) == ("compat", "work", -1, 1)
    assert (str(row.state), row.queue, row.looks) == ("queued", "normal", 0)
    assert str(getattr(row.run_type, "value", row.run_type)) == "manual"
    assert row.run_start is not None
    assert row.dag_hash
    assert _compat.loaded(row_of(queued))["task_id"] == "work"


def test_the_dag_of_a_version_is_read_with_its_edges(queued):
    with airflow_session() as session:
        dag = _compat.serialized_dag(session, read(queued).dag_version_id)
    assert dag.task_dict["work"].downstream_task_ids == {"next"}


def test_a_run_is_under_way_until_it_has_ended_or_was_deleted(queued):
    from airflow.models.dagrun import DagRun
    from sqlalchemy import delete

    run = ("compat", queued.ti.run_id)
    assert run in _compat.runs_under_way()
    with airflow_session() as session:
        session.execute(delete(DagRun).where(DagRun.run_id == queued.ti.run_id))
    assert run not in _compat.runs_under_way()


def test_which_instances_of_a_run_are_deferred_is_asked_of_the_api_server(queued, monkeypatch):
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import update

    work = (TaskInstance.run_id == queued.ti.run_id, TaskInstance.task_id == "work")

    def deferred():
        return _compat.deferred_tasks("compat", queued.ti.run_id, {"work", "next"})

    assert deferred() == set(), "no supervisor is there to be asked"
    monkeypatch.setattr(_compat, "supervisor_channel", lambda: SimpleNamespace(send=answered))
    assert deferred() == set(), "it is queued"
    with airflow_session() as session:
        session.execute(update(TaskInstance).where(*work).values(state="deferred"))
    assert deferred() == {("work", -1)}
    with airflow_session() as session:
        session.execute(update(TaskInstance).where(*work).values(map_index=3))
    assert deferred() == {("work", 3)}


def answered(asked):
    """What the API server of this release says."""
    from airflow.api_fastapi.execution_api.routes.task_instances import get_task_instance_states

    # Named by Airflow 3.1 and later; it is of use only to who asks for a group.
    bag = {"dag_bag": None} if "dag_bag" in inspect.signature(get_task_instance_states).parameters else {}
    with airflow_session() as session:
        return get_task_instance_states(
            dag_id=asked.dag_id, task_ids=asked.task_ids, run_ids=asked.run_ids, session=session, **bag
        )


def test_a_task_instance_is_changed_only_while_it_is_queued_as_it_was_read(queued):
    row = read(queued)
    with airflow_session() as session:
        assert _compat.change_queued(session, row, queue="green")
    assert row_of(queued).queue == "green"
    later = SimpleNamespace(id=row.id, queued_dttm=row.queued_dttm + timedelta(seconds=1))
    with airflow_session() as session:
        assert not _compat.change_queued(session, later, queue="normal")
    assert row_of(queued).queue == "green"


def test_a_task_instance_that_is_deferred_waits_for_the_trigger_and_is_not_deferred_twice(queued):
    from airflow.models.trigger import Trigger
    from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

    row = read(queued)
    with airflow_session() as session:
        assert _compat.defer_queued(session, row, TimeDeltaTrigger(timedelta(hours=1)), "normal")
    after = row_of(queued)
    assert (after.state, after.trigger_timeout) == ("deferred", None)
    assert after.start_date is not None
    with airflow_session() as session:
        assert session.get(Trigger, after.trigger_id).classpath.endswith("DateTimeTrigger")
        assert not _compat.defer_queued(session, row, TimeDeltaTrigger(timedelta(hours=1)), "normal")
        session.rollback()
    assert row_of(queued).trigger_id == after.trigger_id


def test_what_an_authors_trigger_has_said_is_read_of_what_is_stored(dags):
    run_id = start_run("compat")
    said = stored({"event": {"rows": 3}})
    workload = queue("compat", run_id, "work", next_method="go_on", next_kwargs=said)
    assert _compat.event_of(read(workload).next_kwargs) == {"rows": 3}
    assert _compat.event_of(read(queue("compat", run_id, "next")).next_kwargs) is None


def test_arguments_come_back_as_they_were_sent():
    assert _compat.next_arguments(encoded({"event": [1, "two"]})) == {"event": [1, "two"]}
    assert _compat.next_arguments(None) == {}


def test_the_first_deadline_alert_of_a_run_is_found_where_airflow_has_them(dags):
    from importlib.metadata import version

    if version("apache-airflow-core").startswith("3.0."):
        with airflow_session() as session:
            assert _compat.deadline_alerts(session, [1]) == {}
        return
    row = read(queue("compat_alert", start_run("compat_alert"), "work"))
    with airflow_session() as session:
        found = _compat.deadline_alerts(session, [row.dag_run])
    assert found[row.dag_run] == row.queued_at + timedelta(minutes=30)


def test_a_note_is_written_and_changed_once(dags):
    run_id = start_run("compat")
    assert _compat.change_note("compat", run_id, lambda before: f"{before} one")
    assert _compat.change_note("compat", run_id, lambda before: f"{before} two")
    assert not _compat.change_note("compat", run_id, lambda _: None)
    assert not _compat.change_note("compat", "no such run", lambda _: "one")
    notes = []
    _compat.change_note("compat", run_id, notes.append)
    assert notes == ["None one two"]


def test_a_connection_is_found_by_its_name(airflow_database, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_OURS", "http://user@host:1/path")
    assert (_compat.connection("ours").host, _compat.connection("ours").port) == ("host", 1)
    with pytest.raises(Exception, match="none_such"):
        _compat.connection("none_such")


def test_an_option_may_be_what_a_command_prints():
    # In a process of its own: here the providers' options are known by now.
    code = "from airflow_plugin import _compat; print(_compat.setting('tao_flows', 'ledger'))"
    env = {**os.environ, "AIRFLOW__TAO_FLOWS__LEDGER_CMD": "echo /var/ledger.db"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["/var/ledger.db"]), done.stderr[-2000:]


@pytest.fixture
def triggerer(airflow_database):
    """A triggerer elsewhere has just sent its heartbeat."""
    from airflow.jobs.job import Job

    with airflow_session() as session:
        job = Job(state="running", hostname="elsewhere")
        job.job_type = "TriggererJob"
        session.add(job)
        session.flush()
        number = job.id
    yield
    with airflow_session() as session:
        session.delete(session.get(Job, number))


def test_what_runs_of_airflow_is_told_by_its_heartbeat(triggerer):
    assert ("TriggererJob", "elsewhere") in _compat.alive_jobs()


def test_no_channel_is_open_here_and_only_one_that_is_shared_may_be_asked_by_another_thread():
    assert _compat.supervisor_channel() is None
    plain, shared = SimpleNamespace(), SimpleNamespace(_thread_lock=threading.Lock())
    assert (_compat.channel_is_shared(plain), _compat.channel_is_shared(shared)) == (False, True)
    assert _compat.may_ask_supervisor(plain)
    answers = []
    thread = threading.Thread(target=lambda: answers.extend(map(_compat.may_ask_supervisor, (plain, shared))))
    thread.start()
    thread.join()
    assert answers == [False, True]


def test_the_pages_are_told_of_a_dag_by_its_id(airflow_database):
    assert _compat.dag_details("compat").id == "compat"
    assert isinstance(_compat.pages_know_the_reader(), bool)


def test_hooks_derive_from_airflows_own():
    assert hasattr(_compat.hook_base(), "get_connection")


def test_an_executor_that_takes_workloads_is_told_from_one_that_does_not():
    from airflow.executors.local_executor import LocalExecutor

    assert not _compat.takes_no_workloads(LocalExecutor(parallelism=1).queue_workload)


def test_every_function_of_the_compatibility_layer_is_tried_on_every_release():
    ours = {
        name for name, made in inspect.getmembers(_compat, inspect.isfunction) if made.__module__ == _compat.__name__
    }
    used = set(re.findall(r"_compat\.(\w+)", "".join(file.read_text() for file in HERE.glob("test_compat*.py"))))
    assert ours
    assert ours <= used
