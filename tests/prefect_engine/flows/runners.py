"""A flow under the task runner named on the command line; prints its run id."""

from __future__ import annotations

import os
import sys
import time

from prefect.context import get_run_context

from tao_flows import tao_flow, tao_task


def burn(cpu_s: float) -> None:
    started_s = time.thread_time()
    while time.thread_time() - started_s < cpu_s:
        pass


@tao_task(task_run_name="work-{n}", budget="40 J")
def work(n: int) -> int:
    burn(0.05 * n)
    return os.getpid()


def runner(name: str):
    if name == "dask":
        from prefect_dask import DaskTaskRunner

        return DaskTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None})
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    return ProcessPoolTaskRunner(max_workers=2) if name == "process" else ThreadPoolTaskRunner()


@tao_flow(team="runners")
def main() -> str:
    futures = work.map([1, 2, 3, 4])
    elsewhere = {pid != os.getpid() for pid in futures.result()}
    print("elsewhere", elsewhere)
    return str(get_run_context().flow_run.id)


if __name__ == "__main__":
    print("run", main.with_options(task_runner=runner(sys.argv[1]))())
