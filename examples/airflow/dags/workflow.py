"""A scientific workflow: Montage, which makes one picture of the sky out of many, in 58 tasks.

Its tasks and what depends on what are read from an instance in WfFormat (https://wfcommons.org), so that any other one
can be put in its place. Each task uses CPU time in proportion to the runtime in the instance, in place of its
programs and files. Nothing here knows of tao-flows: the tasks are metered as they are.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from airflow.sdk import dag, task

INSTANCE = Path(__file__).resolve().parents[1] / "workflows/montage-58.json"
CPU_S_PER_S = 0.001
"""CPU seconds to use for a second of the instance; a run can be given another."""


@dag(schedule=None, catchup=False, tags=["example"], params={"cpu_s_per_s": CPU_S_PER_S})
def workflow():
    """The instance as a DAG."""

    @task
    def work(runtime_s: float, params=None) -> float:
        cpu_s = runtime_s * params["cpu_s_per_s"]
        begun_s = time.thread_time()
        while (spent_s := time.thread_time() - begun_s) < cpu_s:
            sum(range(1000))
        return spent_s

    content = json.loads(INSTANCE.read_text(encoding="utf-8"))["workflow"]
    runtimes_s = {each["id"]: each["runtimeInSeconds"] for each in content["execution"]["tasks"]}
    specified = content["specification"]["tasks"]
    tasks = {each["id"]: work.override(task_id=each["id"])(runtimes_s[each["id"]]) for each in specified}
    for each in specified:
        for parent in each["parents"]:
            tasks[parent] >> tasks[each["id"]]


workflow()
