"""What Airflow tells us of: tasks in their own processes, DAG runs in the scheduler.

In a task's process (or in that of ``dag.test()``) a try is begun right before its code runs, and ended when the task
runner is done. In the scheduler and the API server nothing is done here but to tell a thread of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.listeners import hookimpl

from airflow_plugin._compat import is_runtime_ti

log = logging.getLogger("tao_flows.airflow")


@hookimpl
def on_starting(component: Any) -> None:
    """A component of Airflow starts; of interest is a task's own process, before it reads its DAG."""
    if _is_task_runner(component):
        with _never_raising("starting to meter a task's process"):
            from airflow_plugin import metering

            metering.process_started()


@hookimpl
def on_task_instance_running(task_instance: Any) -> None:
    """A task is about to run: its templates are rendered, and its hooks not yet called."""
    if is_runtime_ti(task_instance):
        with _never_raising("preparing to meter a task"):
            from airflow_plugin import gate, metering

            gate.install_resume()
            metering.attach(task_instance)


# First, so that what other listeners do is not counted as the task's, and lineage events have its figures.
@hookimpl(tryfirst=True)
def on_task_instance_success(task_instance: Any) -> None:
    """A task has succeeded, or was said to have by a person, while it ran."""
    _ended(task_instance)


@hookimpl(tryfirst=True)
def on_task_instance_failed(task_instance: Any, error: Any) -> None:
    """A try has failed, or was said to have by a person, or by the executor whose process is gone."""
    _ended(task_instance, error)


@hookimpl
def before_stopping(component: Any) -> None:
    """A component of Airflow stops; a task's runner says so however its try has ended, unless it was killed."""
    if _is_task_runner(component):
        with _never_raising("recording a task"):
            from airflow_plugin import metering

            metering.runner_stops()


@hookimpl
def on_dag_run_running(dag_run: Any) -> None:
    """A DAG run starts, or goes on after it was cleared."""
    _run_changed(dag_run)


@hookimpl
def on_dag_run_success(dag_run: Any) -> None:
    """A DAG run has succeeded."""
    _run_changed(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any) -> None:
    """A DAG run has failed."""
    _run_changed(dag_run)


def _ended(task_instance: Any, error: Any = None) -> None:
    with _never_raising("hearing of a task's end"):
        if is_runtime_ti(task_instance):
            from airflow_plugin import metering

            metering.code_ended(task_instance, error)
        else:
            from airflow_plugin import runs

            runs.try_ended(task_instance)


def _run_changed(dag_run: Any) -> None:
    with _never_raising("hearing of a DAG run"):
        from airflow_plugin import runs

        runs.run_changed(dag_run)


def _is_task_runner(component: Any) -> bool:
    return type(component).__name__ == "TaskRunnerMarker"


@contextmanager
def _never_raising(doing: str) -> Iterator[None]:
    """What fails in here is noted. Airflow would log it as well, and count and show nothing."""
    try:
        yield
    except Exception as ours:
        log.warning("%s: %s: %s", doing, type(ours).__name__, ours, exc_info=True)
        from tao_flows import runtime

        if (tao := runtime.built()) is not None:
            tao.incidents.note_error(doing, ours)
