"""The gate on a whole Airflow whose executors are its own: tasks leave their workers, come back, and are tried again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from airflow_plugin.facts import run_ref
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.deferrals import DeferralStore

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

SETTINGS = """
mode = "enforce"
pools = "pools.toml"
[[rules]]
name = "*"
trigger = "manual"
mode = "enforce"
[signals.carbon]
here = { csv = "here.csv" }
"""
POOL = """
[[pools]]
pool_id = "{}"
zone = "here"
energy_j = {{ mean = 3.6e6, low = 3.5e6, high = 3.7e6 }}
runtime_s = {{ p50 = 2, p95 = 4 }}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("gate")
    try:
        made = Cluster(
            home,
            dags=Path(__file__).parent / "gate_dags",
            executors="CeleryExecutor,LocalExecutor",
            env={"TAO_FLOWS_CONFIG": str(home / "tao-flows.toml")},
        )
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    (home / "pools.toml").write_text("".join(POOL.format(pool) for pool in ("normal", "green", "local")))
    (home / "tao-flows.toml").write_text(SETTINGS)
    # Clean in an hour, for an hour.
    now = datetime.now(timezone.utc)
    rows = [f"{(now + timedelta(hours=at)).isoformat()},here,{grams}" for at, grams in ((-1, 500), (1, 20), (2, 500))]
    (home / "here.csv").write_text("\n".join(["time,zone,value", *rows]))
    with made:
        made.wait_for_dags("gated")
        yield made


@pytest.fixture
def ledger(cluster: Cluster) -> Iterator[Ledger]:
    opened = open_ledger(cluster.ledger_url)
    yield opened
    opened.close()


def until(is_so: Callable[[], Any], timeout_s: float = 240.0) -> Any:
    give_up_s = time.monotonic() + timeout_s
    while not (found := is_so()):
        assert time.monotonic() < give_up_s
        time.sleep(0.2)
    return found


def test_tasks_wait_without_a_worker_come_back_and_are_asked_about_again_at_each_try(cluster, ledger):
    run_id = cluster.trigger("gated")
    store = DeferralStore(ledger)

    def states() -> dict[str, str]:
        return {each["task_id"]: each["state"] for each in cluster.tasks("gated", run_id)}

    def release(*task_ids: str, try_number: int = 1) -> None:
        """Has tasks start that wait, once they do."""

        def waiting() -> list[Any]:
            return [d.key for d in store.open() if d.key.task in task_ids and d.key.try_number == try_number]

        keys = until(lambda: waiting() if len(waiting()) == len(task_ids) else None)
        store.release(keys, said_by="a test", reason="it has seen them wait")

    until(lambda: list(states().values()).count("deferred") == 3 and states()["at_once"] == "success")
    assert not any(record.key.task != "at_once" for record in ledger.tasks(run_ref("gated", run_id, "default")))
    release("fails_once", "local", "returning")
    release("fails_once", try_number=2)
    # Back from a deferral of its own, it waits once more.
    release("returning")
    assert cluster.wait("gated", run_id) == "success", states()
    assert result(cluster, run_id, "fails_once") == 2
    assert result(cluster, run_id, "local") == "local"
    assert result(cluster, run_id, "returning") == [True, "then"]
    ended = {(r.key.task, r.key.try_number): str(r.state) for r in ledger.tasks(run_ref("gated", run_id, "default"))}
    assert ended["fails_once", 1] == "failed"
    assert {ended[name, number] for name, number in (("fails_once", 2), ("local", 1), ("at_once", 1))} == {"completed"}
    assert list(store.open()) == []


def result(cluster: Cluster, run_id: str, task_id: str) -> Any:
    path = f"/dags/gated/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value?deserialize=true"
    value = cluster.api("GET", path.replace("+", "%2B"))["value"]
    return json.loads(value) if isinstance(value, str) and value[:1] in '[{"' else value


def test_an_authors_mistake_is_one_line_among_the_import_errors_and_stops_nobody_else(cluster):
    (error,) = until(lambda: cluster.api("GET", "/importErrors")["import_errors"])
    assert error["filename"].endswith("mistake.py")
    (line,) = error["stack_trace"].strip().splitlines()
    assert "task 'work': BAD_DURATION: tag 'tao:deadline=soon': deadline: 'soon' is not a duration" in line
    assert cluster.api("GET", "/monitor/health")["scheduler"]["status"] == "healthy"
