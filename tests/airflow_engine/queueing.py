"""Tasks that are queued in Airflow's own database, without a scheduler, and executors to hand them to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

HEADER = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
"""


def parse(name: str, source: str, executors: str) -> None:
    """Has Airflow read the DAGs of a file as its DAG processor does, where those are ``[core] executor``."""
    Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"], f"{name}.py").write_text(HEADER + source)
    command = [sys.executable, "-m", "airflow", "dags", "reserialize"]
    env = {**os.environ, "AIRFLOW__CORE__EXECUTOR": executors}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]


@contextmanager
def airflow_session() -> Iterator[Any]:
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        yield session


def start_run(dag_id: str, *, started: datetime | None = None) -> str:
    """A run that is under way, none of whose tasks has been looked at yet; its id."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.models.dagrun import DagRun
    from airflow.utils.types import DagRunTriggeredByType
    from sqlalchemy import update

    run_id = f"manual__{uuid4().hex}"
    trigger_dag(dag_id, triggered_by=DagRunTriggeredByType.TEST, run_id=run_id)
    with airflow_session() as session:
        values = {"state": "running", "start_date": started or datetime.now(timezone.utc)}
        session.execute(update(DagRun).where(DagRun.run_id == run_id).values(values))
    return run_id


def queue(dag_id: str, run_id: str, task_id: str, **values: Any) -> Any:
    """Queues a task instance as the scheduler does; its workload."""
    from airflow.executors.workloads import ExecuteTask
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select, update

    of_it = (TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id, TaskInstance.task_id == task_id)
    now = datetime.now(timezone.utc)
    values = {"state": "queued", "queued_dttm": now, "scheduled_dttm": now, "try_number": 1, **values}
    with airflow_session() as session:
        session.execute(update(TaskInstance).where(*of_it).values(values))
    with airflow_session() as session:
        return ExecuteTask.make(session.scalars(select(TaskInstance).where(*of_it)).one())


def row_of(workload: Any) -> Any:
    """The task instance as the database has it."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    ti = workload.ti
    query = select(TaskInstance).where(
        TaskInstance.dag_id == ti.dag_id, TaskInstance.run_id == ti.run_id, TaskInstance.task_id == ti.task_id
    )
    with airflow_session() as session:
        found = session.scalars(query).one()
        session.expunge_all()
    return found


async def nothing(**_: object) -> None:
    """What a Deadline Alert calls here."""
