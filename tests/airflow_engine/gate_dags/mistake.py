"""What an author got wrong."""

from __future__ import annotations

from airflow.sdk import DAG, task

with DAG("mistake", schedule=None, tags=["tao:deadline=soon"]):
    task(task_id="work")(lambda: 1)()
