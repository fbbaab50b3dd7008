"""What differs between the Airflow releases that are supported: these run on the oldest and on the latest."""

from __future__ import annotations

import pytest

from airflow_plugin import _compat
from airflow_plugin.facts import run_ref

pytestmark = pytest.mark.airflow

SOURCE = """
from datetime import timedelta
from airflow.sdk import dag, get_current_context, task

@dag(schedule=None, dagrun_timeout=timedelta(hours=3))
def dag():
    @task
    def work():
        return sum(range(100_000))

    @task(retries=1)
    def fails():
        raise RuntimeError("of its own")

    @task
    def skips():
        from airflow.exceptions import AirflowSkipException
        raise AirflowSkipException

    @task
    def looks():
        from airflow_plugin import _compat
        ti = get_current_context()["ti"]
        run = _compat.run_of(ti)
        return {
            "runtime": _compat.is_runtime_ti(ti),
            "run_type": str(getattr(run.run_type, "value", run.run_type)),
            "queue": _compat.queue_of(ti),
            "dagrun_timeout_s": _compat.dagrun_timeout(ti).total_seconds(),
            "next_method": _compat.next_method(ti)[0],
            "reschedules": _compat.reschedules(ti),
            "channel": _compat.supervisor_channel() is not None,
        }

    work()
    fails()
    skips()
    looks()

dag()
"""


def records(ledger):
    return ledger.tasks(run_ref("dag", "manual__2026-01-01", "default"))


def test_a_plain_task_is_metered_and_succeeds(run_here, ledger):
    outcome = run_here(SOURCE, "work")
    assert (outcome.state, outcome.error) == ("success", None)
    (record,) = records(ledger)
    assert (record.key.task, record.key.instance, record.key.try_number) == ("work", "-1", 1)
    assert (str(record.state), record.ended_wall_ns is not None) == ("completed", True)
    assert record.measurement is not None
    assert record.measurement.energy.value_j is not None


def test_a_try_that_fails_is_metered_and_may_be_tried_again(run_here, ledger):
    outcome = run_here(SOURCE, "fails", max_tries=1)
    assert (outcome.state, str(outcome.error)) == ("up_for_retry", "of its own")
    assert run_here(SOURCE, "fails", max_tries=1, try_number=2).state == "failed"
    assert [(str(each.state), each.key.try_number) for each in records(ledger)] == [("failed", 1), ("failed", 2)]


def test_a_skip_is_metered(run_here, ledger):
    assert run_here(SOURCE, "skips").state == "skipped"
    (record,) = records(ledger)
    assert record.ended_wall_ns is not None


def test_what_a_running_task_is_told_is_read_alike(run_here, ledger):
    outcome = run_here(SOURCE, "looks")
    (pushed,) = [msg.value for msg in outcome.of_type("SetXCom") if msg.key == "return_value"]
    assert pushed == {
        "runtime": True,
        "run_type": "manual",
        "queue": "default",
        "dagrun_timeout_s": 3 * 3600.0,
        "next_method": "",
        "reschedules": 0,
        "channel": True,
    }


def test_the_exceptions_that_steer_are_those_that_the_task_runner_catches():
    from airflow.sdk.execution_time import task_runner

    named = vars(task_runner)
    for ours in (_compat.task_deferred(), _compat.skip_exception(), _compat.fail_exception()):
        assert issubclass(ours, BaseException)
        # Where the runner imports them inside a function they are Airflow's of the same name.
        assert named.get(ours.__name__, ours) is ours


def test_the_plugin_is_found_and_loads_without_an_error():
    assert not {where: why for where, why in _compat.plugin_errors().items() if "tao" in where.lower() + why.lower()}
