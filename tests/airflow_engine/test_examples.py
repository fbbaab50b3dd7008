"""The examples that we ship: their DAGs, and the script that brings up an Airflow for them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.airflow

SHIPPED = Path(__file__).parents[2] / "examples/airflow"


@pytest.fixture(scope="module")
def dags(airflow_database):
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # before 3.2
        from airflow.models.dagbag import DagBag
    bag = DagBag(str(SHIPPED / "dags"))
    assert not bag.import_errors
    return bag.dags


def test_the_cluster_runs_the_examples_that_there_are(dags):
    import cluster

    assert sorted(dags) == sorted(cluster.EXAMPLES)


def test_the_workflow_has_the_tasks_and_the_edges_of_its_instance(dags):
    (file,) = (SHIPPED / "workflows").glob("*.json")
    specified = json.loads(file.read_text())["workflow"]["specification"]["tasks"]
    tasks = dags["workflow"].task_dict
    assert {name: task.upstream_task_ids for name, task in tasks.items()} == {
        each["id"]: set(each["parents"]) for each in specified
    }
    assert len(tasks) == 58


def test_the_etl_maps_200_items_and_loads_a_row_of_each(dags, tmp_path):
    tasks = dags["mapped_etl"].task_dict
    items = tasks["extract"].python_callable()
    assert (len(items), {len(item) for item in items}) == (200, {6})
    rows = [tasks["transform"].python_callable(item) for item in items]
    assert tasks["load"].python_callable(rows, params={"database": str(tmp_path / "prices.db")}) == 200
    (mean,) = sqlite3.connect(tmp_path / "prices.db").execute("SELECT avg(mean_usd_per_kwh) FROM prices").fetchone()
    assert mean == pytest.approx(sum(price for item in items for _, price in item) / 1200)


def test_the_guard_ends_what_is_left_when_whoever_began_it_is_gone(tmp_path):
    env = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    sleep = ["sleep", "600"]
    leader = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
    strayed = subprocess.Popen(sleep, env=env, start_new_session=True)
    stranger = subprocess.Popen(sleep, start_new_session=True)
    guard = subprocess.Popen([sys.executable, str(SHIPPED / "guard.py"), str(tmp_path)], stdin=subprocess.PIPE)
    try:
        leader.terminate()
        leader.wait(10)  # its child lives on in its session
        guard.communicate(f"{leader.pid}\n".encode(), timeout=60)
        assert strayed.wait(10) < 0
        assert not in_session(leader.pid)
        assert stranger.poll() is None
    finally:
        for process in (leader, strayed, stranger, guard):
            process.kill()
            process.wait()


def in_session(leader: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == leader and state not in "ZX":
                found.append(int(entry.name))
    return found
