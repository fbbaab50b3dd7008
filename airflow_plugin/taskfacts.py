"""The facts of a try that is about to run in this process."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Any, Final

from airflow_plugin._compat import dagrun_timeout, queue_of, run_of
from airflow_plugin.facts import Facts, options_of
from airflow_plugin.places import LOCAL, executors, pool_of
from tao_flows.telemetry.procfs import command_line
from tao_flows.units import NS_PER_S

_LOCAL_TITLE: Final = "airflow worker -- LocalExecutor"
"""What LocalExecutor calls its processes; the task's own is a child of one."""


def facts_of(ti: Any, *, own_process: bool = True) -> Facts:
    """What is known of a running task instance.

    Args:
        ti: Airflow's, once its task is ready to run.
        own_process: it has this process to itself; else it runs where ``dag.test()`` was called.
    """
    task, run = ti.task, run_of(ti)
    started_ns, now_ns = _wall_ns(getattr(ti, "start_date", None)), time.time_ns()
    run_start_ns, timeout = _wall_ns(getattr(run, "start_date", None)), dagrun_timeout(ti)
    return Facts(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=max(1, ti.try_number),
        pool=_pool(ti) if own_process else LOCAL,
        ready_wall_ns=now_ns if started_ns is None else min(started_ns, now_ns),
        operator=getattr(task, "task_type", type(task).__name__),
        sensor=bool(getattr(task, "_is_sensor", False)) or _is_sensor(task),
        owner=_owner(task),
        tags=tuple(sorted(getattr(task.dag, "tags", None) or ())),
        run_type=str(getattr(getattr(run, "run_type", None), "value", "") or ""),
        run_start_wall_ns=run_start_ns,
        data_interval_end_wall_ns=_wall_ns(getattr(run, "data_interval_end", None)),
        latest_end_wall_ns=None
        if timeout is None or run_start_ns is None
        else run_start_ns + round(timeout.total_seconds() * NS_PER_S),
        options=dict(options_of(getattr(task, "executor_config", None))),
    )


def _pool(ti: Any) -> str:
    """Where it runs, which is not where its author sent it if it was moved."""
    specs = executors()
    queue, executor = queue_of(ti), getattr(ti.task, "executor", None)
    if len(specs) > 1 and any(spec.is_local for spec in specs):
        title = " ".join(command_line(os.getppid()) or ())
        if title.startswith(_LOCAL_TITLE):
            return LOCAL
        if pool_of(queue, executor, specs) == LOCAL:
            executor = next((spec.alias for spec in specs if not spec.is_local), executor)
    return pool_of(queue, executor, specs)


def _owner(task: Any) -> str:
    """The task's owner; empty where that is Airflow's for tasks without one."""
    from airflow.configuration import conf

    owner = getattr(task, "owner", "") or ""
    return "" if owner == conf.get("operators", "default_owner", fallback="airflow") else owner


def _is_sensor(task: Any) -> bool:
    return any(each.__name__ == "BaseSensorOperator" for each in type(task).__mro__)


def _wall_ns(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * NS_PER_S)
