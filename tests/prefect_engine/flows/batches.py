"""Batches in other processes, and processes that die: ``batches.py HOW DIR`` prints what each item came to, as JSON."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from prefect import task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Scheduled
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from tao_flows import tao_flow, tao_task
from tao_flows.prefect import energy_of

FOLDER = Path(sys.argv[2])


def runner_of(how: str) -> Any:
    if how.startswith("dask"):
        from prefect_dask import DaskTaskRunner

        return DaskTaskRunner(cluster_kwargs={"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None})
    return ProcessPoolTaskRunner(max_workers=1) if how.startswith("process") else ThreadPoolTaskRunner()


def work(folder: Path, number: int, killer: int = -1) -> Any:
    with (folder / str(number)).open("a") as runs:
        runs.write("x")
    if number == killer and not (folder / "died").exists():
        (folder / "died").touch()
        # The runner's processes share a queue to their parent, and one that dies with its lock locks it for good.
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 1:
        raise ValueError(f"item {number}")
    return threading.Lock() if number == 2 else number * 10


def count_runs() -> list[int]:
    return [len(path.read_text()) for path in sorted(FOLDER.glob("[0-9]*"), key=lambda path: int(path.name))]


def told(future: Any) -> Any:
    try:
        result = future.result()
    except BaseException as error:  # noqa: BLE001 - it is what is told
        return f"{type(error).__name__}: {error}"
    return result if isinstance(result, int) else type(result).__name__


def add(x: int) -> int:
    return x + 1


HOW = sys.argv[1]
KILLER = 5 if "killed" in HOW else -1
RETRIES = 1 if "retried" in HOW else 0


@tao_flow
def main() -> None:
    work_task = tao_task(work, coalesce=4, retries=RETRIES)
    futures = work_task.map(FOLDER, range(8), killer=KILLER)
    found: dict[str, Any] = {"items": [told(future) for future in futures]}
    if KILLER < 0:
        found["plain"] = [told(future) for future in task(work, retries=RETRIES).map(FOLDER, range(8))]
        found["after"] = [told(future) for future in tao_task(add, coalesce=4).map(futures)]
        found["one"] = task(add).submit(futures[3]).result()
        found["energy"] = [energy_of(future).value_j for future in futures]
    found["runs"] = count_runs()
    print("FOUND", json.dumps(found))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)  # a process that hangs says where
    here = main.with_options(task_runner=runner_of(HOW))
    if len(sys.argv) > 3:  # the same flow run again, as a worker would start it
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(sys.argv[3], Scheduled(), force=True)
            run_flow(here, flow_run=client.read_flow_run(sys.argv[3]))
    else:
        here()
