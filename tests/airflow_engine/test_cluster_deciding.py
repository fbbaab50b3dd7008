"""A whole Airflow whose executors are ours: tasks go where it is clean, wait no longer than promised, and are not lost."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from cluster import Cluster

from airflow_plugin.facts import run_ref
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budgets import BudgetStore
from tao_flows.records import TaskState

pytestmark = pytest.mark.airflow

LOCAL = "airflow_plugin.executor.TaoLocalExecutor"
SETTINGS = """
mode = "enforce"
pools = "pools.toml"
[budgets.many]
limit = "1 GJ"
[[rules]]
name = "*"
trigger = "manual"
mode = "enforce"
[signals.carbon]
normal = { csv = "normal.csv" }
green = { csv = "green.csv" }
local = { csv = "local.csv" }
"""
POOL = """
[[pools]]
pool_id = "{0}"
zone = "{0}"
energy_j = {{ mean = 3.6e6, low = 3.6e6, high = 3.6e6 }}
runtime_s = {{ p50 = 2, p95 = 4 }}
"""
# Starts are planned minutes apart; a test has no minutes.
SOON = "import tao_flows.gather\ntao_flows.gather.SLOT_S = 5.0\n"


@contextmanager
def deciding_cluster(home: Path, **more: Any) -> Iterator[Cluster]:
    """An Airflow of two queues and a local executor whose tasks may wait and move."""
    try:
        made = Cluster(
            home,
            dags=Path(__file__).parent / "deciding_dags",
            env={
                "TAO_FLOWS_CONFIG": str(home / "tao-flows.toml"),
                "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
                # What a killed worker has taken from the queue and not begun is nobody's until Airflow looks.
                "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "40",
                "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
            },
            **more,
        )
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    (home / "plugins").mkdir()
    (home / "plugins/soon.py").write_text(SOON)
    (home / "pools.toml").write_text("".join(POOL.format(pool) for pool in ("normal", "green", "local")))
    (home / "tao-flows.toml").write_text(SETTINGS)
    grams(made, normal=100, green=100, local=100)
    with made:
        made.wait_for_dags("moves", "resumes", "leaves", "hurries", "many", "patient")
        yield made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with deciding_cluster(tmp_path_factory.mktemp("deciding")) as made:
        yield made


@pytest.fixture
def ledger(cluster: Cluster) -> Iterator[Ledger]:
    opened = open_ledger(cluster.ledger_url)
    yield opened
    opened.close()


def grams(cluster: Cluster, *, better_in_s: float | None = None, **by_pool: float) -> None:
    """Says how clean each pool is from now on; a tenth of it later on, where it gets better."""
    now = datetime.now(timezone.utc)
    for pool, value in by_pool.items():
        after = [(-600.0, value), (36_000.0, value)]
        if better_in_s is not None:
            after = [(-600.0, value), (better_in_s, value / 10), (36_000.0, value)]
        rows = [f"{(now + timedelta(seconds=seconds)).isoformat()},{pool},{value}" for seconds, value in after]
        (cluster.home / f"{pool}.new").write_text("\n".join(["time,zone,value", *rows]))
        (cluster.home / f"{pool}.new").replace(cluster.home / f"{pool}.csv")
    time.sleep(1.0)


def until(is_so: Callable[[], Any], timeout_s: float = 240.0) -> Any:
    give_up_s = time.monotonic() + timeout_s
    while not (found := is_so()):
        assert time.monotonic() < give_up_s
        time.sleep(0.2)
    return found


def result(cluster: Cluster, dag_id: str, run_id: str, task_id: str) -> Any:
    """What a task has returned."""
    path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/return_value"
    return cluster.api("GET", f"{path}?stringify=false")["value"]


def state(cluster: Cluster, dag_id: str, run_id: str) -> str:
    return str(cluster.tasks(dag_id, run_id)[0]["state"])


def test_a_task_of_a_dear_queue_goes_to_the_green_one_and_back_at_its_retry(cluster, ledger):
    grams(cluster, normal=500, green=20, local=500)
    run_id = cluster.trigger("moves")
    said = [cluster.home / f"try-{number}-of-{run_id.replace(':', '')}" for number in (1, 2)]
    until(said[0].exists)
    grams(cluster, normal=20, green=500, local=500)
    said[0].with_suffix(".flipped").touch()
    assert cluster.wait("moves", run_id) == "success"
    assert [each.read_text() for each in said] == ["green", "normal"]
    assert cluster.tasks("moves", run_id)[0]["queue"] == "normal"
    moved = [each for each in ledger.decisions(run_ref("moves", run_id, "default")) if each.action == "reroute"]
    assert [(each.key.try_number, each.pool, each.enforced) for each in moved] == [(1, "green", True)]


def test_a_resume_goes_where_it_is_clean_then_with_its_own_event(cluster):
    grams(cluster, normal=20, green=500, local=500)
    run_id = cluster.trigger("resumes")
    until(lambda: state(cluster, "resumes", run_id) == "deferred")
    grams(cluster, normal=500, green=20, local=500)
    assert cluster.wait("resumes", run_id) == "success"
    began, came_back, event = result(cluster, "resumes", run_id, "defers_itself")
    assert [began, came_back] == ["normal", "green"]
    assert event[:4].isdigit()  # the moment that its own trigger waited for


def test_tasks_go_from_celery_to_local_and_from_local_to_celery(cluster):
    for clean in ("local", "green"):
        grams(cluster, **{"normal": 500, "green": 500, "local": 500, clean: 20})
        run_id = cluster.trigger("leaves")
        assert cluster.wait("leaves", run_id) == "success"
        ran = [result(cluster, "leaves", run_id, task_id) for task_id in ("from_celery", "from_local")]
        assert ran == [clean, clean]


def test_a_task_with_a_deadline_starts_by_its_latest_start_although_better_is_promised_again_and_again(cluster, ledger):
    grams(cluster, better_in_s=12, normal=500, green=500, local=500)
    triggered_s = time.time()
    run_id = cluster.trigger("hurries")
    while cluster.run_state("hurries", run_id) not in {"success", "failed"}:
        assert time.time() < triggered_s + 120
        grams(cluster, better_in_s=12, normal=500, green=500, local=500)
    assert cluster.run_state("hurries", run_id) == "success"
    started_s = result(cluster, "hurries", run_id, "promised")
    assert triggered_s + 30 < started_s < triggered_s + 60
    decisions = ledger.decisions(run_ref("hurries", run_id, "default"))
    assert Counter(each.action for each in decisions)["defer"] >= 1


@pytest.mark.parametrize("killed", ["scheduler", "green"])
def test_what_is_killed_midway_costs_no_task_and_each_try_is_in_the_ledger_once(killed, cluster, ledger):
    grams(cluster, normal=500, green=20, local=500)
    run_id = cluster.trigger("many")
    until(lambda: any(each["state"] == "running" for each in cluster.tasks("many", run_id)))
    cluster.kill(killed, signal.SIGKILL)
    time.sleep(2)
    cluster.begin(killed)
    assert cluster.wait("many", run_id, 240) == "success"
    assert_each_try_once(cluster, ledger, run_id)
    until(lambda: not BudgetStore(ledger).standings(["many"])[0].reserved_uj)


def test_of_two_schedulers_one_is_killed_and_each_task_still_runs_and_waits_once(cluster, ledger):
    grams(cluster, better_in_s=300, normal=500, green=500, local=500)
    cluster.begin("scheduler-second")
    waiting = [all_wait(cluster, cluster.trigger("patient")) for _ in range(3)]
    grams(cluster, normal=500, green=20, local=500)
    runs = [cluster.trigger("many") for _ in range(2)]
    until(lambda: any(each["state"] == "running" for each in cluster.tasks("many", runs[0])))
    cluster.kill("scheduler-second", signal.SIGKILL)
    for run_id in runs:
        assert cluster.wait("many", run_id, 240) == "success"
        assert_each_try_once(cluster, ledger, run_id)
    for run_id in waiting:
        assert cluster.wait("patient", run_id) == "success"
        assert set(waits_of(ledger, run_id).values()) == {"started"}


def assert_each_try_once(cluster: Cluster, ledger: Ledger, run_id: str) -> None:
    tasks = cluster.tasks("many", run_id)
    assert {each["state"] for each in tasks} == {"success"}
    records = ledger.tasks(run_ref("many", run_id, "default"))
    ended = Counter((r.key.instance, r.key.try_number) for r in records if r.state is TaskState.COMPLETED)
    assert set(ended.values()) == {1}
    assert set(ended) >= {(str(each["map_index"]), each["try_number"]) for each in tasks}


def waits_of(ledger: Ledger, run_id: str) -> dict[tuple[int, int], str]:
    """By instance and try, how the ledger has each wait of a run."""
    with ledger.transaction(write=False) as tx:
        query = "SELECT instance, try_number, state FROM deferrals WHERE run_id = :run_id"
        return {(int(instance), tried): state for instance, tried, state in tx.execute(query, run_id=run_id)}


def all_wait(cluster: Cluster, run_id: str) -> str:
    until(lambda: {each["state"] for each in cluster.tasks("patient", run_id)} == {"deferred"})
    return run_id


def test_a_killed_triggerer_loses_no_wait_and_its_successor_hears_the_signal(cluster, ledger):
    grams(cluster, better_in_s=300, normal=500, green=500, local=500)
    run_id = all_wait(cluster, cluster.trigger("patient"))
    time.sleep(5)
    cluster.kill("triggerer", signal.SIGKILL)
    cluster.begin("triggerer")
    time.sleep(5)
    assert set(waits_of(ledger, run_id).values()) == {"waiting"}
    grams(cluster, normal=500, green=500, local=500)
    assert cluster.wait("patient", run_id) == "success"
    assert waits_of(ledger, run_id) == dict.fromkeys([(number, 1) for number in range(3)], "started")


def whose(cluster: Cluster, run_id: str) -> set[int | None]:
    """The jobs that look after the waits of a run."""
    query = "SELECT DISTINCT t.triggerer_id FROM trigger t JOIN task_instance ti ON ti.trigger_id = t.id"
    return {row[0] for row in cluster.sql(f"{query} WHERE ti.run_id = '{run_id}'")}


def test_the_waits_of_a_triggerer_that_stands_still_are_taken_by_another_and_nothing_is_doubled(cluster, ledger):
    grams(cluster, better_in_s=300, normal=500, green=500, local=500)
    run_id = all_wait(cluster, cluster.trigger("patient"))
    until(lambda: len(whose(cluster, run_id)) == 1 and None not in whose(cluster, run_id))
    before = whose(cluster, run_id)
    first = psutil.Process(cluster.processes["triggerer"].pid)
    still = [first, *first.children(recursive=True)]
    for process in still:
        process.suspend()
    cluster.begin("triggerer-second")
    try:
        until(lambda: whose(cluster, run_id).isdisjoint(before | {None}))
        grams(cluster, normal=500, green=500, local=500)
        assert cluster.wait("patient", run_id) == "success"
    finally:
        for process in still:
            process.resume()
    time.sleep(10)  # what it missed it hears now
    tasks = cluster.tasks("patient", run_id)
    assert {(each["state"], each["try_number"]) for each in tasks} == {("success", 1)}
    assert waits_of(ledger, run_id) == dict.fromkeys([(number, 1) for number in range(3)], "started")
    records = [
        each for each in ledger.tasks(run_ref("patient", run_id, "default")) if each.state is TaskState.COMPLETED
    ]
    assert Counter((each.key.instance, each.key.try_number) for each in records) == dict.fromkeys(
        [(str(number), 1) for number in range(3)], 1
    )


def test_what_a_user_clears_or_fails_while_it_waits_is_gone_and_the_rest_waits_on(cluster, ledger):
    grams(cluster, better_in_s=300, normal=500, green=500, local=500)
    run_id = all_wait(cluster, cluster.trigger("patient"))
    time.sleep(5)
    run = {"dag_run_id": run_id, "only_failed": False, "dry_run": False, "task_ids": [["waits", 0]]}
    cluster.api("POST", "/dags/patient/clearTaskInstances", run)
    one = f"/dags/patient/dagRuns/{quote(run_id, safe='')}/taskInstances/waits/1"
    cluster.api("PATCH", one, {"new_state": "failed"})
    expected = {(0, 1): "gone", (0, 2): "waiting", (1, 1): "gone", (2, 1): "waiting"}
    until(lambda: waits_of(ledger, run_id) == expected)
    grams(cluster, normal=500, green=500, local=500)
    assert cluster.wait("patient", run_id) == "failed"
    assert {each["map_index"]: each["state"] for each in cluster.tasks("patient", run_id)} == {
        0: "success", 1: "failed", 2: "success",
    }  # fmt: skip
