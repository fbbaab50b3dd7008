"""A whole Airflow for one side. Runs in Airflow's environment; ``sites.py`` starts it and talks to it by lines.

On the plain side tao-flows is hidden from Airflow's registries: no plugin, policy or listener of it is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "examples/airflow"))
from cluster import Cluster  # noqa: E402

sys.path.append(str(REPOSITORY))
from benchmarks.airflow_deferral import WITHOUT_US  # noqa: E402

PATIENCE_S: Final = 3_600.0
DAG: Final = """
from airflow.sdk import dag, get_current_context, task

for count in {counts}:
    @dag(dag_id=f"items_{{count}}", schedule=None, max_active_tasks=100_000, max_active_runs=100)
    def items():
        @task.{decorator}
        def work(number):
            from benchmarks.headline.work import run_item
            return run_item(get_current_context()["dag_run"].conf["group"], number)

        work.expand(number=list(range(count)))

    items()
"""
SETTINGS: Final = """
mode = "{mode}"
"""


def cluster_of(side: str, executor: str, counts: list[int], home: Path) -> Cluster:
    """Airflow as this side has it, not yet started."""
    for folder in ("dags", "path"):
        (home / folder).mkdir(parents=True)
    # Observed and advised runs are as they were written; to have items share tasks is what enforcing means here.
    decorator = "tao_batch" if side == "enforce" else "python"
    (home / "dags/items.py").write_text(DAG.format(counts=counts, decorator=decorator))
    (home / "tao-flows.toml").write_text(SETTINGS.format(mode=side))
    if side == "plain":
        (home / "path/sitecustomize.py").write_text(WITHOUT_US)
    plain = {"local": "LocalExecutor", "celery": "CeleryExecutor"}[executor]
    ours = f"airflow_plugin.executor.Tao{plain}"
    env = {
        "PYTHONPATH": os.pathsep.join((str(home / "path"), str(REPOSITORY))),
        "TAO_FLOWS_CONFIG": str(home / "tao-flows.toml"),
        "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": "100000",
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "100000",
        # As Airflow has them by default: the examples look for changed files far more often.
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "300",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(os.cpu_count() or 1),
        "HEADLINE_SPEC": os.environ["HEADLINE_SPEC"],
    }
    executors = plain if side == "plain" else ours
    return Cluster(
        home / "airflow",
        dags=home / "dags",
        env=env,
        executors=executors,
        queues=("normal",),
        parallelism=2 * (os.cpu_count() or 1),
    )


def run(cluster: Cluster, told: dict[str, Any]) -> dict[str, Any]:
    """Starts a run of the DAG at each of the times."""
    dag_id, run_ids = f"items_{told['items']}", {}
    for group, at_s in told["arrivals"]:
        time.sleep(max(0.0, at_s - time.time()))
        run_ids[group] = cluster.trigger(dag_id, {"group": group})
    return {"run_ids": list(run_ids.values())}


def ended(cluster: Cluster, run_ids: list[str]) -> dict[str, Any]:
    """Waits until the runs have ended; how many task instances did not succeed."""
    named = ", ".join(f"'{each}'" for each in run_ids)
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        rows = cluster.sql(f"SELECT state, count(*) FROM dag_run WHERE run_id IN ({named}) GROUP BY state")
        if all(state in {"success", "failed"} for state, _ in rows):
            break
        time.sleep(1.0)
    rows = cluster.sql(f"SELECT state, count(*) FROM task_instance WHERE run_id IN ({named}) GROUP BY state")
    return {"task_states": {str(state): int(count) for state, count in rows}}


def serve(side: str, executor: str, counts: list[int]) -> None:
    """Brings Airflow up and does what it is told to by lines on standard input."""
    with (
        tempfile.TemporaryDirectory(prefix="tao-headline-") as home,
        cluster_of(side, executor, counts, Path(home)) as cluster,
    ):
        cluster.wait_for_dags(*(f"items_{count}" for count in counts))
        pids = {name: [process.pid] for name, process in cluster.processes.items()}
        print(json.dumps({"ready": True, "components": {**pids, "postgres": [cluster.postgres.pid]}}), flush=True)
        for line in sys.stdin:
            told = json.loads(line)
            answer = ended(cluster, told["ended"]) if "ended" in told else run(cluster, told)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], [int(each) for each in sys.argv[3].split(",")])
