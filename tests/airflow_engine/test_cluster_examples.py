"""Airflow's own example DAGs, as they were installed, on a whole Airflow: metered, and none the worse for it."""

from __future__ import annotations

import time

import pytest
from cluster import Cluster
from postgres_server import PostgresServer

from airflow_plugin.facts import run_ref
from tao_flows.ledger.base import Ledger
from tao_flows.records import TaskRecord

pytestmark = pytest.mark.airflow

ENDS = {
    "example_bash_operator": "success",
    "example_dynamic_task_mapping": "success",
    "example_sensor_decorator": "success",
    "example_setup_teardown_taskflow": "success",
    "example_short_circuit_operator": "success",
    "example_task_group": "success",
    "example_time_delta_sensor_async": "success",
    "example_trigger_controller_dag": "success",
    "example_xcom_args": "success",
    "tutorial_taskflow_api": "success",
}
"""How the DAGs end by themselves."""
METERED = {"success": "completed", "failed": "failed", "skipped": "completed"}
"""By Airflow's state of a task, the ledger's."""


def run_all(cluster: Cluster) -> dict[str, str]:
    """By DAG, the id of a run of each that has ended."""
    cluster.wait_for_dags(*ENDS)
    runs = {dag_id: cluster.trigger(dag_id) for dag_id in ENDS}
    for dag_id, run_id in runs.items():
        cluster.wait(dag_id, run_id)
    return runs


def states(cluster: Cluster, runs: dict[str, str]) -> dict[str, dict[tuple[str, int], str]]:
    """By DAG, how each of its tasks has ended."""
    return {
        dag_id: {(task["task_id"], task["map_index"]): task["state"] for task in cluster.tasks(dag_id, run_id)}
        for dag_id, run_id in runs.items()
    }


@pytest.fixture(scope="module")
def runs(cluster: Cluster) -> dict[str, str]:
    return run_all(cluster)


def test_unmodified_examples_of_airflow_end_as_they_do_without_us(cluster, runs):
    assert {dag_id: cluster.run_state(dag_id, run_id) for dag_id, run_id in runs.items()} == ENDS


def ran(cluster: Cluster, dag_id: str, run_id: str) -> dict[tuple[str, str, int], str]:
    """By task, map index and try, how the ledger is to name the end of what ran of a run.

    A task without a process, such as an empty one, or one that a branch passed over, did not run.
    """
    return {
        (task["task_id"], str(task["map_index"]), task["try_number"]): METERED[task["state"]]
        for task in cluster.tasks(dag_id, run_id)
        if task["pid"] is not None
    }


def recorded(ledger: Ledger, dag_id: str, run_id: str) -> list[TaskRecord]:
    """What the ledger has of a run: a record for each part of a try."""
    return list(ledger.tasks(run_ref(dag_id, run_id, "default")))


def ends(records: list[TaskRecord]) -> dict[tuple[str, str, int], str]:
    """How each try has ended."""
    return {(r.key.task, r.key.instance, r.key.try_number): str(r.state) for r in records if r.state != "deferred"}


@pytest.mark.parametrize("dag_id", ENDS)
def test_every_task_of_an_example_that_ran_is_in_the_ledger_with_its_try_and_its_end(
    cluster, cluster_ledger, runs, dag_id
):
    records = recorded(cluster_ledger, dag_id, runs[dag_id])
    assert records
    assert ends(records) == ran(cluster, dag_id, runs[dag_id])
    for record in records:
        assert record.measurement is not None
        assert record.measurement.energy.value_j is not None


@pytest.fixture(scope="module")
def blind_runs(cluster: Cluster, runs: dict[str, str], ledger_server: PostgresServer) -> dict[str, str]:
    """By DAG, a run of each while nobody answered at the ledger's port."""
    ledger_server.halt()
    try:
        return run_all(cluster)
    finally:
        ledger_server.start()


def test_the_same_examples_end_the_same_while_the_ledger_cannot_be_reached(cluster, runs, blind_runs):
    assert states(cluster, blind_runs) == states(cluster, runs)
    assert {dag_id: cluster.run_state(dag_id, run_id) for dag_id, run_id in blind_runs.items()} == ENDS


def test_what_was_metered_meanwhile_is_in_the_ledger_once_it_is_back(cluster, cluster_ledger, blind_runs):
    run_id = cluster.trigger("tutorial_taskflow_api")
    assert cluster.wait("tutorial_taskflow_api", run_id) == "success"
    wanted = {dag_id: ran(cluster, dag_id, blind) for dag_id, blind in blind_runs.items()}
    give_up_s = time.monotonic() + 60
    while (
        found := {dag_id: ends(recorded(cluster_ledger, dag_id, blind)) for dag_id, blind in blind_runs.items()}
    ) != wanted and time.monotonic() < give_up_s:
        time.sleep(0.5)
    assert found == wanted
    assert ends(recorded(cluster_ledger, "tutorial_taskflow_api", run_id)) == ran(
        cluster, "tutorial_taskflow_api", run_id
    )


def test_a_training_is_metered_with_the_tries_that_failed_and_the_budget_that_its_author_set(cluster, cluster_ledger):
    cluster.wait_for_dags("train_model")
    run_id = cluster.trigger("train_model")
    assert cluster.wait("train_model", run_id, timeout_s=300) == "success"
    records = recorded(cluster_ledger, "train_model", run_id)
    trained = [record for record in records if record.key.task == "train"]
    assert sum(record.state == "completed" for record in trained) == 7
    assert sum(record.state == "failed" for record in trained) >= 1
    assert {record.budget for record in trained} == {"task:train"}
