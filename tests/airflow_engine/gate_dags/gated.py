"""Tasks that wait by the gate: of plain executors, failing once, and with a deferral of their own."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, task

from airflow_plugin.operators import tao


class Returning(BaseOperator):
    """Defers by itself, and says what came of it."""

    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="back", kwargs={"moment": "then"})

    def back(self, context, event=None, moment=None):
        return [isinstance(event, datetime), moment]


with DAG("gated", schedule=None, default_args={"tao": {"deferrable": True, "max_defer": "2h"}}):

    @task(queue="normal", retries=1, retry_delay=timedelta(seconds=1), execution_timeout=timedelta(seconds=60))
    def fails_once(ti=None):
        if ti.try_number == 1:
            raise ValueError("once")
        return ti.try_number

    @task(executor="LocalExecutor")
    def local():
        return "local"

    fails_once()
    local()
    tao(Returning(task_id="returning", queue="green"))
    tao(task(task_id="at_once")(lambda: "at once")(), deferrable=False)
